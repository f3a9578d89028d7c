#include "cache/kv_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <tuple>

#include "formats/codec.h"
#include "kernels/contract.h"

namespace mixed_kv::test {

namespace {

// The blocks of one page at 64-byte aligned addresses.
struct AlignedBlocks {
    explicit AlignedBlocks(std::size_t bytes) : storage(bytes + 63) {
        data = storage.data() + (64 - reinterpret_cast<std::uintptr_t>(storage.data()) % 64) % 64;
    }
    std::vector<std::byte> storage;
    std::byte* data;
};

bool has(std::uint64_t cells, int t) { return (cells >> t & 1) != 0; }

// Byte for byte, but for the signs of zeros: a turn may negate those of rows.
bool same_block(const std::byte* a, const std::byte* b, const PageLayout& layout) {
    if (std::memcmp(a, b, layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head)) == 0)
        return true;
    for (int head = 0; head < layout.shape.n_head; ++head, a += layout.block_bytes, b += layout.block_bytes) {
        const int bits = layout.format->code_bits, head_dim = layout.shape.head_dim;
        const formats::BlockReader x(bits, layout.role, head_dim, a), y(bits, layout.role, head_dim, b);
        for (int i = 0; i < kPageTokens * head_dim; ++i) {
            const int t = i / head_dim, c = i % head_dim;
            if (x.code(t, c) != y.code(t, c) || x.scale(t, c) != y.scale(t, c) ||
                x.offset(t, c) != y.offset(t, c))
                return false;
        }
    }
    return true;
}

}  // namespace

KvModel::KvModel(const KvTensor& tensor, const WindowTracker* tracker) : tensor_(tensor), tracker_(tracker) {
    const auto& config = tensor.config();
    const auto n_cells = static_cast<std::size_t>(config.n_cells * config.n_stream);
    pages_per_stream_ = tensor.pages(0).n_pages;
    const auto n_pages = static_cast<std::size_t>(pages_per_stream_ * config.n_stream);
    rows_.resize(n_cells * static_cast<std::size_t>(config.row_elements));
    ever_written_.resize(n_cells);
    touched_.resize(n_pages);
    rewritten_.resize(n_pages);
    seen_.resize(n_pages);
}

std::int64_t KvModel::first_cell(std::size_t index) const {
    const auto i = static_cast<std::int64_t>(index);
    return i / pages_per_stream_ * tensor_.config().n_cells + i % pages_per_stream_ * kPageTokens;
}

std::uint64_t KvModel::valid(std::size_t index) const {
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    const std::int64_t n = tensor_.config().n_cells - in_stream * kPageTokens;
    return n >= kPageTokens ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

void KvModel::touch(std::int64_t cell) {
    const std::int64_t n_cells = tensor_.config().n_cells;
    const std::int64_t index = cell / n_cells * pages_per_stream_ + cell % n_cells / kPageTokens;
    touched_[static_cast<std::size_t>(index)] |= std::uint64_t{1} << (cell % n_cells % kPageTokens);
    ever_written_[static_cast<std::size_t>(cell)] = 1;
}

void KvModel::write_row(std::int64_t cell, const float* from) {
    std::transform(from, from + tensor_.config().row_elements, row(cell), fp32_to_fp16);
    touch(cell);
}

void KvModel::write_row(std::int64_t cell, const fp16_t* from) {
    std::copy_n(from, tensor_.config().row_elements, row(cell));
    touch(cell);
}

void KvModel::write_bytes(std::size_t offset, const void* data, std::size_t size) {
    if (size == 0) return;
    std::memcpy(reinterpret_cast<std::byte*>(rows_.data()) + offset, data, size);
    const std::size_t row_bytes = static_cast<std::size_t>(tensor_.config().row_elements) * sizeof(fp16_t);
    for (std::size_t r = offset / row_bytes; r <= (offset + size - 1) / row_bytes; ++r)
        touch(static_cast<std::int64_t>(r));
}

void KvModel::fill_bytes(std::size_t offset, std::uint8_t value, std::size_t size) {
    write_bytes(offset, std::vector<std::uint8_t>(size, value).data(), size);
}

void KvModel::copy_rows(const KvModel& from, std::int64_t from_cell, std::int64_t to_cell, std::int64_t n) {
    const int row_elements = tensor_.config().row_elements;
    const std::vector<fp16_t> copy(from.rows_.begin() + from_cell * row_elements,
                                   from.rows_.begin() + (from_cell + n) * row_elements);
    for (std::int64_t i = 0; i < n; ++i) write_row(to_cell + i, copy.data() + i * row_elements);
}

void KvModel::clear() {
    std::fill(rows_.begin(), rows_.end(), fp16_t{0});
    std::fill(ever_written_.begin(), ever_written_.end(), 0);
}

// By what the cells of a cold page had and get: too many to be noted beside the block.
bool KvModel::shift_needs_encoding(std::size_t index, const KeyShift& shift) const {
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const PageTable table = tensor_.pages(stream);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    const Page& page = table.pages[in_stream];
    if (page.state != PageState::cold) return false;
    std::set<std::pair<std::uint32_t, std::uint32_t>> groups;
    std::set<std::int64_t> distances;
    for (int t = 0; t < kPageTokens; ++t) {
        if (!has(valid(index) & ~page.overlay, t)) continue;
        std::uint32_t before = UINT32_MAX;
        for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
            if (has(table.shifts[in_stream].cells[g], t)) before = table.shifts[in_stream].turn[g];
        }
        const std::uint32_t kind = shift.kinds[first_cell(index) + t];
        groups.insert({before, kind});
        distances.insert((before == UINT32_MAX ? 0 : table.turns->origins[before].distance) +
                         (kind == 0 ? 0 : shift.distances[kind - 1]));
    }
    distances.erase(0);
    return groups.size() > 4 * PageShift::kMaxGroups || distances.size() > PageShift::kMaxGroups;
}

