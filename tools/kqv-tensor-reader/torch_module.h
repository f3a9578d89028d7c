#pragma once

#include "kqv-tensor-reader/recompute.h"

// libmixed-kv-torch.so: attention by libtorch, in a library of its own, so that a program maps libtorch (half
// a second of CPU time) only when it computes something. Built together with its users and never used by
// others.
namespace mixed_kv::trace_tools {

// Goes up with every change of TorchModule or AttentionData.
inline constexpr int kTorchModuleVersion = 1;

struct TorchModule {
    int version;                                                 // kTorchModuleVersion
    const char* text;                                            // "libtorch 1.13.0"
    std::vector<float> (*attention)(const AttentionData& data);  // [n_stream][n_tokens][n_head][head_dim_v]
};

// The only symbol of the library: returns its TorchModule, valid for the life of the process.
inline constexpr char kTorchModuleSymbol[] = "mixed_kv_torch_module";
using TorchModuleFunction = const TorchModule* (*)();

}  // namespace mixed_kv::trace_tools
