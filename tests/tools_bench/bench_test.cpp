// mixed-kv-bench by its command line: fields, limits and refusals. Small shapes; no speed is expected of
// them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "command.h"

namespace mixed_kv::test {

namespace {

std::vector<std::string> small(const std::string& mode, std::vector<std::string> more) {
    std::vector<std::string> arguments = {mode, "--head-dim", "64", "--n-head",     "4", "--n-head-kv",
                                          "2",  "--threads",  "1",  "--rotate-mib", "8"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

// The tool measures, and refuses to print what cannot be: reads that are faster than the machine's memory.
// Where other programs take the processor away while its memory is measured, it has to be asked again.
CommandResult measure(const std::vector<std::string>& arguments) {
    CommandResult result;
    for (int i = 0; i < 10; ++i) {
        result = run_tool("mixed-kv-bench", arguments);
        if (result.err.find("times as fast as memory") == std::string::npos) break;
    }
    return result;
}

void expect_machine(const nlohmann::json& json) {
    EXPECT_GT(json.at("read_bandwidth").get<double>(), 1e8);
    EXPECT_EQ(json.at("threads"), 1);
    EXPECT_FALSE(json.at("isa").get<std::string>().empty());
    EXPECT_FALSE(json.at("read_pattern").get<std::string>().empty());
}

TEST(Bench, AttentionJson) {
    const CommandResult result =
        measure(small("attention", {"--n-kv", "256,1000", "--n-q", "2", "--n-seq", "2", "--k", "q4,f16",
                                    "--v", "q8,f16", "--json"}));
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_EQ(json.at("mode"), "attention");
    EXPECT_EQ(json.at("reads_memory"), false);
    expect_machine(json);
    ASSERT_EQ(json.at("cases").size(), 4U);
    for (const nlohmann::json& c : json.at("cases")) {
        const bool f16 = c.at("k") == "f16";
        EXPECT_EQ(c.at("v"), f16 ? "f16" : "q8");
        EXPECT_GT(c.at("us").get<double>(), 0);
        EXPECT_GE(c.at("samples").get<int>(), 5);
        EXPECT_LE(c.at("us_quartiles")[0].get<double>(), c.at("us").get<double>());
        const double share = c.at("bandwidth_share").get<double>();
        EXPECT_GT(share, 0);
        EXPECT_LE(share, 1);
        EXPECT_NEAR(share,
                    c.at("kv_bytes").get<double>() / (c.at("us").get<double>() * 1e-6) /
                        json.at("read_bandwidth").get<double>(),
                    1e-3 * share);
        if (f16) {
            // Whole pages of 64 rows are held.
            const double rows = c.at("n_kv") == 256 ? 256 : 1024;
            EXPECT_EQ(c.at("kv_bytes").get<double>(), rows * 2 * 2 * 64 * 2 * 2);
        }
        EXPECT_LE(c.at("relative_rms").get<double>(), f16 ? 3e-5 : 2e-4);
        EXPECT_GT(c.at("scratch_bytes_per_thread").get<int>(), 0);
        for (const char* type : {"f16", "q8_0", "q4_0"}) {
            EXPECT_GT(c.at("host").at(type).get<double>(), 0);
            EXPECT_NEAR(c.at("speedup").at(type).get<double>(),
                        c.at("host").at(type).get<double>() / c.at("us").get<double>(),
                        1e-3 * c.at("speedup").at(type).get<double>());
        }
    }
}

TEST(Bench, PrefillJson) {
    const CommandResult result =
        measure(small("prefill", {"--n-q", "40", "--depth", "0,200", "--host", "f16", "--json"}));
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_EQ(json.at("mode"), "prefill");
    expect_machine(json);
    ASSERT_EQ(json.at("cases").size(), 2U);
    for (const nlohmann::json& c : json.at("cases")) {
        EXPECT_GT(c.at("gflops").get<double>(), 0);
        EXPECT_GT(c.at("peak_gflops").get<double>(), 0);
        EXPECT_FALSE(c.at("peak_unit").get<std::string>().empty());
        EXPECT_EQ(c.at("host").size(), 1U);
        EXPECT_EQ(c.at("n_kv").get<int>(), c.at("depth").get<int>() + 40);
    }
}

TEST(Bench, OtherOutputsAndScalar) {
    const CommandResult csv =
        measure(small("attention", {"--n-kv", "256", "--isa", "scalar", "--host", "none", "--csv"}));
    ASSERT_EQ(csv.exit_status, 0) << csv.err;
    EXPECT_EQ(csv.out.rfind("mode,isa,threads,read_bandwidth,k,v,", 0), 0U);
    EXPECT_NE(csv.out.find("\nattention,scalar,1,"), std::string::npos) << csv.out;
    const CommandResult table =
        measure(small("attention", {"--n-kv", "256", "--k", "q2", "--v", "q3", "--host", "q8_0", "--md"}));
    ASSERT_EQ(table.exit_status, 0) << table.err;
    for (const char* part : {"1 thread;", "kernels: ", "Roofline: read bandwidth ",
                             "Scratch per thread: ", "caches may have served reads", "| q2 | q3 |"})
        EXPECT_NE(table.out.find(part), std::string::npos) << part << "\n" << table.out;
}

TEST(Bench, ModelJsonAndPlot) {
    const std::string svg = scratch_folder() + "/plot.svg";
    const CommandResult result =
        measure({"model", "-m", random_model(), "--depths", "0,600", "--threads", "1", "--k", "q4", "--v",
                 "q8", "--window", "64", "--rotate-mib", "8", "--svg", svg, "--json"});
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_EQ(json.at("mode"), "model");
    expect_machine(json);
    EXPECT_EQ(json.at("window"), 64);
    ASSERT_EQ(json.at("cases").size(), 2U);
    EXPECT_EQ(json.at("cases")[0].at("depth"), 0);
    for (const nlohmann::json& c : json.at("cases")) {
        EXPECT_GT(c.at("tokens_per_second").get<double>(), 0);
        EXPECT_GE(c.at("samples").get<int>(), 5);
        for (const char* type : {"f16", "q8_0", "q4_0"}) EXPECT_GT(c.at("host").at(type).get<double>(), 0);
    }
    const nlohmann::json& deep = json.at("cases")[1];
    // 600 rows really are there, and most of them are cold: fewer bytes than in FP16, more than codes alone.
    const double values = 600.0 * 3 * 2 * 2 * 64;
    EXPECT_LT(deep.at("kv_bytes").get<double>(), values * 2 * 0.7);
    EXPECT_GT(deep.at("kv_bytes").get<double>(), values * 0.5);
    std::ifstream file(svg);
    std::stringstream text;
    text << file.rdbuf();
    EXPECT_EQ(text.str().rfind("<svg", 0), 0U);
    EXPECT_NE(text.str().find(">600<"), std::string::npos);
}

TEST(Bench, ModelPrompts) {
    const auto arguments = [](const char* output) {
        return std::vector<std::string>{"model",      "-m",  random_model(), "--depths", "0,600",
                                        "--n-prompt", "96",  "--threads",    "1",        "--k",
                                        "q4",         "--v", "q8",           "--host",   "f16,q8_0",
                                        "--window",   "32",  "--sinks",      "4",        "--rotate-mib",
                                        "8",          output};
    };
    const CommandResult result = measure(arguments("--json"));
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_EQ(json.at("mode"), "model");
    EXPECT_EQ(json.at("n_prompt"), 96);
    expect_machine(json);
    ASSERT_EQ(json.at("cases").size(), 2U);
    for (const nlohmann::json& c : json.at("cases")) {
        EXPECT_GT(c.at("tokens_per_second").get<double>(), 0);
        EXPECT_EQ(c.at("samples"), 5) << "one ubatch a round";
        EXPECT_EQ(c.count("tokens_per_second_ceiling"), 0U);
        EXPECT_EQ(c.at("host").size(), 2U);
        for (const char* type : {"f16", "q8_0"}) {
            EXPECT_NEAR(c.at("speedup").at(type).get<double>(),
                        c.at("tokens_per_second").get<double>() / c.at("host").at(type).get<double>(),
                        1e-3 * c.at("speedup").at(type).get<double>());
        }
    }
    EXPECT_GT(json.at("cases")[1].at("kv_bytes").get<double>(), 600.0 * 3 * 2 * 2 * 64 * 0.5);
    const CommandResult csv = measure(arguments("--csv"));
    ASSERT_EQ(csv.exit_status, 0) << csv.err;
    EXPECT_EQ(csv.out.rfind("mode,isa,threads,read_bandwidth,n_prompt,depth,k,v,tokens_per_second,", 0), 0U);
    EXPECT_NE(csv.out.find(",n_parallel,kv_unified,window,sinks\n"), std::string::npos) << csv.out;
    EXPECT_NE(csv.out.find(",96,600,q4,q8,"), std::string::npos) << csv.out;
    EXPECT_NE(csv.out.find(",1,false,32,4\n"), std::string::npos) << csv.out;
    const CommandResult table = measure(arguments("--md"));
    ASSERT_EQ(table.exit_status, 0) << table.err;
    EXPECT_NE(table.out.find("prompts of 96 tokens"), std::string::npos) << table.out;
    EXPECT_EQ(table.out.find("ceiling"), std::string::npos) << table.out;
}

TEST(Bench, AttentionSweep) {
    const auto arguments = [](const char* output) {
        return small("attention",
                     {"--n-kv", "64,256", "--n-q", "1,4", "--n-seq", "1,2", "--host", "f16", output});
    };
    const CommandResult result = measure(arguments("--json"));
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    std::vector<std::vector<int>> shapes;
    double smallest = 1e9;
    for (const nlohmann::json& c : json.at("cases")) {
        shapes.push_back({c.at("n_seq"), c.at("n_q"), c.at("n_kv")});
        smallest = std::min(smallest, c.at("speedup").at("f16").get<double>());
    }
    EXPECT_EQ(shapes, (std::vector<std::vector<int>>{{1, 1, 64},
                                                     {1, 1, 256},
                                                     {1, 4, 64},
                                                     {1, 4, 256},
                                                     {2, 1, 64},
                                                     {2, 1, 256},
                                                     {2, 4, 64},
                                                     {2, 4, 256}}));
    const nlohmann::json& summary = json.at("smallest_speedup").at("f16");
    EXPECT_EQ(summary.at("speedup"), smallest);
    EXPECT_EQ(json.at("cases")[summary.at("case").get<std::size_t>()].at("speedup").at("f16"), smallest);
    const CommandResult table = measure(arguments("--md"));
    ASSERT_EQ(table.exit_status, 0) << table.err;
    EXPECT_NE(table.out.find("| n_kv | n_q | n_seq |"), std::string::npos) << table.out;
    EXPECT_NE(table.out.find("Smallest speed-up: "), std::string::npos) << table.out;
}

TEST(Bench, ModelOfParallelSequences) {
    for (const char* stream : {"-kvu", ""}) {
        SCOPED_TRACE(stream);
        std::vector<std::string> arguments = {"model",        "-m",  random_model(), "--depths", "10,300",
                                              "-npl",         "1,3", "--threads",    "1",        "--k",
                                              "q4",           "--v", "q8",           "--host",   "f16",
                                              "--rotate-mib", "8",   "--json"};
        if (*stream != '\0') arguments.emplace_back(stream);
        const CommandResult result = measure(arguments);
        ASSERT_EQ(result.exit_status, 0) << result.err;
        const nlohmann::json json = result.json();
        EXPECT_EQ(json.at("kv_unified"), *stream != '\0');
        ASSERT_EQ(json.at("cases").size(), 4U);
        EXPECT_EQ(json.at("smallest_speedup").count("f16"), 1U);
        const auto bytes = [&](std::size_t i) {
            return json.at("cases")[i].at("kv_bytes").get<std::uint64_t>();
        };
        // Ten rows of three sequences are in one page of a stream, or in the first page of each of three.
        EXPECT_EQ(bytes(2), (*stream != '\0' ? 1 : 3) * bytes(0));
        const nlohmann::json &one = json.at("cases")[1], &three = json.at("cases")[3];
        EXPECT_EQ(one.at("n_parallel"), 1);
        EXPECT_EQ(three.at("n_parallel"), 3);
        EXPECT_EQ(three.at("depth"), 300);
        // Every sequence has rows of its own: three times as many, but for the borders of pages and windows.
        EXPECT_NEAR(double(bytes(3)) / double(bytes(1)), 3, 0.6);
        EXPECT_GT(three.at("host").at("f16").get<double>(), 0);
    }
}

TEST(Bench, Prompt) {
    const std::string svg = scratch_folder() + "/prompt.svg";
    const auto arguments = [&](const char* output) {
        return std::vector<std::string>{
            "prompt", "-m",  random_model(), "--n-prompt", "300",       "--n-ubatch", "64",
            "--runs", "2",   "--n-gen",      "5",          "--threads", "1",          "--k",
            "q4",     "--v", "q4",           "--window",   "32",        "--svg",      svg,
            output};
    };
    const CommandResult result = measure(arguments("--json"));
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_EQ(json.at("mode"), "prompt");
    ASSERT_EQ(json.at("ubatches").size(), 5U);
    int depth = 0;
    for (const nlohmann::json& u : json.at("ubatches")) {
        EXPECT_EQ(u.at("depth"), depth);
        EXPECT_EQ(u.at("n_tokens"), std::min(64, 300 - depth));
        depth += 64;
        EXPECT_EQ(u.at("samples"), 2);
        EXPECT_NEAR(u.at("speedup").at("f16").get<double>(),
                    u.at("host").at("f16").get<double>() / u.at("seconds").get<double>(),
                    1e-3 * u.at("speedup").at("f16").get<double>());
    }
    for (const nlohmann::json& reader : {json.at("ours"), json.at("host").at("f16")}) {
        EXPECT_GT(reader.at("prompt_seconds").get<double>(), 0);
        EXPECT_GT(reader.at("generation_tokens_per_second").get<double>(), 0);
        EXPECT_FALSE(reader.at("text").get<std::string>().empty());
    }
    // Freezing happened: 300 rows of K and V, most of them no longer in FP16.
    EXPECT_LT(json.at("kv_bytes").get<double>(), 300.0 * 3 * 2 * 2 * 64 * 2 * 0.7);
    EXPECT_GT(json.at("peak_resident_bytes").get<double>(), json.at("kv_bytes").get<double>());
    std::ifstream file(svg);
    std::stringstream text;
    text << file.rdbuf();
    EXPECT_NE(text.str().find(">256<"), std::string::npos);
    const CommandResult table = measure(arguments("--md"));
    ASSERT_EQ(table.exit_status, 0) << table.err;
    for (const char* part : {"2 runs of 300 tokens in ubatches of 64",
                             "Smallest speed-up: ", "Whole prompt: ", "Text after it, host f16"})
        EXPECT_NE(table.out.find(part), std::string::npos) << part << "\n" << table.out;
    const CommandResult csv = measure(arguments("--csv"));
    ASSERT_EQ(csv.exit_status, 0) << csv.err;
    EXPECT_NE(csv.out.find(",q4,q4,300,64,256,44,"), std::string::npos) << csv.out;
    EXPECT_NE(csv.out.find(",runs,window,sinks\n"), std::string::npos) << csv.out;
    EXPECT_NE(csv.out.find(",2,32,4\n"), std::string::npos) << csv.out;
}

// The shortest prompts, ubatches and texts, without a host; a plot that cannot be written costs no report.
TEST(Bench, ShortestPrompts) {
    const auto run = [](const char* n_prompt, const char* n_ubatch, const std::string& svg) {
        return measure({"prompt", "-m", random_model(), "--n-prompt", n_prompt, "--n-ubatch", n_ubatch,
                        "--n-gen", "0", "--runs", "1", "--host", "none", "--threads", "1", "--json", "--svg",
                        svg});
    };
    const CommandResult small_ubatches = run("3", "1", scratch_folder() + "/small.svg");
    ASSERT_EQ(small_ubatches.exit_status, 0) << small_ubatches.err;
    const nlohmann::json json = small_ubatches.json();
    EXPECT_EQ(json.at("ubatches").size(), 3U);
    EXPECT_EQ(json.at("host").size(), 0U);
    EXPECT_EQ(json.at("ours").at("text"), "");
    const CommandResult one_token = run("1", "512", scratch_folder() + "/no/such/folder.svg");
    EXPECT_EQ(one_token.exit_status, 1);
    EXPECT_EQ(one_token.json().at("ubatches").size(), 1U);
    ASSERT_EQ(one_token.err_lines().size(), 1U) << one_token.err;
    EXPECT_NE(one_token.err.find("folder.svg"), std::string::npos) << one_token.err;
}

TEST(Bench, HelpShowsDefaults) {
    const CommandResult help = run_tool("mixed-kv-bench", {"attention", "--help"});
    ASSERT_EQ(help.exit_status, 0) << help.err;
    for (const char* value : {"[q4]", "[f16,q8_0,q4_0]"})
        EXPECT_NE(help.out.find(value), std::string::npos) << value << "\n" << help.out;
}

// Known only once the model is loaded.
TEST(Bench, PromptsThatCannotBeMeasured) {
    const CommandResult too_long =
        run_tool("mixed-kv-bench", {"prompt", "-m", random_model(), "--n-prompt", "4090", "--n-gen", "7"});
    EXPECT_EQ(too_long.exit_status, 1);
    EXPECT_NE(too_long.err.find("4097 tokens, and this model was trained for 4096"), std::string::npos)
        << too_long.err;
    const std::string recurrent = scratch_folder() + "/mamba.gguf";
    ASSERT_EQ(run_tool("make-random-model", {"--arch", "mamba", "--out", recurrent}).exit_status, 0);
    const CommandResult no_cache = run_tool("mixed-kv-bench", {"prompt", "-m", recurrent, "--n-prompt", "64",
                                                               "--n-ubatch", "32", "--threads", "1"});
    EXPECT_EQ(no_cache.exit_status, 1);
    EXPECT_NE(no_cache.err.find("it has no K and V cache"), std::string::npos) << no_cache.err;
}

struct Refusal {
    std::string name;
    std::vector<std::string> arguments;
    int exit_status;
    std::string says;
};
void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

const Refusal kRefusals[] = {
    {"NoMode", {}, 2, "subcommand"},
    {"UnknownMode", {"sprint"}, 2, "subcommand"},
    {"UnknownKeyFormat", {"attention", "--k", "q77"}, 2, "q77"},
    {"UnknownValueFormat", {"prefill", "--v", "int4"}, 2, "int4"},
    {"UnknownIsa", {"attention", "--isa", "mmx"}, 2, "mmx"},
    {"UnknownHostType", {"attention", "--host", "q9_9"}, 2, "q9_9"},
    {"TwoOutputs", {"attention", "--json", "--csv"}, 2, "one of"},
    {"HeadsDoNotDivide", {"attention", "--n-head", "32", "--n-head-kv", "5"}, 2, "multiple"},
    {"HeadDimOfHostBlocks", {"attention", "--head-dim", "40"}, 2, "multiple of 32"},
    {"MoreQueriesThanCells", {"attention", "--n-kv", "4", "--n-q", "8"}, 2, "no room"},
    {"MoreHotThanCells", {"attention", "--n-kv", "64", "--hot", "65"}, 2, "--hot"},
    {"TooFewRounds", {"attention", "--rounds", "4"}, 2, "rounds"},
    {"NoThreads", {"attention", "--threads", "0"}, 2, "threads"},
    {"NoCells", {"attention", "--n-kv", "0"}, 2, "n-kv"},
    {"TooLargeForMemory", {"attention", "--n-kv", "16777216", "--n-seq", "256"}, 1, "MiB"},
    {"NoModel", {"model"}, 2, "--model"},
    {"NoModelFile", {"model", "-m", "no/such.gguf"}, 1, "no/such.gguf"},
    {"TwoFormatsOfAModel", {"model", "-m", "no/such.gguf", "--k", "q4,q8", "--v", "q4"}, 2, "one --k"},
    {"PromptTooLong", {"model", "-m", "no/such.gguf", "--n-prompt", "4097"}, 2, "n-prompt"},
    {"SequencesOfAPlot", {"model", "-m", "no/such.gguf", "-npl", "1,2", "--svg", "x.svg"}, 2, "--n-parallel"},
    {"TooManySequences", {"model", "-m", "no/such.gguf", "-npl", "257"}, 2, "n-parallel"},
    {"TooManyTokensAStep", {"model", "-m", "no/such.gguf", "-npl", "1,8", "--n-prompt", "4096"}, 2, "32768"},
    {"TooManyTokensOfAll",
     {"model", "-m", "no/such.gguf", "-npl", "256", "--depths", "65537"},
     2,
     "16777472"},
    {"PromptWithoutModel", {"prompt"}, 2, "--model"},
    {"PromptWithoutRuns", {"prompt", "-m", "no/such.gguf", "--runs", "0"}, 2, "runs"},
    {"UbatchTooLong", {"prompt", "-m", "no/such.gguf", "--n-ubatch", "4097"}, 2, "n-ubatch"},
    {"RoundsOfAPrompt", {"prompt", "-m", "no/such.gguf", "--rounds", "5"}, 2, "--rounds"},
    {"DepthOfAttention", {"attention", "--depth", "5"}, 2, "--depth"},
    {"NoPlacement", {"attention", "--host-placements", "0"}, 2, "host-placements"},
};

class BenchRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(BenchRefusal, OneLineAndNonZeroExit) {
    const CommandResult result = run_tool("mixed-kv-bench", GetParam().arguments);
    EXPECT_EQ(result.exit_status, GetParam().exit_status) << result.err;
    EXPECT_EQ(result.out, "");
    ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
    EXPECT_EQ(result.err.rfind("mixed-kv-bench: error: ", 0), 0U) << result.err;
    EXPECT_NE(result.err.find(GetParam().says), std::string::npos) << result.err;
}

INSTANTIATE_TEST_SUITE_P(Table, BenchRefusal, testing::ValuesIn(kRefusals),
                         [](const testing::TestParamInfo<Refusal>& test) { return test.param.name; });

}  // namespace

}  // namespace mixed_kv::test
