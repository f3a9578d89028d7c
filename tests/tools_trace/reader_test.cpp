// kqv-tensor-reader on made-up records, for what no small model shows: several streams with masks of their
// own, ALiBi over an odd number of heads, rows in any order. The outputs come from a plain loop in this file.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "mixed_kv/fp16.h"
#include "trace/trace_writer.h"
#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

using trace::CachePart;
using trace::GgmlType;
using trace::TraceRecord;

struct Made {
    TraceRecord record;
    std::vector<float> q, k, v, mask;
};

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
    const auto* first = reinterpret_cast<const std::byte*>(values.data());
    return {first, first + values.size() * sizeof(T)};
}

std::vector<fp16_t> round_to_fp16(std::vector<float>& values) {
    std::vector<fp16_t> halves;
    for (float& value : values) {
        halves.push_back(fp32_to_fp16(value));
        value = fp16_to_fp32(halves.back());
    }
    return halves;
}

double slope(double max_bias, int64_t n_head, int64_t head) {
    if (max_bias == 0) return 1;
    int64_t n = 1;
    while (2 * n <= n_head) n *= 2;
    return head < n ? std::pow(2.0, -max_bias / double(n) * double(head + 1))
                    : std::pow(2.0, -max_bias / 2 / double(n) * double(2 * (head - n) + 1));
}

// The formula of docs/trace-format.md.
std::vector<float> attend(const Made& m) {
    const TraceRecord& r = m.record;
    std::vector<float> out;
    for (int64_t row = 0; row < r.n_stream * r.n_tokens * r.n_head; ++row) {
        const int64_t h = row % r.n_head, t = row / r.n_head % r.n_tokens, s = row / r.n_head / r.n_tokens;
        const int64_t g = h / (r.n_head / r.n_head_kv);
        std::vector<double> sum(size_t(r.head_dim_v), 0.0);
        double total = 0;
        if (r.sinks) {
            float sink;
            std::memcpy(&sink, r.sinks->bytes.data() + h * 4, 4);
            total = std::exp(double(sink));
        }
        for (int64_t j = 0; j < r.n_kv; ++j) {
            const double mask = double(m.mask[size_t((s * r.n_tokens + t) * r.n_kv + j)]);
            const int64_t cell = s * r.n_kv + j;
            double x = 0;
            for (int64_t c = 0; c < r.head_dim_k; ++c) {
                x += double(m.q[size_t(row * r.head_dim_k + c)]) *
                     double(m.k[size_t((cell * r.n_head_kv + g) * r.head_dim_k + c)]);
            }
            x *= double(r.kq_scale);
            if (r.logit_softcap != 0) x = double(r.logit_softcap) * std::tanh(x / double(r.logit_softcap));
            const double p = std::exp(x + slope(double(r.max_bias), r.n_head, h) * mask);
            total += p;
            for (int64_t c = 0; c < r.head_dim_v; ++c) {
                sum[size_t(c)] += p * double(m.v[size_t((cell * r.n_head_kv + g) * r.head_dim_v + c)]);
            }
        }
        for (const double x : sum) out.push_back(total > 0 ? float(x / total) : 0.0F);
    }
    return out;
}

// Rows in reverse order of cells: nothing may depend on their order.
CachePart part_of(std::vector<float>& values, int64_t n_cells, int64_t n_head_kv, int64_t head_dim) {
    const std::vector<fp16_t> halves = round_to_fp16(values);
    std::vector<fp16_t> reversed;
    CachePart part;
    for (int64_t cell = n_cells - 1; cell >= 0; --cell) {
        const auto first = halves.begin() + cell * n_head_kv * head_dim;
        reversed.insert(reversed.end(), first, first + n_head_kv * head_dim);
        part.cells.push_back(int32_t(cell));
    }
    part.rows = {GgmlType::f16, {head_dim, n_head_kv, n_cells, 1}, bytes_of(reversed)};
    return part;
}

