#include "trace/trace_reader.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "mixed_kv/error.h"
#include "trace/text.h"
#include "trace/trace_meta.h"
#include "trace/trace_stamps.h"

namespace mixed_kv::trace {
namespace {

constexpr std::array<std::string_view, 28> kKinds = {"kqv_out",
                                                     "q",
                                                     "k",
                                                     "v",
                                                     "k_quant",
                                                     "v_quant",
                                                     "mask",
                                                     "sinks",
                                                     "k_rows",
                                                     "v_rows",
                                                     "k_sums",
                                                     "v_sums",
                                                     "k_pages",
                                                     "v_pages",
                                                     "k_page_sums",
                                                     "v_page_sums",
                                                     "k_ids",
                                                     "v_ids",
                                                     "meta",
                                                     "sums",
                                                     "k_page_ids",
                                                     "v_page_ids",
                                                     "scalars",
                                                     "k_written",
                                                     "v_written",
                                                     "k_written_cells",
                                                     "written_sums",
                                                     "v_written_cells"};

constexpr std::string_view kKeyArchitecture = "general.architecture";
constexpr std::string_view kKeyPadding = "mixed_kv.padding";

bool in_step_order(RecordId a, RecordId b) { return std::tie(a.step, a.layer) < std::tie(b.step, b.layer); }

bool holds_versions(std::string_view kind) {
    return kind == "k" || kind == "v" || kind == "k_quant" || kind == "v_quant";
}

}  // namespace

// What is read of a record before its data: its numbers, and where its rows and pages are.
struct TraceReader::Tables {
    RecordId id;
    std::vector<int64_t> meta;
    std::vector<float> scalars;
    RecordStorage storage;
    StampedRecord stamped;  // stamps as the file has them
    // Compact form: the version of each row and page.
    struct Ids {
        std::vector<int64_t> rows, pages;
    };
    Ids k_ids, v_ids;

