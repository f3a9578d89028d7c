#include "mixed-kv-bench/attention_rig.h"

#include <fmt/format.h>
#include <ggml-alloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "common/llama_log.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/mask_view.h"

namespace mixed_kv::tools {

namespace {

// Values of a normal distribution, to the accuracy of a sum of four uniform ones.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
    float normal() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        std::int32_t sum = -2 * 65535;
        for (int i = 0; i < 4; ++i) sum += std::int32_t((state_ >> (16 * i)) & 0xffff);
        return float(sum) * (1.0f / 65536.0f / 0.57735027f);
    }

  private:
    std::uint64_t state_;
};

std::vector<fp16_t> random_rows(std::size_t n, std::uint64_t seed) {
    Random random(seed);
    std::vector<fp16_t> rows(n);
    std::vector<float> some(4096);
    const kernels::KernelSet& set = kernel_set("");
    for (std::size_t i = 0; i < n; i += some.size()) {
        const std::size_t count = std::min(some.size(), n - i);
        for (std::size_t j = 0; j < count; ++j) some[j] = random.normal();
        set.fp32_to_fp16(some.data(), rows.data() + i, std::ptrdiff_t(count));
    }
    return rows;
}

constexpr std::size_t kGraphNodes = 4;

ggml_context* new_context(std::size_t n_tensors, std::size_t n_graphs) {
    return ggml_init(
        {n_tensors * ggml_tensor_overhead() + n_graphs * ggml_graph_overhead_custom(kGraphNodes, false),
         nullptr, true});
}

void check_memory(const ggml_backend_buffer_t buffer, const AttentionRig::Options& options) {
    if (buffer != nullptr) return;
    const std::vector<std::string> said = take_logged_errors();
    throw std::runtime_error(fmt::format("no memory for the {} caches of this benchmark{}", options.name,
                                         said.empty() ? "" : ": " + said.front()));
}

}  // namespace

double AttentionShape::useful_operations() const {
    double visible = 0;
    for (std::int64_t i = 0; i < n_q; ++i) visible += double(n_kv - n_q + i + 1);
    return 4.0 * visible * double(n_seq) * double(n_head) * double(head_dim);
}

double AttentionShape::hot_share() const {
    double visible = 0, hot = 0;
    for (std::int64_t i = 0; i < n_q; ++i) {
        const std::int64_t seen = n_kv - n_q + i + 1;
        visible += double(seen);
        hot += double(std::max<std::int64_t>(0, seen - (n_kv - n_hot)));
    }
    return hot / visible;
}

AttentionData::AttentionData(const AttentionShape& shape) {
    const std::size_t values = std::size_t(shape.kv_values() / 2);
    k = random_rows(values, 1);
    v = random_rows(values, 2);
    Random random(3);
    q.resize(std::size_t(shape.n_q) * shape.n_seq * shape.n_head * shape.head_dim);
    for (float& x : q) x = random.normal();
    mask.assign(std::size_t(shape.n_q * shape.n_kv), 0);
    for (std::int64_t i = 0; i < shape.n_q; ++i) {
        for (std::int64_t cell = shape.n_kv - shape.n_q + i + 1; cell < shape.n_kv; ++cell)
            mask[std::size_t(i * shape.n_kv + cell)] = kMaskedOut;
    }
}

AttentionRig::AttentionRig(HostRuntime& runtime, const AttentionShape& shape, const AttentionData& data,
                           const Options& options)
    : runtime_(runtime), shape_(shape), options_(options) {
    if (ours()) plugin_backend_ = runtime_.new_plugin_backend(options_.settings);
    build();
    std::memcpy(q_->data, data.q.data(), data.q.size() * sizeof(float));
    for (int s = 0; s < shape_.n_seq; ++s) {
        std::memcpy(static_cast<fp16_t*>(mask_->data) + std::size_t(s) * data.mask.size(), data.mask.data(),
                    data.mask.size() * sizeof(fp16_t));
    }
    fill_first(data);
    fill_rest();
    if (ours() && shape_.n_hot > 0) write_hot_rows(data);
    kv_bytes_ = stored_bytes(k_.front()) + stored_bytes(v_.front());
}

AttentionRig::~AttentionRig() {
    ggml_backend_buffer_free(op_buffer_);
    ggml_backend_buffer_free(kv_buffer_);
    ggml_free(op_context_);
    ggml_free(kv_context_);
}

