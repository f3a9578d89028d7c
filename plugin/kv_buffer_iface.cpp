// ggml's buffer and buffer type interfaces over KvBuffer. Exceptions end here.
#include <cstdio>

#include "border.h"
#include "buffer_choice.h"
#include "device.h"
#include "fitting.h"
#include "host_cpu.h"
#include "kv_buffer.h"
#include "mixed_kv/error.h"
#include "report.h"

namespace mixed_kv::plugin {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

KvBuffer& get(ggml_backend_buffer_t buffer) { return *static_cast<KvBuffer*>(buffer->context); }

// Runs fn under the buffer's lock. These interfaces cannot report failure, so what fails is logged; the cache
// keeps what it had before.
template <typename Fn>
void guarded(KvBuffer& buffer, const char* what, Fn&& fn) {
    std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
    at_border(what, fn);
}

void free_buffer(ggml_backend_buffer_t buffer) { delete static_cast<KvBuffer*>(buffer->context); }

void* get_base(ggml_backend_buffer_t buffer) { return get(buffer).base(); }

// Refuses a cache that would not fit the limit when full, while the context can still be refused: throws
// Error. Not under the buffer's lock, which comes after the report's.
void check_limit(const KvBuffer& kv) {
    const int limit_mb = kv.settings().limit_mb;
    if (limit_mb == 0) return;
    const double bytes = Report::instance().expected_bytes();
    if (bytes <= limit_mb * kMiB) return;
    char line[256];
    std::snprintf(
        line, sizeof line,
        "GGML_MIXED_KV_LIMIT_MB=%d: refused, all caches would take more than %.1f MiB when full; a shorter "
        "context, fewer sequences or a narrower format takes less",
        limit_mb, bytes / kMiB);
    throw Error(line);
}

// As the host's CPU buffers. llama.cpp lays out a state on the device anew in the buffer of the one before
// when the number of bytes is the same, whatever pieces they come in: more padding than there was aborts the
// host.
constexpr std::size_t kAlignment = 32;

// Whether a tensor ends where its buffer does: tensors are laid out one after the other, so all are known
// now. What the budget leaves for them can be said only then.
bool is_last(const KvBuffer& kv, const ggml_tensor* tensor) {
    const auto* end = static_cast<const std::byte*>(tensor->data) + ggml_nbytes(tensor);
    return end + kAlignment > kv.base() + kv.size();
}

ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
    // Graph tensors are initialised on every step; only what lives as long as the buffer can be a cache.
    if (buffer->usage == GGML_BACKEND_BUFFER_USAGE_COMPUTE || !is_lasting(tensor)) return GGML_STATUS_SUCCESS;
    KvBuffer& kv = get(buffer);
    return at_border("setting up a cache tensor", GGML_STATUS_ALLOC_FAILED, [&] {
        {
            std::lock_guard<std::recursive_mutex> lock(kv.mutex);
            kv.init_tensor(tensor);
        }
        check_limit(kv);
        if (kv.settings().budget && is_last(kv, tensor)) Report::instance().share_budgets();
        return GGML_STATUS_SUCCESS;
    });
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                   size_t size) {
    guarded(get(buffer), "filling a cache tensor", [&] { get(buffer).fill(tensor, value, offset, size); });
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                size_t size) {
    guarded(get(buffer), "writing a cache tensor", [&] { get(buffer).write(tensor, data, offset, size); });
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                size_t size) {
    guarded(get(buffer), "reading a cache tensor", [&] { get(buffer).read(tensor, data, offset, size); });
}

bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
    return at_border("copying a cache tensor", false, [&] { return get(buffer).copy(src, dst); });
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    guarded(get(buffer), "clearing the cache", [&] { get(buffer).clear(value); });
}

// Assigned by name: which members there are besides these depends on the ggml. They stay null, which they
// may.
ggml_backend_buffer_i buffer_interface() {
    ggml_backend_buffer_i interface = {};
    interface.free_buffer = free_buffer;
    interface.get_base = get_base;
    interface.init_tensor = init_tensor;
    interface.memset_tensor = memset_tensor;
    interface.set_tensor = set_tensor;
    interface.get_tensor = get_tensor;
    interface.cpy_tensor = cpy_tensor;
    interface.clear = clear;
    return interface;
}

const char* type_name(ggml_backend_buffer_type_t) { return MIXED_KV_DEVICE_NAME; }

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    return at_border("no cache", ggml_backend_buffer_t(nullptr), [&] {
        if (is_for_recurrent_state(size) && HostCpu::device() != nullptr)
            return ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(HostCpu::device()), size);
        auto buffer = std::make_unique<KvBuffer>(size, settings());
        ggml_backend_buffer_t result = ggml_backend_buffer_init(type, buffer_interface(), buffer.get(), size);
        if (result == nullptr) return result;
        buffer.release();
        note_cache();
        return result;
    });
}

size_t get_alignment(ggml_backend_buffer_type_t) { return kAlignment; }

size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor* tensor) {
    if (tensor->buffer == nullptr) {
        note_allocation(tensor, kAlignment);
    } else if (is_lasting(tensor) && tensor->buffer->context == nullptr) {  // in a placeholder
        note_counted(tensor);
    }
    return ggml_nbytes(tensor);
}

bool is_host(ggml_backend_buffer_type_t) { return false; }

}  // namespace

ggml_backend_buffer_type_t buffer_type() {
    static ggml_backend_buffer_type type = [] {
        ggml_backend_buffer_type t = {};
        t.iface.get_name = type_name;
        t.iface.alloc_buffer = alloc_buffer;
        t.iface.get_alignment = get_alignment;
        t.iface.get_alloc_size = get_alloc_size;
        t.iface.is_host = is_host;
        t.device = device();
        return t;
    }();
    return &type;
}

}  // namespace mixed_kv::plugin
