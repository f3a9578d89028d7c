// The reader must be able to fail: recorded traces are changed in one place, written anew, and judged by the
// program. Each change is chosen so that it moves an output by at least twice the tolerance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>

#include "kqv-tensor-reader/recompute.h"
#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"
#include "trace/trace_reader.h"
#include "trace/trace_writer.h"
#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

using trace::CachePart;
using trace::TensorData;
using trace::TraceRecord;

constexpr double kTolerance = 1e-4;
constexpr int kBits = 4;  // the codes of these traces are q4

// All layers of a trace's last step: one token, most rows cold.
std::vector<TraceRecord> last_step(const std::string& preset) {
    const std::string path = scratch("mutate-" + preset + ".gguf");
    record(random_model(preset), path,
           {"-p", letters(300), "-n", "3", "-ub", "32", "--mixed-kv-cache", "--kv-k", "q4", "--kv-v", "q4"});
    const trace::TraceReader reader(path);
    std::vector<TraceRecord> records;
    for (const trace::RecordId id : reader.records()) {
        if (id.step == reader.records().back().step) records.push_back(reader.load(id));
    }
    return records;
}

const std::vector<TraceRecord>& llama() {
    static const std::vector<TraceRecord> records = last_step("llama");
    return records;
}

// The writer refuses what contradicts itself, the reader what was never computed so.
CommandResult judge(const std::vector<TraceRecord>& records) {
    const std::string path = scratch("mutated.gguf");
    try {
        trace::TraceWriter writer(path);
        for (const TraceRecord& r : records) writer.append(r);
        writer.finish();
    } catch (const Error& error) {
        return {2, "", error.what()};
    }
    return read_trace(path, {"-q"});
}

void expect_rejected(const std::vector<TraceRecord>& records, const TraceRecord& changed) {
    const CommandResult result = judge(records);
    EXPECT_TRUE(result.exit_status == 1 || result.exit_status == 2) << result.out;
    const std::string place =
        "layer " + std::to_string(changed.layer) + ", step " + std::to_string(changed.step);
    EXPECT_NE(result.err.find(place), std::string::npos) << result.err;
}

// By how many times the tolerance a change moves the output that should have been recorded.
double predicted_effect(const TraceRecord& before, const TraceRecord& after) {
    const auto a = trace_tools::attention_in_double(trace_tools::attention_data(before));
    const auto b = trace_tools::attention_in_double(trace_tools::attention_data(after));
    double effect = 0;
    const size_t dim = size_t(before.head_dim_v);
    for (size_t i = 0; i < a.o.size(); ++i) {
        effect = std::max(effect, std::fabs(a.o[i] - b.o[i]) / (kTolerance * a.magnitudes[i / dim].value));
    }
    return effect;
}

// Softmax weights of the first query of a head, by definition.
std::vector<double> weights(const trace_tools::AttentionData& d, int64_t head) {
    std::vector<double> p(size_t(d.n_kv), 0.0);
    double sum = 0, sink = d.sinks.empty() ? 0.0 : std::exp(double(d.sinks[size_t(head)]));
    for (int64_t j = 0; j < d.n_kv; ++j) {
        const double mask = d.mask.empty() ? 0.0 : double(d.mask_row(0, head, 0)[j]);
        double dot = 0;
        for (int64_t c = 0; c < d.head_dim_k; ++c) {
            dot += double(d.q[size_t(head * d.head_dim_k + c)]) *
                   d.k[size_t((j * d.n_head_kv + head / (d.n_head / d.n_head_kv)) * d.head_dim_k + c)];
        }
        p[size_t(j)] = std::exp(dot * d.kq_scale + mask);
        sum += p[size_t(j)];
    }
    for (double& x : p) x /= sum + sink;
    return p;
}

struct Target {
    int64_t head = 0, head_kv = 0, cell = 0;
    trace::CellPlace place;
};

// The cell of the largest weight among those stored in rows, or in pages. At least 1e-2 is asked for.
Target heaviest(const TraceRecord& r, const CachePart& part, trace::CellPlace::Where where) {
    const trace_tools::AttentionData data = trace_tools::attention_data(r);
    const std::vector<trace::CellPlace> places = trace::locate_cells(r, part);
    Target best;
    double weight = 0;
    for (int64_t head = 0; head < r.n_head; ++head) {
        const std::vector<double> p = weights(data, head);
        for (int64_t cell = 0; cell < r.n_kv; ++cell) {
            if (places[size_t(cell)].where != where || p[size_t(cell)] <= weight) continue;
            weight = p[size_t(cell)];
            best = {head, head / (r.n_head / r.n_head_kv), cell, places[size_t(cell)]};
        }
    }
    EXPECT_GE(weight, 1e-2);
    return best;
}