// Rows that were zeroed need no storage, and then no turn either: it would negate some of their zeros.
bool KvModel::is_stored(std::int64_t cell) const {
    const std::int64_t n_cells = tensor_.config().n_cells;
    const Page& page = tensor_.pages(static_cast<int>(cell / n_cells)).pages[cell % n_cells / kPageTokens];
    return page.state == PageState::cold || has(page.written, static_cast<int>(cell % n_cells % kPageTokens));
}

void KvModel::shift(const KeyShift& shift) {
    for (std::size_t index = 0; index < seen_.size(); ++index) {
        if (shift_needs_encoding(index, shift)) rewritten_[index] = 1;
    }
    for (std::size_t cell = 0; cell < ever_written_.size(); ++cell) {
        const std::uint32_t kind = shift.kinds[cell];
        if (kind == 0 || ever_written_[cell] == 0 || !is_stored(static_cast<std::int64_t>(cell))) continue;
        const float* turn = shift.turns + (kind - 1) * 2 * static_cast<std::size_t>(shift.pairs.n_pairs);
        for (int head = 0; head < shift.n_head; ++head) {
            fp16_t* key = row(static_cast<std::int64_t>(cell)) + head * shift.head_dim;
            for (int i = 0; i < shift.pairs.n_pairs; ++i) {
                const int step = shift.pairs.interleaved ? 1 : shift.pairs.n_pairs;
                fp16_t& a = key[shift.pairs.first + (shift.pairs.interleaved ? 2 * i : i)];
                fp16_t& b = *(&a + step);
                const float c = turn[i], s = turn[shift.pairs.n_pairs + i];
                const float x = fp16_to_fp32(a), y = fp16_to_fp32(b);
                a = fp32_to_fp16(c * x - s * y);
                b = fp32_to_fp16(s * x + c * y);
            }
        }
    }
}

// What is pending for one cell of a cold page, done or taken back.
void KvModel::turn(std::size_t index, int token, bool back, fp16_t* row) const {
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const PageTable table = tensor_.pages(stream);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    const HeadShape& shape = table.layout.shape;
    std::vector<float> key(static_cast<std::size_t>(shape.head_dim));
    for (std::uint32_t g = 0; g < table.pages[in_stream].shift_groups; ++g) {
        if (!has(table.shifts[in_stream].cells[g], token)) continue;
        const float* turn = table.turns->turn(table.shifts[in_stream].turn[g]);
        for (int head = 0; head < shape.n_head; ++head, row += shape.head_dim) {
            std::transform(row, row + shape.head_dim, key.begin(), fp16_to_fp32);
            (back ? turn_key_back : turn_key)(table.turns->pairs, turn, key.data());
            std::transform(key.begin(), key.end(), row, fp32_to_fp16);
        }
        return;
    }
}

