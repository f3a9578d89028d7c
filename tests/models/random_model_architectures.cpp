#include "random_model_architectures.h"

#include <cmath>
#include <map>
#include <stdexcept>

namespace mixed_kv::test {

namespace {

constexpr std::uint32_t kExperts = 4;

/// Common ground of the builders: sizes as signed numbers, weight scales, and the blocks most models share.
class Builder {
  public:
    Builder(const RandomModelSpec& spec, GgufModelWriter& writer)
        : s(spec),
          w(writer),
          n_embd(spec.n_embd),
          n_ff(spec.n_ff),
          n_head(spec.n_head),
          head_dim(spec.head_dim),
          n_q(n_head * head_dim),
          n_kv(std::int64_t{spec.n_head_kv} * head_dim) {}

    const RandomModelSpec& s;
    GgufModelWriter& w;
    const std::int64_t n_embd, n_ff, n_head, head_dim;
    const std::int64_t n_q;   // values of all query heads
    const std::int64_t n_kv;  // values of all K (or V) heads

    /// Standard deviation that keeps the size of what a matrix with `fan_in` inputs multiplies.
    static float unit(std::int64_t fan_in) { return 1.0f / std::sqrt(static_cast<float>(fan_in)); }

    /// Factor on both Q and K for scores of the wanted size, where each would have unit variance.
    float score_gain() const { return std::sqrt(s.attention_sigma); }

    std::string block(std::uint32_t layer, const char* name) const {
        return "blk." + std::to_string(layer) + "." + name;
    }

    void require(bool condition, const std::string& what) const {
        if (!condition) {
            throw std::invalid_argument("random model " + s.architecture + ": " + what);
        }
    }

    /// head_dim that is not n_embd / n_head needs keys of its own, which some architectures ignore.
    void require_plain_heads() const { require(n_q == n_embd, "n_embd must be n_head * head_dim"); }

