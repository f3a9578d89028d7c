// Our buffers where the scheduler has no backend of ours, and devices split in ways that mean nothing to us:
// computed or refused, never an abort.
#include <ggml-backend.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "plugin_test.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

constexpr std::int64_t kHeadDim = 64, kHeads = 2, kCells = 256, kRow = kHeadDim * kHeads;

template <auto fn>
struct Free {
    template <typename T>
    void operator()(T* p) const {
        fn(p);
    }
};
using GgmlContext = std::unique_ptr<ggml_context, Free<ggml_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free<ggml_backend_buffer_free>>;
using Backend = std::unique_ptr<ggml_backend, Free<ggml_backend_free>>;
using Scheduler = std::unique_ptr<ggml_backend_sched, Free<ggml_backend_sched_free>>;

GgmlContext new_context() { return GgmlContext(ggml_init({1 << 20, nullptr, true})); }

// K and V of one layer, named as llama.cpp names them, in some buffer.
struct Cache {
    explicit Cache(ggml_backend_buffer_type_t type) : context(new_context()) {
        k = ggml_new_tensor_3d(context.get(), GGML_TYPE_F16, kRow, kCells, 1);
        v = ggml_new_tensor_3d(context.get(), GGML_TYPE_F16, kRow, kCells, 1);
        ggml_set_name(k, "cache_k_l0");
        ggml_set_name(v, "cache_v_l0");
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), type));
        ggml_backend_buffer_clear(buffer.get(), 0);
    }
    GgmlContext context;
    ggml_tensor *k, *v;
    Buffer buffer;
};

// One step of a layer: stores rows from `first` on, attends over all rows so far, returns the result.
std::vector<float> step(const std::vector<ggml_backend_t>& backends, Cache& cache, std::int64_t first,
                        std::int64_t n) {
    GgmlContext context = new_context();
    ggml_context* c = context.get();
    const std::int64_t n_kv = (first + n + 63) / 64 * 64;
    const auto input = [&](ggml_tensor* t) {
        ggml_set_input(t);
        return t;
    };
    ggml_tensor* q = input(ggml_new_tensor_4d(c, GGML_TYPE_F32, kHeadDim, n, kHeads, 1));
    ggml_tensor* rows = input(ggml_new_tensor_2d(c, GGML_TYPE_F32, kRow, n));
    ggml_tensor* cells = input(ggml_new_tensor_1d(c, GGML_TYPE_I64, n));
    ggml_tensor* mask = input(ggml_new_tensor_4d(c, GGML_TYPE_F16, n_kv, n, 1, 1));
    ggml_cgraph* graph = ggml_new_graph(c);
    for (ggml_tensor* t : {cache.k, cache.v}) {
        ggml_tensor* flat = ggml_view_2d(c, t, kRow, kCells, t->nb[1], 0);
        ggml_build_forward_expand(graph, ggml_set_rows(c, flat, rows, cells));
    }
    const auto view = [&](ggml_tensor* t) {
        return ggml_view_4d(c, t, kHeadDim, n_kv, kHeads, 1, t->nb[1], kHeadDim * 2, t->nb[2], 0);
    };
    ggml_tensor* out = ggml_flash_attn_ext(c, q, view(cache.k), view(cache.v), mask, 0.125f, 0, 0);
    ggml_set_output(out);
    ggml_build_forward_expand(graph, out);

    Scheduler scheduler(ggml_backend_sched_new(const_cast<ggml_backend_t*>(backends.data()), nullptr,
                                               int(backends.size()), 64, false, false));
    EXPECT_TRUE(ggml_backend_sched_alloc_graph(scheduler.get(), graph));
    std::mt19937 random{std::uint32_t(first)};
    std::normal_distribution<float> normal;
    for (ggml_tensor* t : {q, rows}) {
        std::vector<float> values(std::size_t(ggml_nelements(t)));
        for (float& value : values) value = normal(random);
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
    std::vector<std::int64_t> where(static_cast<std::size_t>(n));
    std::vector<ggml_fp16_t> visible(std::size_t(n * n_kv));
    for (std::int64_t i = 0; i < n; ++i) {
        where[std::size_t(i)] = first + i;
        for (std::int64_t j = 0; j < n_kv; ++j)
            visible[std::size_t(i * n_kv + j)] = ggml_fp32_to_fp16(j <= first + i ? 0.0f : -INFINITY);
    }
    ggml_backend_tensor_set(cells, where.data(), 0, ggml_nbytes(cells));
    ggml_backend_tensor_set(mask, visible.data(), 0, ggml_nbytes(mask));
    EXPECT_EQ(ggml_backend_sched_graph_compute(scheduler.get(), graph), GGML_STATUS_SUCCESS);
    std::vector<float> result(std::size_t(ggml_nelements(out)));
    ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
    return result;
}

double error(const std::vector<float>& expected, const std::vector<float>& actual) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        difference += std::pow(double(expected[i]) - actual[i], 2);
        size += std::pow(double(expected[i]), 2);
    }
    return difference / size;
}

