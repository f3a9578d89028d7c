#include "trace/trace_stamps.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "mixed_kv/error.h"
#include "trace/checksum.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

enum Side : int64_t { side_k, side_v };

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
    return std::as_bytes(std::span(values));
}

[[noreturn]] void fail(const TraceRecord& record, const std::string& what) {
    throw Error(cat("layer ", record.layer, ", step ", record.step, ": ", what));
}

// Content i of n equal ones.
std::span<const std::byte> slice(const std::vector<std::byte>& bytes, size_t i, size_t n) {
    const size_t each = n == 0 ? 0 : bytes.size() / n;
    return std::span(bytes).subspan(i * each, each);
}

// The numbers before the bytes bind them to their place.
enum Stored : int64_t { stored_row, stored_page };
uint64_t content_sum(Stored kind, Side side, const TraceRecord& r, int64_t cell, int64_t coding,
                     std::span<const std::byte> bytes) {
    return Checksum().add({kind, side, r.layer, cell / r.n_kv, cell % r.n_kv, coding}).add(bytes).value();
}

// Steps by checksum; a checksum says what lies where.
std::unordered_map<uint64_t, int32_t> steps_of(const std::vector<Stamp>& stamps) {
    std::unordered_map<uint64_t, int32_t> steps;
    steps.reserve(stamps.size());
    for (const Stamp& stamp : stamps) {
        steps.emplace(stamp.sum, stamp.since);
    }
    return steps;
}

std::vector<Stamp> dated(const std::vector<uint64_t>& sums, int32_t step, const std::vector<Stamp>* before) {
    const auto known = before != nullptr ? steps_of(*before) : std::unordered_map<uint64_t, int32_t>();
    std::vector<Stamp> stamps;
    stamps.reserve(sums.size());
    for (const uint64_t sum : sums) {
        const auto found = known.find(sum);
        stamps.push_back({found == known.end() ? step : found->second, sum});
    }
    return stamps;
}

PartStamps stamp_part(Side side, const TraceRecord& record, const CachePart& part, const PartStamps* before) {
    std::vector<uint64_t> rows, pages;
    for (size_t i = 0; i < part.cells.size(); ++i) {
        rows.push_back(content_sum(stored_row, side, record, part.cells[i], 0,
                                   slice(part.rows.bytes, i, part.cells.size())));
    }
    for (size_t i = 0; i < part.pages.size(); ++i) {
        pages.push_back(content_sum(stored_page, side, record, part.pages[i].first_cell,
                                    part.pages[i].coding(), slice(part.codes.bytes, i, part.pages.size())));
    }
    return {dated(rows, record.step, before != nullptr ? &before->rows : nullptr),
            dated(pages, record.step, before != nullptr ? &before->pages : nullptr)};
}

// How many cells a step must have written to turn one record's K or V into the next one's: every cell with
// another row, or held where nothing was; of each page that was decoded or coded anew without having been
// exact, one. A page that is in a narrower format than before has stepped down, which nobody needs to write
// for.
int64_t cells_written(const StampedRecord& a, const CachePart& before, const PartStamps& before_stamps,
                      const StampedRecord& b, const CachePart& after, const PartStamps& after_stamps) {
    constexpr int64_t kPage = 64;
    using Where = CellPlace::Where;
    const std::vector<CellPlace> was = locate_cells(a.record, before), is = locate_cells(b.record, after);
    const int64_t n_kv = std::min(a.record.n_kv, b.record.n_kv);
    int64_t written = 0;
    std::set<std::pair<int64_t, int64_t>> recoded;
    for (int64_t stream = 0; stream < b.record.n_stream; ++stream) {
        for (int64_t i = 0; i < n_kv; ++i) {
            const CellPlace& old = was[static_cast<size_t>(stream * a.record.n_kv + i)];
            const CellPlace& now = is[static_cast<size_t>(stream * b.record.n_kv + i)];
            const auto sum = [](const CellPlace& place, const PartStamps& stamps) {
                const auto& list = place.where == Where::row ? stamps.rows : stamps.pages;
                return list[static_cast<size_t>(place.index)].sum;
            };
            if (now.where == Where::nowhere) {
                if (old.where != Where::nowhere) {
                    fail(b.record,
                         cat("cell ", i, " holds nothing, in step ", a.record.step, " it held a row"));
                }
                continue;
            }
            if (old.where == Where::nowhere) {
                ++written;
            } else if (old.where == Where::page) {
                if (now.where == Where::page && after.pages[static_cast<size_t>(now.index)].format >
                                                    before.pages[static_cast<size_t>(old.index)].format) {
                    continue;
                }
                if (now.where != Where::page || sum(old, before_stamps) != sum(now, after_stamps)) {
                    recoded.emplace(stream, i / kPage);
                }
            } else if (now.where == Where::row && sum(old, before_stamps) != sum(now, after_stamps)) {
                ++written;
            }
        }
    }
    return written + static_cast<int64_t>(recoded.size());
}

