#include "support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "reference/codec_reference.h"
#include "support/random.h"

namespace mixed_kv::test {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr fp16_t kNan16 = 0x7e01;
constexpr float kCanary = -12345.0f;  // output bytes that nobody may write
constexpr std::ptrdiff_t kQGap = 3, kOutGap = 2;

const char* name_of(PageMix mix) {
    switch (mix) {
        case PageMix::hot:
            return "hot";
        case PageMix::pinned:
            return "pinned";
        case PageMix::cold:
            return "cold";
        case PageMix::cold_overlay:
            return "overlay";
        case PageMix::blocks:
            return "blocks";
        case PageMix::all_states:
            return "all";
    }
    return "?";
}

PageTensor::Spec tensor_spec(const CaseSpec& c, KvRole role) {
    PageTensor::Spec spec;
    const bool key = role == KvRole::key;
    spec.role = role;
    spec.format = key ? c.k_format : c.v_format;
    spec.shape = {c.n_head_kv, key ? c.head_dim_k : c.head_dim_v};
    spec.n_stream = c.n_stream;
    spec.n_cells = c.n_kv;
    spec.mix = key ? c.k_mix : c.v_mix;
    spec.seed = c.seed * 2 + (key ? 0 : 1);
    return spec;
}

}  // namespace

std::string CaseSpec::name() const {
    std::ostringstream out;
    out << "k=" << (k_format ? k_format->name : "f16") << '/' << name_of(k_mix) << " v="
        << (v_is_k     ? "k"
            : v_format ? v_format->name
                       : "f16")
        << '/' << name_of(v_mix) << " dim=" << head_dim_k << '/' << head_dim_v << " heads=" << n_head << '/'
        << n_head_kv << " n_kv=" << n_kv << " n_q=" << n_q << " streams=" << n_stream << " mask=" << int(mask)
        << " softcap=" << logit_softcap << " bias=" << max_bias << " sinks=" << sinks << " seed=" << seed;
    return out.str();
}

AttentionCase::AttentionCase(const CaseSpec& spec, const kernels::KernelSet& encoder)
    : AttentionCase(
          spec, std::make_unique<PageTensor>(tensor_spec(spec, KvRole::key), encoder),
          spec.v_is_k ? nullptr : std::make_unique<PageTensor>(tensor_spec(spec, KvRole::value), encoder)) {}

AttentionCase::AttentionCase(const CaseSpec& spec, std::unique_ptr<PageTensor> k,
                             std::unique_ptr<PageTensor> v)
    : spec_(spec), k_(std::move(k)), v_(std::move(v)) {
    make_q();
    make_mask();
    Random random(spec_.seed + 77);
    for (int h = 0; h < spec_.n_head && spec_.sinks; ++h) sinks_.push_back(2.0f * random.normal());
    out_.resize(n_rows() * std::size_t(spec_.head_dim_v + kOutGap));
}

std::size_t AttentionCase::n_rows() const noexcept {
    return std::size_t(spec_.n_stream) * std::size_t(spec_.n_q) * std::size_t(spec_.n_head);
}

void AttentionCase::make_q() {
    Random random(spec_.seed + 1000);
    q_.assign(n_rows() * std::size_t(spec_.head_dim_k + kQGap), kNan);
    for (std::size_t row = 0; row < n_rows(); ++row) {
        float* q = q_.data() + row * std::size_t(spec_.head_dim_k + kQGap);
        for (int d = 0; d < spec_.head_dim_k; ++d) q[d] = spec_.q_sigma * random.normal();
    }
}