Logits logits_with(llama_split_mode mode, const std::vector<llama_token>& tokens, bool& loaded) {
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {plugin_device(), nullptr};
    params.devices = devices;
    params.split_mode = mode;
    Logits logits;
    std::unique_ptr<llama_model, Free<llama_model_free>> model(
        llama_model_load_from_file(small_model().c_str(), params));
    loaded = model != nullptr;
    if (!loaded) return logits;
    llama_context_params options = llama_context_default_params();
    options.n_ctx = 256;
    options.n_threads = options.n_threads_batch = 1;
    options.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    std::unique_ptr<llama_context, Free<llama_free>> context(llama_init_from_model(model.get(), options));
    loaded = context != nullptr;
    if (!loaded) return logits;
    std::vector<llama_token> copy = tokens;
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(copy.data(), std::int32_t(copy.size()))), 0);
    logits.n_vocab = std::size_t(llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
    const float* last = llama_get_logits_ith(context.get(), -1);
    logits.values.assign(last, last + logits.n_vocab);
    return logits;
}

}  // namespace

// A draft model without devices that shares its target's K and V: its scheduler has the CPU only, and finds
// cold pages in a buffer of ours.
TEST(WithoutOurDevice, CpuAloneComputesOverOurCache) {
    load_backends();
    ggml_backend_dev_t cpu_device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    Backend ours(ggml_backend_dev_init(plugin_device(), nullptr));
    Backend cpu_beside_ours(ggml_backend_dev_init(cpu_device, nullptr));
    Backend cpu_alone(ggml_backend_dev_init(cpu_device, nullptr));
    const auto set_n_threads =
        reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(cpu_device), "ggml_backend_set_n_threads"));
    for (const Backend* cpu : {&cpu_beside_ours, &cpu_alone}) set_n_threads(cpu->get(), 1);

    Cache expected_cache(ggml_backend_cpu_buffer_type());
    Cache cache(ggml_backend_dev_buffer_type(plugin_device()));
    const std::vector<ggml_backend_t> target{ours.get(), cpu_beside_ours.get()}, draft{cpu_alone.get()};
    // The window is 32: the first page is cold after the second step.
    for (const std::int64_t first : {0, 100, 101}) {
        const std::int64_t n = first == 0 ? 100 : 1;
        EXPECT_LT(error(step(draft, expected_cache, first, n), step(target, cache, first, n)), 1e-2);
    }
    mixed_kv_tensor_info info;
    ASSERT_EQ(plugin_api().tensor_info(cache.k, &info), 1);
    EXPECT_GT(info.cold_bytes, 0u);
    // Now without us, then with us again.
    EXPECT_LT(error(step(draft, expected_cache, 102, 1), step(draft, cache, 102, 1)), 1e-2);
    ASSERT_EQ(plugin_api().tensor_info(cache.k, &info), 1);
    EXPECT_NE(std::string(info.reason).find("draft model"), std::string::npos) << info.reason;
    EXPECT_LT(error(step(draft, expected_cache, 103, 1), step(target, cache, 103, 1)), 1e-2);
}

