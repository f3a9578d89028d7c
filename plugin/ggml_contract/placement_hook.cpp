#include "ggml_contract/placement_hook.h"

#include <mutex>

#include "ggml_contract/nodes.h"
#include "ggml_contract/table_hook.h"

namespace mixed_kv::plugin {
namespace {

using supports_op_t = bool (*)(ggml_backend_dev_t, const ggml_tensor*);
supports_op_t original_supports_op = nullptr;

bool hooked_supports_op(ggml_backend_dev_t cpu, const ggml_tensor* op) {
    if (is_cache_attention(op)) return false;
    return original_supports_op(cpu, op);
}

}  // namespace

void install_placement_hook(ggml_backend_dev_t cpu) {
    static std::once_flag once;
    std::call_once(once, [&] {
        original_supports_op = cpu->iface.supports_op;
        replace_entry(cpu->iface.supports_op, hooked_supports_op);
    });
}

}  // namespace mixed_kv::plugin
