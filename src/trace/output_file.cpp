#include "trace/output_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>

#include "mixed_kv/error.h"
#include "trace/atomic_file.h"
#include "trace/text.h"

namespace mixed_kv::trace {

void write_output_file(const std::filesystem::path& path, std::string_view content) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
        std::ofstream stream(path, std::ios::binary);
        stream << content;
        stream.close();
        if (!stream) throw Error(cat("cannot write '", path.string(), "': ", std::strerror(errno)));
        return;
    }
    AtomicFile file(path, content.size());
    file.write_at(0, std::as_bytes(std::span(content)));
    file.publish();
}

}  // namespace mixed_kv::trace
