#include "trace/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

constexpr size_t kBufferBytes = 256 * 1024;

void require_inside(const ByteSource& source, uint64_t offset, uint64_t n) {
    if (offset > source.size() || n > source.size() - offset) {
        throw Error(cat(source.name(), ": cannot read ", n, " bytes at offset ", offset, ": the file has ",
                        source.size(), " bytes"));
    }
}

class FileSource final : public ByteSource {
  public:
    explicit FileSource(const std::filesystem::path& path) : name_(path.string()) {
        // O_NONBLOCK: opening a named pipe must not wait for a writer before it is refused.
        fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd_ < 0) {
            throw Error(cat(name_, ": cannot open: ", std::strerror(errno)));
        }
        struct stat info {};
        if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
            ::close(fd_);
            throw Error(cat(name_, ": not a regular file"));
        }
        size_ = static_cast<uint64_t>(info.st_size);
    }
    ~FileSource() override { ::close(fd_); }
    FileSource(const FileSource&) = delete;
    FileSource& operator=(const FileSource&) = delete;

    uint64_t size() const noexcept override { return size_; }
    const std::string& name() const noexcept override { return name_; }

    void read_at(uint64_t offset, std::span<std::byte> out) const override {
        require_inside(*this, offset, out.size());
        size_t done = 0;
        while (done < out.size()) {
            const ssize_t n =
                ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n < 0) {
                throw Error(
                    cat(name_, ": cannot read at offset ", offset + done, ": ", std::strerror(errno)));
            }
            if (n == 0) {
                throw Error(cat(name_, ": the file became shorter while it was read: nothing at offset ",
                                offset + done, " of ", size_, " bytes"));
            }
            done += static_cast<size_t>(n);
        }
    }

  private:
    std::string name_;
    int fd_ = -1;
    uint64_t size_ = 0;
};

class MemorySource final : public ByteSource {
  public:
    MemorySource(std::span<const std::byte> bytes, std::string name)
        : bytes_(bytes), name_(std::move(name)) {}

    uint64_t size() const noexcept override { return bytes_.size(); }
    const std::string& name() const noexcept override { return name_; }

    void read_at(uint64_t offset, std::span<std::byte> out) const override {
        require_inside(*this, offset, out.size());
        if (!out.empty()) {
            std::memcpy(out.data(), bytes_.data() + offset, out.size());
        }
    }

  private:
    std::span<const std::byte> bytes_;
    std::string name_;
};

}  // namespace

std::unique_ptr<ByteSource> open_file_source(const std::filesystem::path& path) {
    return std::make_unique<FileSource>(path);
}

std::unique_ptr<ByteSource> memory_source(std::span<const std::byte> bytes, std::string name) {
    return std::make_unique<MemorySource>(bytes, std::move(name));
}

void ByteCursor::require(uint64_t n, const char* what) const {
    if (n > remaining()) {
        throw Error(cat(source_.name(), ": truncated or damaged: ", what, " at offset ", position_, " needs ",
                        n, " bytes, the file has ", remaining(), " more"));
    }
}

void ByteCursor::read(std::span<std::byte> out, const char* what) {
    require(out.size(), what);
    size_t done = 0;
    while (done < out.size()) {
        const uint64_t at = position_ - buffer_start_;
        if (position_ < buffer_start_ || at >= buffer_.size()) {
            buffer_.resize(std::min<uint64_t>(kBufferBytes, remaining()));
            source_.read_at(position_, buffer_);
            buffer_start_ = position_;
            continue;
        }
        const size_t n = std::min<size_t>(out.size() - done, buffer_.size() - at);
        std::memcpy(out.data() + done, buffer_.data() + at, n);
        done += n;
        position_ += n;
    }
}

void ByteCursor::skip(uint64_t n, const char* what) {
    require(n, what);
    position_ += n;
}

}  // namespace mixed_kv::trace
