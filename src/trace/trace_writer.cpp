#include "trace/trace_writer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_writer.h"
#include "trace/hash128.h"
#include "trace/text.h"
#include "trace/trace_meta.h"

namespace mixed_kv::trace {
namespace {

// kqv_out q k v k_rows v_rows k_quant v_quant k_pages v_pages mask sinks pos meta scalars
constexpr uint64_t kTensorsPerRecord = 15;
constexpr uint64_t kMetaBytes = meta::kFields * sizeof(int64_t) + 32;

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
    return std::as_bytes(std::span(values));
}

// Versions of rows or pages of one layer's K or V that the file holds already.
class VersionStore {
  public:
    // The id of the content at this cell; `is_new` if it must be stored, as the next tensor slice.
    int64_t id(int64_t cell, std::span<const std::byte> content, bool& is_new) {
        const Hash128 hash = hash128(content);
        const auto [it, inserted] = latest_.try_emplace(cell);
        is_new = inserted || it->second.hash != hash;
        if (is_new) {
            it->second = {hash, next_id_++};
        }
        return it->second.id;
    }

  private:
    struct Version {
        Hash128 hash;
        int64_t id = 0;
    };
    std::unordered_map<int64_t, Version> latest_;  // per cell, what it held when it was last seen
    int64_t next_id_ = 0;
};

struct PartState {
    VersionStore rows;
    VersionStore pages;
    uint64_t row_bytes = 0;
    uint64_t page_bytes = 0;
};

struct LayerState {
    PartState k, v;
    Hash128 sinks_hash;
    StoredAt sinks;
};

}  // namespace

class TraceWriter::Impl {
  public:
    Impl(const std::filesystem::path& path, const TraceWriterOptions& options)
        : form_(options.form), gguf_(path, gguf_options(options)) {
        gguf_.set("general.architecture", kTraceArchitecture);
        gguf_.set(kKeySchema, static_cast<uint32_t>(kTraceSchemaVersion));
        gguf_.set(kKeyForm, form_ == TraceForm::compact ? "compact" : "self-contained");
    }

    void set_info(std::string_view name, std::string_view text) {
        gguf_.set(cat("mixed_kv.trace.info.", name), text);
    }

    void append(const TraceRecord& record) {
        if (!complete_) {
            throw Error("the trace is incomplete: an earlier record could not be written");
        }
        if (n_records_ > 0 && std::pair(record.step, record.layer) <= std::pair(last_step_, last_layer_)) {
            throw Error(cat("trace record of layer ", record.layer, ", step ", record.step,
                            " comes after layer ", last_layer_, ", step ", last_step_));
        }
        validate(record);
        if (n_records_ == 0 || record.step != last_step_) {
            step_tensors_.clear();
        }
        last_step_ = record.step;
        last_layer_ = record.layer;
        ++n_records_;
        complete_ = false;
        write(record);
        complete_ = true;
    }

    void finish() {
        if (!complete_) {
            throw Error(cat("the trace is incomplete: writing layer ", last_layer_, ", step ", last_step_,
                            " failed"));
        }
        gguf_.set(kKeyRecords, n_records_);
        gguf_.set_array(kKeyStrings, std::span<const std::string>(strings_));
        gguf_.finish();
    }

    uint64_t n_records() const noexcept { return n_records_; }
    uint64_t data_bytes() const noexcept { return gguf_.data_bytes(); }

  private:
    static GgufWriterOptions gguf_options(const TraceWriterOptions& options) {
        GgufWriterOptions gguf;
        gguf.expected_bytes = options.expected_bytes;
        gguf.expected_tensors = options.expected_records * kTensorsPerRecord;
        // The string table: a dozen short names per layer. Room for long traces only; short ones stay short.
        gguf.expected_kv_bytes = options.expected_records > 0 ? 16 * 1024 : 1024;
        gguf.temp = options.temp;
        return gguf;
    }

    int64_t intern(std::string_view text) {
        const auto it = string_ids_.find(text);
        if (it != string_ids_.end()) {
            return it->second;
        }
        const auto id = static_cast<int64_t>(strings_.size());
        strings_.emplace_back(text);
        string_ids_.emplace(text, id);
        return id;
    }