    void add_hparams(bool rms_norm = true) {
        w.set("context_length", s.n_ctx_train);
        w.set("embedding_length", s.n_embd);
        w.set("block_count", s.n_layer);
        w.set("feed_forward_length", s.n_ff);
        w.set(rms_norm ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", 1e-5f);
        if (s.n_swa > 0) {
            w.set("attention.sliding_window", s.n_swa);
        }
    }

    void add_heads() {
        w.set("attention.head_count", s.n_head);
        w.set("attention.head_count_kv", s.n_head_kv);
        w.set("attention.key_length", s.head_dim);
        w.set("attention.value_length", s.head_dim);
        w.set("rope.dimension_count", s.head_dim);
    }

    void add_norm(const std::string& name, std::int64_t n, float gain = 1.0f) {
        w.add_f32(name, {n}, around(gain, 0.1f * gain));
    }

    /// Token embeddings of unit size and an output matrix of its own: logits of standard deviation 2.
    void add_embeddings() {
        const std::int64_t n_vocab = s.n_vocab;
        // A quantized model keeps these two in 8 bits, as llama.cpp's own quantizer does with better types.
        const WeightType type = s.weight_type == WeightType::kQ4_0 ? WeightType::kQ8_0 : s.weight_type;
        w.add_matrix("token_embd.weight", {n_embd, n_vocab}, 1.0f, type);
        w.add_matrix("output.weight", {n_embd, n_vocab}, 2 * unit(n_embd), type);
        add_norm("output_norm.weight", n_embd);
    }

    /// One matrix for both ends, its inputs multiplied by sqrt(n_embd). Random signs in the last norm keep
    /// the model from merely repeating its last token.
    void add_tied_embeddings() {
        w.add_matrix("token_embd.weight", {n_embd, s.n_vocab}, unit(n_embd));
        w.add_f32("output_norm.weight", {n_embd}, random_sign(2.0f));
    }

    /// Q, K, V and the output projection, with `gain` on Q and K.
    void add_attention(std::uint32_t layer, float gain) {
        w.add_matrix(block(layer, "attn_q.weight"), {n_embd, n_q}, gain * unit(n_embd));
        w.add_matrix(block(layer, "attn_k.weight"), {n_embd, n_kv}, gain * unit(n_embd));
        w.add_matrix(block(layer, "attn_v.weight"), {n_embd, n_kv}, unit(n_embd));
        w.add_matrix(block(layer, "attn_output.weight"), {n_q, n_embd}, 1.5f * unit(n_q));
    }

    void add_fused_attention(std::uint32_t layer) {
        w.add_matrix(block(layer, "attn_qkv.weight"), {n_embd, n_q + 2 * n_kv}, score_gain() * unit(n_embd));
        w.add_matrix(block(layer, "attn_output.weight"), {n_q, n_embd}, unit(n_q));
    }

    void add_gated_ffn(std::uint32_t layer) {
        w.add_matrix(block(layer, "ffn_gate.weight"), {n_embd, n_ff}, unit(n_embd));
        w.add_matrix(block(layer, "ffn_up.weight"), {n_embd, n_ff}, unit(n_embd));
        w.add_matrix(block(layer, "ffn_down.weight"), {n_ff, n_embd}, unit(n_ff));
    }

    /// A Mamba (version 1) mixer. dt after its softplus lies between 0.01 and 0.1, as trained models start.
    void add_mamba(std::uint32_t layer, bool inner_norms) {
        const std::int64_t d_inner = 2 * n_embd, d_state = 16, d_conv = 4, dt_rank = 16;
        w.add_matrix(block(layer, "ssm_in.weight"), {n_embd, 2 * d_inner}, unit(n_embd));
        w.add_f32(block(layer, "ssm_conv1d.weight"), {d_conv, d_inner}, around(0, unit(d_conv)));
        w.add_f32(block(layer, "ssm_conv1d.bias"), {d_inner}, around(0, 0.1f));
        w.add_matrix(block(layer, "ssm_x.weight"), {d_inner, dt_rank + 2 * d_state}, 2 * unit(d_inner));
        w.add_f32(block(layer, "ssm_dt.weight"), {dt_rank, d_inner}, around(0, 0.3f * unit(dt_rank)));
        w.add_f32(block(layer, "ssm_dt.bias"), {d_inner}, around(-3.4f, 0.7f));
        w.add_f32(block(layer, "ssm_a"), {d_state, d_inner}, [=](std::int64_t i, float u) {
            return -static_cast<float>(1 + i % d_state) * (0.75f + 0.5f * u);
        });
        w.add_f32(block(layer, "ssm_d"), {d_inner}, around(1.0f, 0.1f));
        w.add_matrix(block(layer, "ssm_out.weight"), {d_inner, n_embd}, 2 * unit(d_inner));
        if (inner_norms) {
            add_norm(block(layer, "ssm_dt_norm.weight"), dt_rank);
            add_norm(block(layer, "ssm_b_norm.weight"), d_state);
            add_norm(block(layer, "ssm_c_norm.weight"), d_state);
        }
    }

    void add_mamba_hparams() {
        w.set("ssm.conv_kernel", std::uint32_t{4});
        w.set("ssm.inner_size", 2 * s.n_embd);
        w.set("ssm.state_size", std::uint32_t{16});
        w.set("ssm.time_step_rank", std::uint32_t{16});
    }
};

void build_llama(Builder& b) {
    b.add_hparams();
    b.add_heads();
    b.add_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_attention(l, b.score_gain());
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.add_gated_ffn(l);
    }
}

void build_qwen2(Builder& b) {
    b.require_plain_heads();
    build_llama(b);
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.w.add_f32(b.block(l, "attn_q.bias"), {b.n_q}, around(0, 0.5f));
        b.w.add_f32(b.block(l, "attn_k.bias"), {b.n_kv}, around(0, 0.5f));
        b.w.add_f32(b.block(l, "attn_v.bias"), {b.n_kv}, around(0, 0.5f));
    }
}

void build_qwen3(Builder& b) {
    build_llama(b);
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_q_norm.weight"), b.head_dim, b.score_gain());
        b.add_norm(b.block(l, "attn_k_norm.weight"), b.head_dim, b.score_gain());
    }
}

