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

bool same(fp16_t a, fp16_t b) { return a == b || ((a | b) & 0x7fff) == 0; }  // a turn may negate zeros

}  // namespace

KvModel::KvModel(const KvTensor& tensor, const WindowTracker* tracker) : tensor_(tensor), tracker_(tracker) {
    const auto& config = tensor.config();
    const auto n_cells = static_cast<std::size_t>(config.n_cells * config.n_stream);
    pages_per_stream_ = tensor.pages(0).n_pages;
    const auto n_pages = static_cast<std::size_t>(pages_per_stream_ * config.n_stream);
    rows_.resize(n_cells * static_cast<std::size_t>(config.row_elements));
    ever_written_.resize(n_cells);
    rounded_.resize(n_cells);
    stored_bits_.resize(n_cells, 16);
    touched_.resize(n_pages);
    refused_.resize(n_pages);
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

std::size_t KvModel::index_of(std::int64_t cell) const {
    const std::int64_t n_cells = tensor_.config().n_cells;
    return static_cast<std::size_t>(cell / n_cells * pages_per_stream_ + cell % n_cells / kPageTokens);
}

const Page& KvModel::page_of(std::int64_t cell) const {
    const std::int64_t n_cells = tensor_.config().n_cells;
    return tensor_.pages(static_cast<int>(cell / n_cells)).pages[cell % n_cells / kPageTokens];
}

std::size_t KvModel::head_bytes(int bits) const {
    const PageLayout layout = tensor_.layout();
    return find_cold_format("q" + std::to_string(bits))->block_bytes(layout.role, layout.shape.head_dim);
}

int KvModel::block_rows(int bits) const {
    const PageLayout layout = tensor_.layout();
    const std::size_t bytes = head_bytes(bits) * static_cast<std::size_t>(layout.shape.n_head);
    return static_cast<int>((bytes + layout.row_bytes() - 1) / layout.row_bytes());
}

void KvModel::touch(std::int64_t cell) {
    touched_[index_of(cell)] |= std::uint64_t{1} << (cell % tensor_.config().n_cells % kPageTokens);
    ever_written_[static_cast<std::size_t>(cell)] = 1;
    rounded_[static_cast<std::size_t>(cell)] = 0;
    stored_bits_[static_cast<std::size_t>(cell)] = 16;
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
    const std::vector<std::uint8_t> rounded(from.rounded_.begin() + from_cell,
                                            from.rounded_.begin() + from_cell + n);
    const std::vector<std::uint8_t> stored(from.stored_bits_.begin() + from_cell,
                                           from.stored_bits_.begin() + from_cell + n);
    for (std::int64_t i = 0; i < n; ++i) {
        write_row(to_cell + i, copy.data() + i * row_elements);
        rounded_[static_cast<std::size_t>(to_cell + i)] = rounded[static_cast<std::size_t>(i)];
        stored_bits_[static_cast<std::size_t>(to_cell + i)] = stored[static_cast<std::size_t>(i)];
    }
}

void KvModel::clear() {
    std::fill(rows_.begin(), rows_.end(), fp16_t{0});
    std::fill(ever_written_.begin(), ever_written_.end(), 0);
    std::fill(rounded_.begin(), rounded_.end(), 0);
    std::fill(stored_bits_.begin(), stored_bits_.end(), 16);
    live_.clear();
}

// Rows that were zeroed need no storage, and then no turn either: it would negate some of their zeros.
bool KvModel::is_stored(std::int64_t cell) const {
    return has(page_of(cell).written, static_cast<int>(cell % tensor_.config().n_cells % kPageTokens));
}

void KvModel::shift(const KeyShift& shift) {
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

// What is pending for one cell of a cold page.
void KvModel::turn(std::int64_t cell, fp16_t* row) const {
    const std::int64_t n_cells = tensor_.config().n_cells;
    const PageTable table = tensor_.pages(static_cast<int>(cell / n_cells));
    const std::int64_t in_stream = cell % n_cells / kPageTokens;
    const HeadShape& shape = table.layout.shape;
    std::vector<float> key(static_cast<std::size_t>(shape.head_dim));
    for (std::uint32_t g = 0; g < table.pages[in_stream].shift_groups; ++g) {
        if (!has(table.shifts[in_stream].cells[g], static_cast<int>(cell % n_cells % kPageTokens))) continue;
        const float* turn = table.turns->turn(table.shifts[in_stream].turn[g]);
        for (int head = 0; head < shape.n_head; ++head, row += shape.head_dim) {
            std::transform(row, row + shape.head_dim, key.begin(), fp16_to_fp32);
            turn_key(table.turns->pairs, turn, key.data());
            std::transform(key.begin(), key.end(), row, fp32_to_fp16);
        }
        return;
    }
}

void KvModel::fail(std::size_t page, const std::string& what) {
    if (problems_.size() < 20) problems_.push_back("page " + std::to_string(page) + ": " + what);
}

void KvModel::decode(const std::byte* data, int bits, std::vector<fp16_t>& rows) const {
    const PageLayout layout = tensor_.layout();
    const auto format =
        static_cast<std::size_t>(find_cold_format("q" + std::to_string(bits)) - cold_formats().data());
    const auto& set = *tensor_.config().kernels;
    const int head_dim = layout.shape.head_dim, n_head = layout.shape.n_head;
    rows.assign(static_cast<std::size_t>(kPageTokens) * static_cast<std::size_t>(n_head * head_dim), 0);
    // 16-aligned rows, as the contract asks for.
    const int stride = (head_dim + 15) / 16 * 16;
    std::vector<float> values(static_cast<std::size_t>(kPageTokens * stride));
    for (int head = 0; head < n_head; ++head) {
        const std::byte* block = data + static_cast<std::size_t>(head) * head_bytes(bits);
        const auto& codec = set.formats[format];
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

// What the codec makes of rows [64][row_elements]; empty when it refuses.
std::vector<std::byte> KvModel::encode(const std::vector<fp16_t>& rows, int bits,
                                       std::uint64_t counted) const {
    const PageLayout layout = tensor_.layout();
    const auto format =
        static_cast<std::size_t>(find_cold_format("q" + std::to_string(bits)) - cold_formats().data());
    const auto& codec = tensor_.config().kernels->formats[format];
    const int row_elements = layout.shape.row_elements();
    const auto bytes = head_bytes(bits) * static_cast<std::size_t>(layout.shape.n_head);
    AlignedBlocks blocks(bytes);
    for (int head = 0; head < layout.shape.n_head; ++head) {
        const kernels::EncodeArgs args{rows.data() + head * layout.shape.head_dim, row_elements,
                                       layout.shape.head_dim, counted,
                                       blocks.data + static_cast<std::size_t>(head) * head_bytes(bits)};
        if (!(layout.role == KvRole::key ? codec.encode_key(args) : codec.encode_value(args))) return {};
    }
    return {blocks.data, blocks.data + bytes};
}

// Half a step, what clipping the range may cost, and binary16 rounding of scale, zero point and result; for
// keys per value, for values per row of a head in the rotated basis, where the offsets take the mean of a
// channel's errors away.
void KvModel::check_codec_error(std::size_t index, const std::byte* data, int bits, std::uint64_t counted,
                                const std::vector<fp16_t>& truth_rows, const std::vector<fp16_t>& decoded) {
    const PageLayout layout = tensor_.layout();
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
    const auto at = [&](const fp16_t* rows, int t, int head, int d) {
        return static_cast<double>(fp16_to_fp32(rows[(t * n_head + head) * head_dim + d]));
    };
    const fp16_t* truth = truth_rows.data();
    for (int head = 0; head < n_head; ++head) {
        if (layout.role == KvRole::key) {
            const formats::BlockReader reader(bits, KvRole::key, head_dim,
                                              data + static_cast<std::size_t>(head) * head_bytes(bits));
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

std::vector<KvModel::Block> KvModel::blocks() const {
    std::map<const std::byte*, Block> found;
    for (std::size_t index = 0; index < touched_.size(); ++index) {
        const Page& page = page_of(first_cell(index));
        for (int i = 0; i < page.n_blocks; ++i) {
            const PageBlock& part = page.block(i);
            const auto [at, is_new] = found.try_emplace(part.data);
            Block& block = at->second;
            if (is_new) {
                block.data = part.data;
                block.bits = cold_formats()[part.format].code_bits;
                block.head_bytes = part.head_bytes;
                std::fill(std::begin(block.cells), std::end(block.cells), -1);
                block.claimed_users = part.users;
            }
            block.page = static_cast<std::uint32_t>(index);
            ++block.users[0];
            for (int t = 0; t < kPageTokens; ++t) {
                if (!has(part.cells, t)) continue;
                ++block.users[1];
                block.rows |= std::uint64_t{1} << part.row_of(t);
                block.cells[part.row_of(t)] = first_cell(index) + t;
            }
        }
    }
    std::vector<Block> all;
    for (const auto& [data, block] : found) all.push_back(block);
    return all;
}

// What a block holds is what its rows read as, or they have been encoded now, for the first time since they
// were written.
void KvModel::check_block(const Block& block, bool is_graph) {
    if (block.users[1] != static_cast<std::uint32_t>(std::popcount(block.rows)))
        fail(block.page, "two cells have one row of a block");
    const bool shared = block.claimed_users != nullptr;
    if (block.users[0] > 1 && !shared) fail(block.page, "an exclusive block is in two pages");
    if (shared && (block.claimed_users[0] != block.users[0] || block.claimed_users[1] != block.users[1]))
        fail(block.page, "a shared block counts its users wrongly");
    if (block.head_bytes != head_bytes(block.bits)) fail(block.page, "a block is not as large as its format");
    const auto before = live_.find(block.data);
    if (is_graph && memory_is_ample_ && before != live_.end() && before->second <= block_rows(block.bits) &&
        std::popcount(block.rows) == before->second) {
        bool touched = false;
        for (int r = 0; r < kPageTokens; ++r)
            touched = touched || (has(block.rows, r) && touched_[index_of(block.cells[r])] != 0);
        if (!touched) fail(block.page, "a block was kept for few rows");
    }

    std::vector<fp16_t> decoded;
    decode(block.data, block.bits, decoded);
    const int row_elements = tensor_.config().row_elements;
    std::uint64_t fresh = 0;
    for (int r = 0; r < kPageTokens; ++r) {
        if (!has(block.rows, r)) continue;
        const auto cell = static_cast<std::size_t>(block.cells[r]);
        if (tensor_.has_ladder() ? stored_bits_[cell] > block.bits : rounded_[cell] == 0)
            fresh |= std::uint64_t{1} << r;
        if (stored_bits_[cell] < block.bits) fail(block.page, "a row has gone up the ladder");
    }
    // A step takes rows along that were on its rung already.
    if (tensor_.has_ladder() && fresh != 0) fresh = block.rows;
    if (fresh != 0) {
        if (fresh != block.rows) fail(block.page, "a block has gained rows");
        check_first_rounding(block, fresh, decoded, is_graph);
    }
    for (int r = 0; r < kPageTokens; ++r) {
        if (!has(block.rows, r)) continue;
        fp16_t* row = decoded.data() + r * row_elements;
        turn(block.cells[r], row);
        fp16_t* expected = this->row(block.cells[r]);
        if (has(fresh, r)) {
            std::copy_n(row, row_elements, expected);
            rounded_[static_cast<std::size_t>(block.cells[r])] = 1;
        } else if (!std::equal(row, row + row_elements, expected, same)) {
            fail(block.page, "cell " + std::to_string(block.cells[r]) + " is not what it was encoded to");
        }
    }
}

void KvModel::check_first_rounding(const Block& block, std::uint64_t counted,
                                   const std::vector<fp16_t>& decoded, bool is_graph) {
    const int row_elements = tensor_.config().row_elements;
    const std::int64_t n_cells = tensor_.config().n_cells;
    std::vector<fp16_t> truth(static_cast<std::size_t>(kPageTokens * row_elements));
    for (int r = 0; r < kPageTokens; ++r) {
        if (!has(counted, r)) continue;
        const std::int64_t cell = block.cells[r];
        std::copy_n(row(cell), row_elements, truth.begin() + r * row_elements);
        const auto stream = static_cast<int>(cell / n_cells);
        const std::int64_t page = cell % n_cells / kPageTokens;
        const auto t = static_cast<int>(cell % n_cells % kPageTokens);
        if (is_graph && touched_[index_of(cell)] != 0 && !tensor_.has_ladder())
            fail(block.page, "encoded by the graph that writes to it");
        if (has(tracker_->window_cells(stream, page), t) && !tensor_.has_ladder())
            fail(block.page, "a row of the window was encoded");
        if (has(tracker_->sink_cells(stream, page), t)) fail(block.page, "a sink was encoded");
    }
    if (std::popcount(counted) <= block_rows(block.bits)) fail(block.page, "a block for few rows");
    const std::vector<std::byte> expected = encode(truth, block.bits, counted);
    if (expected.empty()) {
        fail(block.page, "encoded what the codec refuses");
        return;
    }
    std::vector<fp16_t> wanted;
    AlignedBlocks aligned(expected.size());
    std::copy(expected.begin(), expected.end(), aligned.data);
    decode(aligned.data, block.bits, wanted);
    for (int r = 0; r < kPageTokens; ++r) {
        if (!has(counted, r)) continue;
        if (!std::equal(wanted.begin() + r * row_elements, wanted.begin() + (r + 1) * row_elements,
                        decoded.begin() + r * row_elements, same)) {
            fail(block.page, "the block does not hold the rows of its cells");
            break;
        }
    }
    check_codec_error(block.page, block.data, block.bits, counted, truth, decoded);
}

// A hot page of like rows that nothing protects and the write at hand left alone must have frozen.
void KvModel::check_missed_freeze(std::size_t index, const Page& page, bool is_graph) {
    const PageLayout layout = tensor_.layout();
    if (layout.format == nullptr || !tensor_.head_shape_known() || !is_graph || tensor_.has_ladder()) return;
    if (touched_[index] != 0 || page.written != valid(index)) return;
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    if ((tracker_->window_cells(stream, in_stream) & valid(index)) != 0) return;
    const std::uint64_t sinks = tracker_->sink_cells(stream, in_stream) & valid(index);
    const std::uint64_t counted = valid(index) & ~sinks & ~page.settled;
    const std::size_t cold = layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head);
    const auto n_exact = static_cast<std::size_t>(std::popcount(valid(index) & ~counted));
    if (std::popcount(counted) <= block_rows(layout.format->code_bits) ||
        cold + n_exact * layout.row_bytes() * 3 / 2 >= kPageTokens * layout.row_bytes())
        return;
    std::vector<fp16_t> rows(static_cast<std::size_t>(kPageTokens * layout.shape.row_elements()));
    std::copy_n(rows_.begin() + first_cell(index) * layout.shape.row_elements(),
                std::popcount(valid(index)) * layout.shape.row_elements(), rows.begin());
    double smallest = INFINITY, largest = 0;
    for (int t = 0; t < kPageTokens; ++t) {
        if (!has(counted, t)) continue;
        double size = 0;
        for (int c = 0; c < layout.shape.row_elements(); ++c)
            size = std::max<double>(size, std::abs(fp16_to_fp32(rows[t * layout.shape.row_elements() + c])));
        smallest = std::min(smallest, size);
        largest = std::max(largest, size);
    }
    if (!(largest <= 2 * smallest)) return;  // may be kept apart
    // Refused once, a page is not tried again until it is written, even should a sink make it fit.
    if (encode(rows, layout.format->code_bits, counted).empty()) refused_[index] = 1;
    if (refused_[index] == 0) fail(index, "should have frozen");
}

void KvModel::check_page(std::size_t index, bool is_graph) {
    const auto stream = static_cast<int>(static_cast<std::int64_t>(index) / pages_per_stream_);
    const std::int64_t in_stream = static_cast<std::int64_t>(index) % pages_per_stream_;
    const PageTable table = tensor_.pages(stream);
    const PageLayout& layout = table.layout;
    const Page& page = table.pages[in_stream];
    const int row_elements = layout.shape.row_elements(), head_dim = layout.shape.head_dim;
    if (touched_[index] != 0) refused_[index] = 0;
    if (page.state == PageState::hot && memory_is_ample_) check_missed_freeze(index, page, is_graph);
    if ((page.written & ~valid(index)) != 0) fail(index, "a cell beyond the end");
    if (page.state == PageState::cold ? page.n_blocks < 1 || page.n_blocks > Page::kMaxBlocks
                                      : page.n_blocks != 0 || page.overlay != 0)
        fail(index, "blocks or an overlay that its state cannot have");
    std::uint64_t covered = page.overlay;
    for (int i = 0; i < page.n_blocks; ++i) {
        if ((covered & page.block(i).cells) != 0) fail(index, "a cell has two rows");
        covered |= page.block(i).cells;
    }
    if (page.state == PageState::cold && (covered & page.written) != page.written)
        fail(index, "a written cell has no row");
    if ((page.block_cells() & ~page.settled) != 0 || (page.settled & ~page.written) != 0)
        fail(index, "settled cells are wrong");

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
    // Pages are judged by the rows as they were before blocks took some of them over.
    for (std::size_t index = 0; index < touched_.size(); ++index) check_page(index, is_graph);
    std::map<const std::byte*, int> live;
    for (const Block& block : blocks()) {
        check_block(block, is_graph);
        live[block.data] = std::popcount(block.rows);
    }
    live_ = std::move(live);
    note_storage();
    if (is_graph && memory_is_ample_) check_memory();
    std::vector<fp16_t> read(rows_.size());
    tensor_.read_bytes(0, read.data(), read.size() * sizeof(fp16_t));
    const int row_elements = tensor_.config().row_elements;
    for (std::size_t i = 0; i < read.size(); ++i) {
        if (same(read[i], rows_[i])) continue;
        problems_.push_back("cell " + std::to_string(i / row_elements) + " value " +
                            std::to_string(i % row_elements) + " reads as " +
                            std::to_string(fp16_to_fp32(read[i])) + ", not " +
                            std::to_string(fp16_to_fp32(rows_[i])));
        break;
    }
    std::fill(touched_.begin(), touched_.end(), 0);
    return problems_;
}

void KvModel::note_storage() {
    std::fill(stored_bits_.begin(), stored_bits_.end(), 16);
    for (const Block& block : blocks()) {
        for (int r = 0; r < kPageTokens; ++r) {
            if (has(block.rows, r))
                stored_bits_[static_cast<std::size_t>(block.cells[r])] =
                    static_cast<std::uint8_t>(block.bits);
        }
    }
}

// The worst case of docs/memory.md. Blocks that this graph has taken rows from may stay until the next one.
void KvModel::check_memory() {
    const PageLayout layout = tensor_.layout();
    std::size_t bound = 0;
    for (std::size_t index = 0; index < touched_.size(); ++index) {
        if (page_of(first_cell(index)).state == PageState::empty) continue;
        bound += (kPageTokens + 7) * layout.row_bytes() + 64;
        if (touched_[index] != 0)
            bound += Page::kMaxBlocks * layout.block_bytes * static_cast<std::size_t>(layout.shape.n_head);
    }
    if (live_bytes() > bound)
        fail(0, std::to_string(live_bytes()) + " bytes, at most " + std::to_string(bound) + " are allowed");
}

std::size_t KvModel::live_bytes() const {
    constexpr int kCapacities[] = {0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64};
    const PageLayout layout = tensor_.layout();
    const auto rounded = [](std::size_t n) { return (n + 63) / 64 * 64; };
    std::size_t bytes = 0;
    for (std::size_t index = 0; index < touched_.size(); ++index) {
        const Page& page = page_of(first_cell(index));
        if (page.state == PageState::hot) bytes += rounded(kPageTokens * layout.row_bytes());
        if (page.state != PageState::cold) continue;
        const int rows =
            *std::lower_bound(std::begin(kCapacities), std::end(kCapacities), std::popcount(page.overlay));
        bytes += rounded(static_cast<std::size_t>(rows) * layout.row_bytes());
    }
    for (const Block& block : blocks())
        bytes += rounded(block.head_bytes * static_cast<std::size_t>(layout.shape.n_head));
    return bytes;
}

void write_rows(KvTensor& tensor, const std::vector<std::int64_t>& cells, const KvTensor::RowSource& source) {
    tensor.begin_write(cells, source);
    for (int job = tensor.n_jobs(); job-- > 0;) tensor.run_job(job);
    tensor.end_write();
}

}  // namespace mixed_kv::test
