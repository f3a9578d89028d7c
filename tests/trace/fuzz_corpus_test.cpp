// Replays the fuzzer's corpus, so that what it once found stays found without clang or libFuzzer.

#include <gtest/gtest.h>

#include <filesystem>

#include "trace_test_support.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace mixed_kv::trace::testing {
namespace {

TEST(FuzzCorpus, GgufReaderSurvivesEveryFileAndItsPrefixes) {
    size_t n_files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(MIXED_KV_GGUF_CORPUS)) {
        SCOPED_TRACE(entry.path().filename().string());
        const std::vector<std::byte> bytes = read_file(entry.path());
        const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
        EXPECT_EQ(LLVMFuzzerTestOneInput(data, bytes.size()), 0);
        for (size_t n = 0; n < bytes.size(); n += 64) {
            EXPECT_EQ(LLVMFuzzerTestOneInput(data, n), 0);
        }
        ++n_files;
    }
    EXPECT_GT(n_files, 4u);
}

}  // namespace
}  // namespace mixed_kv::trace::testing
