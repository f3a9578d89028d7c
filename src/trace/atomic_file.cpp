#include "trace/atomic_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

constexpr char kTempSuffix[] = ".partial";

// File names may have 255 bytes; the rest is for ".", "." + pid + "-" + counter and the suffix.
constexpr size_t kMaxStem = 200;

std::atomic<unsigned> g_temp_counter{0};

// Returns 0 or an errno value. Beyond RLIMIT_FSIZE the kernel would send SIGXFSZ, which ends the process by
// default; the limit is therefore checked first and reported like any other error.
int write_all(int fd, uint64_t offset, std::span<const std::byte> bytes) {
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        offset + bytes.size() > limit.rlim_cur) {
        return EFBIG;
    }
    size_t done = 0;
    while (done < bytes.size()) {
        const ssize_t n =
            ::pwrite(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno;
        }
        if (n == 0) {
            return EIO;
        }
        done += static_cast<size_t>(n);
    }
    return 0;
}

int read_all(int fd, uint64_t offset, std::span<std::byte> out) {
    size_t done = 0;
    while (done < out.size()) {
        const ssize_t n =
            ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno;
        }
        if (n == 0) {
            return EIO;
        }
        done += static_cast<size_t>(n);
    }
    return 0;
}

int sync_fd(int fd) {
    while (::fsync(fd) != 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

std::string error_text(int error) { return std::generic_category().message(error); }

std::filesystem::path folder_of(const std::filesystem::path& path) {
    return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string stem_of(const std::string& file_name) { return cat('.', file_name.substr(0, kMaxStem), '.'); }

bool is_temp_of(std::string_view entry, const std::string& file_name) {
    const std::string stem = stem_of(file_name);
    if (!entry.starts_with(stem) || !entry.ends_with(kTempSuffix)) {
        return false;
    }
    // Between them "<pid>-<n>" and nothing else, or the temporary file of a target named
    // "<this target>.something" would count as ours.
    entry.remove_prefix(stem.size());
    entry.remove_suffix(sizeof(kTempSuffix) - 1);
    return !entry.empty() && entry.find_first_not_of("0123456789-") == std::string_view::npos;
}

}  // namespace

AtomicFile::AtomicFile(const std::filesystem::path& target, uint64_t expected_bytes, TempFile temp)
    : display_name_(target.string()) {
    std::error_code ignored;
    // The target of a symbolic link is what gets replaced, not the link.
    const std::filesystem::path real =
        std::filesystem::is_symlink(target, ignored) ? std::filesystem::weakly_canonical(target) : target;
    folder_ = folder_of(real);
    file_name_ = real.filename().string();
    if (file_name_.empty() || file_name_ == "." || file_name_ == "..") {
        throw Error(cat("cannot write '", display_name_, "': no file name"));
    }
    dir_fd_ = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd_ < 0) {
        fail("cannot open its folder", errno);
    }
    try {
        check_target();
        remove_stale_files();
        check_free_space(expected_bytes);
        open_temp(temp);
    } catch (...) {
        close_all();
        throw;
    }
}

AtomicFile::~AtomicFile() { close_all(); }

void AtomicFile::close_all() noexcept {
    if (!temp_name_.empty()) {
        ::unlinkat(dir_fd_, temp_name_.c_str(), 0);
        temp_name_.clear();
    }
    if (fd_ >= 0) {
        ::close(fd_);
        fd_ = -1;
    }
    if (dir_fd_ >= 0) {
        ::close(dir_fd_);
        dir_fd_ = -1;
    }
}

void AtomicFile::fail(const char* what, int error) const {
    throw Error(cat("cannot write '", display_name_, "': ", what, ": ", error_text(error)));
}

void AtomicFile::check_target() {
    struct stat info {};
    if (::fstatat(dir_fd_, file_name_.c_str(), &info, 0) != 0) {
        if (errno == ENOENT) {
            return;
        }
        fail("cannot look at it", errno);
    }
    if (!S_ISREG(info.st_mode)) {
        throw Error(cat("cannot write '", display_name_, "': it exists and is not a regular file"));
    }
    // Replacing needs only the folder's permission, but a file that its owner made read-only should stay.
    if (::faccessat(dir_fd_, file_name_.c_str(), W_OK, AT_EACCESS) != 0) {
        fail("it exists and cannot be written", errno);
    }
    mode_ = info.st_mode & 07777;
    keep_mode_ = true;
}

void AtomicFile::check_free_space(uint64_t expected_bytes) const {
    struct statvfs info {};
    if (expected_bytes == 0 || ::fstatvfs(dir_fd_, &info) != 0) {
        return;
    }
    const uint64_t free_bytes = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    if (free_bytes < expected_bytes) {
        throw Error(cat("cannot write '", display_name_, "': about ", expected_bytes, " bytes are needed, ",
                        free_bytes, " are free in '", folder_.string(), "'"));
    }
}

void AtomicFile::remove_stale_files() const {
    const int list_fd = ::openat(dir_fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* dir = list_fd < 0 ? nullptr : ::fdopendir(list_fd);
    if (dir == nullptr) {
        if (list_fd >= 0) {
            ::close(list_fd);
        }
        return;  // a folder may be writable and not listable
    }
    while (const dirent* entry = ::readdir(dir)) {
        if (!is_temp_of(entry->d_name, file_name_)) {
            continue;
        }
        const int fd = ::openat(dir_fd_, entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) {
            continue;
        }
        if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {  // its writer is gone
            ::unlinkat(dir_fd_, entry->d_name, 0);
        }
        ::close(fd);
    }
    ::closedir(dir);
}

std::string AtomicFile::next_temp_name() const {
    return cat(stem_of(file_name_), ::getpid(), "-", g_temp_counter.fetch_add(1), kTempSuffix);
}

void AtomicFile::open_temp(TempFile temp) {
    if (temp == TempFile::unnamed_if_possible) {
        fd_ = ::openat(dir_fd_, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode_ & 0777);
    }
    if (fd_ < 0) {
        open_named();
    }
    if (keep_mode_ && ::fchmod(fd_, mode_) != 0) {
        fail("cannot keep its permissions", errno);
    }
    // Held until the file is complete: whoever can lock a temporary file may remove it.
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && !temp_name_.empty()) {
        fail("cannot lock a temporary file", errno);
    }
}

void AtomicFile::open_named() {
    constexpr int kTries = 100;
    for (int i = 0; i < kTries; ++i) {
        const std::string name = next_temp_name();
        fd_ =
            ::openat(dir_fd_, name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, mode_ & 0777);
        if (fd_ >= 0) {
            temp_name_ = name;
            return;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    fail("cannot create a file in its folder", errno);
}

void AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
    if (const int error = write_all(fd_, offset, bytes)) {
        fail(cat("writing ", bytes.size(), " bytes at offset ", offset).c_str(), error);
    }
}

void AtomicFile::read_at(uint64_t offset, std::span<std::byte> out) const {
    if (const int error = read_all(fd_, offset, out)) {
        fail("reading it back", error);
    }
}

void AtomicFile::resize(uint64_t bytes) {
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
        fail("setting its size", EFBIG);
    }
    if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
        fail("setting its size", errno);
    }
}

