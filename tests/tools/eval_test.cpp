#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "command.h"

namespace mixed_kv::test {

namespace {

constexpr const char* kModel = MIXED_KV_MODEL_DIR "/tiny-recall.gguf";
constexpr const char* kText = MIXED_KV_MODEL_DIR "/eval.txt";

CommandResult eval(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"-f", kText, "-c", "256",      "--ubatch",
                                          "64", "-t",  "1",  "--chunks", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_tool("mixed-kv-eval", arguments);
}

nlohmann::json eval_json(std::vector<std::string> more) {
    more.insert(more.end(), {"-m", kModel, "--json"});
    const CommandResult result = eval(more);
    EXPECT_EQ(result.exit_status, 0) << result.err;
    return result.json();
}

TEST(Eval, JsonHasTheAgreedFields) {
    const nlohmann::json json =
        eval_json({"--configs",
                   "f16,host:q8_0,host:q4_0:norot,mixed:small,window=0,"
                   "mixed:k=q2,v=q2,window=0,sinks=0,layers=0,-1:q8/-,v=q3",
                   "--baseline", "host:q8_0", "--greedy", "8", "--greedy-prompts", "1"});
    EXPECT_LT(json.at("noise_floor").get<double>(), 1e-5);
    EXPECT_EQ(json.at("positions"), 128);
    const nlohmann::json& configs = json.at("configs");
    ASSERT_EQ(configs.size(), 5U);
    const char* names[] = {"f16", "host:q8_0", "host:q4_0:norot", "mixed:small,window=0",
                           "mixed:k=q2,v=q2,window=0,sinks=0,layers=0,-1:q8/-,v=q3"};
    for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(configs[i].at("name"), names[i]);
        for (const char* field : {"bits_per_value", "kld_mean", "kld_median", "kld_p99", "kld_p999", "top1",
                                  "ppl", "kv_bytes", "rms_delta_p", "greedy_same_mean"}) {
            ASSERT_TRUE(configs[i].at(field).is_number()) << field;
        }
    }
    EXPECT_EQ(configs[0].at("kld_mean"), 0.0) << "the reference against itself";
    EXPECT_EQ(configs[0].at("kld_mean_ratio"), "not resolved");
    EXPECT_EQ(configs[0].at("greedy_same_mean"), 8.0);
    EXPECT_DOUBLE_EQ(configs[1].at("kld_mean_ratio"), 1.0);
    EXPECT_DOUBLE_EQ(configs[1].at("bits_per_value"), 8.5);
    EXPECT_GT(configs[2].at("kld_mean"), configs[1].at("kld_mean"));
    EXPECT_GT(configs[4].at("kld_mean"), configs[1].at("kld_mean"));
}

// Other caches' rows in a cache with our window are stored when ours would be, and through the same codecs.
TEST(Eval, CodedRowsAreThoseOfRealCaches) {
    const CommandResult result = run_tool(
        "mixed-kv-eval",
        {"-m", kModel, "-f", kText, "-c", "512", "--ubatch", "64", "-t", "1", "--chunks", "2", "--json",
         "--configs",
         "mixed:k=q4,v=q3,window=64,sinks=4,format:q4/q3+64+4,host:q4_0,host:q4_0+0+0,host:q4_0+64+4,"
         "host:q4_0:norot,host:q4_0:norot+0+0,format:q4/"
         "q3+0+0,mixed:k=q2,v=q2,window=100,sinks=0,format:q2+100+0"});
    ASSERT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json configs = result.json().at("configs");
    const auto kld = [&](std::size_t i) { return configs.at(i).at("kld_mean").get<double>(); };
    const auto bits = [&](std::size_t i) { return configs.at(i).at("bits_per_value").get<double>(); };
    EXPECT_NEAR(kld(1) / kld(0), 1, 0.05) << "ours, by the real cache and as rows";
    EXPECT_NEAR(bits(1), bits(0), 0.01);
    EXPECT_NEAR(kld(9) / kld(8), 1, 0.05) << "a window that ends within a page";
    EXPECT_NEAR(bits(9), bits(8), 0.01);
    EXPECT_NEAR(kld(3) / kld(2), 1, 0.15) << "llama.cpp's, whose own kernels round the query, too";
    EXPECT_DOUBLE_EQ(bits(3), 4.5);
    EXPECT_NEAR(kld(6) / kld(5), 1, 0.15);
    EXPECT_LT(kld(4), 0.5 * kld(3));
    EXPECT_GT(bits(4), bits(3));
    EXPECT_GT(kld(7), kld(1));
    EXPECT_LT(bits(7), bits(1));
    for (const std::size_t i : {1, 3, 4, 7}) EXPECT_TRUE(configs.at(i).at("cold").get<bool>()) << i;
}

// 95 % intervals need a few contexts.
TEST(Eval, IntervalsOverContexts) {
    const auto with = [](const char* chunks) {
        const CommandResult result =
            run_tool("mixed-kv-eval",
                     {"-m", kModel, "-f", kText, "-c", "128", "--ubatch", "64", "-t", "1", "--chunks", chunks,
                      "--configs", "host:q4_0,host:q5_0,f16", "--baseline", "host:q4_0", "--json"});
        EXPECT_EQ(result.exit_status, 0) << result.err;
        return result.json().at("configs");
    };
    const nlohmann::json some = with("5"), few = with("3");
    for (const char* figure : {"kld_mean", "kld_p999", "top1", "kld_mean_ratio", "kld_p999_ratio"}) {
        const std::string field = std::string(figure) + "_interval";
        ASSERT_EQ(some[1].at(field).size(), 2U) << figure;
        EXPECT_LT(some[1].at(field)[0], some[1].at(field)[1]) << figure;
        EXPECT_LE(some[1].at(field)[0], some[1].at(figure)) << figure;
        EXPECT_GE(some[1].at(field)[1], some[1].at(figure)) << figure;
        EXPECT_TRUE(few[1].at(field).is_null()) << figure;
    }
    EXPECT_EQ(some[0].at("kld_mean_ratio_interval")[0], 1.0) << "the baseline against itself";
    EXPECT_EQ(some[0].at("kld_mean_ratio_interval")[1], 1.0);
    EXPECT_EQ(some[2].at("kld_mean_interval")[1], 0.0) << "the reference against itself";
}

// A run that is taken up again gives what it would have given; configurations can be added.
TEST(Eval, ResumesFromWhatIsThere) {
    const std::string path = scratch_folder() + "/progress.jsonl";
    std::filesystem::remove(path);
    const nlohmann::json whole = eval_json({"--configs", "host:q4_0,mixed:balanced"});
    (void)eval_json({"--configs", "mixed:balanced", "--resume", path});
    {
        std::ofstream(path, std::ios::app) << "{\"key\": \"cut o";  // killed while writing
    }
    EXPECT_EQ(eval_json({"--configs", "host:q4_0,mixed:balanced", "--resume", path}), whole);
    const auto lines = [&] {
        std::ifstream file(path);
        int n = 0;
        for (std::string line; std::getline(file, line);) ++n;
        return n;
    };
    EXPECT_EQ(lines(), 3) << "two configurations and the noise floor";
    EXPECT_EQ(eval_json({"--configs", "host:q4_0,mixed:balanced", "--resume", path}), whole);
    EXPECT_EQ(lines(), 3);

    std::ofstream(path) << "no result\n";
    const CommandResult result = eval({"-m", kModel, "--configs", "f16", "--resume", path});
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_NE(result.err.find("line 1 is no result"), std::string::npos) << result.err;
}

// Passing over one context leaves the second of two.
TEST(Eval, FirstChunkPassesOver) {
    const auto kld = [](const char* first_chunk, const char* chunks) {
        const CommandResult result = run_tool(
            "mixed-kv-eval", {"-m", kModel, "-f", kText, "-c", "256", "-t", "1", "--configs", "host:q4_0",
                              "--first-chunk", first_chunk, "--chunks", chunks, "--json"});
        EXPECT_EQ(result.exit_status, 0) << result.err;
        return result.json().at("configs")[0].at("kld_mean").get<double>();
    };
    const double first = kld("0", "1"), second = kld("1", "1");
    EXPECT_GT(std::abs(first - second), 1e-3 * first);
    EXPECT_NEAR(kld("0", "2"), (first + second) / 2, 1e-4 * first);
}

TEST(Eval, PlotsAndTables) {
    const std::string prefix = scratch_folder() + "/plot";
    const CommandResult result = eval(
        {"-m", kModel, "--configs", "host:q4_0,mixed:small", "--baseline", "host:q4_0", "--plot", prefix});
    EXPECT_EQ(result.exit_status, 0) << result.err;
    EXPECT_NE(result.out.find("| mixed:small |"), std::string::npos) << result.out;
    std::ifstream file(prefix + "-kld.svg");
    const std::string svg{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    EXPECT_EQ(svg.rfind("<svg ", 0), 0U);
    EXPECT_NE(svg.find("mixed:small"), std::string::npos);
    EXPECT_EQ(svg.find("nan"), std::string::npos);

    const CommandResult full =
        eval({"-m", kModel, "--configs", "host:q4_0", "--plot", "/no/such/folder/plot"});
    EXPECT_EQ(full.exit_status, 1);
    EXPECT_EQ(full.err_lines().size(), 1U) << full.err;
    EXPECT_NE(full.err.find("cannot write '/no/such/folder/plot-kld.svg'"), std::string::npos) << full.err;
}

// The file that a calibration writes divides a budget.
TEST(Eval, CalibratesForTheBudget) {
    const std::string path = scratch_folder() + "/calibration.txt";
    const CommandResult result = eval({"--calibrate", kModel, "--output", path});
    ASSERT_EQ(result.exit_status, 0) << result.err;
    double last = 0;
    for (const char* bits : {"3", "4.25", "6"}) {
        const CommandResult run =
            run_tool("mixed-kv-run",
                     {"-m", kModel, "-p", long_prompt(300), "-n", "1", "-t", "1", "--json", "--kv-window",
                      "0", "--kv-sinks", "0", "--kv-bits", bits, "--kv-calibration", path});
        ASSERT_EQ(run.exit_status, 0) << run.err;
        const double used = run.json().at("bits_per_value");
        EXPECT_GT(used, last) << bits;
        last = used;
    }
    // Another model's: the context is refused with the reason.
    const CommandResult other = run_tool("mixed-kv-run", {"-m", random_model(), "-p", "a", "-n", "1",
                                                          "--kv-bits", "4", "--kv-calibration", path});
    EXPECT_EQ(other.exit_status, 1);
    EXPECT_NE(other.err.find("calibration of 'tiny-recall.gguf'"), std::string::npos) << other.err;
}

// A ubatch as long as the context attends to its own rows only, and those are exact.
TEST(Eval, SaysWhereNothingWasCold) {
    const std::vector<std::string> arguments = {"-f",  kText, "-c", "256",      "--ubatch",
                                                "256", "-t",  "1",  "--chunks", "1"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), arguments.begin(), arguments.end());
        return run_tool("mixed-kv-eval", more);
    };
    const CommandResult json = with({"-m", kModel, "--json", "--configs", "f16,host:q8_0,mixed:small"});
    EXPECT_EQ(json.exit_status, 0) << json.err;
    const nlohmann::json report = json.json();
    for (const nlohmann::json& config : report.at("configs")) EXPECT_FALSE(config.at("cold").get<bool>());
    ASSERT_EQ(json.err_lines().size(), 1U) << json.err;
    EXPECT_NE(json.err.find("mixed:small: nothing was cold"), std::string::npos) << json.err;
    EXPECT_NE(json.err.find("--ubatch"), std::string::npos) << json.err;
    const CommandResult table = with({"-m", kModel, "--configs", "mixed:small"});
    EXPECT_NE(table.out.find("mixed:small: nothing was cold where it was scored"), std::string::npos)
        << table.out;