std::vector<fp16_t> KvModel::stored_rows(std::size_t index) const {
    const int row_elements = tensor_.config().row_elements;
    std::vector<fp16_t> rows(static_cast<std::size_t>(kPageTokens * row_elements));
    const int n = std::popcount(valid(index));
    std::copy_n(rows_.begin() + first_cell(index) * row_elements, n * row_elements, rows.begin());
    for (int t = 0; t < n; ++t) turn(index, t, true, rows.data() + t * row_elements);
    return rows;
}

void KvModel::fail(std::size_t page, const std::string& what) {
    if (problems_.size() < 20) problems_.push_back("page " + std::to_string(page) + ": " + what);
}

void KvModel::decode(const Page& page, std::vector<fp16_t>& rows) const {
    const PageLayout layout = tensor_.layout();
    const auto& set = *tensor_.config().kernels;
    const int head_dim = layout.shape.head_dim, n_head = layout.shape.n_head;
    rows.assign(static_cast<std::size_t>(kPageTokens) * static_cast<std::size_t>(n_head * head_dim), 0);
    // 16-aligned rows, as the contract asks for.
    const int stride = (head_dim + 15) / 16 * 16;
    std::vector<float> values(static_cast<std::size_t>(kPageTokens * stride));
    for (int head = 0; head < n_head; ++head) {
        const std::byte* block = page.data + static_cast<std::size_t>(head) * layout.block_bytes;
        const auto& codec = set.formats[layout.format_index];
        const kernels::DecodeArgs args{{block, 0, kPageTokens, head_dim}, values.data(), stride, false};
        if (layout.role == KvRole::key) {
            codec.decode_key(args);
        } else {
            codec.decode_value(args);
        }
        for (int t = 0; t < kPageTokens; ++t) {
            float* value = values.data() + t * stride;
            if (layout.role == KvRole::value) set.hadamard(value, head_dim, hadamard_size(head_dim));
            for (int d = 0; d < head_dim; ++d)
                rows[(t * n_head + head) * head_dim + d] = fp32_to_fp16(value[d]);
        }
    }
}

// What the codec makes of the model's rows; empty when it refuses.
std::vector<std::byte> KvModel::encode(std::size_t index, std::uint64_t counted) const {
    const PageLayout layout = tensor_.layout();
    const auto& codec = tensor_.config().kernels->formats[layout.format_index];
    const int row_elements = layout.shape.row_elements();
    const std::vector<fp16_t> rows = stored_rows(index);
    const auto bytes = layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head);
    AlignedBlocks blocks(bytes);
    for (int head = 0; head < layout.shape.n_head; ++head) {
        const kernels::EncodeArgs args{rows.data() + head * layout.shape.head_dim, row_elements,
                                       layout.shape.head_dim, counted,
                                       blocks.data + static_cast<std::size_t>(head) * layout.block_bytes};
        if (!(layout.role == KvRole::key ? codec.encode_key(args) : codec.encode_value(args))) return {};
    }
    return {blocks.data, blocks.data + bytes};
}

