#pragma once

#include <ggml.h>

#include <cstdint>
#include <memory>
#include <string>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::tools {

// What rows become by being stored in a format and read again: of llama.cpp's cache types, by ggml's own
// functions, and of our formats, by the scalar codec. So both can be compared on the same rows.
class RowCodec {
  public:
    // Rows of K or V from a page's first cell on.
    struct Rows {
        KvRole role;
        int n_head, head_dim;
        fp16_t* values;         // [n][n_head][head_dim], as attention reads them
        int n;                  // 1..kPageTokens
        std::uint64_t counted;  // bit t: row t is stored in the format; the others are left alone
    };

    virtual ~RowCodec() = default;
    virtual void store_and_read(const Rows& rows) const = 0;
    virtual double bits_per_value(KvRole role, int head_dim) const = 0;
    // Why it cannot store such rows, or an empty text.
    virtual std::string refusal(int n_head, int head_dim) const = 0;
};

// rotation: along each head as llama.cpp does for its quantized types, where head_dim is a multiple of 64.
std::unique_ptr<RowCodec> make_host_codec(ggml_type type, bool rotation);
// null: those rows stay in FP16.
std::unique_ptr<RowCodec> make_format_codec(const ColdFormat* key, const ColdFormat* value);

}  // namespace mixed_kv::tools
