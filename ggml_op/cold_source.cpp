#include "ggml_op/cold_source.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "kernels/contract.h"
#include "mixed_kv/error.h"

namespace mixed_kv::ggml_op {

namespace {

std::string shape_text(const ggml_tensor* t) {
    std::string text = std::string(ggml_type_name(t->type)) + " [";
    for (int i = 0; i < 4; ++i) text += (i == 0 ? "" : ", ") + std::to_string(t->ne[i]);
    return text + "]";
}

bool has_shape(const ggml_tensor* t, std::int64_t ne0, std::int64_t ne1, std::int64_t ne2) {
    return t->ne[0] == ne0 && (ne1 < 0 || t->ne[1] == ne1) && (ne2 < 0 || t->ne[2] == ne2) && t->ne[3] == 1;
}

std::int64_t n_pages_of(std::int64_t n_cells) { return (n_cells + kPageTokens - 1) / kPageTokens; }

}  // namespace

PageMemory::~PageMemory() { ::operator delete (data_, std::align_val_t{64}); }

void PageMemory::allocate(std::size_t bytes) {
    ::operator delete (data_, std::align_val_t{64});
    data_ = nullptr;
    if (bytes == 0) return;
    data_ = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64}));
    std::memset(data_, 0, bytes);
}

void CachePages::fail(const char* tensor, const std::string& what) const {
    throw Error("flash decoding op: " + name_ + tensor + ": " + what);
}

std::int64_t CachePages::default_n_kv(const ggml_tensor* hot, const ggml_tensor* cold) noexcept {
    const std::int64_t n_hot = hot == nullptr ? 0 : hot->ne[1];
    if (cold == nullptr) return n_hot;
    return n_hot + (cold->type == GGML_TYPE_I8 ? cold->ne[2] * kPageTokens : cold->ne[1]);
}

void CachePages::check_hot(const ggml_tensor* hot) const {
    if (hot == nullptr) return;
    const HeadShape& heads = shape_.heads;
    if (hot->type != GGML_TYPE_F16 || !has_shape(hot, heads.head_dim, -1, heads.n_head)) {
        fail("", "is " + shape_text(hot) + ", not f16 [" + std::to_string(heads.head_dim) + ", n_hot, " +
                     std::to_string(heads.n_head) + ", 1]");
    }
    if (hot->nb[0] != sizeof(fp16_t)) fail("", "the values of a row are not contiguous");
}

// Cold pages of the input, after setting the layout of their blocks.
std::int64_t CachePages::check_cold(const ggml_tensor* cold, const std::string& format,
                                    const BlockKernelSet& kernels) {
    if (cold == nullptr) return 0;
    const HeadShape& heads = shape_.heads;
    const std::string n_head = std::to_string(heads.n_head);
    if (is_block_type(cold->type)) {
        if (!format.empty() && format != ggml_type_name(cold->type)) {
            fail("_quant", "is " + shape_text(cold) + ", not of format '" + format + "'");
        }
        if (!has_shape(cold, heads.head_dim, -1, heads.n_head)) {
            fail("_quant", "is " + shape_text(cold) + ", not [" + std::to_string(heads.head_dim) +
                               ", n_cold, " + n_head + ", 1]");
        }
        if (cold->nb[0] != ggml_type_size(cold->type))
            fail("_quant", "the blocks of a row are not contiguous");
        blocks_of_ggml_ = true;
        layout_.format = &cold_formats().front();  // not read: kernels go by the index
        layout_.format_index = kernels.format_index(cold->type);
        layout_.block_bytes = kPageTokens * ggml_row_size(cold->type, heads.head_dim);
        if (layout_.block_bytes % 64 != 0)
            fail("_quant", "rows of " + shape_text(cold) + " do not fill pages");
        return n_pages_of(cold->ne[1]);
    }
    if (cold->type != GGML_TYPE_I8) {
        fail("_quant", "is " + shape_text(cold) + ", neither i8 blocks nor q8_0, q5_0 or q4_0");
    }
    layout_.format = find_cold_format(format);
    if (layout_.format == nullptr) {
        std::string names;
        for (const ColdFormat& f : cold_formats()) names += " " + std::string(f.name);
        fail("_quant", "unknown cold format '" + format + "'; there are:" + names);
    }
    layout_.format_index = int(layout_.format - cold_formats().data());
    layout_.block_bytes = layout_.format->block_bytes(shape_.role, heads.head_dim);
    if (!has_shape(cold, std::int64_t(layout_.block_bytes), heads.n_head, -1)) {
        fail("_quant", "is " + shape_text(cold) + ", format " + format + " needs [" +
                           std::to_string(layout_.block_bytes) + ", " + n_head + ", n_pages, 1]");
    }
    if (!ggml_is_contiguous(cold)) fail("_quant", "is not contiguous");
    return cold->ne[2];
}

