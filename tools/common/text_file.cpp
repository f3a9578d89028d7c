#include "common/text_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace mixed_kv::tools {

std::string read_text_file(const std::string& what, const std::string& path) {
    std::error_code ignored;
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path, ignored)) {
        throw std::runtime_error("cannot read " + what + " '" + path +
                                 "': " + (file ? "it is a folder" : std::strerror(errno)));
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace mixed_kv::tools
