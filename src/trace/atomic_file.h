#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace mixed_kv::trace {

// How the unfinished file is kept.
enum class TempFile {
    unnamed_if_possible,  // O_TMPFILE where the file system has it, else named
    named,                // a hidden file beside the target; for file systems without O_TMPFILE, and tests
};

// A file under construction in the folder of its target. Nothing is seen under the target's name before
// publish(), which replaces an existing target in one step. Until then, an existing target stays as it is.
//
// The unfinished file has no name where the file system supports that, so that a killed process leaves
// nothing behind. Elsewhere, and for an instant inside publish(), it is a hidden file
// ".<target>.<pid>-<n>.partial"; a later AtomicFile for the same target removes those whose process is gone
// (they are not locked any more).
//
// All functions throw Error with the target's path, what failed and why; after that, only destruction makes
// sense. The destructor of an unpublished file removes it.
class AtomicFile {
  public:
    // Throws Error if the target exists and is no regular file (/dev/full, a folder) or may not be written,
    // if its folder cannot take a file, or if fewer than `expected_bytes` are free there (0: not checked).
    explicit AtomicFile(const std::filesystem::path& target, uint64_t expected_bytes = 0,
                        TempFile temp = TempFile::unnamed_if_possible);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    // Writes all bytes at the offset, extending the file; what is skipped reads as zeros.
    void write_at(uint64_t offset, std::span<const std::byte> bytes);

    // Fills `out`. Throws Error if the file ends before.
    void read_at(uint64_t offset, std::span<std::byte> out) const;

    // Cuts or extends (with zeros) to exactly this size.
    void resize(uint64_t bytes);

    // Waits until everything is on disk, then gives the file its name and waits for that too.
    void publish();

    const std::string& target_name() const noexcept { return display_name_; }

  private:
    [[noreturn]] void fail(const char* what, int error) const;
    void check_target();
    void check_free_space(uint64_t expected_bytes) const;
    void remove_stale_files() const;
    void open_temp(TempFile temp);
    void open_named();
    std::string next_temp_name() const;
    void close_all() noexcept;

    std::filesystem::path folder_;
    std::string file_name_;     // within folder_
    std::string display_name_;  // as the caller gave it
    int dir_fd_ = -1;
    int fd_ = -1;
    std::string temp_name_;   // empty while the file has no name
    unsigned mode_ = 0666;    // permissions, before umask
    bool keep_mode_ = false;  // an existing target's permissions are passed on
};

// A file without a name for intermediate data, in the folder of `near`; it vanishes with the object or
// process.
class ScratchFile {
  public:
    explicit ScratchFile(const std::filesystem::path& near);
    ~ScratchFile();
    ScratchFile(const ScratchFile&) = delete;
    ScratchFile& operator=(const ScratchFile&) = delete;

    void write_at(uint64_t offset, std::span<const std::byte> bytes);
    void read_at(uint64_t offset, std::span<std::byte> out) const;

  private:
    std::string name_;
    int fd_ = -1;
};

}  // namespace mixed_kv::trace
