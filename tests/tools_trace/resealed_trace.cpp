#include "resealed_trace.h"

#include <algorithm>
#include <cstring>

#include "trace/checksum.h"
#include "trace/trace_schema.h"

namespace mixed_kv::test {

using trace::Checksum;

ResealedTrace::ResealedTrace(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {
    const trace::GgufReader file(trace::memory_source(bytes_, "trace"));
    for (size_t i = 0; i < file.n_tensors(); ++i) {
        const trace::GgufTensor t = file.tensor(i);
        const auto name = trace::parse_tensor_name(t.name);
        by_name_[std::string(t.name)] = tensors_.size();
        tensors_.push_back({std::string(t.name), std::string(name->kind), name->layer, name->step, t.type,
                            t.ne, size_t(t.offset), size_t(t.bytes)});
    }
}

const ResealedTrace::Tensor* ResealedTrace::find(const std::string& kind, int32_t layer, int32_t step) const {
    const auto found = by_name_.find(trace::tensor_name(kind, layer, step));
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

size_t ResealedTrace::n_tensor_bytes() const {
    size_t n = 0;
    for (const Tensor& t : tensors_) n += t.bytes;
    return n;
}

template <typename T>
std::vector<T> ResealedTrace::values(const Tensor* tensor) const {
    std::vector<T> values(tensor == nullptr ? 0 : tensor->bytes / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes_.data() + tensor->offset, tensor->bytes);
    return values;
}

void ResealedTrace::put(const Tensor* tensor, const std::vector<int64_t>& numbers) {
    if (tensor == nullptr) return;
    std::memcpy(bytes_.data() + tensor->offset, numbers.data(),
                std::min(tensor->bytes, numbers.size() * sizeof(int64_t)));
}

void ResealedTrace::reseal() {
    versions_.clear();
    for (const Tensor& t : tensors_) {
        if (t.kind == "sums") reseal_record(t.layer, t.step);
    }
}

void ResealedTrace::reseal_record(int32_t layer, int32_t step) {
    const auto meta = values<int64_t>(find("meta", layer, step));
    std::vector<int64_t> sums(8, 0);
    const auto span = [this](const Tensor* t) { return std::span(bytes_).subspan(t->offset, t->bytes); };
    const auto plain = [&](int64_t i, const char* kind) {
        const Tensor* t = find(kind, layer, step);
        sums[size_t(i)] = int64_t(Checksum().add({i, layer, step}).add(span(t)).value());
    };
    const auto shaped = [&](int64_t i, const char* kind, int64_t at_layer, int64_t at_step) {
        const Tensor* t = find(kind, int32_t(at_layer), int32_t(at_step));
        if (t == nullptr) return;
        sums[size_t(i)] =
            int64_t(Checksum()
                        .add({i, layer, step, int64_t(t->type), t->ne[0], t->ne[1], t->ne[2], t->ne[3]})
                        .add(span(t))
                        .value());
    };
    plain(0, "meta");
    plain(1, "scalars");
    shaped(2, "kqv_out", layer, step);
    if ((meta[5] & 4) == 0) {
        shaped(3, "q", layer, step);
        shaped(4, "mask", meta[40 + 32 * 4 + 26], meta[40 + 32 * 4 + 27]);
        shaped(5, "sinks", meta[40 + 32 * 5 + 26], meta[40 + 32 * 5 + 27]);
        sums[6] = reseal_part('k', layer, step, meta[9]);
        sums[7] = reseal_part('v', layer, step, meta[9]);
    }
    put(find("sums", layer, step), sums);
    put(find("written_sums", layer, step),
        {written_sum(8, "k_written", layer, step), written_sum(9, "v_written", layer, step)});
}

int64_t ResealedTrace::written_sum(int64_t what, const std::string& kind, int32_t layer, int32_t step) const {
    const Tensor* rows = find(kind, layer, step);
    if (rows == nullptr) return 0;
    const trace::Shape& ne = rows->ne;
    Checksum sum;
    sum.add({what, layer, step, int64_t(rows->type), ne[0], ne[1], ne[2], ne[3]});
    for (const int32_t number : values<int32_t>(find(kind + "_cells", layer, step))) sum.add({number});
    return int64_t(sum.add(std::span(bytes_).subspan(rows->offset, rows->bytes)).value());
}

int64_t ResealedTrace::reseal_part(char side, int32_t layer, int32_t step, int64_t n_kv) {
    const std::string k(1, side);
    const bool compact = find(k + "_ids", layer, step) != nullptr;
    // Of what the record stores: n pieces, and where each lies; gives their checksums.
    const auto sums_of = [&](int64_t what, const Tensor* data,
                             const std::vector<std::array<int64_t, 2>>& places) {
        std::vector<int64_t> sums;
        const size_t each = places.empty() || data == nullptr ? 0 : data->bytes / places.size();
        for (size_t i = 0; i < places.size(); ++i) {
            const auto [cell, rotation] = places[i];
            sums.push_back(
                int64_t(Checksum()
                            .add({what, side == 'v', layer, n_kv == 0 ? 0 : cell / n_kv,
                                  n_kv == 0 ? 0 : cell % n_kv, rotation})
                            .add(std::span(bytes_).subspan(each == 0 ? 0 : data->offset + i * each, each))
                            .value()));
        }
        return sums;
    };
    struct Entry {
        int64_t first, held, rotation, since_or_id;
    };
    std::vector<Entry> rows, pages;
    if (compact) {
        const auto runs = values<int32_t>(find(k + "_ids", layer, step));
        for (size_t i = 0; i + 2 < runs.size(); i += 3) {
            for (int32_t j = 0; j < std::clamp(runs[i + 1], 0, 100000); ++j) {
                rows.push_back({int64_t(runs[i]) + j, 0, 0, int64_t(runs[i + 2]) + j});
            }
        }
    } else {
        const auto list = values<int32_t>(find(k + "_rows", layer, step));
        for (size_t i = 0; i + 1 < list.size(); i += 2) rows.push_back({list[i], 0, 0, list[i + 1]});
    }
    const auto list = values<int64_t>(find(k + (compact ? "_page_ids" : "_pages"), layer, step));
    for (size_t i = 0; i + 3 < list.size(); i += 4)
        pages.push_back({list[i], list[i + 1], list[i + 2], list[i + 3]});

    const Tensor* data = find(k, layer, step);
    const int64_t type = rows.empty() ? -1 : int64_t(data != nullptr ? data->type : find(k, layer, 0)->type);
    Checksum part;
    part.add({side == 'k' ? 6 : 7, layer, step, type});
    const auto add = [&](int64_t what, const std::string& kind, const std::string& sums_kind,
                         std::vector<Entry>& entries) {
        const Tensor* stored = find(kind, layer, step);
        const Tensor* sums_tensor = find(sums_kind, layer, step);
        std::vector<std::array<int64_t, 2>> places;
        std::vector<int64_t> sums;
        if (!compact) {
            for (const Entry& e : entries) places.push_back({e.first, e.rotation});
            sums = sums_of(what, stored, places);
            put(sums_tensor, sums);
        } else {
            Versions& versions = versions_[kind + std::to_string(layer)];
            const auto first_new = int64_t(versions.sums.size());
            const int64_t n_new = stored == nullptr ? 0 : stored->ne[2];
            places.assign(size_t(n_new), {0, 0});
            for (const Entry& e : entries) {
                if (e.since_or_id >= first_new && e.since_or_id < first_new + n_new) {
                    places[size_t(e.since_or_id - first_new)] = {e.first, e.rotation};
                }
            }
            const std::vector<int64_t> fresh = sums_of(what, stored, places);
            put(sums_tensor, fresh);
            versions.sums.insert(versions.sums.end(), fresh.begin(), fresh.end());
            versions.since.resize(versions.sums.size(), step);
            for (Entry& e : entries) {
                const bool known = e.since_or_id >= 0 && e.since_or_id < int64_t(versions.sums.size());
                const auto id = size_t(known ? e.since_or_id : 0);
                sums.push_back(known ? versions.sums[id] : 0);
                e.since_or_id = known ? versions.since[id] : -1;
            }
        }
        for (size_t i = 0; i < entries.size(); ++i) {
            const Entry& e = entries[i];
            if (what == 0) {
                part.add({e.first, e.since_or_id, sums[i]});
            } else {
                part.add({e.first, e.held, e.rotation, e.since_or_id, sums[i]});
            }
        }
    };
    add(0, k, k + "_sums", rows);
    add(1, k + "_quant", k + "_page_sums", pages);
    return int64_t(part.value());
}

}  // namespace mixed_kv::test