    void add(std::string_view kind, GgmlType type, const Shape& ne, std::span<const std::byte> data) {
        gguf_.add_tensor(tensor_name(kind, last_layer_, last_step_), type, ne, data);
    }
    void add(std::string_view kind, const TensorData& tensor) {
        add(kind, tensor.type, tensor.ne, tensor.bytes);
    }

    void write(const TraceRecord& record) {
        RecordStorage storage;
        storage.form = form_;
        add("kqv_out", record.kqv_out);
        if (record.has_sources) {
            add("q", record.q);
            storage.k_rows = static_cast<int64_t>(record.k.cells.size());
            storage.v_rows = static_cast<int64_t>(record.v.cells.size());
            storage.k_pages = static_cast<int64_t>(record.k.pages.size());
            storage.v_pages = static_cast<int64_t>(record.v.pages.size());
            write_part("k", record, record.k, layers_[record.layer].k);
            write_part("v", record, record.v, layers_[record.layer].v);
            if (record.mask) {
                storage.mask = write_shared("mask", *record.mask);
            }
            if (record.sinks) {
                storage.sinks = write_sinks(*record.sinks, layers_[record.layer]);
            }
        }
        if (!record.positions.empty()) {
            const int64_t n_queries = record.n_tokens * record.n_stream;
            storage.n_pos = static_cast<int64_t>(record.positions.size()) / n_queries;
            TensorData positions{GgmlType::i32, {n_queries, storage.n_pos, 1, 1}, {}};
            const auto bytes = bytes_of(record.positions);
            positions.bytes.assign(bytes.begin(), bytes.end());
            storage.positions = write_shared("pos", positions);
        }
        const std::vector<int64_t> fields =
            encode_meta(record, storage, [this](std::string_view text) { return intern(text); });
        add("meta", GgmlType::i64, {static_cast<int64_t>(fields.size()), 1, 1, 1}, bytes_of(fields));
        const std::vector<float> scalars = encode_scalars(record);
        add("scalars", GgmlType::f32, {static_cast<int64_t>(scalars.size()), 1, 1, 1}, bytes_of(scalars));
    }

    // A tensor that layers of one step often share. Compact: stored by the first of them.
    StoredAt write_shared(std::string_view kind, const TensorData& tensor) {
        const StoredAt here{last_layer_, last_step_};
        if (form_ == TraceForm::compact) {
            const Hash128 hash = hash128(tensor.bytes);
            for (const StepTensor& known : step_tensors_) {
                if (known.kind == kind && known.ne == tensor.ne && known.type == tensor.type &&
                    known.hash == hash) {
                    return known.stored;
                }
            }
            step_tensors_.push_back({std::string(kind), tensor.type, tensor.ne, hash, here});
        }
        add(kind, tensor);
        return here;
    }

    // Sinks are weights: compact files hold them once per layer.
    StoredAt write_sinks(const TensorData& sinks, LayerState& layer) {
        const Hash128 hash = hash128(sinks.bytes);
        if (form_ == TraceForm::compact && layer.sinks.layer >= 0 && layer.sinks_hash == hash) {
            return layer.sinks;
        }
        add("sinks", sinks);
        layer.sinks_hash = hash;
        layer.sinks = {last_layer_, last_step_};
        return layer.sinks;
    }

