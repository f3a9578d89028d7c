// Every number of a trace is bound: changes at random places, with the checksums left as they were or
// computed anew, are refused or are on the list of docs/trace-format.md, "What may change".
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "kqv-tensor-reader/check.h"
#include "mixed_kv/error.h"
#include "resealed_trace.h"
#include "trace/trace_reader.h"
#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

using trace::TraceReader;
using trace::TraceRecord;
using Tensor = ResealedTrace::Tensor;

struct Kind {
    const char* name;
    const char* preset;
    std::vector<std::string> options;
};

// Mixed and standard caches, both forms, with rows as they were written, ALiBi, soft-cap and window, sinks,
// MLA.
const std::vector<Kind>& kinds() {
    static const std::vector<std::string> mixed = {"--mixed-kv-cache", "--kv-window", "32", "--kv-sinks",
                                                   "4"};
    const auto with = [](std::vector<std::string> options, std::initializer_list<std::string> more) {
        options.insert(options.end(), more);
        return options;
    };
    static const std::vector<Kind> all = {
        {"mixed", "llama", with(mixed, {"--keep-originals"})},
        {"mixed_compact", "llama", with(mixed, {"--compact"})},
        {"f16", "llama", {"-ctk", "f16", "-ctv", "f16"}},
        {"q8_compact", "llama", {"-ctk", "q8_0", "-ctv", "q8_0", "--compact", "--keep-originals"}},
        {"alibi", "mpt", mixed},
        {"softcap", "gemma2", mixed},
        {"sinks_compact", "gpt-oss", with(mixed, {"--compact"})},
        {"mla", "deepseek2", mixed}};
    return all;
}

std::vector<std::byte> recorded(const Kind& kind) {
    const std::string path = scratch(std::string("bind-") + kind.name + ".gguf");
    if (read_text(path).empty()) {
        std::vector<std::string> options = {"-p", letters(230), "-n", "3", "-ub", "16"};
        options.insert(options.end(), kind.options.begin(), kind.options.end());
        record(random_model(kind.preset), path, options);
    }
    const std::string text = read_text(path);
    const auto* first = reinterpret_cast<const std::byte*>(text.data());
    return {first, first + text.size()};
}

// A standard cache's kernel has its own errors; what is judged here is whether changes are seen.
double tolerance(const Kind& kind) { return std::string(kind.options.front()) == "-ctk" ? 1e-2 : 1e-4; }

// "" if the record and the one of its layer behind it are accepted, as kqv-tensor-reader would.
std::string refusal(const std::vector<std::byte>& bytes, const Tensor& changed, double tol) {
    try {
        const TraceReader reader(trace::GgufReader(trace::memory_source(bytes, "changed")));
        const TraceRecord record = reader.load({changed.layer, changed.step});
        for (const trace::RecordId id : reader.records()) {
            if (id.layer == changed.layer && id.step == changed.step + 1) reader.load(id);
        }
        const trace_tools::RecordCheck check =
            trace_tools::check_record(record, {.tolerance = tol, .use = trace_tools::ReferenceUse::exact});
        return check.pass ? "" : check.problem;
    } catch (const Error& error) {
        return error.what();
    }
}

// Whether the change is on the list.
bool may_change(const Tensor& tensor, size_t at, const std::vector<std::byte>& before, bool resealed) {
    if (!resealed) return false;
    for (const char* values : {"kqv_out", "q", "k", "v", "k_quant", "v_quant", "mask", "sinks", "k_written",
                               "v_written", "k_written_cells", "v_written_cells"}) {
        if (tensor.kind == values) return true;  // the check has found it within tolerance
    }
    if (tensor.kind != "meta") return false;
    const auto field = int64_t(at - tensor.offset) / 8 - 40;
    // The names of views and origins, but for K and V.
    if (field >= 0 && (field % 32 == 15 || field % 32 == 16) && field / 32 != 2 && field / 32 != 3)
        return true;
    if (field < 0 || field % 32 < 6 || field % 32 > 9) return false;
    int64_t n = 0;  // ne of the same dimension as this nb
    std::memcpy(&n, before.data() + tensor.offset + size_t(40 + field - 4) * 8, sizeof n);
    return n == 1;
}

class Mutator {
  public:
    explicit Mutator(uint32_t seed) : random_(seed) {}

    size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

    // Changes a byte, or a number as a whole: by one, to a small one, or to another of its tensor. Returns
    // where.
    size_t change(const Tensor& t, std::vector<std::byte>& bytes) {
        const bool numbers = t.type == trace::GgmlType::i64 || t.type == trace::GgmlType::i32;
        if (!numbers || below(2) == 0) {
            const size_t at = t.offset + below(t.bytes);
            bytes[at] ^= std::byte(1 + below(255));
            return at;
        }
        const size_t size = t.type == trace::GgmlType::i64 ? 8 : 4;
        const size_t at = t.offset + below(t.bytes / size) * size;
        int64_t value = 0, other = 0;
        std::memcpy(&value, bytes.data() + at, size);
        std::memcpy(&other, bytes.data() + t.offset + below(t.bytes / size) * size, size);
        const int64_t choices[] = {value + 1,           value - 1, int64_t(below(4)),
                                   int64_t(below(256)), other,     2 * value};
        value = choices[below(std::size(choices))];
        std::memcpy(bytes.data() + at, &value, size);
        return at;
    }

  private:
    std::mt19937 random_;
};

// Changes per kind of trace; the long run asks for 250.
int n_changes() {
    const char* text = std::getenv("MIXED_KV_TRACE_CHANGES");
    return text != nullptr ? std::atoi(text) : 40;
}

