// GGML_OP_FLASH_ATTN_EXT of llama.cpp's CPU backend, OPS times on one thread, for a counter of instructions
// (scripts/count-instructions.sh):
//
//   count-host-attention LIBRARIES TYPE HEAD_DIM GQA N_KV N_Q OPS
//
// LIBRARIES is the folder with the CPU backends, of which the one for this CPU is taken and named on standard
// output; TYPE is f16 or q8_0. Shapes and values are those of count-attention.

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<float> gaussian(std::size_t n, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& value : x) value = normal(rng);
    return x;
}

void fill(ggml_tensor* t, std::mt19937& rng) {
    const std::vector<float> x = gaussian(std::size_t(ggml_nelements(t)), rng);
    std::vector<char> bytes(ggml_nbytes(t));
    if (t->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(t, x.data(), 0, ggml_nbytes(t));
        return;
    }
    ggml_quantize_chunk(t->type, x.data(), bytes.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
    ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
}

void run(char** argv) {
    const std::string name = argv[2];
    if (name != "f16" && name != "q8_0") throw std::runtime_error("TYPE: f16 or q8_0");
    const ggml_type type = name == "f16" ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
    const int head_dim = std::atoi(argv[3]), n_gqa = std::atoi(argv[4]), n_kv = std::atoi(argv[5]),
              n_q = std::atoi(argv[6]), n_ops = std::atoi(argv[7]);
    if (head_dim < 1 || n_gqa < 1 || n_kv < 1 || n_q < 1 || n_ops < 1)
        throw std::runtime_error("no such number");
    ggml_backend_load_all_from_path(argv[1]);
    const ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (cpu == nullptr) throw std::runtime_error("no CPU backend in " + std::string(argv[1]));
    const ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu));
    auto* set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    if (set_threads == nullptr) throw std::runtime_error("this CPU backend takes no number of threads");
    set_threads(cpu, 1);

    ggml_context* context = ggml_init({std::size_t{1} << 20, nullptr, true});
    ggml_tensor* q = ggml_new_tensor_3d(context, GGML_TYPE_F32, head_dim, n_q, n_gqa);
    ggml_tensor* k = ggml_new_tensor_3d(context, type, head_dim, n_kv, 1);
    ggml_tensor* v = ggml_new_tensor_3d(context, type, head_dim, n_kv, 1);
    ggml_tensor* out =
        ggml_flash_attn_ext(context, q, k, v, nullptr, 1.0f / std::sqrt(float(head_dim)), 0.0f, 0.0f);
    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, cpu);
    if (buffer == nullptr) throw std::runtime_error("no memory");
    std::mt19937 rng(1);
    for (ggml_tensor* t : {k, v, q}) fill(t, rng);
    for (int i = 0; i < n_ops; ++i) {
        if (ggml_backend_graph_compute(cpu, graph) != GGML_STATUS_SUCCESS)
            throw std::runtime_error("the op failed");
    }
    float first = 0;
    ggml_backend_tensor_get(out, &first, 0, sizeof first);
    if (!(std::abs(first) < 10.0f)) throw std::runtime_error("wrong result");
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    ggml_backend_free(cpu);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 8) {
        std::fprintf(stderr, "usage: count-host-attention LIBRARIES TYPE HEAD_DIM GQA N_KV N_Q OPS\n");
        return 2;
    }
    try {
        run(argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "count-host-attention: %s\n", error.what());
        return 1;
    }
    return 0;
}