    const CommandResult good = eval({"-m", kModel, "--json", "--configs", "mixed:small"});
    EXPECT_TRUE(good.json().at("configs").at(0).at("cold").get<bool>());
    EXPECT_EQ(good.err, "");

    // A calibration on it would be zeros.
    const std::string path = scratch_folder() + "/nothing.txt";
    const CommandResult calibration = with({"--calibrate", kModel, "--output", path});
    EXPECT_EQ(calibration.exit_status, 1);
    EXPECT_NE(calibration.err.find("nothing was cold"), std::string::npos) << calibration.err;
    EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Eval, TextsThatAreTooShort) {
    for (const std::string& text : {write_file("empty.txt", ""), write_file("short.txt", "a few words")}) {
        const CommandResult result = run_tool("mixed-kv-eval", {"-m", kModel, "-f", text, "-c", "256"});
        EXPECT_EQ(result.exit_status, 1);
        ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
        EXPECT_NE(result.err.find("the text has "), std::string::npos) << result.err;
        EXPECT_NE(result.err.find("one context needs 256"), std::string::npos) << result.err;
    }
}

TEST(Eval, BadInputIsOneLine) {
    const std::pair<std::vector<std::string>, std::string> bad[] = {
        {{"--configs", "f16"}, "--calibrate MODEL"},
        {{"-m", kModel, "--configs", "mixed:k=q9"}, "q9"},
        {{"-m", kModel, "--configs", "mixed:best"}, "best"},
        {{"-m", kModel, "--configs", "host:q9"}, "q9"},
        {{"-m", kModel, "--configs", "host:q9+64+4"}, "q9"},
        {{"-m", kModel, "--configs", "host:q4_0+64"}, "+WINDOW+SINKS"},
        {{"-m", kModel, "--configs", "host:q4_0+64+"}, "+WINDOW+SINKS"},
        {{"-m", kModel, "--configs", "host:q4_0+64+4+1"}, "'+1' behind"},
        {{"-m", kModel, "--configs", "host:q4_0+64+4x"}, "'x' behind"},
        {{"-m", kModel, "--configs", "host:q4_0++4"}, "+WINDOW+SINKS"},
        {{"-m", kModel, "--configs", "host:q4_0+-1+4"}, "+WINDOW+SINKS"},
        {{"-m", kModel, "--configs", "host:q4_0+99999999999999999999+4"}, "+WINDOW+SINKS"},
        {{"-m", kModel, "--configs", "host:f16+64+4"}, "quantized type"},
        {{"-m", kModel, "--configs", "format:q4"}, "+WINDOW+SINKS is missing"},
        {{"-m", kModel, "--configs", "format:q4_0+64+4"}, "q4_0"},
        {{"-m", kModel, "--configs", "format:q4/+64+4"}, "not ''"},
        {{"-m", kModel, "--configs", "format:q4+0+0", "--ubatch", "32"}, "--ubatch"},
        {{"-m", kModel, "--configs", "format:q4+0+0", "--greedy", "8"}, "--greedy"},
        {{"-m", kModel, "--configs", "f16", "--baseline", "host:q4_0"}, "--baseline"},
        {{"-m", kModel, "--configs", "f16", "--first-chunk", "100000"}, "--first-chunk"},
        {{"-m", kModel, "--configs", "f16", "--greedy", "200"}, "half of the context"},
        {{"-m", kModel, "--configs", "f16", "--resume", "/no/such/folder/x"}, "cannot write"},
    };
    for (const auto& [arguments, says] : bad) {
        const CommandResult result = eval(arguments);
        EXPECT_NE(result.exit_status, 0);
        EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
        EXPECT_NE(result.err.find(says), std::string::npos) << result.err;
    }
    for (const char* config :
         {"host:q4_0+64", "host:q4_0+64+4+1", "host:q9+64+4", "host:f16+64+4", "format:q4"}) {
        EXPECT_EQ(eval({"-m", kModel, "--configs", config}).exit_status, 1) << config;
    }
}

}  // namespace

}  // namespace mixed_kv::test
