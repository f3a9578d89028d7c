#include "ggml_contract/fingerprint.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ggml-backend-impl.h"
#include "ggml_contract/ops.h"

namespace mixed_kv::plugin {
namespace {

// Members of ggml's interface tables, by position. Every position of a table of ours leads to a function that
// notes that it was called; so a call through the host shows which position the host takes a member to have.
constexpr std::intptr_t kFirst = 0x40;  // not null: a size and a name, too
std::intptr_t called = 0;

template <std::intptr_t position>
std::intptr_t note() {
    return called = kFirst + position;
}

template <typename Table, std::intptr_t... position>
void fill(Table& table, std::integer_sequence<std::intptr_t, position...>) {
    using Note = std::intptr_t (*)();
    const Note notes[] = {note<position>...};
    static_assert(sizeof notes == sizeof table, "an interface table holds functions only");
    std::memcpy(&table, notes, sizeof table);
}

// A structure of ggml's whose table notes calls. What is around it is ours, too: a host with a larger
// structure reads zeros, not somebody else's memory.
template <typename Structure>
struct Mirror {
    Structure value = {};
    std::byte behind[512] = {};
    Mirror() {
        constexpr auto n = std::intptr_t(sizeof value.iface / sizeof(void*));
        fill(value.iface, std::make_integer_sequence<std::intptr_t, n>());
    }
};

template <typename T>
T* marked(std::uintptr_t mark) {
    return reinterpret_cast<T*>(mark);
}

#define MIXED_KV_POSITION(Table, member) (kFirst + std::intptr_t(offsetof(Table, member) / sizeof(void*)))

// Calls one of the host's functions and says whether it went through that member.
template <typename Call>
bool goes_to(std::intptr_t position, Call&& call) {
    called = 0;
    call();
    return called == position;
}

template <typename Table>
constexpr bool has_2d_copies() {
    return requires(Table table) { table.set_tensor_2d; };
}

bool same_tensor() {
    struct {
        ggml_tensor t = {};
        std::byte behind[512] = {};
    } mirror;
    ggml_tensor& t = mirror.t;
    t.type = GGML_TYPE_F16;
    t.ne[0] = t.ne[1] = t.ne[2] = t.ne[3] = 1;
    t.nb[0] = t.nb[1] = t.nb[2] = t.nb[3] = 2;
    const bool one = ggml_nelements(&t) == 1 && ggml_nbytes(&t) == 2 && !ggml_is_empty(&t);
    t.ne[3] = 3;
    t.nb[3] = 34;
    const bool counts = ggml_nelements(&t) == 3 && ggml_nbytes(&t) == 2 + 2 * 34;
    t.data = marked<void>(0x1230);
    ggml_set_input(&t);
    // An object of ggml's context is four words, then the tensor.
    const std::size_t object = 4 * sizeof(void*);
    return one && counts && ggml_get_data(&t) == t.data && (t.flags & GGML_TENSOR_FLAG_INPUT) != 0 &&
           ggml_get_name(&t) == t.name && ggml_tensor_overhead() == object + sizeof t &&
           ggml_type_size(GGML_TYPE_F16) == 2 && ggml_type_size(GGML_TYPE_F32) == 4 &&
           ggml_type_size(GGML_TYPE_I32) == 4 && ggml_type_size(GGML_TYPE_I64) == 8;
}

bool same_buffer_type() {
    using Table = ggml_backend_buffer_type_i;
    Mirror<ggml_backend_buffer_type> type;
    ggml_backend_buffer_type_t t = &type.value;
    t->device = marked<ggml_backend_device>(0x1240);
    if (ggml_backend_buft_get_device(t) != t->device) return false;
    ggml_tensor value = {};
    value.type = GGML_TYPE_F16;
    value.ne[0] = value.ne[1] = value.ne[2] = value.ne[3] = 1;
    value.nb[0] = value.nb[1] = value.nb[2] = value.nb[3] = 2;
    return goes_to(MIXED_KV_POSITION(Table, get_name), [&] { (void)ggml_backend_buft_name(t); }) &&
           goes_to(MIXED_KV_POSITION(Table, alloc_buffer),
                   [&] { (void)ggml_backend_buft_alloc_buffer(t, 1); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_alignment),
                   [&] { (void)ggml_backend_buft_get_alignment(t); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_max_size),
                   [&] { (void)ggml_backend_buft_get_max_size(t); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_alloc_size),
                   [&] { (void)ggml_backend_buft_get_alloc_size(t, &value); }) &&
           goes_to(MIXED_KV_POSITION(Table, is_host), [&] { (void)ggml_backend_buft_is_host(t); });
}

// Comes after the tensor and the buffer type.
bool same_buffer() {
    using Table = ggml_backend_buffer_i;
    Mirror<ggml_backend_buffer_type> type;
    Mirror<ggml_backend_buffer> mirror;
    ggml_backend_buffer_t b = &mirror.value;
    b->buft = &type.value;
    b->size = 0x1250;
    b->usage = GGML_BACKEND_BUFFER_USAGE_COMPUTE;
    if (ggml_backend_buffer_get_type(b) != b->buft || ggml_backend_buffer_get_size(b) != b->size ||
        ggml_backend_buffer_get_usage(b) != b->usage)
        return false;
    std::uint16_t number = 0;
    ggml_tensor t = {};
    t.type = GGML_TYPE_F16;
    t.ne[0] = t.ne[1] = t.ne[2] = t.ne[3] = 1;
    t.nb[0] = t.nb[1] = t.nb[2] = t.nb[3] = 2;
    t.buffer = b;
    t.data = &number;
    return goes_to(MIXED_KV_POSITION(Table, get_base), [&] { (void)ggml_backend_buffer_get_base(b); }) &&
           goes_to(MIXED_KV_POSITION(Table, init_tensor),
                   [&] { (void)ggml_backend_buffer_init_tensor(b, &t); }) &&
           goes_to(MIXED_KV_POSITION(Table, memset_tensor),
                   [&] { ggml_backend_tensor_memset(&t, 0, 0, 2); }) &&
           goes_to(MIXED_KV_POSITION(Table, set_tensor),
                   [&] { ggml_backend_tensor_set(&t, &number, 0, 2); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_tensor),
                   [&] { ggml_backend_tensor_get(&t, &number, 0, 2); }) &&
           goes_to(MIXED_KV_POSITION(Table, clear), [&] { ggml_backend_buffer_clear(b, 0); }) &&
           goes_to(MIXED_KV_POSITION(Table, reset), [&] { ggml_backend_buffer_reset(b); });
}

bool same_backend() {
    using Table = ggml_backend_i;
    Mirror<ggml_backend> mirror;
    ggml_backend_t b = &mirror.value;
    b->guid = marked<ggml_guid>(0x1260);
    b->device = marked<ggml_backend_device>(0x1270);
    return ggml_backend_guid(b) == b->guid && ggml_backend_get_device(b) == b->device &&
           goes_to(MIXED_KV_POSITION(Table, get_name), [&] { (void)ggml_backend_name(b); }) &&
           goes_to(MIXED_KV_POSITION(Table, synchronize), [&] { ggml_backend_synchronize(b); }) &&
           goes_to(MIXED_KV_POSITION(Table, graph_compute),
                   [&] { (void)ggml_backend_graph_compute_async(b, nullptr); });
}

bool same_device() {
    using Table = ggml_backend_device_i;
    Mirror<ggml_backend_device> mirror;
    ggml_backend_dev_t d = &mirror.value;
    d->reg = marked<ggml_backend_reg>(0x1280);
    return ggml_backend_dev_backend_reg(d) == d->reg &&
           goes_to(MIXED_KV_POSITION(Table, get_name), [&] { (void)ggml_backend_dev_name(d); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_description),
                   [&] { (void)ggml_backend_dev_description(d); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_type), [&] { (void)ggml_backend_dev_type(d); }) &&
           goes_to(MIXED_KV_POSITION(Table, init_backend),
                   [&] { (void)ggml_backend_dev_init(d, nullptr); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_buffer_type),
                   [&] { (void)ggml_backend_dev_buffer_type(d); }) &&
           goes_to(MIXED_KV_POSITION(Table, supports_op),
                   [&] { (void)ggml_backend_dev_supports_op(d, nullptr); }) &&
           goes_to(MIXED_KV_POSITION(Table, supports_buft),
                   [&] { (void)ggml_backend_dev_supports_buft(d, nullptr); }) &&
           goes_to(MIXED_KV_POSITION(Table, offload_op),
                   [&] { (void)ggml_backend_dev_offload_op(d, nullptr); });
}

// The host clears the properties before it asks a device for them, and so shows how large it takes them to
// be. A later release's caps may have members more, as long as they fit into the padding of an earlier one.
bool same_properties() {
    Mirror<ggml_backend_device> mirror;
    union {
        ggml_backend_dev_props properties;
        unsigned char bytes[sizeof(ggml_backend_dev_props) + 512];
    } space;
    std::memset(&space, 0xff, sizeof space);
    ggml_backend_dev_get_props(&mirror.value, &space.properties);
    std::size_t cleared = 0;
    while (cleared < sizeof space && space.bytes[cleared] == 0) ++cleared;
    return called == MIXED_KV_POSITION(ggml_backend_device_i, get_props) &&
           cleared == sizeof space.properties;
}

bool same_registration() {
    using Table = ggml_backend_reg_i;
    Mirror<ggml_backend_reg> mirror;
    ggml_backend_reg_t r = &mirror.value;
    return goes_to(MIXED_KV_POSITION(Table, get_name), [&] { (void)ggml_backend_reg_name(r); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_device_count),
                   [&] { (void)ggml_backend_reg_dev_count(r); }) &&
           goes_to(MIXED_KV_POSITION(Table, get_proc_address),
                   [&] { (void)ggml_backend_reg_get_proc_address(r, ""); });
}

}  // namespace

int host_api_version() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t registration = cpu == nullptr ? nullptr : ggml_backend_dev_backend_reg(cpu);
    return registration == nullptr ? -1 : registration->api_version;
}

