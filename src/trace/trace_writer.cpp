#include "trace/trace_writer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/checksum.h"
#include "trace/gguf_writer.h"
#include "trace/text.h"
#include "trace/trace_meta.h"
#include "trace/trace_stamps.h"

namespace mixed_kv::trace {
namespace {

// kqv_out q k v k_rows v_rows k_sums v_sums k_quant v_quant k_pages v_pages k_page_sums v_page_sums mask
// sinks meta scalars sums; k_written v_written, their lists of cells and their checksums come on request
constexpr uint64_t kTensorsPerRecord = 19, kTensorsOfWritten = 5;
constexpr uint64_t kMetaBytes = meta::kFields * sizeof(int64_t) + 32;

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
    return std::as_bytes(std::span(values));
}

// Compact form: numbers of the rows or pages that the layer's last record held, by checksum.
struct Versions {
    std::unordered_map<uint64_t, int64_t> ids;
    int64_t n = 0;  // so far
};

struct PartState {
    Versions rows;
    Versions pages;
    uint64_t row_bytes = 0;
    uint64_t page_bytes = 0;
};

struct LayerState {
    PartState k, v;
    uint64_t sinks_sum = 0;
    StoredAt sinks;
    std::optional<StampedRecord> last;  // without bytes of tensors
};

// The record without its large tensors.
TraceRecord without_bytes(const TraceRecord& record) {
    const auto outline = [](const CachePart& part) {
        return CachePart{{part.rows.type, part.rows.ne, {}},
                         part.cells,
                         part.cold,
                         {part.codes.type, part.codes.ne, {}},
                         part.pages};
    };
    TraceRecord copy;
    copy.layer = record.layer;
    copy.step = record.step;
    copy.cache = record.cache;
    copy.has_sources = record.has_sources;
    copy.v_is_view_of_k = record.v_is_view_of_k;
    copy.n_tokens = record.n_tokens;
    copy.n_head = record.n_head;
    copy.n_head_kv = record.n_head_kv;
    copy.n_kv = record.n_kv;
    copy.n_stream = record.n_stream;
    copy.head_dim_k = record.head_dim_k;
    copy.head_dim_v = record.head_dim_v;
    copy.kq_scale = record.kq_scale;
    copy.max_bias = record.max_bias;
    copy.logit_softcap = record.logit_softcap;
    copy.position = record.position;
    copy.k = outline(record.k);
    copy.v = outline(record.v);
    copy.k_view = record.k_view;
    copy.v_view = record.v_view;
    return copy;
}

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
        gguf_.set(cat(kInfoPrefix, name), text);
        info_[std::string(name)] = text;
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
        LayerState& layer = layers_[record.layer];
        const StampedRecord* previous = layer.last ? &*layer.last : nullptr;
        // A copy without bytes: what the next record of this layer is compared with.
        auto [k_stamps, v_stamps] = make_stamps(record, previous);
        StampedRecord stamped{without_bytes(record), std::move(k_stamps), std::move(v_stamps)};
        check_follows(previous, stamped);
        check_written(record, stamped.k, stamped.v);
        if (n_records_ == 0 || record.step != last_step_) {
            step_tensors_.clear();
        }
        last_step_ = record.step;
        last_layer_ = record.layer;
        ++n_records_;
        complete_ = false;
        write(record, stamped, layer);
        layer.last = std::move(stamped);
        complete_ = true;
    }

    void finish() {
        if (!complete_) {
            throw Error(cat("the trace is incomplete: writing layer ", last_layer_, ", step ", last_step_,
                            " failed"));
        }
        gguf_.set(kKeyRecords, n_records_);
        gguf_.set_array(kKeyStrings, std::span<const std::string>(strings_));
        const std::vector<std::pair<std::string, std::string>> info(info_.begin(), info_.end());
        gguf_.set(kKeySum, file_sum(form_, n_records_, strings_, info));
        gguf_.finish();
    }

    uint64_t n_records() const noexcept { return n_records_; }
    uint64_t data_bytes() const noexcept { return gguf_.data_bytes(); }

  private:
    static GgufWriterOptions gguf_options(const TraceWriterOptions& options) {
        GgufWriterOptions gguf;
        gguf.expected_bytes = options.expected_bytes;
        gguf.expected_tensors =
            options.expected_records * (kTensorsPerRecord + (options.keeps_written ? kTensorsOfWritten : 0));
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

    // A list of numbers, n_columns each.
    template <typename T>
    void add_numbers(std::string_view kind, int64_t n_columns, const std::vector<T>& numbers) {
        static_assert(std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t>);
        const auto n = static_cast<int64_t>(numbers.size());
        const GgmlType type = sizeof(T) == 4 ? GgmlType::i32 : GgmlType::i64;
        add(kind, type, n_columns == 1 ? Shape{n, 1, 1, 1} : Shape{n_columns, n / n_columns, 1, 1},
            bytes_of(numbers));
    }

    static std::vector<int64_t> sums_of(const std::vector<Stamp>& stamps) {
        std::vector<int64_t> sums;
        for (const Stamp& stamp : stamps) {
            sums.push_back(static_cast<int64_t>(stamp.sum));
        }
        return sums;
    }

    void write(const TraceRecord& record, const StampedRecord& stamped, LayerState& layer) {
        RecordStorage storage;
        storage.form = form_;
        add("kqv_out", record.kqv_out);
        if (record.has_sources) {
            add("q", record.q);
            storage.k_rows = static_cast<int64_t>(record.k.cells.size());
            storage.v_rows = static_cast<int64_t>(record.v.cells.size());
            storage.k_pages = static_cast<int64_t>(record.k.pages.size());
            storage.v_pages = static_cast<int64_t>(record.v.pages.size());
            write_part("k", record, record.k, stamped.k, layer.k);
            write_part("v", record, record.v, stamped.v, layer.v);
            if (record.keeps_written) {
                write_written(record);
            }
            if (record.mask) {
                storage.mask = write_shared("mask", *record.mask);
            }
            if (record.sinks) {
                storage.sinks = write_sinks(*record.sinks, layer);
            }
        }
        const std::vector<int64_t> fields =
            encode_meta(record, storage, [this](std::string_view text) { return intern(text); });
        add("meta", GgmlType::i64, {static_cast<int64_t>(fields.size()), 1, 1, 1}, bytes_of(fields));
        const std::vector<float> scalars = encode_scalars(record);
        add("scalars", GgmlType::f32, {static_cast<int64_t>(scalars.size()), 1, 1, 1}, bytes_of(scalars));
        add_numbers("sums", 1, make_sums(record, stamped.k, stamped.v, fields, scalars));
    }

    // Every row once, in the step that wrote it, in both forms.
    void write_written(const TraceRecord& record) {
        for (const auto& [name, written] :
             {std::pair("k_written", &record.k_written), std::pair("v_written", &record.v_written)}) {
            if (!written->cells.empty()) {
                add(name, written->rows);
                add_numbers(cat(name, "_cells"), 2, written->cells);
            }
        }
        add_numbers("written_sums", 1, make_written_sums(record));
    }

    // A tensor that layers of one step often share. Compact: stored by the first of them.
    StoredAt write_shared(std::string_view kind, const TensorData& tensor) {
        const StoredAt here{last_layer_, last_step_};
        if (form_ == TraceForm::compact) {
            const uint64_t sum = Checksum().add(tensor.bytes).value();
            for (const StepTensor& known : step_tensors_) {
                if (known.kind == kind && known.ne == tensor.ne && known.type == tensor.type &&
                    known.sum == sum) {
                    return known.stored;
                }
            }
            step_tensors_.push_back({std::string(kind), tensor.type, tensor.ne, sum, here});
        }
        add(kind, tensor);
        return here;
    }

    // Sinks are weights: compact files hold them once per layer.
    StoredAt write_sinks(const TensorData& sinks, LayerState& layer) {
        const uint64_t sum = Checksum().add(sinks.bytes).value();
        if (form_ == TraceForm::compact && layer.sinks.layer >= 0 && layer.sinks_sum == sum) {
            return layer.sinks;
        }
        add("sinks", sinks);
        layer.sinks_sum = sum;
        layer.sinks = {last_layer_, last_step_};
        return layer.sinks;
    }

    void write_part(const std::string& name, const TraceRecord& record, const CachePart& part,
                    const PartStamps& stamps, PartState& state) {
        // What an op has not is listed all the same, as empty.
        const bool absent = record.v_is_view_of_k && name == "v";
        const TensorData no_rows{GgmlType::f16, {record.head_dim_v, record.n_head_kv, 0, 1}, {}};
        const TensorData no_codes{GgmlType::i8, {0, record.n_head_kv, 0, 1}, {}};
        const TensorData& rows = absent ? no_rows : part.rows;
        const TensorData& codes = absent || part.cold.format.empty() ? no_codes : part.codes;
        if (form_ == TraceForm::compact) {
            write_compact_rows(name, part, rows, stamps.rows, state);
            if (record.cache == CacheKind::mixed) {
                write_compact_pages(name, part, codes, stamps.pages, state);
            }
            return;
        }
        add(name, rows);
        std::vector<int32_t> list;
        for (size_t i = 0; i < part.cells.size(); ++i) {
            list.insert(list.end(), {part.cells[i], stamps.rows[i].since});
        }
        add_numbers(name + "_rows", 2, list);
        add_numbers(name + "_sums", 1, sums_of(stamps.rows));
        if (record.cache != CacheKind::mixed) {
            return;
        }
        add(name + "_quant", codes);
        std::vector<int64_t> pages;
        for (size_t i = 0; i < part.pages.size(); ++i) {
            const ColdPage& page = part.pages[i];
            pages.insert(pages.end(), {page.first_cell, static_cast<int64_t>(page.held), page.coding(),
                                       stamps.pages[i].since});
        }
        add_numbers(name + "_pages", 4, pages);
        add_numbers(name + "_page_sums", 1, sums_of(stamps.pages));
    }

    void check_same_size(const std::string& name, uint64_t bytes, uint64_t& known) const {
        if (known != 0 && known != bytes) {
            throw Error(cat("layer ", last_layer_, ", step ", last_step_, ", ", name, ": ", bytes,
                            " bytes each, earlier steps had ", known, "; a compact trace cannot hold both"));
        }
        known = bytes;
    }

    // Stores what is new of n rows or pages of equal size and returns the id of each.
    std::vector<int64_t> store_versions(const std::string& kind, const std::string& sums_kind,
                                        const TensorData& content, const std::vector<Stamp>& stamps,
                                        Versions& versions) {
        Versions now;
        now.n = versions.n;
        std::vector<int64_t> ids;
        std::vector<std::byte> fresh;
        std::vector<int64_t> fresh_sums;
        const size_t each = stamps.empty() ? 0 : content.bytes.size() / stamps.size();
        for (size_t i = 0; i < stamps.size(); ++i) {
            const uint64_t sum = stamps[i].sum;
            if (stamps[i].since == last_step_) {
                const auto bytes = std::span(content.bytes).subspan(i * each, each);
                fresh.insert(fresh.end(), bytes.begin(), bytes.end());
                fresh_sums.push_back(static_cast<int64_t>(sum));
                ids.push_back(now.n++);
            } else {
                ids.push_back(versions.ids.at(sum));
            }
            now.ids.emplace(sum, ids.back());
        }
        versions = std::move(now);
        if (!fresh_sums.empty()) {
            add(kind, content.type,
                {content.ne[0], content.ne[1], static_cast<int64_t>(fresh_sums.size()), 1}, fresh);
            add_numbers(sums_kind, 1, fresh_sums);
        }
        return ids;
    }

    void write_compact_rows(const std::string& name, const CachePart& part, const TensorData& rows,
                            const std::vector<Stamp>& stamps, PartState& state) {
        if (!part.cells.empty()) {
            check_same_size(name, rows.bytes.size() / part.cells.size(), state.row_bytes);
        }
        const std::vector<int64_t> ids = store_versions(name, name + "_sums", rows, stamps, state.rows);
        // Runs of rows with consecutive cells and ids: (first cell, rows, first id).
        std::vector<int32_t> runs;
        for (size_t i = 0; i < part.cells.size(); ++i) {
            const auto id = static_cast<int32_t>(ids[i]);
            int32_t* run = runs.empty() ? nullptr : &runs[runs.size() - 3];
            if (run != nullptr && run[0] + run[1] == part.cells[i] && run[2] + run[1] == id) {
                ++run[1];
            } else {
                runs.insert(runs.end(), {part.cells[i], 1, id});
            }
        }
        add_numbers(name + "_ids", 3, runs);
    }

    void write_compact_pages(const std::string& name, const CachePart& part, const TensorData& codes,
                             const std::vector<Stamp>& stamps, PartState& state) {
        if (!part.pages.empty()) {
            check_same_size(name + "_quant", codes.bytes.size() / part.pages.size(), state.page_bytes);
        }
        const std::vector<int64_t> ids =
            store_versions(name + "_quant", name + "_page_sums", codes, stamps, state.pages);
        std::vector<int64_t> list;
        for (size_t i = 0; i < part.pages.size(); ++i) {
            const ColdPage& page = part.pages[i];
            list.insert(list.end(),
                        {page.first_cell, static_cast<int64_t>(page.held), page.coding(), ids[i]});
        }
        add_numbers(name + "_page_ids", 4, list);
    }

    struct StepTensor {
        std::string kind;
        GgmlType type;
        Shape ne;
        uint64_t sum;
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
    std::map<std::string, std::string> info_;
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
        double shared = 0.0;
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
            // Lists of rows, 16 bytes each for K and V, and of pages of 64 tokens, 40 bytes each.
            const double pages = hot_rows == INT64_MAX ? 0.0 : static_cast<double>(used) / 64.0 + 1.0;
            if (keeps_written) {
                record += tokens * (2.0 * (k_row + v_row) + 16.0) + 120.0 * kTensorsOfWritten;
            }
            record += (k_row + v_row) * (exact * bytes_per_value + cold * cold_bytes_per_value) +
                      32.0 * exact + 80.0 * pages;
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
