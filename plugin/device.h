#pragma once

#include <mutex>
#include <string>

#include "ggml-backend-impl.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/settings.h"
#include "mixed_kv_api.h"

namespace mixed_kv::plugin {

ggml_backend_reg_t registration();
ggml_backend_dev_t device();

// The settings of caches created now: the environment's as read when the plugin was loaded, or what
// configure() put in their place. Throws Error, each time, when they were refused.
Settings settings();
// Why the environment's were refused; empty when they were not.
const std::string& settings_refusal();
// "window=128,k=q4": see mixed_kv_api.configure. Throws Error and changes nothing when text is wrong.
void configure(const std::string& text);
// Of what configure() sets.
std::mutex& override_mutex();
// The kernels of backends and caches created now. Throws Error when MIXED_KV_ISA was refused.
const kernels::KernelSet& kernel_set_in_use();
// Name of the kernels in use; "none" when MIXED_KV_ISA was refused.
const char* active_isa_name();

// Hooks into the host's CPU backend, once it is there: when the plugin is loaded, while there are no other
// threads as a rule, else with the first backend instance.
void install_hooks();
// A backend instance (one per llama_context); null with a logged reason when it cannot work.
ggml_backend_t new_backend(ggml_backend_dev_t device);
bool is_our_backend(ggml_backend_t backend);
void set_n_threads(ggml_backend_t backend, int n_threads);
void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* data);

}  // namespace mixed_kv::plugin