void AtomicFile::publish() {
    if (const int error = sync_fd(fd_)) {
        fail("bringing it to disk", error);
    }
    if (temp_name_.empty()) {
        // An unnamed file cannot replace another in one step: linkat() refuses an existing name. So it gets a
        // hidden name first.
        const std::string name = next_temp_name();
        const std::string self = cat("/proc/self/fd/", fd_);
        if (::linkat(AT_FDCWD, self.c_str(), dir_fd_, name.c_str(), AT_SYMLINK_FOLLOW) != 0 &&
            ::linkat(fd_, "", dir_fd_, name.c_str(), AT_EMPTY_PATH) != 0) {
            fail("naming the finished file", errno);
        }
        temp_name_ = name;
    }
    if (::renameat(dir_fd_, temp_name_.c_str(), dir_fd_, file_name_.c_str()) != 0) {
        fail("moving the finished file to its name", errno);
    }
    temp_name_.clear();
    const int fd = std::exchange(fd_, -1);
    // Network file systems report the last write errors only here; the data were synced, so this is rare.
    if (::close(fd) != 0 && errno != EINTR) {
        fail("closing it", errno);
    }
    if (const int error = sync_fd(dir_fd_)) {
        fail("bringing its folder to disk", error);
    }
}

ScratchFile::ScratchFile(const std::filesystem::path& near) : name_(near.string()) {
    const std::filesystem::path folder = folder_of(near);
    fd_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd_ < 0) {
        // Its name lives for two system calls; a kill between them leaves an empty file.
        std::string pattern = (folder / ".mixed-kv-scratch-XXXXXX").string();
        fd_ = ::mkostemp(pattern.data(), O_CLOEXEC);
        if (fd_ >= 0) {
            ::unlink(pattern.c_str());
        }
    }
    if (fd_ < 0) {
        throw Error(
            cat("cannot write '", name_, "': cannot create a file in its folder: ", error_text(errno)));
    }
}

ScratchFile::~ScratchFile() { ::close(fd_); }

void ScratchFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
    if (const int error = write_all(fd_, offset, bytes)) {
        throw Error(cat("cannot write '", name_, "': writing its index: ", error_text(error)));
    }
}

void ScratchFile::read_at(uint64_t offset, std::span<std::byte> out) const {
    if (const int error = read_all(fd_, offset, out)) {
        throw Error(cat("cannot write '", name_, "': reading its index back: ", error_text(error)));
    }
}

}  // namespace mixed_kv::trace
