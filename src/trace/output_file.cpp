#include "trace/output_file.h"

#include <cerrno>
#include <cstring>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {

OutputFile::OutputFile(const std::filesystem::path& path, uint64_t expected_bytes) : path_(path) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
        stream_.open(path, std::ios::binary);
        check_stream();
    } else {
        file_.emplace(path, expected_bytes);
    }
}

void OutputFile::append(std::span<const std::byte> bytes) {
    if (file_) {
        file_->write_at(size_, bytes);
    } else {
        stream_.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
        check_stream();
    }
    size_ += bytes.size();
}

void OutputFile::publish() {
    if (file_) {
        file_->publish();
    } else {
        stream_.close();
        check_stream();
    }
}

void OutputFile::check_stream() const {
    if (!stream_) throw Error(cat("cannot write '", path_.string(), "': ", std::strerror(errno)));
}

void write_output_file(const std::filesystem::path& path, std::string_view content) {
    OutputFile file(path, content.size());
    file.append(content);
    file.publish();
}

}  // namespace mixed_kv::trace
