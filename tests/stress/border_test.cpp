// Every entry of every table through which the host calls the plugin, with each of its requests for memory
// refused in turn: no exception leaves, and everything works afterwards.
#include <dlfcn.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>

#include "fault_hooks.h"
#include "ggml-backend-impl.h"
#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

// Runs fn with its n-th request for memory refused, for every n until it has no n-th.
void refuse_in_turn(const char* entry, const std::function<void()>& fn) {
    SCOPED_TRACE(entry);
    long requests = 0, n = 0;
    do {
        fail_from(Memory::kRecords, n);
        EXPECT_NO_THROW(fn()) << "request " << n;
        requests = fail_from(Memory::kRecords, -1);
    } while (requests > n++ && n < 1000);
    if (n > 1) std::printf("%s: %ld requests\n", entry, n - 1);
}

// A cache as llama.cpp makes it, and nodes that use it.
struct Cache {
    Cache() {
        k = ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 2);
        v = ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 2);
        ggml_set_name(k, "cache_k_l0");
        ggml_set_name(v, "cache_v_l0");
        buffer =
            ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_dev_buffer_type(plugin_device()));
        ggml_tensor* rows = ggml_new_tensor_2d(context, GGML_TYPE_F32, 128, 1);
        ggml_tensor* cells = ggml_new_tensor_1d(context, GGML_TYPE_I64, 1);
        const auto flat = [&](ggml_tensor* t) { return ggml_view_2d(context, t, 128, 512, t->nb[1], 0); };
        const auto heads = [&](ggml_tensor* t) {
            return ggml_view_4d(context, t, 64, 256, 2, 1, t->nb[1], 128, t->nb[2], 0);
        };
        ggml_tensor* q = ggml_new_tensor_4d(context, GGML_TYPE_F32, 64, 1, 2, 1);
        ggml_tensor* mask = ggml_new_tensor_4d(context, GGML_TYPE_F16, 256, 1, 1, 1);
        nodes = {ggml_set_rows(context, flat(k), rows, cells),
                 ggml_flash_attn_ext(context, q, heads(k), heads(v), mask, 0.1f, 0, 0),
                 ggml_mul_mat(context, heads(k), q), ggml_cont(context, flat(v))};
    }
    ~Cache() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }
    ggml_context* context = ggml_init({1 << 20, nullptr, true});
    ggml_tensor *k, *v;
    ggml_backend_buffer_t buffer;
    std::vector<ggml_tensor*> nodes;
};

ggml_backend_dev_t cpu_device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

class Border : public testing::Test {
  protected:
    void SetUp() override { load_backends(); }
    // Whatever was refused: a context works.
    void TearDown() override {
        const Model model(small_model(), CacheOwner::kPlugin);
        ContextOptions options;
        options.n_ctx = 256;
        options.n_threads = 1;
        Context context(model, options);
        EXPECT_EQ(context.decode(random_tokens(20, model.n_vocab(), 1)).n_rows(), 20u);
    }
};

}  // namespace

TEST_F(Border, EntryPointAndRegistration) {
    void* plugin = dlopen(std::getenv("GGML_BACKEND_PATH"), RTLD_NOW);
    ASSERT_NE(plugin, nullptr);
    const auto init = reinterpret_cast<ggml_backend_reg_t (*)()>(dlsym(plugin, "ggml_backend_init"));
    refuse_in_turn("ggml_backend_init", [&] { init(); });
    ggml_backend_reg_t reg = ggml_backend_reg_by_name(kPluginRegName);
    refuse_in_turn("get_name", [&] { reg->iface.get_name(reg); });
    refuse_in_turn("get_device_count", [&] { reg->iface.get_device_count(reg); });
    refuse_in_turn("get_device", [&] { reg->iface.get_device(reg, 0); });
    for (const char* name : {"ggml_backend_set_n_threads", "ggml_backend_set_abort_callback",
                             "ggml_backend_split_buffer_type", "mixed_kv_get_api", "unknown"})
        refuse_in_turn("get_proc_address", [&] { reg->iface.get_proc_address(reg, name); });
}

TEST_F(Border, Device) {
    ggml_backend_dev_t device = plugin_device();
    const auto& iface = device->iface;
    Cache cache;
    ggml_backend_dev_props props;
    std::size_t free = 0, total = 0;
    refuse_in_turn("get_name", [&] { iface.get_name(device); });
    refuse_in_turn("get_description", [&] { iface.get_description(device); });
    refuse_in_turn("get_memory", [&] { iface.get_memory(device, &free, &total); });
    refuse_in_turn("get_type", [&] { iface.get_type(device); });
    refuse_in_turn("get_props", [&] { iface.get_props(device, &props); });
    refuse_in_turn("get_buffer_type", [&] { iface.get_buffer_type(device); });
    refuse_in_turn("supports_buft", [&] { iface.supports_buft(device, ggml_backend_cpu_buffer_type()); });
    for (ggml_tensor* node : cache.nodes)
        refuse_in_turn("supports_op", [&] { iface.supports_op(device, node); });
    refuse_in_turn("init_backend", [&] {
        if (ggml_backend_t backend = iface.init_backend(device, nullptr)) ggml_backend_free(backend);
    });
}