void add_to_value(TensorData& tensor, int64_t index, double delta) {
    if (tensor.type == trace::GgmlType::f16) {
        fp16_t bits;
        std::memcpy(&bits, tensor.bytes.data() + index * 2, 2);
        bits = fp32_to_fp16(float(double(fp16_to_fp32(bits)) + delta));
        std::memcpy(tensor.bytes.data() + index * 2, &bits, 2);
    } else {
        float value;
        std::memcpy(&value, tensor.bytes.data() + index * 4, 4);
        value = float(double(value) + delta);
        std::memcpy(tensor.bytes.data() + index * 4, &value, 4);
    }
}

// Changes one element by as much as moves an output by twice the tolerance or a little more.
void expect_element_rejected(const std::vector<TraceRecord>& records, size_t which,
                             const std::function<void(TraceRecord&, double)>& change) {
    for (double delta = 1e-3; delta < 1e3; delta *= 1.5) {
        std::vector<TraceRecord> changed = records;
        change(changed[which], delta);
        if (predicted_effect(records[which], changed[which]) < 2) continue;
        return expect_rejected(changed, changed[which]);
    }
    ADD_FAILURE() << "no change of this element moves the output";
}

int64_t largest_channel(const TraceRecord& r, int64_t head) {
    const std::vector<float> q = trace_tools::to_floats(r.q);
    int64_t best = 0;
    for (int64_t c = 0; c < r.head_dim_k; ++c) {
        if (std::fabs(q[size_t(head * r.head_dim_k + c)]) > std::fabs(q[size_t(head * r.head_dim_k + best)]))
            best = c;
    }
    return best;
}

// Where docs/data-layout.md puts the nibble of a token and channel in a head's q4 block.
struct Nibble {
    int64_t byte;
    int shift;
};
Nibble nibble_of(bool is_key, int64_t head_dim, int64_t t, int64_t c) {
    const int64_t params = is_key ? (head_dim + 15) / 16 * 64 : 256, dim = (head_dim + 15) / 16 * 16;
    if (is_key) return {params + 128 * (c / 4) + 64 * (t / 32) + 4 * (t % 16) + c % 4, t % 32 < 16 ? 0 : 4};
    return {params + 4 * dim * (t / 8) + 4 * c + t % 4, t / 4 % 2 == 0 ? 0 : 4};
}

std::byte* block_of(const TraceRecord& r, CachePart& part, int64_t page, int64_t head) {
    return part.codes.bytes.data() + (page * r.n_head_kv + head) * part.cold.block_bytes;
}

TEST(Mutation, UnchangedPasses) {
    const CommandResult result = judge(llama());
    EXPECT_EQ(result.exit_status, 0) << result.err;
}

TEST(Mutation, OneElementOfTheOutput) {
    std::vector<TraceRecord> records = llama();
    const auto exact = trace_tools::attention_in_double(trace_tools::attention_data(records[1]));
    add_to_value(records[1].kqv_out, 5 * records[1].head_dim_v + 3,
                 2.5 * kTolerance * exact.magnitudes[5].value);
    expect_rejected(records, records[1]);
}

TEST(Mutation, OneElementOfTheQuery) {
    expect_element_rejected(llama(), 0, [](TraceRecord& r, double delta) { add_to_value(r.q, 77, delta); });
}

TEST(Mutation, OneElementOfAHotKey) {
    const Target at = heaviest(llama()[2], llama()[2].k, trace::CellPlace::Where::row);
    const int64_t channel = largest_channel(llama()[2], at.head);
    expect_element_rejected(llama(), 2, [&](TraceRecord& r, double delta) {
        add_to_value(r.k.rows, (at.place.index * r.n_head_kv + at.head_kv) * r.head_dim_k + channel, delta);
    });
}

TEST(Mutation, OneElementOfAHotValue) {
    const Target at = heaviest(llama()[0], llama()[0].v, trace::CellPlace::Where::row);
    expect_element_rejected(llama(), 0, [&](TraceRecord& r, double delta) {
        add_to_value(r.v.rows, (at.place.index * r.n_head_kv + at.head_kv) * r.head_dim_v + 11, delta);
    });
}

// The top bit of one code.
void expect_code_rejected(bool is_key) {
    std::vector<TraceRecord> records = llama();
    TraceRecord& r = records[1];
    CachePart& part = is_key ? r.k : r.v;
    ASSERT_EQ(part.cold.format, "q4");
    const Target at = heaviest(r, part, trace::CellPlace::Where::page);
    const int64_t channel = is_key ? largest_channel(r, at.head) : 7;
    const Nibble nibble = nibble_of(is_key, is_key ? r.head_dim_k : r.head_dim_v, at.place.token, channel);
    block_of(r, part, at.place.index, at.head_kv)[nibble.byte] ^=
        std::byte(1U << (kBits - 1) << nibble.shift);
    ASSERT_GE(predicted_effect(llama()[1], r), 2);
    expect_rejected(records, r);
}

TEST(Mutation, OneCodeOfAColdKey) { expect_code_rejected(true); }
TEST(Mutation, OneCodeOfAColdValue) { expect_code_rejected(false); }

TEST(Mutation, OneElementOfTheMask) {
    const Target at = heaviest(llama()[1], llama()[1].k, trace::CellPlace::Where::page);
    expect_element_rejected(llama(), 1,
                            [&](TraceRecord& r, double delta) { add_to_value(*r.mask, at.cell, -delta); });
}

