#include "trace/trace_reader.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>

#include "mixed_kv/error.h"
#include "trace/text.h"
#include "trace/trace_meta.h"

namespace mixed_kv::trace {
namespace {

constexpr std::string_view kInfoPrefix = "mixed_kv.trace.info.";

constexpr std::array<std::string_view, 19> kKinds = {
    "kqv_out", "q",       "k",     "v",     "k_quant",    "v_quant",    "mask", "sinks", "k_rows", "v_rows",
    "k_pages", "v_pages", "k_ids", "v_ids", "k_page_ids", "v_page_ids", "pos",  "meta",  "scalars"};

bool in_step_order(RecordId a, RecordId b) { return std::tie(a.step, a.layer) < std::tie(b.step, b.layer); }

}  // namespace

TraceReader::TraceReader(const std::filesystem::path& path) : TraceReader(GgufReader(path)) {}

TraceReader::TraceReader(GgufReader gguf) : gguf_(std::move(gguf)) {
    if (!gguf_.find_key(kKeySchema)) {
        fail(cat("not a trace: key '", kKeySchema, "' is missing"));
    }
    const auto schema = gguf_.get<uint32_t>(kKeySchema);
    if (schema != kTraceSchemaVersion) {
        fail(cat("trace schema ", schema, " is not supported, only ", kTraceSchemaVersion));
    }
    const auto form = gguf_.get<std::string>(kKeyForm);
    if (form != "self-contained" && form != "compact") {
        fail(cat("unknown trace form ", in_quotes(form)));
    }
    form_ = form == "compact" ? TraceForm::compact : TraceForm::self_contained;
    strings_ = gguf_.get_array<std::string>(kKeyStrings);
    read_names();
    const auto n_records = gguf_.get<uint64_t>(kKeyRecords);
    if (n_records != records_.size()) {
        fail(cat("the file says ", n_records, " records, it holds ", records_.size()));
    }
}

void TraceReader::fail(const std::string& what) const { throw Error(gguf_.file_name() + ": " + what); }

void TraceReader::read_names() {
    std::vector<RecordId> named;  // record of every tensor
    named.reserve(gguf_.n_tensors());
    for (size_t i = 0; i < gguf_.n_tensors(); ++i) {
        const GgufTensor tensor = gguf_.tensor(i);
        const std::optional<ParsedName> name = parse_tensor_name(tensor.name);
        if (!name || std::find(kKinds.begin(), kKinds.end(), name->kind) == kKinds.end()) {
            fail(cat("tensor ", in_quotes(tensor.name), " is no part of a trace"));
        }
        const RecordId id{name->layer, name->step};
        if (named.empty() || named.back() != id) {
            named.push_back(id);
        }
        if (name->kind == "meta") {
            records_.push_back(id);
        }
        if (form_ == TraceForm::compact &&
            (name->kind == "k" || name->kind == "v" || name->kind == "k_quant" || name->kind == "v_quant")) {
            std::vector<Slice>& slices = versions_[{std::string(name->kind), name->layer}];
            const int64_t first = slices.empty() ? 0 : slices.back().first_id + slices.back().count;
            if (tensor.ne[2] > INT32_MAX - first) {
                fail(cat("tensor ", in_quotes(tensor.name), ": more than 2^31 versions of one layer's rows"));
            }
            const uint64_t before = slices.empty() ? 0 : slices.back().bytes_so_far;
            slices.push_back({first, tensor.ne[2], i, before + tensor.bytes});
        }
    }
    std::sort(records_.begin(), records_.end(), in_step_order);
    for (const RecordId id : named) {
        if (!std::binary_search(records_.begin(), records_.end(), id, in_step_order)) {
            fail(cat("layer ", id.layer, ", step ", id.step, ": tensor 'meta' is missing"));
        }
    }
}

std::vector<GgufTensor> TraceReader::tensors(RecordId id) const {
    std::vector<size_t> indexes;
    for (const std::string_view kind : kKinds) {
        if (const auto index = gguf_.find_tensor(tensor_name(kind, id.layer, id.step))) {
            indexes.push_back(*index);
        }
    }
    std::sort(indexes.begin(), indexes.end());
    std::vector<GgufTensor> found;
    found.reserve(indexes.size());
    for (const size_t index : indexes) {
        found.push_back(gguf_.tensor(index));
    }
    return found;
}

std::vector<std::pair<std::string, std::string>> TraceReader::info() const {
    std::vector<std::pair<std::string, std::string>> texts;
    for (size_t i = 0; i < gguf_.n_kv(); ++i) {
        const std::string_view key = gguf_.key(i);
        if (key.starts_with(kInfoPrefix) && gguf_.kv_type(i) == GgufType::string && !gguf_.kv_is_array(i)) {
            texts.emplace_back(key.substr(kInfoPrefix.size()), gguf_.get<std::string>(key));
        }
    }
    return texts;
}

template <typename T>
std::vector<T> TraceReader::values(const std::string& name, GgmlType type, const Shape& ne) const {
    return gguf_.read<T>(name, type, ne);
}

TensorData TraceReader::tensor_data(const std::string& name) const {
    const GgufTensor tensor = gguf_.require_tensor(name);
    return {tensor.type, tensor.ne, gguf_.read_bytes(tensor)};
}

TraceRecord TraceReader::load(RecordId id) const {
    const auto named = [&id](std::string_view kind) { return tensor_name(kind, id.layer, id.step); };
    TraceRecord record;
    RecordStorage storage;
    try {
        const auto meta = values<int64_t>(named("meta"), GgmlType::i64, {int64_t{meta::kFields}, 1, 1, 1});
        const auto scalars =
            values<float>(named("scalars"), GgmlType::f32, {int64_t{kScalarFields}, 1, 1, 1});
        decode_meta(meta, scalars, strings_, record, storage);
    } catch (const Error& error) {
        throw Error(cat("layer ", id.layer, ", step ", id.step, ": ", error.what()));
    }
    if (record.layer != id.layer || record.step != id.step || storage.form != form_) {
        fail(cat("tensor '", named("meta"), "' says layer ", record.layer, ", step ", record.step, ", form ",
                 static_cast<int64_t>(storage.form)));
    }
    try {
        validate_dimensions(record);  // first: what follows relies on sane dimensions
    } catch (const Error& error) {
        fail(error.what());
    }
    record.kqv_out = tensor_data(named("kqv_out"));
    if (record.has_sources) {
        record.q = tensor_data(named("q"));
        const auto load_side =
            form_ == TraceForm::compact ? &TraceReader::load_compact_part : &TraceReader::load_part;
        (this->*load_side)("k", storage.k_rows, storage.k_pages, record, record.k);
        (this->*load_side)("v", storage.v_rows, storage.v_pages, record, record.v);
        const auto load_stored = [this](std::string_view kind, StoredAt at) -> std::optional<TensorData> {
            if (at.layer < 0) {
                return std::nullopt;
            }
            return tensor_data(
                tensor_name(kind, static_cast<int32_t>(at.layer), static_cast<int32_t>(at.step)));
        };
        record.mask = load_stored("mask", storage.mask);
        record.sinks = load_stored("sinks", storage.sinks);
    }
    if (storage.n_pos > 0) {
        const int64_t n_queries = record.kqv_out.ne[2] * record.kqv_out.ne[3];
        record.positions = values<int32_t>(tensor_name("pos", static_cast<int32_t>(storage.positions.layer),
                                                       static_cast<int32_t>(storage.positions.step)),
                                           GgmlType::i32, {n_queries, storage.n_pos, 1, 1});
    }
    try {
        validate(record);
    } catch (const Error& error) {
        fail(error.what());
    }
    return record;
}

void TraceReader::load_part(const std::string& name, int64_t n_rows, int64_t n_pages,
                            const TraceRecord& record, CachePart& part) const {
    const auto named = [&](const std::string& kind) { return tensor_name(kind, record.layer, record.step); };
    part.rows = tensor_data(named(name));
    const auto rows = values<int32_t>(named(name + "_rows"), GgmlType::i32, {2, n_rows, 1, 1});
    for (size_t i = 0; i < rows.size(); i += 2) {
        part.cells.push_back(rows[i]);
        part.kinds.push_back(static_cast<RowKind>(rows[i + 1]));
    }
    if (record.cache != CacheKind::mixed) {
        return;
    }
    part.codes = tensor_data(named(name + "_quant"));
    const auto pages = values<int64_t>(named(name + "_pages"), GgmlType::i64, {4, n_pages, 1, 1});
    for (size_t i = 0; i < pages.size(); i += 4) {
        part.pages.push_back({pages[i], pages[i + 1], pages[i + 2], static_cast<uint64_t>(pages[i + 3])});
    }
}

void TraceReader::load_compact_part(const std::string& name, int64_t n_rows, int64_t n_pages,
                                    const TraceRecord& record, CachePart& part) const {
    const int64_t head_dim = name == "k" ? record.head_dim_k : record.head_dim_v;
    const std::string ids_name = tensor_name(name + "_ids", record.layer, record.step);
    const GgufTensor ids = gguf_.require_tensor(ids_name);
    const auto runs = values<int32_t>(ids_name, GgmlType::i32, {4, ids.ne[1], 1, 1});
    part.rows.type = GgmlType::f16;
    part.rows.ne = {head_dim, record.n_head_kv, n_rows, 1};
    const VersionKey rows_key{name, record.layer};
    if (const auto slices = versions_.find(rows_key); slices != versions_.end()) {
        part.rows.type = gguf_.tensor(slices->second.front().tensor).type;
    }
    const uint64_t rows_bytes = checked_bytes(rows_key, part.rows);
    for (size_t i = 0; i < runs.size(); i += 4) {
        const int64_t first_cell = runs[i];
        const int64_t count = runs[i + 1];
        const auto already = static_cast<int64_t>(part.cells.size());
        if (first_cell < 0 || count < 1 || count > n_rows - already || first_cell + count > INT32_MAX) {
            fail(cat("tensor '", ids_name, "': run ", i / 4, " of ", count, " rows at cell ", first_cell,
                     " does not fit ", n_rows, " rows"));
        }
        read_versions(rows_key, runs[i + 3], count, rows_bytes, part.rows);
        for (int64_t cell = first_cell; cell < first_cell + count; ++cell) {
            part.cells.push_back(static_cast<int32_t>(cell));
            part.kinds.push_back(static_cast<RowKind>(runs[i + 2]));
        }
    }
    if (record.cache != CacheKind::mixed) {
        return;
    }
    const auto pages = values<int64_t>(tensor_name(name + "_page_ids", record.layer, record.step),
                                       GgmlType::i64, {5, n_pages, 1, 1});
    part.codes.type = GgmlType::i8;
    part.codes.ne = {part.cold.format.empty() ? 0 : part.cold.block_bytes, record.n_head_kv, n_pages, 1};
    const VersionKey codes_key{name + "_quant", record.layer};
    const uint64_t codes_bytes = checked_bytes(codes_key, part.codes);
    for (size_t i = 0; i < pages.size(); i += 5) {
        part.pages.push_back({pages[i], pages[i + 1], pages[i + 2], static_cast<uint64_t>(pages[i + 3])});
        read_versions(codes_key, pages[i + 4], 1, codes_bytes, part.codes);
    }
}

// Bytes of the rows or pages of a record. A version belongs to one cell, so a record cannot hold more than
// all versions together; without this a small file could list one large row a million times.
uint64_t TraceReader::checked_bytes(const VersionKey& key, const TensorData& wanted) const {
    const auto found = versions_.find(key);
    const uint64_t stored = found == versions_.end() ? 0 : found->second.back().bytes_so_far;
    const uint64_t bytes = tensor_bytes(wanted.type, wanted.ne);
    if (bytes > stored) {
        fail(cat("layer ", key.second, ", ", key.first, ": the record needs ", bytes,
                 " bytes, the file holds ", stored));
    }
    return bytes;
}

// Appends the versions [first_id, first_id + count), which may lie in several tensors, to out.bytes.
void TraceReader::read_versions(const VersionKey& key, int64_t first_id, int64_t count,
                                uint64_t expected_bytes, TensorData& out) const {
    const auto found = versions_.find(key);
    const int64_t n_versions = found == versions_.end() || found->second.empty()
                                   ? 0
                                   : found->second.back().first_id + found->second.back().count;
    if (first_id < 0 || count > n_versions || first_id > n_versions - count) {
        fail(cat("layer ", key.second, ", ", key.first, ": ids ", first_id, " to ", first_id + count - 1,
                 " are not below ", n_versions));
    }
    const std::vector<Slice>& slices = found->second;
    auto slice = std::upper_bound(slices.begin(), slices.end(), first_id,
                                  [](int64_t id, const Slice& s) { return id < s.first_id; });
    for (--slice; count > 0; ++slice) {
        const GgufTensor tensor = gguf_.tensor(slice->tensor);
        const int64_t skip = first_id - slice->first_id;
        const int64_t n = std::min(count, slice->count - skip);
        if (n <= 0) {
            continue;
        }
        if (tensor.type != out.type || tensor.ne[0] != out.ne[0] || tensor.ne[1] != out.ne[1] ||
            tensor.ne[3] != 1) {
            fail(cat("tensor ", in_quotes(tensor.name), ": shape ", shape_text(tensor.ne),
                     " or its type differs from ", shape_text(out.ne), " of the record"));
        }
        const uint64_t each = tensor.bytes / static_cast<uint64_t>(slice->count);
        const size_t before = out.bytes.size();
        const uint64_t more = each * static_cast<uint64_t>(n);
        if (more > expected_bytes - before) {
            fail(cat("layer ", key.second, ", ", key.first, ": more rows than the record has"));
        }
        out.bytes.resize(before + more);
        gguf_.read_bytes(tensor, each * static_cast<uint64_t>(skip), std::span(out.bytes).subspan(before));
        first_id += n;
        count -= n;
    }
}

}  // namespace mixed_kv::trace
