#pragma once

#include <llama.h>

#include <cstdint>

namespace mixed_kv::tools {

// Fills sequences 0 .. n_seq - 1 of a context up to `depth` tokens each without computing them: rows of the
// tokens that sequence 0 holds now are repeated in the format of llama_state_seq_get_data(), and restored,
// into cells of their own for every sequence. The rows are those of real tokens, in the cache's own type;
// only their order means nothing. The context must hold between 1 and depth tokens of sequence 0 and nothing
// else. Throws std::runtime_error when the model's state is not a plain K and V cache (sliding windows,
// recurrent state).
void fill_by_repetition(llama_context* context, std::uint32_t depth, int n_seq);

}  // namespace mixed_kv::tools