TEST(Mutation, OneSink) {
    const std::vector<TraceRecord> records = last_step("gpt-oss");
    ASSERT_TRUE(records[1].sinks.has_value());
    expect_element_rejected(records, 1,
                            [](TraceRecord& r, double delta) { add_to_value(*r.sinks, 3, delta); });
}

TEST(Mutation, TheScale) {
    expect_element_rejected(llama(), 2, [](TraceRecord& r, double delta) { r.kq_scale *= float(1 + delta); });
}

TEST(Mutation, TwoLayersSwapped) {
    std::vector<TraceRecord> records = llama();
    std::swap(records[0].k, records[1].k);
    std::swap(records[0].v, records[1].v);
    expect_rejected(records, records[0]);
    expect_rejected(records, records[1]);
    // All of them, with their names: only the graph's own names tell.
    records = llama();
    std::swap(records[0], records[1]);
    std::swap(records[0].layer, records[1].layer);
    expect_rejected(records, records[0]);
}

// A full hot page and a full cold one change places in K; the mask shows both.
TEST(Mutation, HotAndColdSwapped) {
    std::vector<TraceRecord> records = llama();
    CachePart& k = records[2].k;
    ASSERT_GE(k.pages.size(), 3U);
    const int64_t cold = k.pages[2].first_cell;
    // The first page whose cells all have rows.
    std::map<int64_t, int> rows;
    for (const int32_t cell : k.cells) ++rows[cell / 64 * 64];
    const auto full =
        std::find_if(rows.begin(), rows.end(), [](const auto& page) { return page.second == 64; });
    ASSERT_NE(full, rows.end());
    const int64_t hot = full->first;
    for (int32_t& cell : k.cells) {
        if (cell / 64 * 64 == hot) cell += int32_t(cold - hot);
    }
    k.pages[2].first_cell = hot;
    ASSERT_GE(predicted_effect(llama()[2], records[2]), 2);
    expect_rejected(records, records[2]);
}

// Without a mask, cells are visible that nobody wrote: the writer itself refuses that. So the mask shows all
// that is stored, in a step of the prompt, where it hides the future.
TEST(Mutation, MaskDropped) {
    std::vector<TraceRecord> records = llama();
    records[1].mask.reset();
    EXPECT_THROW(trace::validate(records[1]), Error);

    const trace::TraceReader reader(scratch("mutate-llama.gguf"));
    TraceRecord prompt = reader.load({.layer = 1, .step = 4});
    const TraceRecord before = prompt;
    const std::vector<trace::CellPlace> k = trace::locate_cells(prompt, prompt.k),
                                        v = trace::locate_cells(prompt, prompt.v);
    auto* mask = reinterpret_cast<fp16_t*>(prompt.mask->bytes.data());
    for (int64_t i = 0; i < prompt.n_tokens * prompt.n_kv; ++i) {
        const auto cell = size_t(i % prompt.n_kv);
        if (k[cell].where != trace::CellPlace::Where::nowhere &&
            v[cell].where != trace::CellPlace::Where::nowhere) {
            mask[i] = 0;
        }
    }
    ASSERT_GE(predicted_effect(before, prompt), 2);
    expect_rejected({prompt}, prompt);
}

// Every row of a cold page moves on by one cell.
void expect_shift_rejected(bool is_key) {
    std::vector<TraceRecord> records = llama();
    TraceRecord& r = records[0];
    CachePart& part = is_key ? r.k : r.v;
    const int64_t dim = is_key ? r.head_dim_k : r.head_dim_v,
                  page = heaviest(r, part, trace::CellPlace::Where::page).place.index;
    for (int64_t head = 0; head < r.n_head_kv; ++head) {
        std::byte* block = block_of(r, part, page, head);
        const std::vector<std::byte> old(block, block + part.cold.block_bytes);
        for (int64_t t = 0; t < 64; ++t) {
            const int64_t from = (t + 63) % 64;
            for (int64_t c = 0; c < dim; ++c) {
                const Nibble source = nibble_of(is_key, dim, from, c), target = nibble_of(is_key, dim, t, c);
                const auto code = std::to_integer<unsigned>(old[size_t(source.byte)]) >> source.shift & 15U;
                block[target.byte] =
                    (block[target.byte] & ~std::byte(15U << target.shift)) | std::byte(code << target.shift);
            }
            if (!is_key) {  // scale and zero point per token
                std::memcpy(block + t * 2, old.data() + from * 2, 2);
                std::memcpy(block + 128 + t * 2, old.data() + 128 + from * 2, 2);
            }
        }
    }
    ASSERT_GE(predicted_effect(llama()[0], r), 2);
    expect_rejected(records, r);
}

TEST(Mutation, ColdKeysShiftedByOneRow) { expect_shift_rejected(true); }
TEST(Mutation, ColdValuesShiftedByOneRow) { expect_shift_rejected(false); }

}  // namespace

}  // namespace mixed_kv::test
