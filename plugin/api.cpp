#include "api.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "border.h"
#include "device.h"
#include "mixed_kv/isa.h"
#include "report.h"

namespace mixed_kv::plugin {
namespace {

// Where a view starts in its cache tensor: stream and cell, or false when it is none of ours.
struct Place {
    KvBuffer* buffer;
    KvEntry* entry;
    std::int64_t stream, cell;
};

bool locate(const ggml_tensor* t, std::int64_t stream, Place& place) {
    place.buffer = KvBuffer::buffer_of(t);
    if (place.buffer == nullptr) return false;
    place.entry = KvBuffer::entry_of(t);
    if (place.entry == nullptr || place.entry->tensor == nullptr) return false;
    const auto row = std::int64_t(std::size_t(static_cast<const std::byte*>(t->data) - place.entry->base) /
                                  place.entry->row_bytes);
    place.stream = row / place.entry->n_cells + stream;
    place.cell = row % place.entry->n_cells;
    return place.stream >= 0 && place.stream < place.entry->n_stream;
}

int to_api(PageState state) {
    switch (state) {
        case PageState::hot:
            return MIXED_KV_CELL_HOT;
        case PageState::cold:
            return MIXED_KV_CELL_COLD;
        case PageState::pinned:
            return MIXED_KV_CELL_PINNED;
        case PageState::empty:
            break;
    }
    return MIXED_KV_CELL_EMPTY;
}

void counters(mixed_kv_counters* out) {
    *out = {};
    at_border("counting", [&] { *out = Report::instance().counters(); });
}

size_t report(char* out, size_t size) {
    if (size > 0) out[0] = '\0';
    return at_border("reporting", size_t(0), [&] {
        const std::string text = Report::instance().lines();
        if (size > 0) {
            const size_t n = std::min(size - 1, text.size());
            std::memcpy(out, text.data(), n);
            out[n] = '\0';
        }
        return text.size();
    });
}

template <typename T>
size_t copy_out(const std::vector<T>& items, T* out, size_t n) {
    std::copy_n(items.begin(), std::min(n, items.size()), out);
    return items.size();
}

size_t tensors(mixed_kv_tensor_info* out, size_t n) {
    return at_border("listing tensors", size_t(0),
                     [&] { return copy_out(Report::instance().tensors(), out, n); });
}

size_t ranges(mixed_kv_range* out, size_t n) {
    return at_border("listing memory", size_t(0),
                     [&] { return copy_out(Report::instance().ranges(), out, n); });
}

mixed_kv_cell cell_state(const ggml_tensor* t, int64_t stream, int64_t cell) {
    Place place;
    if (!locate(t, stream, place)) return MIXED_KV_CELL_NOT_OURS;
    std::lock_guard<std::recursive_mutex> lock(place.buffer->mutex);
    const std::int64_t index = place.cell + cell;
    if (index < 0 || index >= place.entry->n_cells) return MIXED_KV_CELL_NOT_OURS;
    const Page& page = place.entry->tensor->pages(int(place.stream)).pages[index / kPageTokens];
    const std::uint64_t bit = std::uint64_t(1) << (index % kPageTokens);
    if (page.state == PageState::pinned) return MIXED_KV_CELL_PINNED;
    if ((page.written & bit) == 0) return MIXED_KV_CELL_EMPTY;
    if (page.state == PageState::cold && (page.overlay & bit) != 0) return MIXED_KV_CELL_OVERLAY;
    return mixed_kv_cell(to_api(page.state));
}

int page(const ggml_tensor* t, int64_t stream, int64_t index, mixed_kv_page* out) {
    Place place;
    if (!locate(t, stream, place)) return 0;
    std::lock_guard<std::recursive_mutex> lock(place.buffer->mutex);
    const PageTable table = place.entry->tensor->pages(int(place.stream));
    if (index < 0 || index >= table.n_pages) return 0;
    const Page& p = table.pages[index];
    *out = {};
    out->state = to_api(p.state);
    out->written = p.written;
    out->overlay = p.overlay;
    out->data = p.data;
    out->overlay_rows = p.overlay_rows;
    static_assert(MIXED_KV_MAX_BLOCKS == Page::kMaxBlocks);
    out->n_blocks = p.n_blocks;
    for (int i = 0; i < p.n_blocks; ++i) {
        const PageBlock& block = p.block(i);
        out->blocks[i] = {block.data, block.cells, block.rotation, cold_formats()[block.format].code_bits};
    }
    out->shift_pending = p.shift_groups != 0 ? 1 : 0;
    return 1;
}

int tensor_info(const ggml_tensor* t, mixed_kv_tensor_info* out) {
    KvBuffer* buffer = KvBuffer::buffer_of(t);
    if (buffer == nullptr) return 0;
    std::lock_guard<std::recursive_mutex> lock(buffer->mutex);
    const KvEntry* entry = KvBuffer::entry_of(t);
    if (entry == nullptr) return 0;
    *out = describe_entry(*entry);
    return 1;
}

int configure_settings(const char* text, char* error, size_t size) {
    try {
        configure(text == nullptr ? "" : text);
        return 1;
    } catch (const std::exception& e) {
        if (size > 0) std::snprintf(error, size, "%s", reason_of(e));
        return 0;
    }
}

const char* isa() {
    return at_border("naming the kernels", "none", [] { return active_isa_name(); });
}
const char* built_for_version() { return MIXED_KV_GGML_VERSION; }
const char* built_for_commit() { return MIXED_KV_GGML_COMMIT; }

const mixed_kv_api kApi = {
    .version = MIXED_KV_API_VERSION,
    .counters = counters,
    .report = report,
    .tensors = tensors,
    .ranges = ranges,
    .cell_state = cell_state,
    .page = page,
    .tensor_info = tensor_info,
    .configure = configure_settings,
    .isa = isa,
    .built_for_version = built_for_version,
    .built_for_commit = built_for_commit,
};

}  // namespace

const mixed_kv_api* api(std::uint32_t version) { return version == MIXED_KV_API_VERSION ? &kApi : nullptr; }

}  // namespace mixed_kv::plugin
