#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mixed_kv/flash_decode.h"
#include "reference/attention_reference.h"
#include "support/page_tensor.h"
#include "support/tolerance.h"

namespace mixed_kv::test {

enum class MaskForm {
    none,         // null mask
    causal,       // query i sees cells 0 .. n_kv - n_q + i
    holes,        // each cell hidden with probability 1/3; whole pages hidden here and there
    alibi,        // causal with finite values -|distance|
    by_head,      // holes, another set for each head
    some_hidden,  // holes, and every third query sees nothing
    all_hidden,
};

struct CaseSpec {
    int n_stream = 1;
    std::int64_t n_q = 1;
    std::int64_t n_kv = 64;
    int n_head = 4;
    int n_head_kv = 1;
    int head_dim_k = 64;
    int head_dim_v = 64;
    bool v_is_k = false;
    const ColdFormat* k_format = nullptr;
    const ColdFormat* v_format = nullptr;
    PageMix k_mix = PageMix::hot;
    PageMix v_mix = PageMix::hot;
    MaskForm mask = MaskForm::none;
    int mask_streams = 0;  // 0: as many as n_stream
    float logit_softcap = 0.0f;
    float max_bias = 0.0f;
    bool sinks = false;
    float q_sigma = 1.0f;
    std::uint64_t seed = 1;

    std::string name() const;
};

// Elements between the rows of the mask.
inline constexpr std::ptrdiff_t kMaskGap = 5;

// How the threads of a plan are run.
enum class Threading {
    one_caller,  // n_threads planned, one thread does all the work
    real,        // n_threads threads
};

// One attention op with everything it reads and its reference answer. Inputs have gaps between rows and after
// the last, filled with NaN; the output has gaps too, and run() checks that they stay untouched.
class AttentionCase {
  public:
    AttentionCase(const CaseSpec& spec, const kernels::KernelSet& encoder);
    // With tensors made by the caller (of spec's shape).
    AttentionCase(const CaseSpec& spec, std::unique_ptr<PageTensor> k, std::unique_ptr<PageTensor> v);

    const CaseSpec& spec() const noexcept { return spec_; }
    AttentionArgs args() noexcept;
    const MaskView& mask() const noexcept { return mask_view_; }
    std::vector<fp16_t>& mask_data() noexcept { return mask_; }
    std::vector<float>& q_data() noexcept { return q_; }

    // Output [n_stream][n_q][n_head][head_dim_v].
    std::vector<float> run(const kernels::KernelSet& set, int n_threads = 1,
                           Threading threading = Threading::one_caller);
    std::vector<float> run(FlashDecode& decode, const AttentionArgs& args, int n_threads,
                           Threading threading);
    // args() with changes.
    std::vector<float> run(const kernels::KernelSet& set, const AttentionArgs& args);

    const reference::AttentionOutputs& reference();  // of args(), computed once
    reference::AttentionOutputs reference_of(const AttentionArgs& args);
    ErrorModel error_model();
    // Compares with the reference, each row with its tolerance.
    RowErrors check(const std::vector<float>& out);
    std::size_t n_rows() const noexcept;

  private:
    void make_q();
    void make_mask();

    CaseSpec spec_;
    std::unique_ptr<PageTensor> k_, v_;
    std::vector<float> q_;      // [n_stream][n_head][n_q][head_dim_k + gap]: the permuted layout of llama.cpp
    std::vector<fp16_t> mask_;  // [mask_streams][mask heads][n_q][n_kv + gap]
    std::vector<float> sinks_;
    std::vector<float> out_;
    MaskView mask_view_;
    std::unique_ptr<reference::AttentionOutputs> reference_;
    double value_range_ = 0.0;
    double product_error_ = 0.0;  // the largest of the sets that ran
};

}  // namespace mixed_kv::test