void CachePages::lay_out(const char* name, const Shape& shape, const ggml_tensor* hot,
                         const ggml_tensor* cold, const std::string& format, const Cells& cells,
                         const BlockKernelSet& kernels) {
    name_ = name;
    shape_ = shape;
    layout_ = {};
    layout_.shape = shape.heads;
    layout_.role = shape.role;
    check_hot(hot);
    const std::int64_t n_cold_pages = check_cold(cold, format, kernels);
    const std::int64_t n_hot = hot == nullptr ? 0 : hot->ne[1];
    const std::int64_t n_cold = default_n_kv(nullptr, cold);
    pages_.assign(std::size_t(n_pages_of(shape.n_kv)), Page{});
    cold_at_.clear();

    if (cells.given &&
        (std::int64_t(cells.rows.size()) != n_hot || std::int64_t(cells.pages.size()) != n_cold_pages)) {
        fail("", "cells of " + std::to_string(cells.rows.size()) + " rows and " +
                     std::to_string(cells.pages.size()) + " pages are given, the inputs hold " +
                     std::to_string(n_hot) + " and " + std::to_string(n_cold_pages));
    }
    for (std::int64_t i = 0; i < n_cold_pages; ++i) {
        const std::int64_t cell = cells.given ? cells.pages[std::size_t(i)] : i * kPageTokens;
        if (cell < 0 || cell % kPageTokens != 0 || cell >= shape.n_kv) {
            fail("_quant", "page " + std::to_string(i) + " begins at cell " + std::to_string(cell) +
                               ", not a multiple of 64 below " + std::to_string(shape.n_kv));
        }
        Page& page = pages_[std::size_t(cell / kPageTokens)];
        if (page.state != PageState::empty) fail("_quant", "two pages at cell " + std::to_string(cell));
        page.state = PageState::cold;
        page.written = ~std::uint64_t{0};
        cold_at_.push_back(cell / kPageTokens);
    }
    std::vector<std::int64_t> row_cell(static_cast<std::size_t>(n_hot));
    for (std::int64_t i = 0; i < n_hot; ++i) {
        const std::int64_t cell = cells.given ? cells.rows[std::size_t(i)] : n_cold + i;
        if (cell < 0 || cell >= shape.n_kv) {
            fail("", "row " + std::to_string(i) + " is cell " + std::to_string(cell) + " of " +
                         std::to_string(shape.n_kv));
        }
        row_cell[std::size_t(i)] = cell;
        Page& page = pages_[std::size_t(cell / kPageTokens)];
        const std::uint64_t bit = std::uint64_t{1} << (cell % kPageTokens);
        if (page.state == PageState::empty) page.state = PageState::hot;
        std::uint64_t& taken = page.state == PageState::cold ? page.overlay : page.written;
        if ((taken & bit) != 0) fail("", "two rows of cell " + std::to_string(cell));
        taken |= bit;
    }

    // Memory of all pages, then where each row goes in it.
    const auto row_elements = std::size_t(shape.heads.row_elements());
    std::size_t n_hot_pages = 0, n_overlay = 0;
    for (const Page& page : pages_) {
        n_hot_pages += page.state == PageState::hot ? 1 : 0;
        n_overlay += std::size_t(std::popcount(page.overlay));
    }
    const std::size_t hot_bytes = kPageTokens * row_elements * sizeof(fp16_t);
    hot_.allocate(n_hot_pages * hot_bytes);
    overlay_.allocate(n_overlay * row_elements * sizeof(fp16_t));
    const std::size_t cold_bytes = std::size_t(shape.heads.n_head) * layout_.block_bytes;
    cold_.allocate(std::size_t(n_cold_pages) * cold_bytes);
    std::byte* next_hot = hot_.data();
    auto* next_overlay = reinterpret_cast<fp16_t*>(overlay_.data());
    for (Page& page : pages_) {
        if (page.state == PageState::hot) {
            page.data = next_hot;
            next_hot += hot_bytes;
        }
        if (page.overlay != 0) {
            page.overlay_rows = next_overlay;
            next_overlay += std::size_t(std::popcount(page.overlay)) * row_elements;
        }
    }
    for (std::size_t i = 0; i < cold_at_.size(); ++i) {
        Page& page = pages_[std::size_t(cold_at_[i])];
        page.n_blocks = 1;
        page.first.data = cold_.data() + i * cold_bytes;
        page.first.cells = ~page.overlay;
        page.first.format = static_cast<std::uint8_t>(layout_.format_index);
        page.first.head_bytes = static_cast<std::uint32_t>(layout_.block_bytes);
    }
    row_targets_.clear();
    for (const std::int64_t cell : row_cell) {
        const Page& page = pages_[std::size_t(cell / kPageTokens)];
        const auto t = unsigned(cell % kPageTokens);
        const auto dim = std::ptrdiff_t(shape.heads.head_dim);
        if (page.state == PageState::hot) {
            row_targets_.push_back({reinterpret_cast<fp16_t*>(page.data) + t * dim, kPageTokens * dim});
        } else {
            const auto rank = std::size_t(std::popcount(page.overlay & ((std::uint64_t{1} << t) - 1)));
            row_targets_.push_back({page.overlay_rows + rank * row_elements, dim});
        }
    }
}