    TraceRecord& record() { return stamped.record; }
    CachePart& part(const std::string& name) { return name == "k" ? stamped.record.k : stamped.record.v; }
    PartStamps& stamps(const std::string& name) { return name == "k" ? stamped.k : stamped.v; }
    Ids& ids(const std::string& name) { return name == "k" ? k_ids : v_ids; }
    std::string named(std::string_view kind) const { return tensor_name(kind, id.layer, id.step); }
};

TraceReader::TraceReader(const std::filesystem::path& path) : TraceReader(GgufReader(path)) {}

TraceReader::TraceReader(GgufReader gguf) : gguf_(std::move(gguf)) {
    try {
        read_keys();
        read_names();
        const auto n_records = gguf_.get<uint64_t>(kKeyRecords);
        if (n_records != records_.size()) {
            throw Error(cat("the file says ", n_records, " records, it holds ", records_.size()));
        }
        std::vector<std::pair<std::string, std::string>> texts = info();
        std::sort(texts.begin(), texts.end());
        if (gguf_.get<uint64_t>(kKeySum) != file_sum(form_, n_records, strings_, texts)) {
            throw Error("the file's texts are not those that were written: their checksum differs");
        }
    } catch (const Error& error) {
        throw Error(gguf_.file_name() + ": " + error.what());
    }
}

void TraceReader::read_keys() {
    if (!gguf_.find_key(kKeySchema)) {
        throw Error(cat("not a trace: key '", kKeySchema, "' is missing"));
    }
    const auto schema = gguf_.get<uint32_t>(kKeySchema);
    if (schema == 1) {
        throw Error(
            "a trace of version 1, whose parts are not bound to each other; record it again with this "
            "kqv-trace-monitor");
    }
    if (schema != kTraceSchemaVersion) {
        throw Error(cat("trace schema ", schema, " is not supported, only ", kTraceSchemaVersion));
    }
    const auto form = gguf_.get<std::string>(kKeyForm);
    if (form != "self-contained" && form != "compact") {
        throw Error(cat("unknown trace form ", in_quotes(form)));
    }
    form_ = form == "compact" ? TraceForm::compact : TraceForm::self_contained;
    if (const auto architecture = gguf_.get<std::string>(kKeyArchitecture);
        architecture != kTraceArchitecture) {
        throw Error(cat("its architecture is ", in_quotes(architecture)));
    }
    if (gguf_.find_key(kKeyPadding) &&
        gguf_.get<std::string>(kKeyPadding).find_first_not_of(' ') != std::string::npos) {
        throw Error("its padding is not blank");
    }
    for (size_t i = 0; i < gguf_.n_kv(); ++i) {
        const std::string_view key = gguf_.key(i);
        if (!key.starts_with(kInfoPrefix) && key != kKeySchema && key != kKeyForm && key != kKeyRecords &&
            key != kKeyStrings && key != kKeySum && key != kKeyArchitecture && key != kKeyPadding) {
            throw Error(cat("key ", in_quotes(key), " is no part of a trace"));
        }
    }
    strings_ = gguf_.get_array<std::string>(kKeyStrings);
}

void TraceReader::read_names() {
    std::vector<RecordId> named;  // record of every tensor
    named.reserve(gguf_.n_tensors());
    uint64_t end = gguf_.data_offset();
    for (size_t i = 0; i < gguf_.n_tensors(); ++i) {
        const GgufTensor tensor = gguf_.tensor(i);
        const std::string_view full_name = tensor.name;
        if (tensor.offset != end) {
            throw Error(cat("tensor ", in_quotes(full_name), " does not begin where the one before it ends"));
        }
        end = (tensor.offset + tensor.bytes + gguf_.alignment() - 1) / gguf_.alignment() * gguf_.alignment();
        const std::optional<ParsedName> name = parse_tensor_name(full_name);
        if (!name || std::find(kKinds.begin(), kKinds.end(), name->kind) == kKinds.end()) {
            throw Error(cat("tensor ", in_quotes(full_name), " is no part of a trace"));
        }
        const RecordId id{name->layer, name->step};
        if (named.empty() || named.back() != id) {
            named.push_back(id);
        }
        if (name->kind == "meta") {
            records_.push_back(id);
        }
        if (form_ == TraceForm::compact && holds_versions(name->kind)) {
            versions_.add({std::string(name->kind), name->layer}, name->step, gguf_, i);
        }
    }
    std::sort(records_.begin(), records_.end(), in_step_order);
    for (const RecordId id : named) {
        if (!std::binary_search(records_.begin(), records_.end(), id, in_step_order)) {
            throw Error(cat("layer ", id.layer, ", step ", id.step, ": tensor 'meta' is missing"));
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
        if (key.starts_with(kInfoPrefix)) {
            texts.emplace_back(key.substr(std::string_view(kInfoPrefix).size()), gguf_.get<std::string>(key));
        }
    }
    return texts;
}

// Numbers as a tensor of n_columns each, n in all.
template <typename T>
std::vector<T> TraceReader::list(const std::string& name, int64_t n_columns, int64_t n) const {
    return gguf_.read<T>(name, sizeof(T) == 4 ? GgmlType::i32 : GgmlType::i64,
                         n_columns == 1 ? Shape{n, 1, 1, 1} : Shape{n_columns, n, 1, 1});
}

TensorData TraceReader::tensor_data(const std::string& name) const {
    const GgufTensor tensor = gguf_.require_tensor(name);
    return {tensor.type, tensor.ne, gguf_.read_bytes(tensor)};
}

std::optional<RecordId> TraceReader::record_before(RecordId id) const {
    auto at = std::lower_bound(records_.begin(), records_.end(), id, in_step_order);
    while (at != records_.begin()) {
        --at;
        if (at->layer == id.layer) {
            return *at;
        }
    }
    return std::nullopt;
}

TraceRecord TraceReader::load(RecordId id) const {
    try {
        Tables tables = load_tables(id);
        check_kinds(tables);
        load_data(tables);
        validate(tables.record());
        check_bound(tables);
        return std::move(tables.record());
    } catch (const Error& error) {
        const std::string what = error.what(), place = cat("layer ", id.layer, ", step ", id.step);
        const std::string file = gguf_.file_name() + ": ";
        const std::string bare = what.starts_with(file) ? what.substr(file.size()) : what;
        throw Error(file + (bare.find(place) == std::string::npos ? place + ": " : "") + bare);
    }
}

TraceReader::Tables TraceReader::load_tables(RecordId id) const {
    Tables tables;
    tables.id = id;
    tables.meta = list<int64_t>(tables.named("meta"), 1, int64_t{meta::kFields});
    tables.scalars =
        gguf_.read<float>(tables.named("scalars"), GgmlType::f32, {int64_t{kScalarFields}, 1, 1, 1});
    TraceRecord& record = tables.record();
    const RecordStorage& storage = tables.storage;
    decode_meta(tables.meta, tables.scalars, strings_, record, tables.storage);
    if (record.layer != id.layer || record.step != id.step || storage.form != form_) {
        throw Error(cat("tensor '", tables.named("meta"), "' says layer ", record.layer, ", step ",
                        record.step, ", form ", static_cast<int64_t>(storage.form)));
    }
    check_meta(tables.meta, strings_, record, storage);
    validate_dimensions(record);  // first: what follows relies on sane dimensions
    if (record.has_sources) {
        const auto load =
            form_ == TraceForm::compact ? &TraceReader::load_compact_lists : &TraceReader::load_lists;
        (this->*load)("k", storage.k_rows, storage.k_pages, tables);
        (this->*load)("v", storage.v_rows, storage.v_pages, tables);
        validate_places(record);
    }
    return tables;
}

void TraceReader::load_lists(const std::string& name, int64_t n_rows, int64_t n_pages, Tables& tables) const {
    CachePart& part = tables.part(name);
    PartStamps& stamps = tables.stamps(name);
    const auto rows = list<int32_t>(tables.named(name + "_rows"), 2, n_rows);
    const auto sums = list<int64_t>(tables.named(name + "_sums"), 1, n_rows);
    for (size_t i = 0; i < sums.size(); ++i) {
        part.cells.push_back(rows[2 * i]);
        stamps.rows.push_back({rows[2 * i + 1], static_cast<uint64_t>(sums[i])});
    }
    if (tables.record().cache != CacheKind::mixed) {
        return;
    }
    const auto pages = list<int64_t>(tables.named(name + "_pages"), 4, n_pages);
    const auto page_sums = list<int64_t>(tables.named(name + "_page_sums"), 1, n_pages);
    for (size_t i = 0; i < page_sums.size(); ++i) {
        const int64_t* page = &pages[4 * i];
        if (page[3] < 0 || page[3] > INT32_MAX) {
            throw Error(cat(name, " page ", i, " is stored since step ", page[3]));
        }
        part.pages.push_back(ColdPage::with_coding(page[0], static_cast<uint64_t>(page[1]), page[2]));
        stamps.pages.push_back({static_cast<int32_t>(page[3]), static_cast<uint64_t>(page_sums[i])});
    }
}

void TraceReader::load_compact_lists(const std::string& name, int64_t n_rows, int64_t n_pages,
                                     Tables& tables) const {
    CachePart& part = tables.part(name);
    PartStamps& stamps = tables.stamps(name);
    Tables::Ids& ids = tables.ids(name);
    const std::string ids_name = tables.named(name + "_ids");
    const auto runs = list<int32_t>(ids_name, 3, gguf_.require_tensor(ids_name).ne[1]);
    const VersionIndex::Key rows_key{name, tables.id.layer};
    for (size_t i = 0; i < runs.size(); i += 3) {
        const int64_t first_cell = runs[i], count = runs[i + 1], first_id = runs[i + 2];
        if (first_cell < 0 || count < 1 || count > n_rows - static_cast<int64_t>(part.cells.size()) ||
            first_cell + count > INT32_MAX) {
            throw Error(cat("tensor '", ids_name, "': run ", i / 3, " of ", count, " rows at cell ",
                            first_cell, " does not fit ", n_rows, " rows"));
        }
        versions_.stamps(rows_key, name + "_sums", gguf_, first_id, count, stamps.rows);
        for (int64_t j = 0; j < count; ++j) {
            part.cells.push_back(static_cast<int32_t>(first_cell + j));
            ids.rows.push_back(first_id + j);
        }
    }
    if (static_cast<int64_t>(part.cells.size()) != n_rows) {
        throw Error(cat("tensor '", ids_name, "' lists ", part.cells.size(), " of ", n_rows, " rows"));
    }
    if (tables.record().cache != CacheKind::mixed) {
        return;
    }
    const VersionIndex::Key codes_key{name + "_quant", tables.id.layer};
    const auto pages = list<int64_t>(tables.named(name + "_page_ids"), 4, n_pages);
    for (size_t i = 0; i < pages.size(); i += 4) {
        part.pages.push_back(
            ColdPage::with_coding(pages[i], static_cast<uint64_t>(pages[i + 1]), pages[i + 2]));
        versions_.stamps(codes_key, name + "_page_sums", gguf_, pages[i + 3], 1, stamps.pages);
        ids.pages.push_back(pages[i + 3]);
    }
}

void TraceReader::load_data(Tables& tables) const {
    TraceRecord& record = tables.record();
    record.kqv_out = tensor_data(tables.named("kqv_out"));
    if (!record.has_sources) {
        return;
    }
    record.q = tensor_data(tables.named("q"));
    load_part("k", tables);
    load_part("v", tables);
    const auto load_stored = [this](std::string_view kind, StoredAt at) -> std::optional<TensorData> {
        if (at.layer < 0) {
            return std::nullopt;
        }
        return tensor_data(tensor_name(kind, static_cast<int32_t>(at.layer), static_cast<int32_t>(at.step)));
    };
    if (record.keeps_written) {
        std::tie(record.k_written, record.v_written) = load_written(tables.id);
    }
    record.mask = load_stored("mask", tables.storage.mask);
    record.sinks = load_stored("sinks", tables.storage.sinks);
}

std::pair<WrittenRows, WrittenRows> TraceReader::load_written(RecordId id) const {
    const auto named = [&id](std::string_view kind) { return tensor_name(kind, id.layer, id.step); };
    if (!gguf_.find_tensor(named("written_sums"))) {
        return {};
    }
    const auto sums = list<int64_t>(named("written_sums"), 1, int64_t{kWrittenSumFields});
    const auto load = [&](WrittenSumField field, const std::string& kind) {
        WrittenRows written;
        if (gguf_.find_tensor(named(kind))) {
            written.rows = tensor_data(named(kind));
            written.cells = list<int32_t>(named(kind + "_cells"), 2, written.rows.ne[2]);
        }
        if (written_sum(field, id.layer, id.step, written) != sums[field]) {
            throw Error(cat("tensor '", named(kind), "' is not what was recorded: its checksum differs"));
        }
        return written;
    };
    return {load(sum_k_written, "k_written"), load(sum_v_written, "v_written")};
}

void TraceReader::load_part(const std::string& name, Tables& tables) const {
    CachePart& part = tables.part(name);
    const bool mixed = tables.record().cache == CacheKind::mixed;
    if (form_ == TraceForm::self_contained) {
        part.rows = tensor_data(tables.named(name));
        if (mixed) {
            part.codes = tensor_data(tables.named(name + "_quant"));
        }
        return;
    }
    const TraceRecord& record = tables.record();
    const auto n_rows = static_cast<int64_t>(part.cells.size()),
               n_pages = static_cast<int64_t>(part.pages.size());
    const VersionIndex::Key rows_key{name, record.layer}, codes_key{name + "_quant", record.layer};
    part.rows.type = versions_.type(rows_key, gguf_, GgmlType::f16);
    part.rows.ne = {name == "k" ? record.head_dim_k : record.head_dim_v, record.n_head_kv, n_rows, 1};
    // Rows with consecutive ids together.
    const auto read = [this](const VersionIndex::Key& key, const std::vector<int64_t>& ids, TensorData& out) {
        const uint64_t bytes = versions_.checked_bytes(key, out);
        for (size_t i = 0, n = 0; i < ids.size(); i += n) {
            n = 1;
            while (i + n < ids.size() && ids[i + n] == ids[i] + static_cast<int64_t>(n)) {
                ++n;
            }
            versions_.read(key, gguf_, ids[i], static_cast<int64_t>(n), bytes, out);
        }
    };
    read(rows_key, tables.ids(name).rows, part.rows);
    if (mixed) {
        part.codes.type = GgmlType::i8;
        part.codes.ne = {part.cold.format.empty() ? 0 : part.cold.block_bytes, record.n_head_kv, n_pages, 1};
        read(codes_key, tables.ids(name).pages, part.codes);
    }
}

// The record has the tensors that it says it has, and no other.
void TraceReader::check_kinds(const Tables& tables) const {
    const TraceRecord& record = tables.stamped.record;
    const RecordStorage& storage = tables.storage;
    const RecordId id = tables.id;
    const bool compact = form_ == TraceForm::compact, mixed = record.cache == CacheKind::mixed;
    std::vector<std::string> wanted = {"kqv_out", "meta", "scalars", "sums"};
    const auto want = [&wanted](bool condition, std::string kind) {
        if (condition) {
            wanted.push_back(std::move(kind));
        }
    };
    const auto here = [&id](StoredAt at) { return at.layer == id.layer && at.step == id.step; };
    want(record.has_sources, "q");
    want(here(storage.mask), "mask");
    want(here(storage.sinks), "sinks");
    for (const std::string side : {"k", "v"}) {
        if (!record.has_sources) {
            break;
        }
        const bool new_rows = !compact || versions_.n_stored({side, id.layer}, id.step) > 0;
        const bool new_pages =
            mixed && (!compact || versions_.n_stored({side + "_quant", id.layer}, id.step) > 0);
        want(true, side + (compact ? "_ids" : "_rows"));
        want(mixed, side + (compact ? "_page_ids" : "_pages"));
        want(new_rows, side);
        want(new_rows, side + "_sums");
        want(new_pages, side + "_quant");
        want(new_pages, side + "_page_sums");
        const bool written = record.keeps_written && (side == "k" || !record.v_is_view_of_k);
        want(written, side + "_written");
        want(written, side + "_written_cells");
    }
    want(record.keeps_written, "written_sums");
    for (const std::string_view kind : kKinds) {
        const bool there = gguf_.find_tensor(tables.named(kind)).has_value();
        if (there != (std::find(wanted.begin(), wanted.end(), kind) != wanted.end())) {
            throw Error(cat("tensor '", kind, there ? "' has no place in this record" : "' is missing"));
        }
    }
    // A compact file keeps a mask with the first layer of the step that has it, sinks with the layer's first
    // step.
    const bool mask_fits = storage.mask.layer < 0 || here(storage.mask) ||
                           (compact && storage.mask.step == id.step && storage.mask.layer < id.layer);
    const bool sinks_fit = storage.sinks.layer < 0 || here(storage.sinks) ||
                           (compact && storage.sinks.layer == id.layer && storage.sinks.step < id.step);
    if (!mask_fits || !sinks_fit) {
        throw Error(cat("its ", mask_fits ? "sinks" : "mask", " cannot lie in layer ",
                        mask_fits ? storage.sinks.layer : storage.mask.layer, ", step ",
                        mask_fits ? storage.sinks.step : storage.mask.step));
    }
}

// Everything in the record is what was recorded, and follows from the record before it.
void TraceReader::check_bound(const Tables& tables) const {
    const TraceRecord& record = tables.stamped.record;
    std::optional<Tables> before;
    if (const auto id = record_before(tables.id)) {
        before = load_tables(*id);
    }
    const StampedRecord* previous = before ? &before->stamped : nullptr;
    const auto [k, v] = make_stamps(record, previous);
    const auto check = [&](const char* what, const std::vector<Stamp>& right,
                           const std::vector<Stamp>& found) {
        for (size_t i = 0; i < right.size(); ++i) {
            if (right[i].sum != found[i].sum) {
                throw Error(cat(what, " ", i, " is not what was stored there: its checksum differs"));
            }
            if (right[i].since != found[i].since) {
                throw Error(cat(what, " ", i, " says it is stored since step ", found[i].since,
                                ", the records before say ", right[i].since));
            }
        }
    };
    check("k: row", k.rows, tables.stamped.k.rows);
    check("v: row", v.rows, tables.stamped.v.rows);
    check("k: page", k.pages, tables.stamped.k.pages);
    check("v: page", v.pages, tables.stamped.v.pages);
    check_follows(previous, tables.stamped);
    check_written(record, k, v);
    if (form_ == TraceForm::compact && record.has_sources) {
        const auto all_used = [&](const char* kind, const std::vector<Stamp>& stamps) {
            const auto n_new = std::count_if(stamps.begin(), stamps.end(),
                                             [&](const Stamp& stamp) { return stamp.since == record.step; });
            if (n_new != versions_.n_stored({kind, record.layer}, record.step)) {
                throw Error(cat("tensor '", tables.named(kind), "' holds more than the record has new"));
            }
        };
        all_used("k", k.rows);
        all_used("v", v.rows);
        all_used("k_quant", k.pages);
        all_used("v_quant", v.pages);
    }
    const auto sums = list<int64_t>(tables.named("sums"), 1, int64_t{kSumFields});
    const std::vector<int64_t> right = make_sums(record, k, v, tables.meta, tables.scalars);
    for (size_t i = 0; i < right.size(); ++i) {
        if (right[i] != sums[i]) {
            throw Error(cat("tensor '", sum_name(i), "' is not what was recorded: its checksum differs"));
        }
    }
}

}  // namespace mixed_kv::trace