void build_phi3(Builder& b) {
    b.require_plain_heads();
    b.add_hparams();
    b.add_heads();
    b.add_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_fused_attention(l);
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.w.add_matrix(b.block(l, "ffn_up.weight"), {b.n_embd, 2 * b.n_ff}, Builder::unit(b.n_embd));
        b.w.add_matrix(b.block(l, "ffn_down.weight"), {b.n_ff, b.n_embd}, Builder::unit(b.n_ff));
    }
}

void build_mpt(Builder& b) {
    b.require_plain_heads();
    b.require(b.s.n_head == b.s.n_head_kv, "n_head_kv must be n_head");
    b.add_hparams(false);
    b.w.set("attention.head_count", b.s.n_head);
    b.w.set("attention.max_alibi_bias", 8.0f);
    b.add_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_fused_attention(l);
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.w.add_matrix(b.block(l, "ffn_up.weight"), {b.n_embd, b.n_ff}, Builder::unit(b.n_embd));
        b.w.add_matrix(b.block(l, "ffn_down.weight"), {b.n_ff, b.n_embd}, Builder::unit(b.n_ff));
    }
}

void build_gemma2(Builder& b) {
    b.add_hparams();
    b.add_heads();
    b.w.set("attn_logit_softcapping", 6.0f);  // small, so that scores of standard deviation 2 feel it
    b.w.set("final_logit_softcapping", 30.0f);
    b.add_tied_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_attention(l, b.score_gain());
        b.add_norm(b.block(l, "post_attention_norm.weight"), b.n_embd, 0.7f);
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.add_gated_ffn(l);
        b.add_norm(b.block(l, "post_ffw_norm.weight"), b.n_embd, 0.5f);
    }
}

/// Norm weight of Q and K where scores are not divided by sqrt(head_dim).
float unscaled_norm(const Builder& b, std::int64_t head_dim) {
    return b.score_gain() * std::pow(static_cast<float>(head_dim), -0.25f);
}

void build_gemma3n(Builder& b) {
    // fixed in llama.cpp, not read from the file
    const std::int64_t n_altup = 4, laurel_rank = 64, n_altup_embd = 256;
    const std::int64_t first_shared_layer = 20;
    const std::int64_t n_layer = b.s.n_layer;
    b.require(n_layer > first_shared_layer,
              "needs more than 20 layers, the first 20 have a KV cache of their own");
    b.require(b.s.n_swa > 0, "needs a sliding window");
    b.add_hparams();
    b.add_heads();
    b.add_tied_embeddings();
    const float unit = Builder::unit(b.n_embd);
    b.w.add_matrix("altup_proj.weight", {b.n_embd, b.n_embd, n_altup - 1}, unit);
    b.w.add_matrix("altup_unembd_proj.weight", {b.n_embd, b.n_embd, n_altup - 1}, unit);
    b.w.add_matrix("per_layer_token_embd.weight", {n_altup_embd * n_layer, b.s.n_vocab},
                   Builder::unit(n_altup_embd), WeightType::kQ8_0);
    b.w.add_matrix("per_layer_model_proj.weight", {b.n_embd, n_altup_embd * n_layer}, unit);
    b.add_norm("per_layer_proj_norm.weight", n_altup_embd);
    const float qk_norm = unscaled_norm(b, b.head_dim);
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_attention(l, 1.0f);
        b.add_norm(b.block(l, "attn_q_norm.weight"), b.head_dim, qk_norm);
        b.add_norm(b.block(l, "attn_k_norm.weight"), b.head_dim, qk_norm);
        b.add_norm(b.block(l, "post_attention_norm.weight"), b.n_embd, 0.4f);
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.add_gated_ffn(l);
        // small: few of the sparse gates are open, and the norm blows up what they leave
        b.add_norm(b.block(l, "post_ffw_norm.weight"), b.n_embd, 0.05f);
        b.w.add_matrix(b.block(l, "inp_gate.weight"), {b.n_embd, n_altup_embd}, unit);
        b.w.add_matrix(b.block(l, "proj.weight"), {n_altup_embd, b.n_embd}, Builder::unit(n_altup_embd));
        b.add_norm(b.block(l, "post_norm.weight"), b.n_embd, 0.1f);
        b.w.add_f32(b.block(l, "altup_correct_coef.weight"), {n_altup, n_altup}, around(0, 0.1f));
        b.add_norm(b.block(l, "altup_correct_scale.weight"), b.n_embd);
        b.w.add_f32(b.block(l, "altup_predict_coef.weight"), {n_altup, n_altup * n_altup}, around(0, 0.1f));
        b.w.add_f32(b.block(l, "altup_router.weight"), {b.n_embd, n_altup}, around(0, 1 / unit));
        b.add_norm(b.block(l, "altup_router_norm.weight"), b.n_embd);
        b.w.add_matrix(b.block(l, "laurel_l.weight"), {b.n_embd, laurel_rank}, unit);
        b.w.add_matrix(b.block(l, "laurel_r.weight"), {laurel_rank, b.n_embd}, Builder::unit(laurel_rank));
        b.add_norm(b.block(l, "laurel_post_norm.weight"), b.n_embd, 0.1f);
    }
}