// Half a step, what clipping the range may cost, and binary16 rounding of scale, zero point and result; for
// keys per value, for values per row of a head in the rotated basis, where the offsets take the mean of a
// channel's errors away.
void KvModel::check_codec_error(std::size_t index, const Page& page, const std::vector<fp16_t>& truth_rows,
                                const std::vector<fp16_t>& decoded) {
    const PageLayout layout = tensor_.layout();
    const int bits = layout.format->code_bits;
    const bool narrow = formats::is_narrow(bits);
    const auto form = narrow ? formats::ScaleForm::byte : formats::ScaleForm::half;
    // Of a range in codes of this width. Byte scales are rounded up by at most an eighth.
    const auto relative_error = [&](int width) {
        const auto clip = formats::clip_factors(layout.role == KvRole::key, width, form);
        const double clipped = 1.0 - *std::min_element(clip.factor, clip.factor + clip.count);
        return (narrow ? 0.5625 : 0.5) / ((1 << width) - 1) + clipped + 0x1p-9;
    };
    const double relative = relative_error(bits);
    // Scales among the subnormals.
    const double tiny = narrow ? 0x1p-17 : (1 << bits) * 0x1p-25 + 1e-7;
    const int n_head = layout.shape.n_head, head_dim = layout.shape.head_dim;
    const std::uint64_t counted = valid(index) & ~page.overlay;
    const auto at = [&](const fp16_t* rows, int t, int head, int d) {
        return static_cast<double>(fp16_to_fp32(rows[(t * n_head + head) * head_dim + d]));
    };
    const fp16_t* truth = truth_rows.data();
    for (int head = 0; head < n_head; ++head) {
        if (layout.role == KvRole::key) {
            const formats::BlockReader reader(
                bits, KvRole::key, head_dim, page.data + static_cast<std::size_t>(head) * layout.block_bytes);
            for (int d = 0; d < head_dim; ++d) {
                double low = INFINITY, high = -INFINITY;
                for (int t = 0; t < kPageTokens; ++t) {
                    if (!has(counted, t)) continue;
                    low = std::min(low, at(truth, t, head, d));
                    high = std::max(high, at(truth, t, head, d));
                }
                // A channel without codes is its mean.
                const int width = reader.width(d);
                const double share = width == 0 ? 1.0 : relative_error(width);
                const double bound =
                    share * (high - low) + 0x1p-9 * std::max(std::abs(low), std::abs(high)) + tiny;
                for (int t = 0; t < kPageTokens; ++t) {
                    if (!has(counted, t)) continue;
                    const double error = std::abs(at(truth, t, head, d) - at(decoded.data(), t, head, d));
                    if (!(error <= bound))
                        fail(index, "key row " + std::to_string(t) + " is off by " + std::to_string(error));
                }
            }
            continue;
        }
        std::vector<float> rotated(static_cast<std::size_t>(kPageTokens * head_dim));
        std::vector<double> means(static_cast<std::size_t>(head_dim)), bounds(kPageTokens);
        for (int t = 0; t < kPageTokens; ++t) {
            if (!has(counted, t)) continue;
            float* row = rotated.data() + t * head_dim;
            for (int d = 0; d < head_dim; ++d) row[d] = static_cast<float>(at(truth, t, head, d));
            tensor_.config().kernels->hadamard(row, head_dim, hadamard_size(head_dim));
            for (int d = 0; d < head_dim; ++d) means[d] += row[d] / std::popcount(counted);
        }
        double mean_bound = 0;
        for (int t = 0; t < kPageTokens; ++t) {
            if (!has(counted, t)) continue;
            double reach = 0, largest = 0;
            for (int d = 0; d < head_dim; ++d) {
                const double value = rotated[t * head_dim + d];
                reach = std::max(reach, std::abs(value - means[d]));
                largest = std::max(largest, std::abs(value) + std::abs(means[d]));
            }
            // Scales of values are rounded up by at most a sixteenth, or have been counted as rounded.
            bounds[t] = relative * 2.125 * reach + 0x1p-9 * largest + tiny;
            mean_bound += bounds[t] / std::popcount(counted);
        }
        for (int t = 0; t < kPageTokens; ++t) {
            if (!has(counted, t)) continue;
            double error = 0;
            for (int d = 0; d < head_dim; ++d) {
                error += std::pow(at(truth, t, head, d) - at(decoded.data(), t, head, d), 2);
            }
            const double bound = std::sqrt(head_dim) * (bounds[t] + mean_bound);
            if (!(std::sqrt(error) <= bound)) {
                fail(index,
                     "value row " + std::to_string(t) + " is off by " + std::to_string(std::sqrt(error)));
            }
        }
    }
}

