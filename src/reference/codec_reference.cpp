#include "reference/codec_reference.h"

#include <algorithm>
#include <cmath>

#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::reference {

namespace {

constexpr std::size_t kRows = 64;

// A code's bits are cut into planes of 8, 4, 2 and 1 bits, low bits first; a code of 8 bits is one whole
// byte. In every plane four values that an instruction takes together lie side by side: for keys four
// channels of a token, for values four tokens of a channel.
struct Geometry {
    bool is_key, byte_scales;
    std::size_t groups;  // of four along the contiguous-by-four axis: channels (key) or tokens (value)
    std::size_t others;  // extent of the other axis: tokens (key) or padded channels (value)
    std::size_t scales, offsets;  // of a block; offsets: zero points (key), means (value)
    std::size_t alignment;        // of sections

    Geometry(int code_bits, KvRole role, std::size_t dim)
        : is_key(role == KvRole::key), byte_scales(code_bits <= 3), alignment(64) {
        groups = is_key ? (dim + 3) / 4 : kRows / 4;
        others = is_key ? kRows : (dim + 15) / 16 * 16;
        offsets = (dim + 15) / 16 * 16;
        scales = is_key ? offsets : kRows;
    }
    std::size_t align(std::size_t n) const { return (n + alignment - 1) / alignment * alignment; }
    std::size_t scales_bytes() const { return scales * (byte_scales ? 1 : 2); }
    std::size_t params_bytes() const { return align(scales_bytes() + offsets * 2); }
    std::size_t plane_bytes(int width) const { return align(groups * 4 * others * std::size_t(width) / 8); }
    std::size_t bytes(int code_bits) const {
        std::size_t bytes = params_bytes();
        for (int width = 8; width >= 1; width /= 2) {
            if (code_bits & width) bytes += plane_bytes(width);
        }
        return bytes;
    }
};

unsigned byte_at(const std::byte* data, std::size_t at) { return std::to_integer<unsigned>(data[at]); }

unsigned bit_at(const std::byte* plane, std::size_t bit) { return byte_at(plane, bit / 8) >> (bit % 8) & 1u; }

// `width` bits of a key code. Group: 4 channels, element i of group g is channel 4g + i.
unsigned key_bits(const std::byte* plane, int width, std::size_t token, std::size_t channel) {
    const std::size_t group = channel / 4, i = channel % 4;
    switch (width) {
        case 8:
            return byte_at(plane, (group * 64 + token) * 4 + i);
        case 4: {  // 32 tokens per 64 bytes: the first 16 in low nibbles, the next 16 in high ones
            const unsigned byte = byte_at(plane, ((group * 2 + token / 32) * 16 + token % 16) * 4 + i);
            return token % 32 < 16 ? byte & 15u : byte >> 4;
        }
        case 2:
            return byte_at(plane, (group * 16 + token % 16) * 4 + i) >> (token / 16 * 2) & 3u;
        default:
            return bit_at(plane, (group * 64 + token) * 4 + i);  // tokens in order, 4 bits each
    }
}

// `width` bits of a value code. Group: 4 tokens, element i of group g is token 4g + i.
unsigned value_bits(const std::byte* plane, int width, std::size_t dim, std::size_t token,
                    std::size_t channel) {
    const std::size_t group = token / 4, i = token % 4;
    switch (width) {
        case 8:
            return byte_at(plane, (group * dim + channel) * 4 + i);
        case 4: {  // two groups share a byte
            const unsigned byte = byte_at(plane, (group / 2 * dim + channel) * 4 + i);
            return group % 2 == 0 ? byte & 15u : byte >> 4;
        }
        case 2:
            return byte_at(plane, (group / 4 * dim + channel) * 4 + i) >> (group % 4 * 2) & 3u;
        default:
            return bit_at(plane, (group * dim + channel) * 4 + i);
    }
}

double half_at(const std::byte* data, std::size_t at) {
    return double(fp16_to_fp32(fp16_t(byte_at(data, at) | byte_at(data, at + 1) << 8)));
}

double scale_at(const Geometry& g, const std::byte* block, std::size_t index) {
    // A byte holds bits 7 to 14 of a binary16 number whose other bits are 0.
    if (g.byte_scales) return double(fp16_to_fp32(fp16_t(byte_at(block, index) << 7)));
    return half_at(block, index * 2);
}

// Codes of one width with their parameters, as rows [64][dim].
std::vector<double> decode_uniform(int code_bits, const Geometry& g, std::size_t dim,
                                   const std::byte* block) {
    std::vector<double> out(kRows * dim, 0.0);
    const std::byte* plane = block + g.params_bytes();
    int shift = 0;
    for (int width = 8; width >= 1; width /= 2) {
        if ((code_bits & width) == 0) continue;
        for (std::size_t t = 0; t < kRows; ++t) {
            for (std::size_t c = 0; c < dim; ++c) {
                const unsigned bits =
                    g.is_key ? key_bits(plane, width, t, c) : value_bits(plane, width, g.others, t, c);
                out[t * dim + c] += std::ldexp(double(bits), shift);
            }
        }
        shift += width;
        plane += g.plane_bytes(width);
    }
    for (std::size_t t = 0; t < kRows; ++t) {
        for (std::size_t c = 0; c < dim; ++c) {
            // A key's code counts steps from the channel's zero point, a value's from the middle of all
            // codes, which stands for the channel's mean.
            const double steps = out[t * dim + c] - (g.is_key ? 0.0 : std::ldexp(1.0, code_bits - 1) - 0.5);
            out[t * dim + c] =
                scale_at(g, block, g.is_key ? c : t) * steps + half_at(block, g.scales_bytes() + c * 2);
        }
    }
    return out;
}

// Narrow keys whose channels come in whole slots of 16: each slot has a width of its own.
bool has_slots(int code_bits, KvRole role, int head_dim) {
    return role == KvRole::key && code_bits <= 3 && head_dim % 16 == 0;
}

std::size_t slots_header_bytes(std::size_t dim) { return (dim / 4 + dim / 16 + 15) / 16 * 16; }

// The widths that the description allows, and together no more bits than a block has room for.
void check_slots(std::size_t dim, std::size_t bytes, const std::byte* block) {
    std::vector<bool> seen(dim / 4, false);
    for (std::size_t i = 0; i < dim / 4; ++i) {
        const std::size_t quad = byte_at(block, i);
        if (quad >= dim / 4 || seen[quad]) throw Error("a block of keys does not hold every channel once");
        seen[quad] = true;
    }
    std::size_t used = slots_header_bytes(dim);
    unsigned last = 6;
    for (std::size_t slot = 0; slot < dim / 16; ++slot) {
        const unsigned width = byte_at(block, dim / 4 + slot);
        if (width > last || width == 1 || width == 5) throw Error("a block of keys has wrong code widths");
        used += (width == 0 ? 32 : 48) + width * 128;
        last = width;
    }
    if (used > bytes) throw Error("a block of keys is shorter than its code widths say");
}

std::vector<double> decode_slots(int code_bits, int head_dim, const std::byte* block) {
    const auto dim = static_cast<std::size_t>(head_dim);
    check_slots(dim, block_bytes(code_bits, KvRole::key, head_dim), block);
    std::vector<double> out(kRows * dim, 0.0);
    const std::byte* at = block + slots_header_bytes(dim);
    for (std::size_t slot = 0; slot < dim / 16;) {
        const auto width = int(byte_at(block, dim / 4 + slot));
        std::size_t n = 0;  // channels of this width
        const std::size_t first = slot * 16;
        for (; slot < dim / 16 && int(byte_at(block, dim / 4 + slot)) == width; ++slot) n += 16;
        Geometry g(code_bits, KvRole::key, n);
        g.alignment = 16;
        const std::vector<double> rows = width > 0 ? decode_uniform(width, g, n, at) : std::vector<double>();
        for (std::size_t c = 0; c < n; ++c) {
            const std::size_t place = first + c, channel = byte_at(block, place / 4) * 4 + place % 4;
            for (std::size_t t = 0; t < kRows; ++t) {
                out[t * dim + channel] = width > 0 ? rows[t * n + c] : half_at(at, c * 2);
            }
        }
        at += width > 0 ? g.bytes(width) : n * 2;
    }
    return out;
}

}  // namespace

