#include "op_graph.h"

#include <ggml-alloc.h>

#include <cstring>

#include "mixed_kv/error.h"

namespace mixed_kv::test {

namespace {

ggml_backend_t cpu_backend() {
    static const ggml_backend_t backend = [] {
        ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
        ggml_backend_load_all_from_path(MIXED_KV_LLAMA_LIB_DIR);
        ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        ggml_backend_t made = device == nullptr ? nullptr : ggml_backend_dev_init(device, nullptr);
        if (made == nullptr) throw Error("no CPU backend in " MIXED_KV_LLAMA_LIB_DIR);
        return made;
    }();
    return backend;
}

void set_threads(int n) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu_backend()));
    auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    if (set == nullptr) throw Error("the CPU backend has no ggml_backend_set_n_threads");
    set(cpu_backend(), n);
}

constexpr std::size_t kTensors = 64;

}  // namespace

OpGraph::OpGraph() { ctx_ = ggml_init({kTensors * ggml_tensor_overhead(), nullptr, true}); }

OpGraph::~OpGraph() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(ctx_);
}

ggml_tensor* OpGraph::add(ggml_type type, std::array<std::int64_t, 3> ne, const void* data,
                          std::size_t bytes) {
    if (ne[0] * ne[1] * ne[2] == 0) return nullptr;
    ggml_tensor* tensor = ggml_new_tensor_3d(ctx_, type, ne[0], ne[1], ne[2]);
    if (ggml_nbytes(tensor) != bytes) throw Error("test input: wrong number of bytes");
    uploads_.push_back({tensor, data, bytes});
    return tensor;
}

ggml_tensor* OpGraph::add_permuted(ggml_type type, std::array<std::int64_t, 3> ne, const void* data,
                                   std::size_t bytes) {
    ggml_tensor* stored = add(type, {ne[0], ne[2], ne[1]}, data, bytes);
    return stored == nullptr ? nullptr : ggml_permute(ctx_, stored, 0, 2, 1, 3);
}

std::vector<float> OpGraph::compute(const ggml_op::FlashDecodeInputs& inputs,
                                    const ggml_op::FlashDecodeParams& params, int n_threads, int times) {
    ggml_backend_t backend = cpu_backend();
    if (buffer_ == nullptr) {
        buffer_ = ggml_backend_alloc_ctx_tensors(ctx_, backend);
        if (buffer_ == nullptr) throw Error("no memory for the inputs");
        for (const Upload& u : uploads_) ggml_backend_tensor_set(u.tensor, u.data, 0, u.bytes);
    }
    ggml_op::FlashDecodeOp op;
    constexpr std::size_t kNodes = 64;
    struct Free {
        ggml_context* ctx;
        ggml_gallocr_t allocator = nullptr;
        ~Free() {
            ggml_gallocr_free(allocator);
            ggml_free(ctx);
        }
    } nodes{ggml_init(
        {kNodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(kNodes, false), nullptr, true})};
    ggml_tensor* result = op.build(nodes.ctx, inputs, params);
    // A consumer in ggml's own code: the result is a tensor like any other.
    ggml_tensor* last = ggml_scale(nodes.ctx, result, 1.0f);
    ggml_cgraph* graph = ggml_new_graph_custom(nodes.ctx, kNodes, false);
    ggml_set_output(last);
    ggml_build_forward_expand(graph, last);
    nodes.allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    if (!ggml_gallocr_alloc_graph(nodes.allocator, graph)) throw Error("no memory for the graph");
    set_threads(n_threads);

    std::vector<float> out(static_cast<std::size_t>(ggml_nelements(last))), before;
    for (int i = 0; i < times; ++i) {
        before = out;
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS)
            throw Error("the graph failed");
        ggml_backend_tensor_get(last, out.data(), 0, out.size() * sizeof(float));
        if (i > 0 && std::memcmp(before.data(), out.data(), out.size() * sizeof(float)) != 0) {
            throw Error("computing the graph again gave another result");
        }
    }
    return out;
}

}  // namespace mixed_kv::test