Made make(int64_t n_stream, float max_bias, float softcap, bool sinks) {
    Made m;
    TraceRecord& r = m.record;
    r.n_tokens = 3;
    r.n_head = 6;
    r.n_head_kv = 2;
    r.n_kv = 37;
    r.n_stream = n_stream;
    r.head_dim_k = 24;
    r.head_dim_v = 16;
    r.kq_scale = 0.3F;
    r.max_bias = max_bias;
    r.logit_softcap = softcap;
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values, int64_t n) {
        for (int64_t i = 0; i < n; ++i) values.push_back(normal(random));
    };
    fill(m.q, n_stream * r.n_tokens * r.n_head * r.head_dim_k);
    fill(m.k, n_stream * r.n_kv * r.n_head_kv * r.head_dim_k);
    fill(m.v, n_stream * r.n_kv * r.n_head_kv * r.head_dim_v);
    for (int64_t i = 0; i < n_stream * r.n_tokens * r.n_kv; ++i) {
        const int64_t j = i % r.n_kv, t = i / r.n_kv % r.n_tokens, s = i / r.n_kv / r.n_tokens;
        const bool visible = j <= 20 + t && j >= 3 * s && !(s == 1 && t == 2);  // one query sees nothing
        m.mask.push_back(visible ? -float(20 + t - j) : -INFINITY);
    }
    r.k = part_of(m.k, n_stream * r.n_kv, r.n_head_kv, r.head_dim_k);
    r.v = part_of(m.v, n_stream * r.n_kv, r.n_head_kv, r.head_dim_v);
    r.q = {GgmlType::f32, {r.head_dim_k, r.n_head, r.n_tokens, n_stream}, bytes_of(m.q)};
    r.mask =
        trace::TensorData{GgmlType::f16, {r.n_kv, r.n_tokens, 1, n_stream}, bytes_of(round_to_fp16(m.mask))};
    if (sinks) {
        std::vector<float> values;
        fill(values, r.n_head);
        r.sinks = trace::TensorData{GgmlType::f32, {r.n_head, 1, 1, 1}, bytes_of(values)};
    }
    r.kqv_out = {GgmlType::f32, {r.head_dim_v, r.n_head, r.n_tokens, n_stream}, bytes_of(attend(m))};
    return m;
}

CommandResult judge(const TraceRecord& record) {
    const std::string path = scratch("made-up.gguf");
    trace::TraceWriter writer(path);
    writer.append(record);
    writer.finish();
    return read_trace(path, {"--json"});
}

TEST(Reader, StreamsAlibiSoftCapAndSinks) {
    for (const int64_t n_stream : {1, 2, 3}) {
        for (const float max_bias : {0.0F, 8.0F}) {
            for (const bool extras : {false, true}) {
                const Made m = make(n_stream, max_bias, extras ? 5.0F : 0.0F, extras);
                const CommandResult result = judge(m.record);
                EXPECT_EQ(result.exit_status, 0)
                    << n_stream << " streams, max_bias " << max_bias << ": " << result.err;
                EXPECT_EQ(result.json()["cache"], "standard");
            }
        }
    }
}

// NaN must never pass for "not larger than the tolerance".
TEST(Reader, NanInTheOutputFails) {
    Made m = make(2, 0, 0, false);
    const float nan = NAN;
    std::memcpy(m.record.kqv_out.bytes.data() + 40, &nan, 4);
    const CommandResult result = judge(m.record);
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_TRUE(result.json()["max_error"].is_null());
    EXPECT_NE(result.err.find("layer 0, step 0"), std::string::npos) << result.err;
}