class Follower {
  public:
    Follower(const StampedRecord& previous, const StampedRecord& next)
        : a_(previous.record), b_(next.record), previous_(previous), next_(next) {}

    void check() const {
        same("n_head", a_.n_head, b_.n_head);
        same("n_head_kv", a_.n_head_kv, b_.n_head_kv);
        same("n_stream", a_.n_stream, b_.n_stream);
        same("head_dim_k", a_.head_dim_k, b_.head_dim_k);
        same("head_dim_v", a_.head_dim_v, b_.head_dim_v);
        same("kq_scale", a_.kq_scale, b_.kq_scale);
        same("max_bias", a_.max_bias, b_.max_bias);
        same("logit_softcap", a_.logit_softcap, b_.logit_softcap);
        check_position();
        if (!a_.has_sources || !b_.has_sources || a_.cache != b_.cache) {
            return;  // a layer that the host moved elsewhere
        }
        check_part("K", a_.k, b_.k, previous_.k, next_.k);
        check_part("V", a_.v, b_.v, previous_.v, next_.v);
        same_origin("K", a_.k_view, b_.k_view);
        same_origin("V", a_.v_view, b_.v_view);
    }

  private:
    template <typename T>
    void same(const char* name, const T& a, const T& b) const {
        if (a != b) {
            fail(b_, cat(name, " is ", b, ", in step ", a_.step, " it was ", a));
        }
    }

    void check_position() const {
        const int64_t steps_between = b_.step - a_.step - 1,
                      earliest = a_.position + a_.n_tokens + steps_between;
        if (b_.position < earliest || (steps_between == 0 && b_.position != earliest)) {
            fail(b_, cat("its position is ", b_.position, " after ", a_.n_tokens, " tokens at position ",
                         a_.position, " in step ", a_.step));
        }
    }

    void check_part(const char* name, const CachePart& a, const CachePart& b, const PartStamps& a_stamps,
                    const PartStamps& b_stamps) const {
        same("a cold format", a.cold.format, b.cold.format);
        const int64_t written = cells_written(previous_, a, a_stamps, next_, b, b_stamps);
        // Steps in between, if the file has none of this layer, wrote an unknown number.
        if (b_.step == a_.step + 1 && written > b_.n_tokens * b_.n_stream) {
            fail(b_, cat(name, " differs from step ", a_.step, " in ", written, " or more cells, but ",
                         b_.n_tokens * b_.n_stream, " tokens were evaluated"));
        }
    }

    // The cache is made once.
    void same_origin(const char* name, const SourceView& a, const SourceView& b) const {
        if (!a.present || !b.present) {
            return;
        }
        if (a.type != b.type || a.name != b.name || a.origin_name != b.origin_name ||
            a.origin_ne != b.origin_ne) {
            fail(b_, cat(name, " is ", in_quotes(b.name), ", a view of ", in_quotes(b.origin_name), " ",
                         shape_text(b.origin_ne), ", in step ", a_.step, " it was ", in_quotes(a.name),
                         ", of ", in_quotes(a.origin_name), " ", shape_text(a.origin_ne)));
        }
    }

    const TraceRecord& a_;
    const TraceRecord& b_;
    const StampedRecord& previous_;
    const StampedRecord& next_;
};

int64_t tensor_sum(SumField field, const TraceRecord& record, const TensorData& tensor) {
    const Shape& ne = tensor.ne;
    return static_cast<int64_t>(Checksum()
                                    .add({static_cast<int64_t>(field), record.layer, record.step,
                                          static_cast<int64_t>(tensor.type), ne[0], ne[1], ne[2], ne[3]})
                                    .add(tensor.bytes)
                                    .value());
}

int64_t part_sum(SumField field, const TraceRecord& record, const CachePart& part, const PartStamps& stamps) {
    Checksum sum;
    // A part that is not there has no type.
    const int64_t type = part.cells.empty() ? -1 : static_cast<int64_t>(part.rows.type);
    sum.add({static_cast<int64_t>(field), record.layer, record.step, type});
    for (size_t i = 0; i < part.cells.size(); ++i) {
        sum.add({part.cells[i], stamps.rows[i].since, static_cast<int64_t>(stamps.rows[i].sum)});
    }
    for (size_t i = 0; i < part.pages.size(); ++i) {
        const ColdPage& page = part.pages[i];
        sum.add({page.first_cell, static_cast<int64_t>(page.held), page.coding(), stamps.pages[i].since,
                 static_cast<int64_t>(stamps.pages[i].sum)});
    }
    return static_cast<int64_t>(sum.value());
}

}  // namespace

std::pair<PartStamps, PartStamps> make_stamps(const TraceRecord& record, const StampedRecord* previous) {
    return {stamp_part(side_k, record, record.k, previous != nullptr ? &previous->k : nullptr),
            stamp_part(side_v, record, record.v, previous != nullptr ? &previous->v : nullptr)};
}

