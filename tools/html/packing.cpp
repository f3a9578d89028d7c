#include "html/packing.h"

#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "mixed_kv/error.h"

#ifdef MIXED_KV_HAVE_ZLIB
#include <zlib.h>
#endif

namespace mixed_kv::tools {

namespace {

std::string base64(std::span<const std::byte> bytes) {
    constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t group = 0;
        for (size_t j = 0; j < 3; ++j) {
            group = group << 8 | (i + j < bytes.size() ? std::to_integer<uint32_t>(bytes[i + j]) : 0U);
        }
        for (size_t j = 0; j < 4; ++j) {
            text += i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63] : '=';
        }
    }
    return text;
}

}  // namespace

#ifdef MIXED_KV_HAVE_ZLIB

const char* packing_name() noexcept { return "deflate"; }

std::string pack(std::span<const std::byte> bytes) {
    if (bytes.size() > std::numeric_limits<uLong>::max() / 2)
        throw Error("too much data for one piece of a page");
    std::vector<std::byte> packed(compressBound(uLong(bytes.size())));
    auto size = uLongf(packed.size());
    const int status = compress2(reinterpret_cast<Bytef*>(packed.data()), &size,
                                 reinterpret_cast<const Bytef*>(bytes.data()), uLong(bytes.size()), 6);
    if (status != Z_OK) throw std::bad_alloc();  // nothing else can go wrong with a buffer of that size
    return base64(std::span(packed).first(size));
}

#else

const char* packing_name() noexcept { return "stored"; }

std::string pack(std::span<const std::byte> bytes) { return base64(bytes); }

#endif

}  // namespace mixed_kv::tools