// The verdict says how much of its limit the worst row takes, and which row that is.
TEST(Reader, SaysTheShareOfTheLimitAndWhereItIsLargest) {
    constexpr int64_t kStream = 0, kToken = 1, kHead = 4;
    constexpr double kTolerance = 1e-4;
    for (const double share : {0.4, 1.6}) {
        Made m = make(2, 0, 0, false);
        TraceRecord& r = m.record;
        double largest = 0, squares = 0;  // |V| that the query sees, and its output
        for (int64_t j = 0; j < r.n_kv; ++j) {
            if (std::isinf(m.mask[size_t((kStream * r.n_tokens + kToken) * r.n_kv + j)])) continue;
            for (int64_t c = 0; c < r.head_dim_v; ++c) {
                const int64_t row = (kStream * r.n_kv + j) * r.n_head_kv + kHead / (r.n_head / r.n_head_kv);
                largest = std::max(largest, std::fabs(double(m.v[size_t(row * r.head_dim_v + c)])));
            }
        }
        float* out = reinterpret_cast<float*>(r.kqv_out.bytes.data()) +
                     ((kStream * r.n_tokens + kToken) * r.n_head + kHead) * r.head_dim_v;
        for (int64_t c = 0; c < r.head_dim_v; ++c) squares += double(out[c]) * double(out[c]);
        const double error = share * kTolerance * largest;
        ASSERT_LT(error / std::sqrt(squares) / (10 * kTolerance), share) << "the first limit is to decide";
        out[3] += float(error);

        const CommandResult result = judge(r);
        EXPECT_EQ(result.exit_status, share > 1 ? 1 : 0) << result.err;
        const nlohmann::json json = result.json();
        EXPECT_NEAR(json["limit_share"], share, 0.02);
        EXPECT_EQ(json["limit_at"], nlohmann::json::parse(R"({"layer": 0, "step": 0, "token": 1, "head": 4,
                                                              "stream": 0})"));
        EXPECT_NEAR(json["records"][0]["limit_share"], share, 0.02);
        EXPECT_NEAR(json["max_error"], error, 0.02 * error);
        EXPECT_EQ(json["tolerance"], kTolerance);
        const std::string text = read_trace(scratch("made-up.gguf"), {"-q"}).out;
        EXPECT_NE(text.find("% of the limit (layer 0, step 0, token 1 of head 4)"), std::string::npos)
            << text;
        EXPECT_NE(text.find(share > 1 ? "at most 16" : "at most 4"), std::string::npos) << text;
    }
}

// What computes nothing neither waits for libtorch nor maps it. The loader itself says what it opens.
TEST(Reader, LibtorchIsLoadedOnlyToCompute) {
    const Made m = make(1, 0, 0, false);
    judge(m.record);
    const std::string trace = scratch("made-up.gguf"), log = scratch("loaded");
    const auto opened = [&](const std::string& tool, const std::vector<std::string>& arguments) {
        const double before = seconds_of_children();
        EXPECT_EQ(run_tool(tool, arguments, {{"LD_DEBUG", "files"}, {"LD_DEBUG_OUTPUT", log}}).exit_status,
                  0);
        const double seconds = seconds_of_children() - before;
        std::string text;
        for (const auto& entry : std::filesystem::directory_iterator(scratch_folder())) {
            if (!entry.path().string().starts_with(log + ".")) continue;
            text += read_text(entry.path().string());
            std::filesystem::remove(entry.path());
        }
        EXPECT_NE(text.find("libstdc++"), std::string::npos) << "the loader said nothing";
        return std::pair(text, seconds);
    };
    const std::vector<std::pair<std::string, std::vector<std::string>>> idle = {
        {"kqv-tensor-reader", {"--help"}},
        {"kqv-tensor-reader", {"-i", trace, "--summary"}},
        {"kqv-tensor-reader", {"-i", trace, "--list"}},
        {"kqv-trace-diff", {"--help"}},
        {"kqv-trace-diff", {trace, trace}},
        {"kqv-trace-monitor", {"--help"}}};
    for (const auto& [tool, arguments] : idle) {
        const auto [text, seconds] = opened(tool, arguments);
        EXPECT_EQ(text.find("torch"), std::string::npos) << tool << " " << arguments.back();
        if (!kSanitized && tool == "kqv-tensor-reader") {
            EXPECT_LT(seconds, 0.1) << arguments.back();
        }
    }
    const std::string references = read_trace(trace, {"--json"}).json()["references"];
    EXPECT_EQ(opened("kqv-tensor-reader", {"-i", trace}).first.find("torch") != std::string::npos,
              references.find("libtorch 1") != std::string::npos ||
                  references.find("libtorch 2") != std::string::npos)
        << references;
}