void build_gemma4(Builder& b) {
    // Sliding and full layers in turn. The last two have no K and V: a layer that shares takes those of the
    // last layer of its kind that has them.
    const std::uint32_t n_shared = 2;
    const std::int64_t n_layer = b.s.n_layer, n_per_layer = 64;
    b.require(n_layer >= 4 && n_layer % 2 == 0, "needs an even number of layers, 4 or more");
    b.require(b.s.n_swa > 0, "needs a sliding window");
    const std::int64_t head_dim_swa = b.head_dim / 2;
    b.add_hparams();
    b.add_heads();
    b.w.set("attention.key_length_swa", static_cast<std::uint32_t>(head_dim_swa));
    b.w.set("attention.value_length_swa", static_cast<std::uint32_t>(head_dim_swa));
    b.w.set("rope.dimension_count_swa", static_cast<std::uint32_t>(head_dim_swa));
    b.w.set("rope.freq_base", 1e6f);
    b.w.set("rope.freq_base_swa", 1e4f);
    b.w.set("embedding_length_per_layer_input", static_cast<std::uint32_t>(n_per_layer));
    b.w.set("attention.shared_kv_layers", n_shared);
    b.w.set("final_logit_softcapping", 30.0f);
    std::vector<bool> slides(b.s.n_layer);
    for (std::size_t l = 0; l < slides.size(); l++) {
        slides[l] = l % 2 == 0;
    }
    b.w.set("attention.sliding_window_pattern", slides);
    b.add_tied_embeddings();
    const float unit = Builder::unit(b.n_embd);
    b.w.add_matrix("per_layer_token_embd.weight", {n_per_layer * n_layer, b.s.n_vocab},
                   Builder::unit(n_per_layer));
    b.w.add_matrix("per_layer_model_proj.weight", {b.n_embd, n_per_layer * n_layer}, unit);
    b.add_norm("per_layer_proj_norm.weight", n_per_layer);
    // frequency factors of the full layers: the upper half of each head does not rotate
    b.w.add_f32("rope_freqs.weight", {b.head_dim / 2},
                [&](std::int64_t i, float) { return i < b.head_dim / 4 ? 1.0f : 1e30f; });
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        const std::int64_t head_dim = slides[l] ? head_dim_swa : b.head_dim;
        const std::int64_t n_q = b.n_head * head_dim, n_kv = b.s.n_head_kv * head_dim;
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.w.add_matrix(b.block(l, "attn_q.weight"), {b.n_embd, n_q}, unit);
        b.add_norm(b.block(l, "attn_q_norm.weight"), head_dim, unscaled_norm(b, head_dim));
        if (l + n_shared < b.s.n_layer) {
            b.w.add_matrix(b.block(l, "attn_k.weight"), {b.n_embd, n_kv}, unit);
            b.w.add_matrix(b.block(l, "attn_v.weight"), {b.n_embd, n_kv}, unit);
            b.add_norm(b.block(l, "attn_k_norm.weight"), head_dim, unscaled_norm(b, head_dim));
        }
        b.w.add_matrix(b.block(l, "attn_output.weight"), {n_q, b.n_embd}, Builder::unit(n_q));
        b.add_norm(b.block(l, "post_attention_norm.weight"), b.n_embd, 0.7f);
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.add_gated_ffn(l);
        b.add_norm(b.block(l, "post_ffw_norm.weight"), b.n_embd, 0.5f);
        b.w.add_matrix(b.block(l, "inp_gate.weight"), {b.n_embd, n_per_layer}, unit);
        b.w.add_matrix(b.block(l, "proj.weight"), {n_per_layer, b.n_embd}, Builder::unit(n_per_layer));
        b.add_norm(b.block(l, "post_norm.weight"), b.n_embd, 0.3f);
        b.w.add_f32(b.block(l, "layer_output_scale.weight"), {1}, around(0.95f, 0.02f));
    }
}