// A cold page: its block is the one seen before, or there was a reason to encode.
void KvModel::check_block(std::size_t index, const Page& page, bool is_graph) {
    const PageLayout layout = tensor_.layout();
    const auto bytes = layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head);
    const std::uint64_t in_block = valid(index) & ~page.overlay;
    Seen& seen = seen_[index];
    const bool is_same = seen.state == PageState::cold && seen.block.size() == bytes &&
                         std::equal(seen.block.begin(), seen.block.end(), page.data);
    // The same bytes may also be what new rows were encoded to.
    if (is_same && ((touched_[index] | seen.overlay) & in_block) == 0 && rewritten_[index] == 0) return;
    std::vector<fp16_t> decoded;
    decode(page, decoded);
    const int row_elements = layout.shape.row_elements();
    const std::vector<fp16_t> truth = stored_rows(index);
    bool is_clone = !is_graph;
    for (int t = 0; t < kPageTokens && is_clone; ++t) {
        const auto at = t * row_elements;
        is_clone = !has(in_block, t) ||
                   std::equal(truth.begin() + at, truth.begin() + at + row_elements, decoded.begin() + at);
    }
    if (!is_clone) {
        const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
        const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
        const std::uint64_t window = tracker_->window_cells(stream, in_stream);
        const std::uint64_t sinks = tracker_->sink_cells(stream, in_stream);
        if (rewritten_[index] == 0) {
            if (is_graph && touched_[index] != 0) fail(index, "encoded by the graph that writes to it");
            if (page.written != valid(index) && seen.state != PageState::cold)
                fail(index, "frozen before it was full");
            // A row that was exact must stay so; one that a rollback brings back into the window may be cold
            // already.
            const std::uint64_t was_exact =
                seen.state == PageState::cold ? seen.overlay | touched_[index] : valid(index);
            if ((in_block & window & was_exact) != 0) fail(index, "a row of the window was encoded");
            if ((in_block & sinks & was_exact) != 0) fail(index, "a sink was encoded");
            const std::uint64_t left = (seen.overlay | touched_[index]) & ~page.overlay;
            if (seen.state == PageState::cold && is_graph && std::popcount(left) < 16) {
                fail(index, "encoded anew for few rows");
            }
        }
        const std::vector<std::byte> expected = encode(index, in_block);
        if (expected.size() != bytes) {
            fail(index, "encoded what the codec refuses");
        } else if (!same_block(expected.data(), page.data, layout)) {
            fail(index, "the block does not hold the page's rows");
        }
        check_codec_error(index, page, truth, decoded);
    }
    for (int t = 0; t < kPageTokens; ++t) {
        if (!has(in_block, t)) continue;
        fp16_t* row = rows_.data() + (first_cell(index) + t) * row_elements;
        std::copy_n(decoded.begin() + t * row_elements, row_elements, row);
        turn(index, t, false, row);
    }
    seen.block.assign(page.data, page.data + bytes);
}

// A hot page that nothing protects and the write at hand left alone must have frozen.
void KvModel::check_missed_freeze(std::size_t index, const Page& page, bool is_graph) {
    const PageLayout layout = tensor_.layout();
    if (layout.format == nullptr || !tensor_.head_shape_known()) return;
    if ((is_graph && touched_[index] != 0) || page.written != valid(index)) return;
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    if ((tracker_->window_cells(stream, in_stream) & valid(index)) != 0) return;
    const std::uint64_t sinks = tracker_->sink_cells(stream, in_stream) & valid(index);
    const std::size_t cold = layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head);
    const std::size_t exact = static_cast<std::size_t>(std::popcount(sinks)) * layout.row_bytes() * 3 / 2;
    if (cold + exact >= kPageTokens * layout.row_bytes()) return;  // nothing to win
    // Refused once, a page is not tried again until it is written, even should a sink make it fit.
    if (encode(index, valid(index) & ~sinks).empty()) seen_[index].refused = true;
    if (is_graph && !seen_[index].refused) fail(index, "should have frozen");
}