void AttentionRig::build() {
    const ggml_type type = options_.type;
    const std::int64_t row = shape_.row_elements();
    // Stored sizes are known only after storing; a cold page takes at least its codes and one scale and zero
    // per row.
    double bits = double(ggml_type_size(type)) * 8 / double(ggml_blck_size(type));
    if (ours()) {
        double sum = 0;
        for (const char* side : {"k=", "v="}) {
            const std::size_t at = options_.settings.find(side) + 2;
            const std::string format = options_.settings.substr(at, options_.settings.find(',', at) - at);
            const ColdFormat* cold = find_cold_format(format);
            sum += cold == nullptr ? 16.0 : cold->code_bits;
        }
        bits = sum / 2;
    }
    const double cache_bytes = double(shape_.kv_values()) * bits / 8;
    const auto n = std::size_t(std::max(2.0, std::ceil(double(options_.rotation_bytes) / cache_bytes)));

    kv_context_ = new_context(2 * n, 0);
    for (std::size_t i = 0; i < n; ++i) {
        k_.push_back(ggml_new_tensor_3d(kv_context_, type, row, shape_.n_kv, shape_.n_seq));
        v_.push_back(ggml_new_tensor_3d(kv_context_, type, row, shape_.n_kv, shape_.n_seq));
        ggml_format_name(k_.back(), "cache_k_l%zu", i);
        ggml_format_name(v_.back(), "cache_v_l%zu", i);
    }
    ggml_backend_buffer_type_t home = ours() ? ggml_backend_dev_buffer_type(runtime_.plugin().device())
                                             : ggml_backend_get_default_buffer_type(runtime_.cpu());
    kv_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(kv_context_, home);
    check_memory(kv_buffer_, options_);
    if (options_.huge_pages) {
        auto begin = reinterpret_cast<std::uintptr_t>(ggml_backend_buffer_get_base(kv_buffer_));
        const std::uintptr_t end = begin + ggml_backend_buffer_get_size(kv_buffer_), page = 4096;
        begin = (begin + page - 1) / page * page;
        // A wish: systems that have none go on without.
        if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    }

    op_context_ = new_context(6 * n + 8, n);
    q_ = ggml_new_tensor_4d(op_context_, GGML_TYPE_F32, shape_.head_dim, shape_.n_head, shape_.n_q,
                            shape_.n_seq);
    mask_ = ggml_new_tensor_4d(op_context_, GGML_TYPE_F16, shape_.n_kv, shape_.n_q, 1, shape_.n_seq);
    out_ = ggml_new_tensor_4d(op_context_, GGML_TYPE_F32, shape_.head_dim, shape_.n_head, shape_.n_q,
                              shape_.n_seq);
    op_buffer_ = ggml_backend_alloc_ctx_tensors(op_context_, runtime_.cpu());
    check_memory(op_buffer_, options_);

    ggml_tensor* q = ggml_permute(op_context_, q_, 0, 2, 1, 3);
    const auto view = [&](ggml_tensor* t) {
        const std::size_t head = ggml_row_size(type, shape_.head_dim), cell = ggml_row_size(type, row);
        return ggml_permute(op_context_,
                            ggml_view_4d(op_context_, t, shape_.head_dim, shape_.n_head_kv, shape_.n_kv,
                                         shape_.n_seq, head, cell, cell * std::size_t(shape_.n_kv), 0),
                            0, 2, 1, 3);
    };
    for (std::size_t i = 0; i < n; ++i) {
        ggml_tensor* op = ggml_flash_attn_ext(op_context_, q, view(k_[i]), view(v_[i]), mask_,
                                              1.0f / std::sqrt(float(shape_.head_dim)), 0.0f, 0.0f);
        ggml_prec_set_acc(op, GGML_PREC_F32);
        op->data = out_->data;
        op->buffer = out_->buffer;
        op->flags |= GGML_TENSOR_FLAG_COMPUTE;
        graphs_.push_back(ggml_new_graph_custom(op_context_, kGraphNodes, false));
        ggml_graph_add_node(graphs_.back(), op);
    }
    for (ggml_tensor* t = ggml_get_first_tensor(op_context_); t != nullptr;
         t = ggml_get_next_tensor(op_context_, t)) {
        if (t->view_src != nullptr && t->buffer == nullptr) ggml_backend_view_init(t);
    }
}