TEST(Binding, EveryChangeIsRefusedOrOnTheList) {
    int n_refused = 0, n_listed = 0;
    std::map<std::string, int> listed;
    for (const Kind& kind : kinds()) {
        const std::vector<std::byte> bytes = recorded(kind);
        ResealedTrace trace(bytes);
        ASSERT_GT(trace.n_tensor_bytes(), 100'000U);
        trace.reseal();
        ASSERT_TRUE(trace.bytes() == bytes)
            << kind.name << ": checksums as documented are not those in the file";
        std::vector<const Tensor*> targets;
        for (const Tensor& t : trace.tensors()) {
            if (t.bytes > 0) targets.push_back(&t);
        }
        Mutator mutator(7);
        for (int i = 0; i < n_changes();) {
            const Tensor& target = *targets[mutator.below(targets.size())];
            const bool reseal = mutator.below(4) != 0;
            trace.bytes() = bytes;
            const size_t at = mutator.change(target, trace.bytes());
            if (reseal) trace.reseal();
            if (trace.bytes() == bytes) continue;  // a checksum, computed anew
            ++i;
            const std::string why = refusal(trace.bytes(), target, tolerance(kind));
            if (!why.empty()) {
                ++n_refused;
                continue;
            }
            EXPECT_TRUE(may_change(target, at, bytes, reseal))
                << kind.name << ": byte " << at - target.offset << " of " << target.name << " may be "
                << int(trace.bytes()[at]) << " for " << int(bytes[at])
                << (reseal ? ", checksums anew" : ", checksums as they were");
            ++n_listed;
            ++listed[target.kind];
        }
    }
    std::printf("%d changes refused, %d on the list:", n_refused, n_listed);
    for (const auto& [kind, n] : listed) std::printf(" %s %d", kind.c_str(), n);
    std::printf("\n");
    EXPECT_GT(n_refused, 3 * n_listed);
}

// Without new checksums, no byte of the file's head and of its texts may change either.
TEST(Binding, NoByteOfTheHeadMayChange) {
    const std::vector<std::byte> bytes = recorded(kinds()[1]);
    const size_t head = trace::GgufReader(trace::memory_source(bytes, "head")).data_offset();
    Mutator mutator(11);
    for (int i = 0; i < 100; ++i) {
        std::vector<std::byte> changed = bytes;
        const size_t at = mutator.below(head);
        changed[at] ^= std::byte(1 + mutator.below(255));
        const auto read_all = [&] {
            const TraceReader reader(trace::GgufReader(trace::memory_source(changed, "head")));
            for (const trace::RecordId id : reader.records()) reader.load(id);
        };
        EXPECT_THROW(read_all(), Error) << "byte " << at << " of " << head;
    }
}

// What a step says of K must be what the steps around it say, whether its layer looks there or not: the bytes
// of two cold pages exchanged, two exact rows exchanged, a row since another step.
TEST(Binding, PagesAndRowsExchanged) {
    for (const char* name : {"k_quant", "v_quant", "k", "v"}) {
        const std::vector<std::byte> bytes = recorded(kinds()[0]);
        ResealedTrace trace(bytes);
        const Tensor* last = nullptr;
        for (const Tensor& t : trace.tensors()) {
            if (t.kind == name && t.layer == 1) last = &t;
        }
        ASSERT_NE(last, nullptr);
        const size_t n = size_t(last->ne[2]), each = last->bytes / n;
        ASSERT_GE(n, 2U);
        const auto first = trace.bytes().begin() + ptrdiff_t(last->offset);
        std::swap_ranges(first, first + ptrdiff_t(each), first + ptrdiff_t(each));
        EXPECT_NE(refusal(trace.bytes(), *last, 1.0).find("checksum differs"), std::string::npos) << name;
        trace.reseal();
        const std::string why = refusal(trace.bytes(), *last, 1.0);  // a tolerance that lets all numbers pass
        EXPECT_NE(why.find("since step"), std::string::npos) << name << ": " << why;
    }
}

// The last hope of whoever exchanges pages: to say that this step has stored them.
TEST(Binding, PagesExchangedAndDatedAnew) {
    const std::vector<std::byte> bytes = recorded(kinds()[0]);
    ResealedTrace trace(bytes);
    const Tensor* codes = nullptr;
    for (const Tensor& t : trace.tensors()) {
        if (t.kind == "k_quant" && t.layer == 1) codes = &t;
    }
    ASSERT_NE(codes, nullptr);
    const size_t each = codes->bytes / size_t(codes->ne[2]);
    const auto first = trace.bytes().begin() + ptrdiff_t(codes->offset);
    std::swap_ranges(first, first + ptrdiff_t(each), first + ptrdiff_t(each));
    const Tensor* pages = trace.find("k_pages", codes->layer, codes->step);
    const int64_t step = codes->step;
    for (const size_t page : {0, 1}) {
        std::memcpy(trace.bytes().data() + pages->offset + (4 * page + 3) * 8, &step, sizeof step);
    }
    trace.reseal();
    const std::string why = refusal(trace.bytes(), *codes, 1.0);
    EXPECT_NE(why.find("K differs from step"), std::string::npos) << why;
}

TEST(Binding, OlderTracesAreRefusedByName) {
    std::vector<std::byte> bytes = recorded(kinds()[0]);
    const std::string key = trace::kKeySchema;
    const auto* raw = reinterpret_cast<const char*>(bytes.data());
    const size_t at = std::string_view(raw, 4096).find(key);
    ASSERT_NE(at, std::string_view::npos);
    bytes[at + key.size() + 4] = std::byte{1};
    const std::string path =
        write_file("old.gguf", std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    const CommandResult result = read_trace(path);
    EXPECT_EQ(result.exit_status, 2);
    EXPECT_NE(result.err.find("a trace of version 1"), std::string::npos) << result.err;
}

}  // namespace

}  // namespace mixed_kv::test
