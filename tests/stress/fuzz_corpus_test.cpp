// Replays a fuzzer's corpus, so that what it once found stays found without clang or libFuzzer.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

TEST(FuzzCorpus, EveryFileAndItsPrefixes) {
    std::size_t n_files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(MIXED_KV_CORPUS)) {
        SCOPED_TRACE(entry.path().filename().string());
        std::ifstream file(entry.path(), std::ios::binary);
        const std::string bytes((std::istreambuf_iterator<char>(file)), {});
        const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
        EXPECT_EQ(LLVMFuzzerTestOneInput(data, bytes.size()), 0);
        for (std::size_t n = 0; n < bytes.size(); n += 128) EXPECT_EQ(LLVMFuzzerTestOneInput(data, n), 0);
        ++n_files;
    }
    EXPECT_GT(n_files, 4u);
}
