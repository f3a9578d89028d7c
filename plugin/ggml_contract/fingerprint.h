#pragma once

#include <string>

namespace mixed_kv::plugin {

// Whether the host's ggml has the binary interface that this plugin was compiled for, whoever built it and
// whatever version it calls itself. Returns what differs; empty when it fits. bind_host() comes before.
//
// Nothing is allocated and nothing of the host's changes: the host's accessors are handed structures of ours,
// and must find in them what we put there.
std::string difference_from_host();

// What this binary was built for, for people: "backend API 2 with 2D copies (built with ggml 0.25.1)".
std::string supported_interface();

// The backend API version of the host's CPU backend, or -1 while none is loaded.
int host_api_version();

}  // namespace mixed_kv::plugin