std::string difference_from_host() {
    // From what everything else is reached through to what only we read; the first difference is the one
    // said.
    if (!same_registration()) return "its ggml_backend_reg is another";
    if (!same_device()) return "its ggml_backend_device is another";
    if (const int version = host_api_version(); version >= 0 && version != GGML_BACKEND_API_VERSION)
        return "its backend API is " + std::to_string(version);
    if (!same_properties()) return "its ggml_backend_dev_props is another";
    if (!same_tensor()) return "its ggml_tensor is another";
    if (!same_buffer_type()) return "its ggml_backend_buffer_type is another";
    if (!same_buffer()) return "its ggml_backend_buffer is another";
    if (!same_backend()) return "its ggml_backend is another";
    if (const char* missing = Ops::learn(); missing != nullptr)
        return std::string("it has no op named ") + missing;
    return "";
}

std::string supported_interface() {
    std::string text = "backend API " + std::to_string(GGML_BACKEND_API_VERSION);
    if (GGML_BACKEND_API_VERSION == 2)
        text += has_2d_copies<ggml_backend_buffer_i>() ? " with 2D copies, ggml 0.10 to 0.25"
                                                       : " without 2D copies, ggml 0.9";
    return text + " (built with " MIXED_KV_GGML_VERSION ")";
}

}  // namespace mixed_kv::plugin
