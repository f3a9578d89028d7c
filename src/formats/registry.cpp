#include "formats/block_layout.h"
#include "formats/format_list.h"
#include "mixed_kv/cold_format.h"

namespace mixed_kv {
namespace {

#define MIXED_KV_FORMAT_ENTRY(name, bits) ColdFormat{#name, bits},
constexpr ColdFormat kColdFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ENTRY)};
#undef MIXED_KV_FORMAT_ENTRY

static_assert(formats::kPageRows == kPageTokens);

}  // namespace

std::size_t ColdFormat::block_bytes(KvRole role, int head_dim) const noexcept {
    return formats::block_bytes(role == KvRole::key, code_bits, head_dim);
}

double ColdFormat::bits_per_value(KvRole role, int head_dim) const noexcept {
    return double(block_bytes(role, head_dim)) * 8.0 / (double(head_dim) * kPageTokens);
}

std::span<const ColdFormat> cold_formats() noexcept { return kColdFormats; }

const ColdFormat* find_cold_format(std::string_view name) noexcept {
    for (const ColdFormat& format : kColdFormats) {
        if (format.name == name) {
            return &format;
        }
    }
    return nullptr;
}

int hadamard_size(int head_dim) noexcept { return formats::hadamard_length(head_dim); }

}  // namespace mixed_kv
