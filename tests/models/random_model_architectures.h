// The metadata and tensors of each architecture.
#pragma once

#include "gguf_model_writer.h"
#include "random_model.h"

namespace mixed_kv::test {

/// Adds all but the tokenizer. Throws std::invalid_argument for an unknown architecture or a shape it cannot
/// have.
void add_architecture(const RandomModelSpec& spec, GgufModelWriter& writer);

}  // namespace mixed_kv::test
