#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace mixed_kv::tools {

// Size of the largest cache that sysfs reports for CPU 0 or, where it reports none, of the last level that
// glibc knows; 0 when neither does.
std::size_t last_level_cache_bytes(const std::string& folder = "/sys/devices/system/cpu/cpu0/cache");

// Measures how fast this machine reads memory: every thread streams through its own part of one buffer with
// the widest vector loads of the CPU. The buffer lies in huge pages where the system grants them, so that
// address translation does not slow it down.
class ReadBandwidth {
  public:
    // Allocates and touches the buffer. Throws std::runtime_error when there is no memory for it.
    ReadBandwidth(std::size_t buffer_bytes, int n_threads);
    ~ReadBandwidth();
    ReadBandwidth(const ReadBandwidth&) = delete;
    ReadBandwidth& operator=(const ReadBandwidth&) = delete;

    // Tries every access pattern (streams per thread, software prefetch), n_passes times over the whole
    // buffer each, and keeps the one with the best median for sample().
    void choose_pattern(int n_passes);
    // One more measurement with that pattern over `bytes` of the buffer, where the last one ended.
    void sample(std::size_t bytes);
    // Starts a new group of samples.
    void next_group() { groups_.emplace_back(); }

    // Bytes per second: the best of the groups' medians. A neighbour on a shared machine slows some groups
    // down; what the memory can do is shown by the fastest.
    double bytes_per_second() const;
    std::size_t n_samples() const;
    std::size_t buffer_bytes() const { return buffer_bytes_; }
    std::string pattern() const;

  private:
    struct Workers;
    double run(int pattern, std::size_t offset, std::size_t bytes);

    void* base_ = nullptr;         // as mapped
    std::byte* buffer_ = nullptr;  // aligned to a huge page
    std::size_t mapped_ = 0, buffer_bytes_ = 0, next_ = 0;
    int n_threads_ = 1, pattern_ = 0;
    std::vector<std::vector<double>> groups_;
    std::unique_ptr<Workers> workers_;
};

}  // namespace mixed_kv::tools
