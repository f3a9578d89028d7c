#include <mixed_kv/cold_format.h>

#include <cstdio>

// Uses the library, not only its headers: the registry of cold formats lives in it.
int main() {
    if (mixed_kv::cold_formats().empty() || mixed_kv::find_cold_format("no such format") != nullptr) return 1;
    for (const mixed_kv::ColdFormat& format : mixed_kv::cold_formats()) {
        if (mixed_kv::find_cold_format(format.name) != &format) return 1;
        std::printf("%.*s: %.3f bits per key value\n", static_cast<int>(format.name.size()),
                    format.name.data(), format.bits_per_value(mixed_kv::KvRole::key, 128));
    }
    return 0;
}