std::size_t block_bytes(int code_bits, KvRole role, int head_dim) {
    const auto dim = static_cast<std::size_t>(head_dim);
    if (has_slots(code_bits, role, head_dim)) {
        // 2.75 bits a channel for 3 bits, 2 for 2 bits; a scale byte and a zero point each.
        const std::size_t slots = dim / 16, bits = code_bits == 3 ? slots * 11 / 4 : slots * 2;
        return (slots_header_bytes(dim) + slots * 48 + bits * 128 + 63) / 64 * 64;
    }
    return Geometry(code_bits, role, dim).bytes(code_bits);
}

std::vector<double> decode_block_as_stored(int code_bits, KvRole role, int head_dim, const std::byte* block) {
    if (has_slots(code_bits, role, head_dim)) return decode_slots(code_bits, head_dim, block);
    const auto dim = static_cast<std::size_t>(head_dim);
    return decode_uniform(code_bits, Geometry(code_bits, role, dim), dim, block);
}

std::vector<double> decode_block(int code_bits, KvRole role, int head_dim, const std::byte* block) {
    std::vector<double> rows = decode_block_as_stored(code_bits, role, head_dim, block);
    if (role == KvRole::value) {
        const int size = hadamard_size(head_dim);
        for (std::size_t t = 0; t < kRows && size > 1; ++t) {
            hadamard(rows.data() + t * std::size_t(head_dim), head_dim, size);
        }
    }
    return rows;
}

