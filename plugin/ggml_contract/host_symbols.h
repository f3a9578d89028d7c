#pragma once

#include <string>

namespace mixed_kv::plugin {

// Connects the functions of ggml that this plugin calls to those of the host that has loaded it.
//
// The plugin needs no library of ggml: their file names and sonames differ from builder to builder
// (libggml.so.0, libggml.v0.5.0.so), and a host may have opened them privately (RTLD_LOCAL, as Node does with
// its addons) or have a second ggml beside the one that loads us. What tells the right one is who calls
// ggml_backend_init.
//
// caller: an address in the code that called ggml_backend_init. Returns why the plugin cannot work there;
// empty when every function was found. The first host of a process keeps the plugin: another one gets a
// refusal.
std::string bind_host(const void* caller);

// Undoes it, for a host that turned out not to fit: another one of the process may.
void unbind_host();

}  // namespace mixed_kv::plugin