TEST_F(Border, BufferTypeAndBuffer) {
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(plugin_device());
    refuse_in_turn("get_name", [&] { type->iface.get_name(type); });
    refuse_in_turn("get_alignment", [&] { type->iface.get_alignment(type); });
    refuse_in_turn("is_host", [&] { type->iface.is_host(type); });
    refuse_in_turn("alloc_buffer", [&] {
        if (ggml_backend_buffer_t buffer = type->iface.alloc_buffer(type, 4096))
            ggml_backend_buffer_free(buffer);
    });
    Cache cache, other;
    ggml_backend_buffer_t buffer = cache.buffer;
    const auto& iface = buffer->iface;
    std::vector<std::byte> bytes(ggml_nbytes(cache.k));
    // Tensors as memory fitting counts them, and as a recurrent model places them.
    for (const char* name : {"cache_k_l1", "cache_r_l0", "anything"}) {
        ggml_tensor* t = ggml_new_tensor_3d(cache.context, GGML_TYPE_F16, 128, 256, 1);
        ggml_set_name(t, name);
        refuse_in_turn("get_alloc_size", [&] { type->iface.get_alloc_size(type, t); });
        t->buffer = ggml_backend_buft_alloc_buffer(type, 0);
        refuse_in_turn("get_alloc_size, counted", [&] { type->iface.get_alloc_size(type, t); });
        ggml_backend_buffer_free(t->buffer);
        std::size_t free = 0, total = 0;
        refuse_in_turn("get_memory, counted",
                       [&] { plugin_device()->iface.get_memory(plugin_device(), &free, &total); });
    }
    refuse_in_turn("get_base", [&] { iface.get_base(buffer); });
    refuse_in_turn("init_tensor", [&] {
        Cache fresh;  // whose allocation may be refused
    });
    refuse_in_turn("set_tensor", [&] { iface.set_tensor(buffer, cache.k, bytes.data(), 0, bytes.size()); });
    refuse_in_turn("get_tensor", [&] { iface.get_tensor(buffer, cache.k, bytes.data(), 0, bytes.size()); });
    refuse_in_turn("memset_tensor", [&] { iface.memset_tensor(buffer, cache.k, 0, 100, 5000); });
    refuse_in_turn("cpy_tensor", [&] { iface.cpy_tensor(buffer, other.k, cache.k); });
    refuse_in_turn("clear", [&] { iface.clear(buffer, 0); });
    refuse_in_turn("clear to ones", [&] { iface.clear(buffer, 1); });
}

TEST_F(Border, Backend) {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name(kPluginRegName);
    const auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        reg->iface.get_proc_address(reg, "ggml_backend_set_n_threads"));
    const auto set_abort = reinterpret_cast<ggml_backend_set_abort_callback_t>(
        reg->iface.get_proc_address(reg, "ggml_backend_set_abort_callback"));
    ggml_backend_reg_t cpu_reg = ggml_backend_dev_backend_reg(cpu_device());
    const auto set_threadpool = reinterpret_cast<void (*)(ggml_backend_t, ggml_threadpool_t)>(
        cpu_reg->iface.get_proc_address(cpu_reg, "ggml_backend_cpu_set_threadpool"));
    ggml_backend_t cpu = ggml_backend_dev_init(cpu_device(), nullptr);
    // The first graph of a context that has no pool is lent one.
    refuse_in_turn("set_n_threads", [&] {
        ggml_backend_t ours = ggml_backend_dev_init(plugin_device(), nullptr);
        if (ours == nullptr) return;
        set_threadpool(cpu, nullptr);
        set_n_threads(ours, 2);
        set_abort(ours, nullptr, nullptr);
        ours->iface.get_name(ours);
        Cache cache;
        ours->iface.synchronize(ours);
        ggml_backend_free(ours);
    });
    ggml_backend_free(cpu);
}

TEST_F(Border, HooksInTheHostsTables) {
    Cache cache;
    ggml_backend_dev_t cpu = cpu_device();
    for (ggml_tensor* node : cache.nodes)
        refuse_in_turn("the CPU's supports_op", [&] { ggml_backend_dev_supports_op(cpu, node); });
    refuse_in_turn("the CPU's init_backend", [&] { ggml_backend_free(ggml_backend_dev_init(cpu, nullptr)); });
    refuse_in_turn("a cache in the host's memory", [&] {
        ggml_context* context = ggml_init({1 << 16, nullptr, true});
        ggml_set_name(ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 1), "cache_k_l0");
        ggml_backend_buffer_free(
            ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type()));
        ggml_free(context);
    });
}

TEST_F(Border, ToolsInterface) {
    Cache cache;
    const mixed_kv_api& api = plugin_api();
    mixed_kv_counters counters;
    mixed_kv_tensor_info info;
    mixed_kv_page page;
    std::vector<mixed_kv_range> ranges(16);
    char text[256];
    refuse_in_turn("counters", [&] { api.counters(&counters); });
    refuse_in_turn("report", [&] { api.report(text, sizeof text); });
    refuse_in_turn("tensors", [&] { api.tensors(&info, 1); });
    refuse_in_turn("ranges", [&] { api.ranges(ranges.data(), ranges.size()); });
    refuse_in_turn("cell_state", [&] { api.cell_state(cache.k, 0, 0); });
    refuse_in_turn("page", [&] { api.page(cache.k, 0, 0, &page); });
    refuse_in_turn("tensor_info", [&] { api.tensor_info(cache.k, &info); });
    refuse_in_turn("configure", [&] { api.configure("window=64,k=q8", text, sizeof text); });
    refuse_in_turn("isa", [&] { api.isa(); });
    api.configure("", text, sizeof text);
}