void AttentionCase::make_mask() {
    if (spec_.mask == MaskForm::none) return;
    const int n_stream = spec_.mask_streams == 0 ? spec_.n_stream : spec_.mask_streams;
    const int n_head = spec_.mask == MaskForm::by_head ? spec_.n_head : 1;
    const std::ptrdiff_t stride = spec_.n_kv + kMaskGap;
    mask_.assign(std::size_t(n_stream * n_head * spec_.n_q * stride), kNan16);
    Random random(spec_.seed + 2000);
    fp16_t* row = mask_.data();
    for (int map = 0; map < n_stream * n_head; ++map) {
        std::uint64_t hidden_pages = random.next() & random.next();  // one in four, of the first 64
        for (std::int64_t query = 0; query < spec_.n_q; ++query, row += stride) {
            for (std::int64_t cell = 0; cell < spec_.n_kv; ++cell) {
                const std::int64_t distance = spec_.n_kv - spec_.n_q + query - cell;
                bool visible = true;
                switch (spec_.mask) {
                    case MaskForm::none:
                        break;
                    case MaskForm::causal:
                    case MaskForm::alibi:
                        visible = distance >= 0;
                        break;
                    case MaskForm::some_hidden:
                    case MaskForm::by_head:
                    case MaskForm::holes:
                        visible =
                            random.below(3) != 0 && (hidden_pages >> (cell / kPageTokens % 64) & 1) == 0;
                        if (spec_.mask == MaskForm::some_hidden && query % 3 == 1) visible = false;
                        break;
                    case MaskForm::all_hidden:
                        visible = false;
                        break;
                }
                const float value = spec_.mask == MaskForm::alibi ? -std::fabs(float(distance)) : 0.0f;
                row[cell] = visible ? fp32_to_fp16(value) : kMaskedOut;
            }
        }
    }
    mask_view_.data = mask_.data();
    mask_view_.row_stride_bytes = stride * std::ptrdiff_t(sizeof(fp16_t));
    mask_view_.head_stride_bytes = spec_.n_q * mask_view_.row_stride_bytes;
    mask_view_.stream_stride_bytes = n_head * mask_view_.head_stride_bytes;
    mask_view_.n_head = n_head;
    mask_view_.n_stream = n_stream;
}

AttentionArgs AttentionCase::args() noexcept {
    constexpr auto size = std::ptrdiff_t(sizeof(float));
    AttentionArgs a;
    a.n_stream = spec_.n_stream;
    a.n_q = spec_.n_q;
    a.n_kv = spec_.n_kv;
    a.n_head = spec_.n_head;
    a.n_head_kv = spec_.n_head_kv;
    a.head_dim_k = spec_.head_dim_k;
    a.head_dim_v = spec_.head_dim_v;
    a.q = q_.data();
    a.q_row_stride = (spec_.head_dim_k + kQGap) * size;
    a.q_head_stride = spec_.n_q * a.q_row_stride;
    a.q_stream_stride = spec_.n_head * a.q_head_stride;
    a.k = k_->tables().data();
    a.v = spec_.v_is_k ? a.k : v_->tables().data();
    a.v_is_k = spec_.v_is_k;
    a.mask = mask_view_;
    a.kq_scale = 1.0f / std::sqrt(float(spec_.head_dim_k));
    a.max_bias = spec_.max_bias;
    a.logit_softcap = spec_.logit_softcap;
    a.sinks = spec_.sinks ? sinks_.data() : nullptr;
    a.out = out_.data();
    a.out_head_stride = (spec_.head_dim_v + kOutGap) * size;
    a.out_row_stride = spec_.n_head * a.out_head_stride;
    a.out_stream_stride = spec_.n_q * a.out_row_stride;
    return a;
}

std::vector<float> AttentionCase::run(const kernels::KernelSet& set, int n_threads, Threading threading) {
    product_error_ = std::max(product_error_, double(set.product_error));
    FlashDecode decode(set);
    return run(decode, args(), n_threads, threading);
}

std::vector<float> AttentionCase::run(FlashDecode& decode, const AttentionArgs& a, int n_threads,
                                      Threading threading) {
    std::fill(out_.begin(), out_.end(), kCanary);
    MaskPages mask_pages;
    mask_pages.classify(a.mask, a.n_stream, a.n_q, a.n_kv);
    decode.plan(a, mask_pages, n_threads);
    if (threading == Threading::one_caller) {
        decode.run_serial();
    } else {
        const auto on_all = [&](auto&& work) {
            std::vector<std::thread> threads;
            for (int i = 0; i < n_threads; ++i) threads.emplace_back([&work, i] { work(i); });
            for (std::thread& thread : threads) thread.join();
        };
        on_all([&](int thread) { decode.run(thread); });
        on_all([&](int thread) { decode.merge(thread); });
    }
    const auto dim = std::size_t(spec_.head_dim_v), stride = dim + std::size_t(kOutGap);
    std::vector<float> out(n_rows() * dim);
    for (std::size_t row = 0; row < n_rows(); ++row) {
        const float* from = out_.data() + row * stride;
        std::copy_n(from, dim, out.data() + row * dim);
        for (std::size_t i = dim; i < stride; ++i) {
            if (from[i] != kCanary) throw std::logic_error("attention wrote between its output rows");
        }
    }
    return out;
}

