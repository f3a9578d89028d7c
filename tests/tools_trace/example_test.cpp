// examples/recompute_step.py, written from the documents alone: it reads what the recorder writes, and comes
// to the numbers of kqv-tensor-reader.
#include <gtest/gtest.h>

#include <cstdlib>

#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

class Example : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(Example, RecomputesAsTheReaderDoes) {
    const std::string python = MIXED_KV_PYTHON;
    if (python.empty()) GTEST_SKIP() << "no Python with NumPy";
    const std::string trace = scratch("example.gguf"), ours = scratch("ours.npy"), its = scratch("its.npy");
    std::vector<std::string> options = {"-p", letters(300), "-n", "8", "-ub", "64"};
    options.insert(options.end(), GetParam().begin(), GetParam().end());
    record(random_model("llama"), trace, options);
    const nlohmann::json records = read_trace(trace, {"--json"}).json()["records"];
    for (const std::size_t i : {std::size_t(1), records.size() / 2, records.size() - 1}) {
        const std::string layer = std::to_string(records[i]["layer"].get<int>()),
                          step = std::to_string(records[i]["step"].get<int>());
        SCOPED_TRACE("layer " + layer + ", step " + step);
        (void)read_trace(trace, {"-q", "--layer", layer, "--step", step, "--save-recomputed", ours});
        const std::string compare = python + " " MIXED_KV_SOURCE_DIR "/examples/recompute_step.py " + trace +
                                    " --tol 1 --layer " + layer + " --step " + step + " --save " + its +
                                    " && " + python +
                                    " -c \"import numpy, sys; sys.exit(not abs(numpy.load('" + ours +
                                    "') - numpy.load('" + its + "')).max() < 1e-6)\"";
        EXPECT_EQ(std::system(compare.c_str()), 0) << compare;
    }
}

using Options = std::vector<std::string>;
INSTANTIATE_TEST_SUITE_P(Traces, Example,
                         testing::Values(Options{"--mixed-kv-cache"},
                                         Options{"--mixed-kv-cache", "--compact"},
                                         Options{"--mixed-kv-cache", "--kv-k", "q3", "--kv-v", "q2"},
                                         Options{}, Options{"-ctk", "q5_1", "-ctv", "q8_0"}));

}  // namespace

}  // namespace mixed_kv::test
