#include "support/page_tensor.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <new>
#include <stdexcept>

#include "support/random.h"

namespace mixed_kv::test {

namespace {

constexpr fp16_t kNan = 0x7e01;
// AddressSanitizer guards the end better than NaN, which only shows when it is used.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kTailBytes = 0;
#else
constexpr std::size_t kTailBytes = 64;
#endif

}  // namespace

PageTensor::PageTensor(const Spec& spec, const kernels::KernelSet& set) : spec_(spec) {
    layout_.shape = spec.shape;
    layout_.role = spec.role;
    layout_.format = spec.format;
    if (spec.format != nullptr) {
        layout_.format_index = static_cast<int>(spec.format - cold_formats().data());
        layout_.block_bytes = spec.format->block_bytes(spec.role, spec.shape.head_dim);
    }
    const std::int64_t n_pages = (spec.n_cells + kPageTokens - 1) / kPageTokens;
    pages_.resize(static_cast<std::size_t>(spec.n_stream * n_pages));
    const int row_elements = spec.shape.row_elements();
    std::vector<fp16_t> rows(static_cast<std::size_t>(kPageTokens * row_elements));
    Random random(spec.seed);
    for (int stream = 0; stream < spec.n_stream; ++stream) {
        for (std::int64_t index = 0; index < n_pages; ++index) {
            const std::int64_t first = index * kPageTokens;
            const int n_rows = static_cast<int>(std::min<std::int64_t>(kPageTokens, spec.n_cells - first));
            auto out = rows.begin();
            for (int t = 0; t < kPageTokens; ++t) {
                for (int head = 0; head < spec.shape.n_head; ++head) {
                    for (int d = 0; d < spec.shape.head_dim; ++d) {
                        const float x = spec.value && t < n_rows ? spec.value(stream, first + t, head, d)
                                                                 : spec.sigma * random.normal();
                        *out++ = t < n_rows ? fp32_to_fp16(x) : kNan;
                    }
                }
            }
            fill_page(pages_[std::size_t(stream * n_pages + index)], index,
                      choose(stream, index, random.next()), rows, n_rows, set, random.next());
        }
        tables_.push_back({pages_.data() + stream * n_pages, n_pages, layout_});
    }
}

PageTensor::Choice PageTensor::choose(int stream, std::int64_t page, std::uint64_t random) const {
    Choice choice{PageState::hot, 0};
    const int few = 1 + static_cast<int>(random / 64 % 9);
    switch (spec_.mix) {
        case PageMix::hot:
            break;
        case PageMix::pinned:
            choice = {PageState::pinned, 0};
            break;
        case PageMix::cold:
            choice = {PageState::cold, 0};
            break;
        case PageMix::cold_overlay:
            choice = {PageState::cold, few};
            break;
        case PageMix::blocks:
            choice = {PageState::cold, static_cast<int>(random / 64 % 4), 1 + static_cast<int>(random % 4)};
            break;
        case PageMix::all_states:
            switch (random % 9) {
                case 0:
                    choice = {PageState::hot, 0};
                    break;
                case 1:
                    choice = {PageState::pinned, 0};
                    break;
                case 2:
                    choice = {PageState::empty, 0};
                    break;
                case 3:
                    choice = {PageState::cold, 1};
                    break;
                case 4:
                    choice = {PageState::cold, few};
                    break;
                case 5:
                    choice = {PageState::cold, kPageTokens - 1};
                    break;
                case 6:
                    choice = {PageState::cold, few, 2 + static_cast<int>(random / 64 % 3)};
                    break;
                default:
                    choice = {PageState::cold, 0};
                    break;
            }
            break;
    }
    if (spec_.state) choice = {spec_.state(stream, page), 0};
    if (choice.state == PageState::cold && spec_.format == nullptr) choice = {PageState::hot, 0};
    return choice;
}

std::byte* PageTensor::allocate(std::size_t bytes) {
    auto* p = static_cast<std::byte*>(::operator new (bytes + kTailBytes, std::align_val_t{64}));
    blocks_.emplace_back(p);
    std::fill_n(reinterpret_cast<fp16_t*>(p + bytes), kTailBytes / sizeof(fp16_t), kNan);
    return p;
}

// rows: [64][n_head][head_dim], NaN from n_rows on.
void PageTensor::fill_page(Page& page, std::int64_t index, Choice choice, const std::vector<fp16_t>& rows,
                           int n_rows, const kernels::KernelSet& set, std::uint64_t random) {
    const auto n_head = std::size_t(spec_.shape.n_head), dim = std::size_t(spec_.shape.head_dim);
    const std::size_t row_elements = n_head * dim;
    page.state = choice.state;
    page.written = n_rows == kPageTokens ? ~std::uint64_t(0) : (std::uint64_t(1) << n_rows) - 1;
    switch (choice.state) {
        case PageState::empty:
            page.written = 0;
            break;
        case PageState::hot: {
            page.data = allocate(kPageTokens * row_elements * sizeof(fp16_t));
            auto* out = reinterpret_cast<fp16_t*>(page.data);
            for (std::size_t head = 0; head < n_head; ++head) {
                for (std::size_t t = 0; t < kPageTokens; ++t, out += dim) {
                    std::copy_n(rows.begin() + std::ptrdiff_t(t * row_elements + head * dim), dim, out);
                }
            }
            break;
        }
        case PageState::pinned:  // the tensor ends with its last cell
            page.data = allocate(std::size_t(n_rows) * row_elements * sizeof(fp16_t));
            std::copy_n(rows.begin(), std::size_t(n_rows) * row_elements,
                        reinterpret_cast<fp16_t*>(page.data));
            break;
        case PageState::cold: {
            Random draw(random);
            if (spec_.overlay_cell >= 0 && spec_.overlay_cell / kPageTokens == index) {
                page.overlay = std::uint64_t(1) << (spec_.overlay_cell % kPageTokens);
            }
            while (std::popcount(page.overlay) < std::min(choice.overlay_rows, n_rows)) {
                page.overlay |= std::uint64_t(1) << draw.below(n_rows);
            }
            page.overlay_rows = reinterpret_cast<fp16_t*>(
                allocate(std::size_t(std::popcount(page.overlay)) * row_elements * sizeof(fp16_t)));
            std::vector<fp16_t> block_rows = rows;
            fp16_t* overlay = page.overlay_rows;
            for (std::size_t t = 0; t < kPageTokens; ++t) {
                if ((page.overlay >> t & 1) == 0) continue;
                const auto row = block_rows.begin() + std::ptrdiff_t(t * row_elements);
                overlay = std::copy_n(row, row_elements, overlay);
                std::fill_n(row, row_elements, kNan);
            }
            fill_blocks(page, choice.n_blocks, block_rows, set, random);
            break;
        }
    }
}

// Rows that are in no overlay, as one block at its own cells, or several whose rows are rotated. Then some
// cells are never written.
void PageTensor::fill_blocks(Page& page, int n_blocks, const std::vector<fp16_t>& rows,
                             const kernels::KernelSet& set, std::uint64_t random) {
    const auto n_head = std::size_t(spec_.shape.n_head), dim = std::size_t(spec_.shape.head_dim);
    const auto row_elements = std::ptrdiff_t(n_head * dim);
    Random draw(random ^ 0x9e3779b97f4a7c15u);
    more_.push_back(std::make_unique<PageBlock[]>(Page::kMaxBlocks - 1));
    page.more = more_.back().get();
    page.n_blocks = static_cast<std::uint8_t>(n_blocks);
    if (n_blocks > 1 && page.written == ~std::uint64_t(0))
        page.written &= ~(draw.next() & draw.next() & draw.next());
    page.written |= page.overlay;
    std::uint64_t left = page.written & ~page.overlay;
    const kernels::FormatKernels& format = set.formats[layout_.format_index];
    const auto encode = spec_.role == KvRole::key ? format.encode_key : format.encode_value;
    for (int i = 0; i < n_blocks; ++i) {
        PageBlock& block = page.block(i);
        block.format = static_cast<std::uint8_t>(layout_.format_index);
        block.head_bytes = static_cast<std::uint32_t>(layout_.block_bytes);
        block.rotation = n_blocks > 1 ? static_cast<std::uint8_t>(draw.below(kPageTokens)) : 0;
        block.cells = i + 1 < n_blocks ? left & draw.next() : left;
        left &= ~block.cells;
        block.data = allocate(layout_.block_bytes * n_head);
        std::vector<fp16_t> own(rows.size(), kNan);
        std::uint64_t counted = 0;
        for (int t = 0; t < kPageTokens; ++t) {
            if ((block.cells >> t & 1) == 0) continue;
            counted |= std::uint64_t(1) << block.row_of(t);
            std::copy_n(rows.begin() + t * row_elements, row_elements,
                        own.begin() + block.row_of(t) * row_elements);
        }
        for (std::size_t head = 0; head < n_head; ++head) {
            const bool stored = encode({own.data() + head * dim, row_elements, spec_.shape.head_dim, counted,
                                        block.data + head * layout_.block_bytes});
            if (!stored) throw std::logic_error("encoder refused finite rows");
        }
    }
}

}  // namespace mixed_kv::test