// A draft model without K and V: its layers read those of a gemma4 with the same head_dim and n_head_kv.
void build_gemma4_assistant(Builder& b) {
    b.require(b.s.n_layer == 2 && b.s.n_embd_target != b.s.n_embd,
              "needs 2 layers and another n_embd_target");
    const std::int64_t n_target = b.s.n_embd_target;
    b.add_hparams();
    b.add_heads();
    for (const char* key :
         {"attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"})
        b.w.set(key, b.s.head_dim / 2);
    b.w.set("nextn_predict_layers", b.s.n_layer);
    b.w.set("embedding_length_out", b.s.n_embd_target);
    b.w.set("attention.sliding_window_pattern", std::vector<bool>{true, false});
    b.add_tied_embeddings();
    b.w.add_matrix("nextn.pre_projection.weight", {2 * n_target, b.n_embd}, Builder::unit(2 * n_target));
    b.w.add_matrix("nextn.post_projection.weight", {b.n_embd, n_target}, Builder::unit(b.n_embd));
    b.w.add_f32("rope_freqs.weight", {b.head_dim / 2}, around(1.0f, 0));
    for (std::uint32_t l = 0; l < 2; l++) {
        const std::int64_t head_dim = l == 0 ? b.head_dim / 2 : b.head_dim, n_q = b.n_head * head_dim;
        for (const char* norm :
             {"attn_norm.weight", "post_attention_norm.weight", "ffn_norm.weight", "post_ffw_norm.weight"})
            b.add_norm(b.block(l, norm), b.n_embd, 0.7f);
        b.w.add_matrix(b.block(l, "attn_q.weight"), {b.n_embd, n_q}, Builder::unit(b.n_embd));
        b.add_norm(b.block(l, "attn_q_norm.weight"), head_dim, unscaled_norm(b, head_dim));
        b.w.add_matrix(b.block(l, "attn_output.weight"), {n_q, b.n_embd}, Builder::unit(n_q));
        b.add_gated_ffn(l);
        b.w.add_f32(b.block(l, "layer_output_scale.weight"), {1}, around(0.95f, 0.02f));
    }
}