// The first cache gets its rows as a restored state would: rows are quantized, pages freeze as they fill.
void AttentionRig::fill_first(const AttentionData& data) {
    if (ours()) {
        // Heads are learned from the first attention; until then nothing freezes.
        for (ggml_cgraph* graph : graphs_) runtime_.compute(plugin_backend_.get(), graph);
    }
    const std::int64_t row = shape_.row_elements();
    const std::size_t row_bytes = ggml_row_size(options_.type, row);
    const std::int64_t n_rows = ours() ? shape_.n_kv - shape_.n_hot : shape_.n_kv;
    std::vector<float> floats;
    std::vector<std::byte> quantized;
    const kernels::KernelSet& set = kernel_set("");
    for (const bool is_key : {true, false}) {
        ggml_tensor* to = is_key ? k_.front() : v_.front();
        for (int s = 0; s < shape_.n_seq; ++s) {
            const fp16_t* rows = (is_key ? data.k : data.v).data() + s * shape_.n_kv * row;
            const std::size_t at = std::size_t(s * shape_.n_kv) * row_bytes;
            if (options_.type == GGML_TYPE_F16) {
                if (n_rows > 0) ggml_backend_tensor_set(to, rows, at, std::size_t(n_rows) * row_bytes);
                continue;
            }
            floats.resize(std::size_t(n_rows * row));
            quantized.resize(std::size_t(n_rows) * row_bytes);
            set.fp16_to_fp32(rows, floats.data(), std::ptrdiff_t(floats.size()));
            ggml_quantize_chunk(options_.type, floats.data(), quantized.data(), 0, n_rows, row, nullptr);
            ggml_backend_tensor_set(to, quantized.data(), at, quantized.size());
        }
    }
}

// The others are copies: equal contents in memory of their own.
void AttentionRig::fill_rest() {
    for (std::size_t i = 1; i < k_.size(); ++i) {
        ggml_backend_tensor_copy(k_.front(), k_[i]);
        ggml_backend_tensor_copy(v_.front(), v_[i]);
    }
}

// The newest rows come as the model's own writes do, and stay in FP16 until a later write.
void AttentionRig::write_hot_rows(const AttentionData& data) {
    const std::int64_t row = shape_.row_elements(), n = shape_.n_hot * shape_.n_seq;
    ggml_context* ctx = new_context(2 + 2 * k_.size(), 1);
    ggml_tensor* rows = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, row, n);
    ggml_tensor* cells = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, runtime_.cpu());
    check_memory(buffer, options_);
    for (int s = 0; s < shape_.n_seq; ++s) {
        for (std::int64_t i = 0; i < shape_.n_hot; ++i) {
            static_cast<std::int64_t*>(cells->data)[s * shape_.n_hot + i] =
                s * shape_.n_kv + shape_.n_kv - shape_.n_hot + i;
        }
    }
    for (std::size_t i = 0; i < 2 * k_.size(); ++i) {
        ggml_tensor* to = i % 2 == 0 ? k_[i / 2] : v_[i / 2];
        const std::vector<fp16_t>& from = i % 2 == 0 ? data.k : data.v;
        for (int s = 0; s < shape_.n_seq; ++s) {
            std::memcpy(static_cast<fp16_t*>(rows->data) + s * shape_.n_hot * row,
                        from.data() + (s * shape_.n_kv + shape_.n_kv - shape_.n_hot) * row,
                        std::size_t(shape_.n_hot * row) * sizeof(fp16_t));
        }
        // The cells of all streams are one row of cells, as llama.cpp addresses them.
        ggml_context* op_ctx = new_context(4, 1);
        ggml_tensor* all = ggml_view_2d(op_ctx, to, row, shape_.n_kv * shape_.n_seq, to->nb[1], 0);
        ggml_tensor* op = ggml_set_rows(op_ctx, all, rows, cells);
        op->flags |= GGML_TENSOR_FLAG_COMPUTE;
        for (ggml_tensor* t : {all, op}) ggml_backend_view_init(t);
        ggml_cgraph* graph = ggml_new_graph_custom(op_ctx, kGraphNodes, false);
        ggml_graph_add_node(graph, op);
        runtime_.compute(plugin_backend_.get(), graph);
        ggml_free(op_ctx);
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

std::uint64_t AttentionRig::stored_bytes(const ggml_tensor* t) const {
    if (!ours()) return ggml_nbytes(t);
    mixed_kv_tensor_info info = {};
    if (runtime_.plugin().api().tensor_info(t, &info) == 0 || info.mixed == 0) {
        throw std::runtime_error(
            fmt::format("{} is not in the plugin's mixed storage: {}", t->name, info.reason));
    }
    return info.hot_bytes + info.cold_bytes + info.overlay_bytes;
}

double AttentionRig::run_next() {
    last_ = (last_ + 1) % n_caches();
    ggml_backend_t backend = ours() ? plugin_backend_.get() : runtime_.cpu();
    const auto begin = std::chrono::steady_clock::now();
    runtime_.compute(backend, graphs_[std::size_t(last_)]);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace mixed_kv::tools
