#include "trace_feed.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "kqv-tensor-reader/recompute.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "op_graph.h"
#include "trace/trace_reader.h"

namespace mixed_kv::test {

namespace {

using trace::CachePart;
using trace::TraceRecord;

// What the recording program says of itself.
struct Recording {
    std::string isa;
    int n_threads = 0;  // 0: not said
};

Recording recording_of(const trace::TraceReader& reader) {
    Recording r;
    for (const auto& [name, text] : reader.info()) {
        if (name == "isa") r.isa = text;
        if (name != "command") continue;
        std::istringstream words(text);
        for (std::string word, before; words >> word; before = word) {
            if (before == "-t" || before == "--threads") r.n_threads = std::atoi(word.c_str());
        }
    }
    return r;
}

// One stream of one side.
struct StreamPart {
    std::vector<std::byte> rows, codes;
    ggml_op::CellList cells;
};

StreamPart stream_part(const TraceRecord& record, const CachePart& part, std::int64_t stream) {
    StreamPart s;
    const std::int64_t first = stream * record.n_kv, end = first + record.n_kv;
    const std::size_t row_bytes = part.cells.empty() ? 0 : part.rows.bytes.size() / part.cells.size();
    for (std::size_t i = 0; i < part.cells.size(); ++i) {
        if (part.cells[i] < first || part.cells[i] >= end) continue;
        s.cells.rows.push_back(std::int32_t(part.cells[i] - first));
        const auto at = part.rows.bytes.begin() + std::ptrdiff_t(i * row_bytes);
        s.rows.insert(s.rows.end(), at, at + std::ptrdiff_t(row_bytes));
    }
    const std::size_t page_bytes = part.pages.empty() ? 0 : part.codes.bytes.size() / part.pages.size();
    for (std::size_t i = 0; i < part.pages.size(); ++i) {
        if (part.pages[i].first_cell < first || part.pages[i].first_cell >= end) continue;
        if (part.pages[i].rotation != 0 ||
            (i > 0 && part.pages[i].first_cell == part.pages[i - 1].first_cell)) {
            throw Error("a page of several blocks, or of rows that moved, has no place in the op's inputs");
        }
        s.cells.pages.push_back(std::int32_t(part.pages[i].first_cell - first));
        const auto at = part.codes.bytes.begin() + std::ptrdiff_t(i * page_bytes);
        s.codes.insert(s.codes.end(), at, at + std::ptrdiff_t(page_bytes));
    }
    return s;
}

// The mask of one stream as f16 [heads][rows][n_kv].
std::vector<fp16_t> stream_mask(const TraceRecord& record, std::int64_t stream) {
    if (!record.mask) return {};
    const trace::Shape& ne = record.mask->ne;
    const std::vector<float> all = trace_tools::to_floats(*record.mask);
    const std::int64_t n = ne[0] * ne[1] * ne[2];
    std::vector<fp16_t> mask;
    for (std::int64_t i = 0; i < n; ++i)
        mask.push_back(fp32_to_fp16(all[std::size_t((stream % ne[3]) * n + i)]));
    return mask;
}

ggml_tensor* add_hot(OpGraph& graph, const StreamPart& part, std::int64_t dim, std::int64_t n_head_kv) {
    return graph.add_permuted(GGML_TYPE_F16, {dim, std::int64_t(part.cells.rows.size()), n_head_kv},
                              part.rows.data(), part.rows.size());
}

// The op would end the process for a damaged block, ggml's graphs having no way to fail.
void check_blocks(const CachePart& part, KvRole role, std::int64_t head_dim) {
    const ColdFormat* format = find_cold_format(part.cold.format);
    if (format == nullptr || part.cold.block_bytes != std::int64_t(format->block_bytes(role, int(head_dim))))
        return;  // refused by the op
    for (std::size_t at = 0; at < part.codes.bytes.size(); at += std::size_t(part.cold.block_bytes))
        format->check_block(role, int(head_dim), part.codes.bytes.data() + at);
}

ggml_tensor* add_cold(OpGraph& graph, const StreamPart& part, const CachePart& from, std::int64_t n_head_kv) {
    return graph.add(GGML_TYPE_I8, {from.cold.block_bytes, n_head_kv, std::int64_t(part.cells.pages.size())},
                     part.codes.data(), part.codes.size());
}

// The op's result, [n_stream][n_tokens][n_head][head_dim_v] as recorded.
std::vector<float> run_record(const TraceRecord& r, const std::string& isa, int n_threads) {
    std::vector<float> out;
    check_blocks(r.k, KvRole::key, r.head_dim_k);
    check_blocks(r.v, KvRole::value, r.head_dim_v);
    const std::size_t q_bytes = r.q.bytes.size() / std::size_t(r.n_stream);
    for (std::int64_t stream = 0; stream < r.n_stream; ++stream) {
        OpGraph graph;
        ggml_op::FlashDecodeInputs in;
        ggml_op::FlashDecodeParams params;
        const StreamPart k = stream_part(r, r.k, stream), v = stream_part(r, r.v, stream);
        in.q = graph.add_permuted(GGML_TYPE_F32, {r.head_dim_k, r.n_tokens, r.n_head},
                                  r.q.bytes.data() + std::size_t(stream) * q_bytes, q_bytes);
        in.k = add_hot(graph, k, r.head_dim_k, r.n_head_kv);
        in.k_quant = add_cold(graph, k, r.k, r.n_head_kv);
        params.v_is_k = r.v_is_view_of_k;
        if (!params.v_is_k) {
            in.v = add_hot(graph, v, r.head_dim_v, r.n_head_kv);
            in.v_quant = add_cold(graph, v, r.v, r.n_head_kv);
        }
        const std::vector<fp16_t> mask = stream_mask(r, stream);
        if (r.mask) {
            in.mask = graph.add(GGML_TYPE_F16, {r.n_kv, r.mask->ne[1], r.mask->ne[2]}, mask.data(),
                                mask.size() * sizeof(fp16_t));
        }
        if (r.sinks)
            in.sinks =
                graph.add(GGML_TYPE_F32, {r.n_head, 1, 1}, r.sinks->bytes.data(), r.sinks->bytes.size());
        params.kq_scale = r.kq_scale;
        params.max_bias = r.max_bias;
        params.logit_softcap = r.logit_softcap;
        params.k_format = r.k.cold.format;
        params.v_format = r.v.cold.format;
        params.n_kv = r.n_kv;
        params.k_cells = &k.cells;
        params.v_cells = &v.cells;
        params.head_dim_v = int(r.head_dim_v);
        params.isa = isa;
        const std::vector<float> part = graph.compute(in, params, n_threads);
        out.insert(out.end(), part.begin(), part.end());
    }
    return out;
}

bool same_bits(const std::vector<float>& out, const trace::TensorData& recorded) {
    return out.size() * sizeof(float) == recorded.bytes.size() &&
           std::memcmp(out.data(), recorded.bytes.data(), recorded.bytes.size()) == 0;
}

double max_error(const std::vector<float>& out, const trace::TensorData& recorded) {
    const std::vector<float> expected = trace_tools::to_floats(recorded);
    if (out.size() != expected.size()) return INFINITY;
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const double error = std::fabs(double(out[i]) - double(expected[i]));
        if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
    return worst;
}

}  // namespace

int feed_trace(const FeedOptions& options) {
    const trace::TraceReader reader{std::filesystem::path(options.file)};
    const Recording recording = recording_of(reader);
    const auto here = supported_isas();
    std::string isa = options.isa;
    if (isa.empty()) {
        const bool known = std::find(here.begin(), here.end(), recording.isa) != here.end();
        isa = known ? recording.isa : std::string(here.front());
    }
    const int n_threads = options.n_threads > 0 ? options.n_threads : std::max(recording.n_threads, 1);
    const bool exact = isa == recording.isa && n_threads == recording.n_threads;
    std::printf("recorded with kernels '%s' on %d threads; op with '%s' on %d: %s\n", recording.isa.c_str(),
                recording.n_threads, isa.c_str(), n_threads,
                exact ? "must be equal bit for bit" : "must agree within 1e-4 of the largest |V|");
    std::printf("layer  step  tokens  n_kv  hot K/V    cold pages K/V  max error  result\n");

    int n_failed = 0, n_fed = 0, n_skipped = 0;
    std::size_t n_cold_pages = 0;
    for (const trace::RecordId id : reader.records()) {
        const TraceRecord r = reader.load(id);
        if (r.cache != trace::CacheKind::mixed || !r.has_sources) {
            ++n_skipped;
            continue;
        }
        ++n_fed;
        n_cold_pages += r.k.pages.size() + r.v.pages.size();
        std::vector<float> out = run_record(r, isa, n_threads);
        // The plugin runs small ops on one thread whatever it was given; and cuts several streams as one op.
        if (exact && n_threads > 1 && !same_bits(out, r.kqv_out)) out = run_record(r, isa, 1);
        const bool hold_to_bits = exact && (n_threads == 1 || r.n_stream == 1);
        const double error = max_error(out, r.kqv_out);
        double largest = 0;
        for (const double x : trace_tools::attention_data(r).v) largest = std::max(largest, std::fabs(x));
        const bool ok =
            hold_to_bits ? same_bits(out, r.kqv_out) : error <= 1e-4 * largest && !options.require_exact;
        if (!ok) ++n_failed;
        std::printf("%5d %5d %7lld %5lld %5zu/%-5zu %8zu/%-8zu %9.2e  %s\n", r.layer, r.step,
                    static_cast<long long>(r.n_tokens), static_cast<long long>(r.n_kv), r.k.cells.size(),
                    r.v.cells.size(), r.k.pages.size(), r.v.pages.size(), error,
                    !ok ? "FAIL" : (hold_to_bits ? "equal bits" : "within tolerance"));
    }
    if (n_skipped > 0)
        std::printf("%d records left out: of a standard cache, or recorded without sources\n", n_skipped);
    if (n_fed == 0) throw Error(options.file + ": no record of a mixed cache with its sources");
    if (options.require_cold && n_cold_pages == 0) throw Error(options.file + ": no cold page in any record");
    std::printf("%d of %d steps agree\n", n_fed - n_failed, n_fed);
    return n_failed == 0 ? 0 : 1;
}

}  // namespace mixed_kv::test