TEST(Reader, ListsAsJson) {
    const Made m = make(1, 0, 0, false);
    judge(m.record);
    const CommandResult result = read_trace(scratch("made-up.gguf"), {"--list", "--json"});
    EXPECT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    ASSERT_EQ(json["records"].size(), 1U);
    const nlohmann::json& record = json["records"][0];
    EXPECT_EQ(record["n_head"], m.record.n_head);
    EXPECT_EQ(record["n_kv"], m.record.n_kv);
    EXPECT_EQ(record["k"]["exact_rows"], m.record.k.cells.size());
    const nlohmann::json& out = record["tensors"][0];
    EXPECT_EQ(out["name"], "kqv_out");
    EXPECT_EQ(out["shape"], (std::vector<int64_t>{m.record.n_stream, m.record.n_tokens, m.record.n_head,
                                                  m.record.head_dim_v}));
    EXPECT_EQ(out["axes"], "[n_stream][n_tokens][n_head][head_dim_v]");
    EXPECT_EQ(out.contains("view"), m.record.kqv_out_view.present);
}

// What an option asks for is done, or refused: never left out without a word.
TEST(Reader, OptionsThatDoNotGoTogether) {
    const std::string csv = scratch("none.csv");
    const std::vector<std::vector<std::string>> refused = {{"--list", "--csv", csv},
                                                           {"--list", "--picture", csv},
                                                           {"--list", "--save-recomputed", csv},
                                                           {"--summary", "--csv", csv},
                                                           {"--summary", "--list"},
                                                           {"--summary", "--shapes"},
                                                           {"--summary", "--layer", "1"},
                                                           {"--summary", "--step", "1"},
                                                           {"--shapes", "--json"},
                                                           {"--summary", "--picture", csv},
                                                           {"--summary", "--save-recomputed", csv},
                                                           {"--list", "--html", csv},
                                                           {"--summary", "--against", csv},
                                                           {"--list", "--all"}};
    for (const std::vector<std::string>& options : refused) {
        const CommandResult result = read_trace(scratch("made-up.gguf"), options);
        EXPECT_EQ(result.exit_status, 2) << options.front() << " " << options[1];
        EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
        EXPECT_NE(result.err.find("cannot be used with"), std::string::npos) << result.err;
        EXPECT_FALSE(std::filesystem::exists(csv));
    }
    EXPECT_EQ(read_trace(scratch("made-up.gguf"), {"--html-size", "7"}).exit_status, 2);
}

TEST(Reader, RefusesWhatIsNoTrace) {
    const CommandResult text = read_trace(write_file("text.gguf", "no trace"));
    EXPECT_EQ(text.exit_status, 2);
    EXPECT_EQ(text.err_lines().size(), 1U);
    EXPECT_EQ(read_trace(random_model("llama")).exit_status, 2);
    EXPECT_EQ(read_trace(scratch("missing.gguf")).exit_status, 2);
    EXPECT_EQ(run_tool("kqv-trace-diff", {scratch("missing.gguf"), scratch("missing.gguf")}).exit_status, 2);
}

TEST(Reader, ARecordWithoutSourcesIsNotCalledRight) {
    Made m = make(1, 0, 0, false);
    m.record.has_sources = false;
    const CommandResult result = judge(m.record);
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_NE(result.err.find("without sources"), std::string::npos) << result.err;
}

}  // namespace

}  // namespace mixed_kv::test