// The matrix of size 2n is [[H, H], [H, -H]] / sqrt(2) of the one of size n.
void hadamard(double* x, int n, int size) {
    if (size <= 1) return;
    for (double* group = x; group < x + n; group += size) {
        const int half = size / 2;
        hadamard(group, size, half);
        for (int i = 0; i < half; ++i) {
            const double a = group[i], b = group[i + half];
            group[i] = (a + b) * std::sqrt(0.5);
            group[i + half] = (a - b) * std::sqrt(0.5);
        }
    }
}

std::vector<double> read_head(const PageTable& table, int head, std::int64_t n_cells) {
    const PageLayout& layout = table.layout;
    const auto dim = static_cast<std::size_t>(layout.shape.head_dim);
    const std::size_t row_elements = std::size_t(layout.shape.n_head) * dim;
    std::vector<double> out(static_cast<std::size_t>(n_cells) * dim, 0.0);
    for (std::int64_t first = 0, index = 0; first < n_cells && index < table.n_pages; first += 64, ++index) {
        const Page& page = table.pages[index];
        const auto n_rows = static_cast<std::size_t>(n_cells - first < 64 ? n_cells - first : 64);
        double* rows = out.data() + static_cast<std::size_t>(first) * dim;
        const auto copy_row = [&](std::size_t t, const fp16_t* row) {
            for (std::size_t c = 0; c < dim; ++c) rows[t * dim + c] = double(fp16_to_fp32(row[c]));
        };
        const auto* fp16_rows = reinterpret_cast<const fp16_t*>(page.data);
        switch (page.state) {
            case PageState::empty:
                break;
            case PageState::hot:  // [n_head][64][head_dim]
                for (std::size_t t = 0; t < n_rows; ++t)
                    copy_row(t, fp16_rows + (std::size_t(head) * 64 + t) * dim);
                break;
            case PageState::pinned:  // [64][n_head][head_dim]
                for (std::size_t t = 0; t < n_rows; ++t) {
                    copy_row(t, fp16_rows + t * row_elements + std::size_t(head) * dim);
                }
                break;
            case PageState::cold: {
                for (int i = 0; i < page.n_blocks; ++i) {
                    const PageBlock& part = page.block(i);
                    const int bits = cold_formats()[part.format].code_bits;
                    const std::size_t bytes = block_bytes(bits, layout.role, layout.shape.head_dim);
                    const std::vector<double> block = decode_block(bits, layout.role, layout.shape.head_dim,
                                                                   part.data + std::size_t(head) * bytes);
                    for (std::size_t t = 0; t < n_rows; ++t) {
                        if ((part.cells >> t & 1) == 0) continue;
                        std::copy_n(block.data() + std::size_t(part.row_of(int(t))) * dim, dim,
                                    rows + t * dim);
                    }
                }
                const fp16_t* overlay = page.overlay_rows;
                for (std::size_t t = 0; t < 64; ++t) {
                    if ((page.overlay >> t & 1) == 0) continue;
                    if (t < n_rows) copy_row(t, overlay + std::size_t(head) * dim);
                    overlay += row_elements;
                }
                break;
            }
        }
    }
    return out;
}

}  // namespace mixed_kv::reference
