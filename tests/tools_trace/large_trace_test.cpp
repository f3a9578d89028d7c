// A large file: the reader takes a record at a time.
#include <gtest/gtest.h>

#include <filesystem>

#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// A record at a time, and a page of 5 MB at most: the reader's memory does not grow with the file.
TEST(LargeTrace, ReadingAndDrawing200MegabytesOfTrace) {
    const std::string trace = scratch("wide.gguf"), page = scratch("wide.html");
    double bytes[2], memory[2];
    for (const int i : {0, 1}) {
        record(random_model("llama"), trace,
               {"-p", letters(1000), "-n", i == 0 ? "20" : "150", "-c", "2048", "-ub", "512",
                "--mixed-kv-cache", "--kv-k", "f16", "--kv-v", "f16", "--keep-originals"});
        bytes[i] = double(std::filesystem::file_size(trace));
        memory[i] =
            memory_of("kqv-tensor-reader", {"-i", trace, "-q", "--reference", "double", "--html", page});
        EXPECT_LT(std::filesystem::file_size(page), 5'000'000U);
    }
    std::printf("%.1f MiB of memory for a file of %.1f MiB; %.1f for %.1f MiB\n", memory[0] / kMiB,
                bytes[0] / kMiB, memory[1] / kMiB, bytes[1] / kMiB);
    EXPECT_GT(bytes[1], 200e6);
    if (!kSanitized) {
        EXPECT_LT(memory[1] - memory[0], 16 * kMiB);
    }
    std::filesystem::remove(trace);
}

}  // namespace

}  // namespace mixed_kv::test