    void write_part(const std::string& name, const TraceRecord& record, const CachePart& part,
                    PartState& state) {
        // What an op has not is listed all the same, as empty.
        const bool absent = record.v_is_view_of_k && name == "v";
        const TensorData no_rows{GgmlType::f16, {record.head_dim_v, record.n_head_kv, 0, 1}, {}};
        const TensorData no_codes{GgmlType::i8, {0, record.n_head_kv, 0, 1}, {}};
        const TensorData& rows = absent ? no_rows : part.rows;
        const TensorData& codes = absent || part.cold.format.empty() ? no_codes : part.codes;
        if (form_ == TraceForm::compact) {
            write_compact_rows(name, part, rows, state);
            if (record.cache == CacheKind::mixed) {
                write_compact_pages(name, part, codes, state);
            }
            return;
        }
        add(name, rows);
        std::vector<int32_t> list;
        for (size_t i = 0; i < part.cells.size(); ++i) {
            list.insert(list.end(), {part.cells[i], static_cast<int32_t>(part.kinds[i])});
        }
        add(name + "_rows", GgmlType::i32, {2, static_cast<int64_t>(part.cells.size()), 1, 1},
            bytes_of(list));
        if (record.cache != CacheKind::mixed) {
            return;
        }
        add(name + "_quant", codes);
        std::vector<int64_t> pages;
        for (const ColdPage& page : part.pages) {
            pages.insert(pages.end(),
                         {page.first_cell, page.shift, page.flags, static_cast<int64_t>(page.written)});
        }
        add(name + "_pages", GgmlType::i64, {4, static_cast<int64_t>(part.pages.size()), 1, 1},
            bytes_of(pages));
    }

    void check_same_size(const std::string& name, uint64_t bytes, uint64_t& known) const {
        if (known != 0 && known != bytes) {
            throw Error(cat("layer ", last_layer_, ", step ", last_step_, ", ", name, ": ", bytes,
                            " bytes each, earlier steps had ", known, "; a compact trace cannot hold both"));
        }
        known = bytes;
    }

    void write_compact_rows(const std::string& name, const CachePart& part, const TensorData& rows,
                            PartState& state) {
        // Runs of rows with consecutive cells and ids: (first cell, rows, kind, first id).
        std::vector<int32_t> runs;
        std::vector<std::byte> fresh;
        int64_t n_fresh = 0;
        if (!part.cells.empty()) {
            check_same_size(name, rows.bytes.size() / part.cells.size(), state.row_bytes);
        }
        for (size_t i = 0; i < part.cells.size(); ++i) {
            const auto content = std::span(rows.bytes).subspan(i * state.row_bytes, state.row_bytes);
            bool is_new = false;
            const auto id = static_cast<int32_t>(state.rows.id(part.cells[i], content, is_new));
            if (is_new) {
                fresh.insert(fresh.end(), content.begin(), content.end());
                ++n_fresh;
            }
            const auto kind = static_cast<int32_t>(part.kinds[i]);
            int32_t* run = runs.empty() ? nullptr : &runs[runs.size() - 4];
            if (run != nullptr && run[0] + run[1] == part.cells[i] && run[2] == kind &&
                run[3] + run[1] == id) {
                ++run[1];
            } else {
                runs.insert(runs.end(), {part.cells[i], 1, kind, id});
            }
        }
        if (n_fresh > 0) {
            add(name, rows.type, {rows.ne[0], rows.ne[1], n_fresh, 1}, fresh);
        }
        add(name + "_ids", GgmlType::i32, {4, static_cast<int64_t>(runs.size() / 4), 1, 1}, bytes_of(runs));
    }

    void write_compact_pages(const std::string& name, const CachePart& part, const TensorData& codes,
                             PartState& state) {
        std::vector<int64_t> list;
        std::vector<std::byte> fresh;
        int64_t n_fresh = 0;
        if (!part.pages.empty()) {
            check_same_size(name + "_quant", codes.bytes.size() / part.pages.size(), state.page_bytes);
        }
        for (size_t i = 0; i < part.pages.size(); ++i) {
            const ColdPage& page = part.pages[i];
            const auto content = std::span(codes.bytes).subspan(i * state.page_bytes, state.page_bytes);
            bool is_new = false;
            const int64_t id = state.pages.id(page.first_cell, content, is_new);
            if (is_new) {
                fresh.insert(fresh.end(), content.begin(), content.end());
                ++n_fresh;
            }
            list.insert(list.end(),
                        {page.first_cell, page.shift, page.flags, static_cast<int64_t>(page.written), id});
        }
        if (n_fresh > 0) {
            add(name + "_quant", codes.type, {codes.ne[0], codes.ne[1], n_fresh, 1}, fresh);
        }
        add(name + "_page_ids", GgmlType::i64, {5, static_cast<int64_t>(part.pages.size()), 1, 1},
            bytes_of(list));
    }