void build_gpt_oss(Builder& b) {
    b.require(b.s.n_swa > 0, "needs a sliding window");
    b.add_hparams();
    b.add_heads();
    b.w.set("expert_count", kExperts);
    b.w.set("expert_used_count", kExperts);
    b.w.set("expert_feed_forward_length", b.s.n_ff / kExperts);
    b.add_embeddings();
    const std::int64_t n_ff_expert = b.n_ff / kExperts;
    const float unit = Builder::unit(b.n_embd);
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_attention(l, b.score_gain());
        b.w.add_f32(b.block(l, "attn_q.bias"), {b.n_q}, around(0, 0.3f));
        b.w.add_f32(b.block(l, "attn_k.bias"), {b.n_kv}, around(0, 0.3f));
        b.w.add_f32(b.block(l, "attn_v.bias"), {b.n_kv}, around(0, 0.3f));
        b.w.add_f32(b.block(l, "attn_output.bias"), {b.n_embd}, around(0, 0.1f));
        // large enough to take a good part of the weight: 64 scores of deviation 2 add up to about exp(6)
        b.w.add_f32(b.block(l, "attn_sinks.weight"), {b.n_head}, around(5.0f, 1.5f));
        b.add_norm(b.block(l, "post_attention_norm.weight"), b.n_embd);
        b.w.add_f32(b.block(l, "ffn_gate_inp.weight"), {b.n_embd, kExperts}, around(0, unit));
        b.w.add_f32(b.block(l, "ffn_gate_inp.bias"), {kExperts}, around(0, 0.5f));
        b.w.add_matrix(b.block(l, "ffn_gate_exps.weight"), {b.n_embd, n_ff_expert, kExperts}, unit);
        b.w.add_matrix(b.block(l, "ffn_up_exps.weight"), {b.n_embd, n_ff_expert, kExperts}, unit);
        b.w.add_matrix(b.block(l, "ffn_down_exps.weight"), {n_ff_expert, b.n_embd, kExperts},
                       Builder::unit(n_ff_expert));
        b.w.add_f32(b.block(l, "ffn_gate_exps.bias"), {n_ff_expert, kExperts}, around(0, 0.1f));
        b.w.add_f32(b.block(l, "ffn_up_exps.bias"), {n_ff_expert, kExperts}, around(0, 0.1f));
        b.w.add_f32(b.block(l, "ffn_down_exps.bias"), {b.n_embd, kExperts}, around(0, 0.1f));
    }
}

void build_deepseek2(Builder& b) {
    // The cache holds, per token, one latent vector (which is also V) and one rotated key part.
    const std::uint32_t q_rank = 64, kv_rank = 512, rope_dim = 64, n_dense = 1;
    const std::int64_t nope_dim = b.head_dim, v_dim = b.head_dim;
    const std::uint32_t n_ff_expert = b.s.n_ff / kExperts;
    b.require(b.s.n_head_kv == 1, "n_head_kv must be 1: all heads share one latent vector");
    b.add_hparams();
    b.w.set("attention.head_count", b.s.n_head);
    b.w.set("attention.head_count_kv", std::uint32_t{1});
    b.w.set("attention.key_length", kv_rank + rope_dim);
    b.w.set("attention.value_length", kv_rank);
    b.w.set("attention.key_length_mla", static_cast<std::uint32_t>(nope_dim) + rope_dim);
    b.w.set("attention.value_length_mla", static_cast<std::uint32_t>(v_dim));
    b.w.set("attention.q_lora_rank", q_rank);
    b.w.set("attention.kv_lora_rank", kv_rank);
    b.w.set("rope.dimension_count", rope_dim);
    b.w.set("leading_dense_block_count", n_dense);
    b.w.set("expert_count", kExperts);
    b.w.set("expert_used_count", kExperts);
    b.w.set("expert_shared_count", std::uint32_t{1});
    b.w.set("expert_feed_forward_length", n_ff_expert);
    b.w.set("expert_gating_func", std::uint32_t{1});  // softmax
    b.add_embeddings();
    const float unit = Builder::unit(b.n_embd), gain = b.score_gain();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.w.add_matrix(b.block(l, "attn_q_a.weight"), {b.n_embd, q_rank}, unit);
        b.add_norm(b.block(l, "attn_q_a_norm.weight"), q_rank, gain);
        b.w.add_matrix(b.block(l, "attn_q_b.weight"), {q_rank, b.n_head * (nope_dim + rope_dim)},
                       Builder::unit(q_rank));
        b.w.add_matrix(b.block(l, "attn_kv_a_mqa.weight"), {b.n_embd, kv_rank + rope_dim}, gain * unit);
        b.add_norm(b.block(l, "attn_kv_a_norm.weight"), kv_rank);
        b.w.add_matrix(b.block(l, "attn_k_b.weight"), {nope_dim, kv_rank, b.n_head},
                       gain * Builder::unit(kv_rank));
        b.w.add_matrix(b.block(l, "attn_v_b.weight"), {kv_rank, v_dim, b.n_head}, Builder::unit(kv_rank));
        b.w.add_matrix(b.block(l, "attn_output.weight"), {b.n_head * v_dim, b.n_embd},
                       1.5f * Builder::unit(b.n_head * v_dim));
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        if (l < n_dense) {
            b.add_gated_ffn(l);
            continue;
        }
        b.w.add_f32(b.block(l, "ffn_gate_inp.weight"), {b.n_embd, kExperts}, around(0, unit));
        for (const std::string kind : {"exps", "shexp"}) {
            const auto ne = [&](std::int64_t in, std::int64_t out) {
                std::vector<std::int64_t> shape = {in, out};
                if (kind == "exps") {
                    shape.push_back(kExperts);
                }
                return shape;
            };
            const auto name = [&](const char* part) { return b.block(l, part) + kind + ".weight"; };
            b.w.add_matrix(name("ffn_gate_"), ne(b.n_embd, n_ff_expert), unit);
            b.w.add_matrix(name("ffn_up_"), ne(b.n_embd, n_ff_expert), unit);
            b.w.add_matrix(name("ffn_down_"), ne(n_ff_expert, b.n_embd), Builder::unit(n_ff_expert));
        }
    }
}