std::vector<float> AttentionCase::run(const kernels::KernelSet& set, const AttentionArgs& a) {
    product_error_ = std::max(product_error_, double(set.product_error));
    FlashDecode decode(set);
    return run(decode, a, 1, Threading::one_caller);
}

const reference::AttentionOutputs& AttentionCase::reference() {
    if (!reference_) reference_ = std::make_unique<reference::AttentionOutputs>(reference_of(args()));
    return *reference_;
}

reference::AttentionOutputs AttentionCase::reference_of(const AttentionArgs& a) {
    reference::AttentionInputs in;
    in.n_stream = a.n_stream;
    in.n_q = a.n_q;
    in.n_kv = a.n_kv;
    in.n_head = a.n_head;
    in.n_head_kv = a.n_head_kv;
    in.head_dim_k = a.head_dim_k;
    in.head_dim_v = a.head_dim_v;
    in.q = [&](int stream, std::int64_t query, int head, double* out) {
        const auto* q = reinterpret_cast<const float*>(reinterpret_cast<const std::byte*>(a.q) +
                                                       stream * a.q_stream_stride + query * a.q_row_stride +
                                                       head * a.q_head_stride);
        std::copy_n(q, a.head_dim_k, out);
    };
    // Rows of one head at a time, as the reference asks for them.
    struct Head {
        int stream = -1, head = -1;
        std::vector<double> rows;
    } k_head, v_head;
    const auto row_of = [&](Head& cache, const PageTable* tables, int stream, std::int64_t row, int head) {
        const PageTable& table = tables[stream];
        if (cache.stream != stream || cache.head != head) {
            cache = {stream, head, reference::read_head(table, head, a.n_kv)};
        }
        return cache.rows.data() + row * table.layout.shape.head_dim;
    };
    in.k = [&](int stream, std::int64_t cell, int head, double* out) {
        std::copy_n(row_of(k_head, a.k, stream, cell, head), a.head_dim_k, out);
    };
    in.v = [&](int stream, std::int64_t cell, int head, double* out) {
        std::copy_n(row_of(v_head, a.v, stream, cell, head), a.head_dim_v, out);
        std::vector<double> rotated(out, out + a.head_dim_v);
        reference::hadamard(rotated.data(), a.head_dim_v, hadamard_size(a.head_dim_v));
        for (int d = 0; d < a.head_dim_v; ++d) {
            value_range_ = std::max({value_range_, std::fabs(out[d]), std::fabs(rotated[std::size_t(d)])});
        }
    };
    in.mask = a.mask;
    in.kq_scale = double(a.kq_scale);
    in.max_bias = double(a.max_bias);
    in.logit_softcap = double(a.logit_softcap);
    in.sinks = a.sinks;
    return reference::attention(in);
}

ErrorModel AttentionCase::error_model() {
    reference();
    const auto has_cold = [](const PageTensor* tensor) {
        if (tensor == nullptr) return false;
        for (const PageTable& table : tensor->tables()) {
            for (std::int64_t page = 0; page < table.n_pages; ++page) {
                if (table.pages[page].state == PageState::cold) return true;
            }
        }
        return false;
    };
    // Cold pages are read as integers; for values that are keys they are decoded to float (v_ is null then).
    return {spec_.head_dim_k,   spec_.head_dim_v,   spec_.n_kv,     has_cold(k_.get()),
            has_cold(v_.get()), has_cold(v_.get()), product_error_, value_range_};
}

RowErrors AttentionCase::check(const std::vector<float>& out) {
    const reference::AttentionOutputs& expected = reference();
    const ErrorModel model = error_model();
    std::vector<double> tolerances;
    for (const reference::RowMagnitudes& row : expected.magnitudes)
        tolerances.push_back(row_tolerance(model, row));
    return compare_rows(out, expected.o, tolerances, std::size_t(spec_.head_dim_v));
}

}  // namespace mixed_kv::test