    struct StepTensor {
        std::string kind;
        GgmlType type;
        Shape ne;
        Hash128 hash;
        StoredAt stored;
    };

    TraceForm form_;
    GgufStreamWriter gguf_;
    uint64_t n_records_ = 0;
    bool complete_ = true;  // no record was left half written
    int32_t last_step_ = 0;
    int32_t last_layer_ = 0;
    std::vector<std::string> strings_;
    std::map<std::string, int64_t, std::less<>> string_ids_;
    std::map<int32_t, LayerState> layers_;
    std::vector<StepTensor> step_tensors_;  // of the current step
};

TraceWriter::TraceWriter(const std::filesystem::path& path, const TraceWriterOptions& options)
    : impl_(std::make_unique<Impl>(path, options)) {}

TraceWriter::~TraceWriter() = default;

void TraceWriter::set_info(std::string_view name, std::string_view text) { impl_->set_info(name, text); }
void TraceWriter::append(const TraceRecord& record) { impl_->append(record); }
void TraceWriter::finish() { impl_->finish(); }
uint64_t TraceWriter::n_records() const noexcept { return impl_->n_records(); }
uint64_t TraceWriter::data_bytes() const noexcept { return impl_->data_bytes(); }

int64_t TraceEstimate::n_records() const {
    return ((n_prompt + n_ubatch - 1) / n_ubatch + n_decode) * n_layers;
}

uint64_t TraceEstimate::bytes() const {
    const double k_row = static_cast<double>(n_head_kv * head_dim_k);
    const double v_row = static_cast<double>(n_head_kv * head_dim_v);
    double total = 0.0;
    int64_t used = 0;
    const auto add_step = [&](int64_t n_tokens) {
        used += n_tokens;
        const auto tokens = static_cast<double>(n_tokens);
        const int64_t padded = (used + n_kv_padding - 1) / n_kv_padding * n_kv_padding;
        const auto n_kv = static_cast<double>(padded);
        double record =
            4.0 * tokens * static_cast<double>(n_head * head_dim_v) + static_cast<double>(kMetaBytes);
        double shared = 4.0 * tokens;  // positions
        if (has_sources) {
            record += 4.0 * tokens * static_cast<double>(n_head * head_dim_k);
            shared += 2.0 * tokens * n_kv;  // mask
            const bool compact = form == TraceForm::compact;
            // A standard cache lists every cell of the view; a mixed one splits the used rows.
            const double exact =
                compact ? tokens
                        : (hot_rows == INT64_MAX ? n_kv : static_cast<double>(std::min(hot_rows, used)));
            const double cold = hot_rows == INT64_MAX ? 0.0
                                : compact             ? tokens
                                          : static_cast<double>(std::max<int64_t>(used - hot_rows, 0));
            // Lists of rows, 8 bytes each for K and V, and of pages of 64 tokens, up to 40 bytes each.
            const double pages = hot_rows == INT64_MAX ? 0.0 : static_cast<double>(used) / 64.0 + 1.0;
            record += (k_row + v_row) * (exact * bytes_per_value + cold * cold_bytes_per_value) +
                      16.0 * exact + 80.0 * pages;
        }
        const bool share = form == TraceForm::compact;
        const auto layers = static_cast<double>(n_layers);
        // Padding of each tensor to 32 bytes and its line in the header: about 120 bytes.
        total += layers * (record + 120.0 * kTensorsPerRecord) + (share ? 1.0 : layers) * shared;
    };
    for (int64_t left = n_prompt; left > 0; left -= n_ubatch) {
        add_step(std::min(left, n_ubatch));
    }
    for (int64_t i = 0; i < n_decode; ++i) {
        add_step(1);
    }
    return static_cast<uint64_t>(total * 1.02) + 64 * 1024;
}

}  // namespace mixed_kv::trace
