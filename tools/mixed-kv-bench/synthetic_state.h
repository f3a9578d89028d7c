#pragma once

#include <llama.h>

#include <cstdint>

namespace mixed_kv::tools {

// Fills sequence 0 of a context up to `depth` tokens without computing them: rows of the tokens that are
// there now are repeated in the format of llama_state_seq_get_data(), and restored. The rows are those of
// real tokens, in the cache's own type; only their order means nothing. The context must hold between 1 and
// depth tokens of sequence 0. Throws std::runtime_error when the model's state is not a plain K and V cache
// (sliding windows, recurrent state).
void extend_by_repetition(llama_context* context, std::uint32_t depth);

}  // namespace mixed_kv::tools
