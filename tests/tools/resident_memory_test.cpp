#include "common/resident_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace mixed_kv::tools {

namespace {

class Mapping {
  public:
    explicit Mapping(std::size_t bytes)
        : bytes_(bytes),
          data_(static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
        EXPECT_NE(data_, MAP_FAILED);
        madvise(data_, bytes, MADV_NOHUGEPAGE);  // so that one written byte is one page
    }
    ~Mapping() { munmap(data_, bytes_); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    char* data() const { return data_; }
    AddressRange range(std::size_t from, std::size_t to) const {
        return {reinterpret_cast<std::uintptr_t>(data_) + from, reinterpret_cast<std::uintptr_t>(data_) + to};
    }

  private:
    std::size_t bytes_;
    char* data_;
};

const std::size_t kPage = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

TEST(ResidentBytes, CountsWhatWasWrittenNotWhatIsReserved) {
    const Mapping mapping(1024 * kPage);
    EXPECT_EQ(resident_bytes({mapping.range(0, 1024 * kPage)}), 0U);
    std::memset(mapping.data() + 10 * kPage, 1, 7 * kPage);
    EXPECT_EQ(resident_bytes({mapping.range(0, 1024 * kPage)}), 7 * kPage);
    ASSERT_EQ(madvise(mapping.data() + 10 * kPage, 3 * kPage, MADV_DONTNEED), 0);
    EXPECT_EQ(resident_bytes({mapping.range(0, 1024 * kPage)}), 4 * kPage);
}

TEST(ResidentBytes, PartOfAMappingAndPartOfAPage) {
    const Mapping mapping(64 * kPage);
    std::memset(mapping.data(), 1, 64 * kPage);
    EXPECT_EQ(resident_bytes({mapping.range(8 * kPage, 16 * kPage)}), 8 * kPage);
    EXPECT_EQ(resident_bytes({mapping.range(100, 3 * kPage + 50)}), 3 * kPage - 50);
}

TEST(ResidentBytes, OverlappingRangesCountOnce) {
    const Mapping mapping(16 * kPage);
    std::memset(mapping.data(), 1, 16 * kPage);
    EXPECT_EQ(resident_bytes({mapping.range(0, 8 * kPage), mapping.range(4 * kPage, 16 * kPage)}),
              16 * kPage);
}

TEST(ResidentBytes, NothingAskedNothingFound) {
    EXPECT_EQ(resident_bytes({}), 0U);
    EXPECT_EQ(resident_bytes({{4096, 4096}}), 0U);
}

TEST(ResidentBytes, ProcessFigures) {
    EXPECT_GT(process_resident_bytes(), 0U);
    EXPECT_GE(process_peak_resident_bytes(), process_resident_bytes());
}

}  // namespace

}  // namespace mixed_kv::tools
