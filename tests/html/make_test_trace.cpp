// Traces that no model gives, for the tests of the page and the pictures of docs/tracing.md.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/command_line.h"
#include "kqv-tensor-reader/html/misreadings.h"
#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"
#include "trace/trace_reader.h"
#include "trace/trace_writer.h"

namespace mixed_kv::test {

namespace {

using trace::CachePart;
using trace::GgmlType;
using trace::TraceRecord;

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
    const auto* first = reinterpret_cast<const std::byte*>(values.data());
    return {first, first + values.size() * sizeof(T)};
}

CachePart random_part(int64_t n_cells, int64_t heads, int64_t dim, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<fp16_t> rows;
    CachePart part;
    for (int64_t i = 0; i < n_cells * heads * dim; ++i) rows.push_back(fp32_to_fp16(normal(random)));
    for (int64_t cell = 0; cell < n_cells; ++cell) part.cells.push_back(int32_t(cell));
    part.rows = {GgmlType::f16, {dim, heads, n_cells, 1}, bytes_of(rows)};
    return part;
}

// A record of a standard cache whose output is what its inputs give. Steps differ in their queries.
TraceRecord make(int64_t n_stream, int32_t step) {
    TraceRecord r;
    r.step = step;
    r.n_tokens = 2;
    r.n_head = 4;
    r.n_head_kv = 2;
    r.n_kv = 100;
    r.n_stream = n_stream;
    r.head_dim_k = r.head_dim_v = 16;
    r.kq_scale = 0.25F;
    r.position = step * r.n_tokens;
    std::mt19937 random(7), of_queries(unsigned(1000 + step));
    std::normal_distribution<float> normal;
    std::vector<float> q;
    for (int64_t i = 0; i < n_stream * r.n_tokens * r.n_head * r.head_dim_k; ++i) {
        q.push_back(normal(of_queries));
    }
    r.q = {GgmlType::f32, {r.head_dim_k, r.n_head, r.n_tokens, n_stream}, bytes_of(q)};
    r.k = random_part(n_stream * r.n_kv, r.n_head_kv, r.head_dim_k, random);
    r.v = random_part(n_stream * r.n_kv, r.n_head_kv, r.head_dim_v, random);
    std::vector<fp16_t> mask;
    for (int64_t i = 0; i < n_stream * r.n_tokens * r.n_kv; ++i) {
        const int64_t cell = i % r.n_kv, token = i / r.n_kv % r.n_tokens, stream = i / r.n_kv / r.n_tokens;
        mask.push_back(fp32_to_fp16(cell >= 10 * stream && cell < 90 + token ? 0.0F : -INFINITY));
    }
    r.mask = trace::TensorData{GgmlType::f16, {r.n_kv, r.n_tokens, 1, n_stream}, bytes_of(mask)};
    r.kqv_out = {GgmlType::f32, {r.head_dim_v, r.n_head, r.n_tokens, n_stream}, {}};
    const trace_tools::AttentionData data = trace_tools::attention_data(r);
    std::vector<float> out;
    for (const double x : trace_tools::attention_in_double(data).o) out.push_back(float(x));
    r.kqv_out.bytes = bytes_of(out);
    return r;
}

void write_streams(const std::string& path) {
    trace::TraceWriter writer(path);
    for (int32_t step = 0; step < 3; ++step) writer.append(make(2, step));
    writer.finish();
}

// Everything that would show if text of a trace became markup, or a number of it broke the drawing.
void write_hostile(const std::string& path) {
    const std::string script = "</script><script>window.hacked=1</script>";
    const std::string image = "<img src=x onerror=\"window.hacked=2\">";
    trace::TraceWriter writer(path);
    writer.set_info("model", script + image);
    writer.set_info("__proto__", "\"><svg onload=window.hacked=3>");
    writer.set_info("<b>name</b>", "\xff\xfe broken \xc3 text ${window.hacked=4} javascript:alert(1)");
    writer.set_info("long", std::string(100000, '<'));
    for (int32_t step = 0; step < 4; ++step) {
        TraceRecord r = make(1, step);
        r.k_view = {true, script, GgmlType::f16, {16, 100, 2, 1}, {2, 64, 32, 6400},  {0, 2, 1, 3},
                    0,    image,  GgmlType::f16, {32, 100, 1, 1}, {2, 64, 6400, 6400}};
        r.v_view = r.k_view;
        r.v_view.name = image;
        r.v_view.origin_name = script;
        r.q_view = {true, "constructor", GgmlType::f32, {16, 2, 4, 1}, {4, 256, 64, 512}, {0, 2, 1, 3},
                    0,    "toString",    GgmlType::f32, {16, 4, 2, 1}, {4, 64, 256, 512}};
        if (step == 1) {  // the output
            const float bad[] = {NAN, INFINITY, -INFINITY, 3e38F};
            std::memcpy(r.kqv_out.bytes.data(), bad, sizeof bad);
        }
        if (step == 2) {  // the inputs
            const fp16_t bad[] = {0x7e00, 0x7c00, 0xfc00, 0x7bff};
            std::memcpy(r.k.rows.bytes.data() + 20 * 64, bad, sizeof bad);
            std::memcpy(r.v.rows.bytes.data() + 20 * 64, bad, sizeof bad);
        }
        if (step == 3) {  // a scale that a layer cannot change in the middle
            r.layer = 1;
            const float bad[] = {3e38F, -3e38F, NAN};
            std::memcpy(r.q.bytes.data(), bad, sizeof bad);
            r.kq_scale = 3e38F;
        }
        writer.append(r);
    }
    writer.finish();
}

void write_misread(const std::string& in, const std::string& path, int32_t layer, int32_t step) {
    const trace::TraceReader reader(in);
    trace::TraceWriter writer(path, {.form = reader.form()});
    for (const auto& [name, text] : reader.info()) writer.set_info(name, text);
    bool found = false;
    for (const trace::RecordId id : reader.records()) {
        TraceRecord r = reader.load(id);
        if (id == trace::RecordId{layer, step}) {
            found = true;
            const trace_tools::AttentionData data = trace_tools::attention_data(r);
            const std::vector<double> right = trace_tools::attention_in_double(data).o;
            std::vector<float> out;
            for (int64_t stream = 0; stream < r.n_stream; ++stream) {
                for (int64_t token = 0; token < r.n_tokens; ++token) {
                    for (const trace_tools::Misreading& m : misreadings(r, data, right, stream, token)) {
                        if (m.what == "k") out.insert(out.end(), m.output.begin(), m.output.end());
                    }
                }
            }
            if (out.size() * sizeof(float) != r.kqv_out.bytes.size())
                throw Error("K of this record is contiguous");
            r.kqv_out.bytes = bytes_of(out);
        }
        writer.append(r);
    }
    if (!found) throw Error("no such record");
    writer.finish();
}

int run(int argc, char** argv) {
    tools::CommandLine command("make-test-trace",
                               "Writes traces that no model gives, for tests of their pages.");
    std::string in, out;
    int layer = 0, step = 0;
    const auto kind = [&](const char* name, const char* description) -> tools::CommandLine& {
        tools::CommandLine& sub = command.subcommand(name, description);
        sub.option("-o,--out", out, "Trace file to write").required().value_name("FILE");
        return sub;
    };
    const auto& streams = kind("streams", "Two streams, each with a mask and rows of its own");
    const auto& hostile = kind("hostile", "Markup in every name, NaN and huge numbers");
    tools::CommandLine& misread =
        kind("misread",
             "Another trace, and in one record the output of an op that took K's permuted view for a "
             "contiguous one");
    misread.option("-i,--input", in, "That trace").required().value_name("FILE");
    misread.option("--layer", layer, "Layer of the record");
    misread.option("--step", step, "Its step");
    if (!command.parse(argc, argv)) return tools::kExitOk;
    if (streams.given()) {
        write_streams(out);
    } else if (hostile.given()) {
        write_hostile(out);
    } else {
        write_misread(in, out, layer, step);
    }
    return tools::kExitOk;
}

}  // namespace

}  // namespace mixed_kv::test

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("make-test-trace", [&] { return mixed_kv::test::run(argc, argv); });
}