void check_follows(const StampedRecord* previous, const StampedRecord& next) {
    if (previous != nullptr) {
        Follower(*previous, next).check();
    } else if (next.record.position != 0 && next.record.step == 0) {
        fail(next.record, cat("the first step begins at position ", next.record.position));
    }
}

std::vector<int64_t> make_sums(const TraceRecord& r, const PartStamps& k, const PartStamps& v,
                               std::span<const int64_t> meta, std::span<const float> scalars) {
    const auto head = [&r](SumField field) {
        return Checksum().add({static_cast<int64_t>(field), r.layer, r.step});
    };
    std::vector<int64_t> sums(kSumFields, 0);
    sums[sum_meta] = static_cast<int64_t>(head(sum_meta).add(std::as_bytes(meta)).value());
    sums[sum_scalars] = static_cast<int64_t>(head(sum_scalars).add(std::as_bytes(scalars)).value());
    sums[sum_kqv_out] = tensor_sum(sum_kqv_out, r, r.kqv_out);
    if (r.has_sources) {
        sums[sum_q] = tensor_sum(sum_q, r, r.q);
        sums[sum_mask] = r.mask ? tensor_sum(sum_mask, r, *r.mask) : 0;
        sums[sum_sinks] = r.sinks ? tensor_sum(sum_sinks, r, *r.sinks) : 0;
        sums[sum_k] = part_sum(sum_k, r, r.k, k);
        sums[sum_v] = part_sum(sum_v, r, r.v, v);
    }
    return sums;
}

int64_t written_sum(WrittenSumField field, int32_t layer, int32_t step, const WrittenRows& written) {
    if (written.cells.empty()) {
        return 0;
    }
    const auto what = static_cast<int64_t>(kSumFields) + static_cast<int64_t>(field);
    Checksum sum;
    sum.add({what, layer, step, static_cast<int64_t>(written.rows.type), written.rows.ne[0],
             written.rows.ne[1], written.rows.ne[2], written.rows.ne[3]});
    for (const int32_t number : written.cells) {
        sum.add({number});
    }
    return static_cast<int64_t>(sum.add(written.rows.bytes).value());
}

std::vector<int64_t> make_written_sums(const TraceRecord& r) {
    return {written_sum(sum_k_written, r.layer, r.step, r.k_written),
            written_sum(sum_v_written, r.layer, r.step, r.v_written)};
}

void check_written(const TraceRecord& r, const PartStamps& k, const PartStamps& v) {
    const auto check = [&r](const char* name, const CachePart& part, const PartStamps& stamps,
                            const WrittenRows& written) {
        const std::vector<CellPlace> places = locate_cells(r, part);
        const size_t n = written.cells.size() / 2;
        for (size_t i = 0; i < n; ++i) {
            const int64_t cell = written.cells[2 * i] * r.n_kv + written.cells[2 * i + 1];
            const CellPlace& place = places[static_cast<size_t>(cell)];
            const auto index = static_cast<size_t>(place.index);
            bool right = false;
            if (place.where == CellPlace::Where::row && part.rows.type == GgmlType::f16) {
                const auto stored = slice(part.rows.bytes, index, part.cells.size());
                const auto given = slice(written.rows.bytes, i, n);
                right = std::equal(stored.begin(), stored.end(), given.begin(), given.end());
            } else if (place.where != CellPlace::Where::nowhere) {
                const auto& list = place.where == CellPlace::Where::row ? stamps.rows : stamps.pages;
                right = list[index].since == r.step;
            }
            if (!right) {
                fail(r, cat(name, ": row ", i, " is not what this step stored in cell ", cell));
            }
        }
    };
    if (!r.keeps_written) {
        return;
    }
    check("k_written", r.k, k, r.k_written);
    if (!r.v_is_view_of_k) {
        check("v_written", r.v, v, r.v_written);
    }
}

uint64_t file_sum(TraceForm form, uint64_t n_records, std::span<const std::string> strings,
                  std::span<const std::pair<std::string, std::string>> info) {
    Checksum sum;
    const auto add_text = [&sum](std::string_view text) {
        sum.add({static_cast<int64_t>(text.size())}).add(std::as_bytes(std::span(text)));
    };
    sum.add(
        {static_cast<int64_t>(form), static_cast<int64_t>(n_records), static_cast<int64_t>(strings.size())});
    std::for_each(strings.begin(), strings.end(), add_text);
    for (const auto& [name, text] : info) {
        add_text(name);
        add_text(text);
    }
    return sum.value();
}

const char* sum_name(size_t field) {
    static constexpr const char* kNames[kSumFields] = {"meta", "scalars", "kqv_out", "q",
                                                       "mask", "sinks",   "k",       "v"};
    return kNames[field];
}

}  // namespace mixed_kv::trace
