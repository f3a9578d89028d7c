// Finds libmixed-kv-torch.so beside the program the first time that somebody asks for libtorch.
#include <dlfcn.h>

#include <filesystem>
#include <vector>

#include "kqv-tensor-reader/recompute.h"
#include "kqv-tensor-reader/torch_module.h"
#include "mixed_kv/error.h"

namespace mixed_kv::trace_tools {

namespace {

struct Loaded {
    const TorchModule* module = nullptr;
    std::string problem;  // why there is none
};

#ifdef MIXED_KV_HAVE_TORCH

namespace fs = std::filesystem;

// Where a build tree and an installation have their libraries, seen from bin/.
fs::path find_library() {
    std::error_code ignored;
    const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
    for (const char* folder : {"../lib", "../" MIXED_KV_INSTALL_LIBDIR, "."}) {
        const fs::path library = program / folder / MIXED_KV_TORCH_MODULE;
        if (fs::exists(library, ignored)) return library.lexically_normal();
    }
    return {};
}

Loaded load() {
    const fs::path path = find_library();
    if (path.empty()) return {nullptr, "no " MIXED_KV_TORCH_MODULE " beside this program"};
    void* handle =
        ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: libtorch does not survive it
    if (handle == nullptr) return {nullptr, ::dlerror()};
    const auto function = reinterpret_cast<TorchModuleFunction>(::dlsym(handle, kTorchModuleSymbol));
    const TorchModule* module = function != nullptr ? function() : nullptr;
    if (module == nullptr || module->version != kTorchModuleVersion) {
        return {nullptr, path.string() + " is of another build"};
    }
    return {module, ""};
}

#else

Loaded load() { return {nullptr, "built without libtorch"}; }

#endif

const Loaded& loaded() {
    static const Loaded result = load();
    return result;
}

}  // namespace

bool has_torch() { return loaded().module != nullptr; }

std::string torch_text() {
    const Loaded& torch = loaded();
    return torch.module != nullptr ? torch.module->text : torch.problem;
}

std::vector<float> attention_in_torch(const AttentionData& data) {
    const Loaded& torch = loaded();
    if (torch.module == nullptr) throw Error(torch.problem);
    return torch.module->attention(data);
}

}  // namespace mixed_kv::trace_tools