void build_mamba(Builder& b) {
    b.add_hparams();
    b.w.set("attention.head_count", std::uint32_t{0});
    b.add_mamba_hparams();
    b.add_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        b.add_mamba(l, false);
    }
}

void build_jamba(Builder& b) {
    b.require_plain_heads();
    b.add_hparams();
    b.add_mamba_hparams();
    b.w.set("attention.head_count", b.s.n_head);
    std::vector<std::int32_t> n_head_kv(b.s.n_layer);  // 0 marks a recurrent layer
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        n_head_kv[l] = l % 2 == 1 ? static_cast<std::int32_t>(b.s.n_head_kv) : 0;
    }
    b.w.set("attention.head_count_kv", n_head_kv);
    b.add_embeddings();
    for (std::uint32_t l = 0; l < b.s.n_layer; l++) {
        b.add_norm(b.block(l, "attn_norm.weight"), b.n_embd);
        if (n_head_kv[l] == 0) {
            b.add_mamba(l, true);
        } else {
            b.add_attention(l, b.score_gain());
        }
        b.add_norm(b.block(l, "ffn_norm.weight"), b.n_embd);
        b.add_gated_ffn(l);
    }
}

}  // namespace

void add_architecture(const RandomModelSpec& spec, GgufModelWriter& writer) {
    static const std::map<std::string, void (*)(Builder&)> builders = {
        {"llama", build_llama},
        {"qwen2", build_qwen2},
        {"qwen3", build_qwen3},
        {"phi3", build_phi3},
        {"mpt", build_mpt},
        {"gemma2", build_gemma2},
        {"gemma3n", build_gemma3n},
        {"gemma4", build_gemma4},
        {"gpt-oss", build_gpt_oss},
        {"deepseek2", build_deepseek2},
        {"mamba", build_mamba},
        {"jamba", build_jamba},
        {"gemma4-assistant", build_gemma4_assistant},
    };
    const auto builder = builders.find(spec.architecture);
    if (builder == builders.end()) {
        throw std::invalid_argument("no random model of architecture '" + spec.architecture + "'");
    }
    Builder context(spec, writer);
    builder->second(context);
}

}  // namespace mixed_kv::test