TEST(WithoutOurDevice, SplitByRowsIsIgnored) {
    load_backends();
    const auto tokens = random_tokens(100, 512, 3);
    bool loaded = false;
    const Logits expected = logits_with(LLAMA_SPLIT_MODE_LAYER, tokens, loaded);
    const Logits rows = logits_with(LLAMA_SPLIT_MODE_ROW, tokens, loaded);
    ASSERT_TRUE(loaded);
    EXPECT_EQ(expected.values, rows.values);
}

TEST(WithoutOurDevice, SplitByTensorsIsRefusedInOneLine) {
    load_backends();
    const auto tokens = random_tokens(100, 512, 3);
    bool loaded = false;
    clear_log();
    logits_with(LLAMA_SPLIT_MODE_TENSOR, tokens, loaded);
    EXPECT_FALSE(loaded);
    const auto lines = logged_lines();
    EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                            [](const std::string& line) {
                                return line.find("-sm tensor cannot be used") != std::string::npos;
                            }),
              1);
    // And nothing is left of it.
    logits_with(LLAMA_SPLIT_MODE_LAYER, tokens, loaded);
    EXPECT_TRUE(loaded);
}

namespace {

// Logits of a draft model (Gemma 4's) that has no K and V, and reads its target's, after a prompt.
Logits drafted_logits(const std::string& target_file, const std::string& draft_file, CacheOwner target_owner,
                      bool draft_on_our_device) {
    const Model target(target_file, target_owner);
    ContextOptions options;
    options.n_ctx = 256;
    options.n_ubatch = 64;
    options.n_threads = 1;
    Context context(target, options);
    const std::vector<llama_token> prompt = random_tokens(150, target.n_vocab(), 11);
    context.prefill(prompt);
    context.prefill({7}, 150);  // freezes a page

    llama_model_params model_params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {draft_on_our_device ? plugin_device() : nullptr, nullptr};
    model_params.devices = devices;
    model_params.n_gpu_layers = draft_on_our_device ? -1 : 0;
    const std::unique_ptr<llama_model, Free<llama_model_free>> draft(
        llama_model_load_from_file(draft_file.c_str(), model_params));
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 1;
    params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    params.ctx_other = context.get();
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    const std::unique_ptr<llama_context, Free<llama_free>> reader(llama_init_from_model(draft.get(), params));
    Logits logits;
    if (reader == nullptr) return logits;

    std::vector<float> hidden(std::size_t(llama_model_n_embd(target.get())));
    for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = std::sin(0.7f * float(i));
    llama_token token = 9;
    llama_pos position = 151;
    std::int32_t n_sequences = 1;
    llama_seq_id sequence = 0, *sequences = &sequence;
    std::int8_t wants_logits = 1;
    const llama_batch batch = {1, &token, hidden.data(), &position, &n_sequences, &sequences, &wants_logits};
    EXPECT_EQ(llama_decode(reader.get(), batch), 0);
    logits.n_vocab = std::size_t(target.n_vocab());
    const float* row = llama_get_logits_ith(reader.get(), 0);
    logits.values.assign(row, row + logits.n_vocab);
    return logits;
}

}  // namespace