void CachePages::check_blocks() const {
    for (std::size_t i = 0; i < cold_at_.size(); ++i) {
        for (int h = 0; h < shape_.heads.n_head; ++h) {
            try {
                layout_.format->check_block(
                    shape_.role, shape_.heads.head_dim,
                    cold_.data() +
                        (i * std::size_t(shape_.heads.n_head) + std::size_t(h)) * layout_.block_bytes);
            } catch (const Error& e) {
                fail("_quant", "page " + std::to_string(i) + ", head " + std::to_string(h) + ": " + e.what());
            }
        }
    }
}

void CachePages::fill(const ggml_tensor* hot, const ggml_tensor* cold) {
    const HeadShape& heads = shape_.heads;
    for (std::size_t i = 0; i < row_targets_.size(); ++i) {
        const auto* row = static_cast<const std::byte*>(hot->data) + i * hot->nb[1];
        for (int h = 0; h < heads.n_head; ++h) {
            std::memcpy(row_targets_[i].data + h * row_targets_[i].head_stride,
                        row + std::size_t(h) * hot->nb[2], layout_.head_bytes());
        }
    }
    if (cold_at_.empty()) return;
    const auto* from = static_cast<const std::byte*>(cold->data);
    const std::size_t page_bytes = std::size_t(heads.n_head) * layout_.block_bytes;
    if (!blocks_of_ggml_) {
        // Copied, because kernels want blocks at multiples of 64 bytes and ggml's buffers promise less.
        std::memcpy(cold_.data(), from, cold_at_.size() * page_bytes);
        check_blocks();
        return;
    }
    const std::size_t row_bytes = layout_.block_bytes / kPageTokens;
    for (std::int64_t row = 0; row < cold->ne[1]; ++row) {
        std::byte* to = cold_.data() + std::size_t(row / kPageTokens) * page_bytes +
                        std::size_t(row % kPageTokens) * row_bytes;
        for (int h = 0; h < heads.n_head; ++h) {
            std::memcpy(to + std::size_t(h) * layout_.block_bytes,
                        from + std::size_t(row) * cold->nb[1] + std::size_t(h) * cold->nb[2], row_bytes);
        }
    }
}

}  // namespace mixed_kv::ggml_op