void KvModel::check_page(std::size_t index, bool is_graph) {
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    const PageTable table = tensor_.pages(stream);
    const PageLayout& layout = table.layout;
    const Page& page = table.pages[in_stream];
    const int row_elements = layout.shape.row_elements(), head_dim = layout.shape.head_dim;
    if (touched_[index] != 0 || rewritten_[index] != 0) seen_[index].refused = false;
    if (page.state == PageState::cold) check_block(index, page, is_graph);
    if (page.state == PageState::hot && memory_is_ample_) check_missed_freeze(index, page, is_graph);
    if (page.state != PageState::cold) seen_[index].block.clear();
    seen_[index].state = page.state;
    seen_[index].overlay = page.overlay;
    if ((page.written & ~valid(index)) != 0 || (page.overlay & ~valid(index)) != 0)
        fail(index, "a cell beyond the end");
    if (page.state != PageState::cold && page.overlay != 0) fail(index, "an overlay without a block");

    for (int t = 0; t < kPageTokens; ++t) {
        const std::int64_t cell = first_cell(index) + t;
        const bool exists = has(valid(index), t);
        const bool exact =
            page.state == PageState::hot || page.state == PageState::pinned || has(page.overlay, t);
        const fp16_t* expected = exists ? row(cell) : nullptr;
        const bool is_zero = !exists || std::all_of(expected, expected + row_elements,
                                                    [](fp16_t v) { return (v & 0x7fff) == 0; });
        if (!has(page.written, t) && !is_zero && page.state != PageState::pinned) {
            fail(index, "cell " + std::to_string(t) + " counts as never written");
        }
        if (has(page.written, t) && exists && ever_written_[static_cast<std::size_t>(cell)] == 0) {
            fail(index, "cell " + std::to_string(t) + " counts as written");
        }
        if (!exact || (!exists && page.state != PageState::hot)) continue;
        for (int head = 0; head < layout.shape.n_head; ++head) {
            const auto* stored = reinterpret_cast<const fp16_t*>(
                page.state == PageState::cold
                    ? reinterpret_cast<const std::byte*>(page.overlay_rows) +
                          static_cast<std::size_t>(
                              std::popcount(page.overlay & ((std::uint64_t{1} << t) - 1))) *
                              layout.row_bytes() +
                          static_cast<std::size_t>(head) * layout.head_bytes()
                    : layout.head_data(page, head) + t * layout.token_stride_bytes(page));
            for (int d = 0; d < head_dim; ++d) {
                const fp16_t want = exists ? expected[head * head_dim + d] : fp16_t{0};
                if (stored[d] != want && ((stored[d] | want) & 0x7fff) != 0) {
                    fail(index,
                         "row " + std::to_string(t) + " head " + std::to_string(head) + " is not exact");
                    break;
                }
            }
        }
    }
}

std::vector<std::string> KvModel::check(bool is_graph) {
    problems_.clear();
    for (std::size_t index = 0; index < seen_.size(); ++index) check_page(index, is_graph);
    std::vector<fp16_t> read(rows_.size());
    tensor_.read_bytes(0, read.data(), read.size() * sizeof(fp16_t));
    const int row_elements = tensor_.config().row_elements;
    for (std::size_t i = 0; i < read.size(); ++i) {
        if (read[i] == rows_[i] || ((read[i] | rows_[i]) & 0x7fff) == 0) continue;  // a turn may negate zeros
        problems_.push_back("cell " + std::to_string(i / row_elements) + " value " +
                            std::to_string(i % row_elements) + " reads as " +
                            std::to_string(fp16_to_fp32(read[i])) + ", not " +
                            std::to_string(fp16_to_fp32(rows_[i])));
        break;
    }
    std::fill(touched_.begin(), touched_.end(), 0);
    std::fill(rewritten_.begin(), rewritten_.end(), 0);
    return problems_;
}

std::size_t KvModel::live_bytes() const {
    constexpr int kCapacities[] = {0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    const PageLayout layout = tensor_.layout();
    const auto rounded = [](std::size_t n) { return (n + 63) / 64 * 64; };
    std::size_t bytes = 0;
    for (std::size_t index = 0; index < seen_.size(); ++index) {
        const auto i = static_cast<std::int64_t>(index);
        const Page& page =
            tensor_.pages(static_cast<int>(i / pages_per_stream_)).pages[i % pages_per_stream_];
        if (page.state == PageState::hot) bytes += rounded(kPageTokens * layout.row_bytes());
        if (page.state != PageState::cold) continue;
        const int rows =
            *std::lower_bound(std::begin(kCapacities), std::end(kCapacities), std::popcount(page.overlay));
        bytes += rounded(layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head)) +
                 rounded(static_cast<std::size_t>(rows) * layout.row_bytes());
    }
    return bytes;
}

void write_rows(KvTensor& tensor, const std::vector<std::int64_t>& cells, const KvTensor::RowSource& source) {
    tensor.begin_write(cells, source);
    for (int job = tensor.n_jobs(); job-- > 0;) tensor.run_job(job);
    tensor.end_write();
}

}  // namespace mixed_kv::test