TEST(WithoutOurDevice, DraftModelReadsItsTargetsCache) {
    load_backends();
    const std::string target = small_model() + ".target", draft = small_model() + ".draft";
    const RandomModelSpec spec = random_model_spec("gemma4");
    write_random_model(spec, target);
    RandomModelSpec of_draft = spec;
    of_draft.architecture = "gemma4-assistant";
    of_draft.n_layer = 2;
    of_draft.n_embd = 64;
    of_draft.n_embd_target = spec.n_embd;
    write_random_model(of_draft, draft);
    const Logits host = drafted_logits(target, draft, CacheOwner::kHost, false);
    const Logits ours = drafted_logits(target, draft, CacheOwner::kPlugin, true);
    clear_log();
    const Logits mixed = drafted_logits(target, draft, CacheOwner::kPlugin, false);
    int n_said = 0;
    for (const std::string& line : logged_lines()) n_said += line.find("-ngld") != std::string::npos;
    for (const std::string& file : {target, draft}) std::remove(file.c_str());
    ASSERT_EQ(host.values.size(), spec.n_vocab);
    ASSERT_EQ(ours.values.size(), spec.n_vocab);
    ASSERT_EQ(mixed.values.size(), spec.n_vocab);
    EXPECT_LT(compare(ours, mixed).nmse, 1e-4);  // the same rows, read by two kernels
    EXPECT_LT(compare(host, ours).nmse, 0.1);    // rounded to 4 bits
    EXPECT_EQ(n_said, 2);                        // a cache for each kind of layer
}

namespace {

// The plugin's lines about one context, made and used with these parameters.
std::vector<std::string> lines_about(bool our_device, int n_gpu_layers, bool offload_kqv) {
    load_backends();
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {our_device ? plugin_device() : nullptr, nullptr};
    params.devices = devices;
    params.n_gpu_layers = n_gpu_layers;
    const std::unique_ptr<llama_model, Free<llama_model_free>> model(
        llama_model_load_from_file(small_model().c_str(), params));
    llama_context_params options = llama_context_default_params();
    options.n_ctx = 256;
    options.n_threads = options.n_threads_batch = 1;
    options.offload_kqv = offload_kqv;
    clear_log();
    const std::unique_ptr<llama_context, Free<llama_free>> context(
        llama_init_from_model(model.get(), options));
    std::vector<llama_token> tokens = random_tokens(20, 512, 3);
    EXPECT_EQ(llama_decode(context.get(), llama_batch_get_one(tokens.data(), 20)), 0);
    std::vector<std::string> ours;
    for (const std::string& line : logged_lines()) {
        if (line.rfind("mixed-kv: ", 0) == 0) ours.push_back(line);
    }
    return ours;
}

bool has(const std::string& line, const char* part) { return line.find(part) != std::string::npos; }

}  // namespace

// Somebody who asked for a mixed cache and gets none, or not all of it, is told so in one line.
TEST(NotInEffect, IsSaidInOneLine) {
    const auto all = lines_about(true, -1, true);
    ASSERT_EQ(all.size(), 1u);
    const std::size_t at = all[0].find(" K/V tensors mixed");
    ASSERT_NE(at, std::string::npos) << all[0];
    EXPECT_FALSE(has(all[0], "own memory"));
    const int n = std::atoi(all[0].c_str() + all[0].rfind(' ', at - 1));
    ASSERT_GT(n, 2);

    for (const auto& [lines, why] :
         {std::pair(lines_about(true, 0, true), "-ngl"), std::pair(lines_about(true, -1, false), "-nkvo"),
          std::pair(lines_about(false, 0, true), "--device")}) {
        SCOPED_TRACE(why);
        ASSERT_EQ(lines.size(), 1u);
        EXPECT_TRUE(has(lines[0], "not in effect: ")) << lines[0];
        EXPECT_TRUE(has(lines[0], why)) << lines[0];
        EXPECT_TRUE(has(lines[0], (std::to_string(n) + " K/V tensors").c_str())) << lines[0];
    }
}

// -ngl counts the output layer: 2 is one layer of the cache.
TEST(NotInEffect, PartOfTheLayersIsCountedAgainstAll) {
    const auto part = lines_about(true, 2, true);
    ASSERT_EQ(part.size(), 1u);
    const auto all = lines_about(true, -1, true);
    const auto total = [](const std::string& line) {
        return std::atoi(line.c_str() + line.rfind(' ', line.find(" K/V tensors mixed") - 1));
    };
    EXPECT_EQ(total(part[0]), total(all[0])) << part[0];
    EXPECT_TRUE(has(part[0], ": 2 of ")) << part[0];
    EXPECT_TRUE(has(part[0], "in llama.cpp's own memory")) << part[0];
}
