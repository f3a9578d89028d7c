#pragma once

#include <ggml-backend.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mixed-kv-eval/row_codec.h"
#include "mixed_kv_api.h"

namespace mixed_kv::tools {

// Which rows of a coded cache stay in FP16: the window, the sinks and the rows of the running ubatch, as in a
// mixed cache; with neither a window nor sinks none at all, not even those of the running ubatch.
struct ExactRows {
    int window = 0, sinks = 0;
    bool none() const { return window == 0 && sinks == 0; }
};

// Follows the writes into an exact cache, by an evaluation callback, and puts rows through a codec when a
// mixed cache with the same window and sinks would store them: page by page, before attention reads them. For
// one sequence that is appended to from an empty cache on.
class CodedRows {
  public:
    CodedRows(std::unique_ptr<RowCodec> codec, ExactRows exact);

    // For llama_context_params::cb_eval, with this object as user data.
    static bool on_node(ggml_tensor* node, bool ask, void* self) noexcept;
    // The cache's tensors, once their heads are known; until then nothing is coded. Throws std::runtime_error
    // when the codec cannot store such rows.
    void follow(const std::vector<mixed_kv_tensor_info>& tensors);

    // Stored bytes of the rows now, accounted as of a mixed cache: whole pages, and sinks beside them.
    double bytes() const;
    double values() const;
    bool has_coded_rows() const;
    // Throws std::runtime_error when rows came that were not appended.
    void check() const;

  private:
    struct Tensor {
        KvRole role;
        int n_head, head_dim;
        bool is_first = false;                 // of the layer that a graph writes before any attention
        std::int64_t n_rows = 0, n_coded = 0;  // from cell 0 on; sinks count as coded
    };
    void after_write(ggml_tensor* cache, const ggml_tensor* cells);
    // Rows from cell 0 on that are to be coded, where there were `before` until this write.
    std::int64_t end_of_coded(const Tensor& tensor, std::int64_t before) const;
    void code(ggml_tensor* cache, Tensor& tensor, std::int64_t end);

    std::unique_ptr<RowCodec> codec_;
    ExactRows exact_;
    std::map<std::string, Tensor> tensors_;  // by name
    std::string fault_;
};

}  // namespace mixed_kv::tools
