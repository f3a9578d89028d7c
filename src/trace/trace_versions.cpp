#include "trace/trace_versions.h"

#include <algorithm>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {

void VersionIndex::add(const Key& key, int32_t step, const GgufReader& gguf, size_t tensor) {
    std::vector<Slice>& slices = slices_[key];
    const GgufTensor info = gguf.tensor(tensor);
    const int64_t first = slices.empty() ? 0 : slices.back().first_id + slices.back().count;
    if (info.ne[2] > INT32_MAX - first) {
        throw Error(cat("tensor ", in_quotes(info.name), ": more than 2^31 versions of one layer's rows"));
    }
    if (info.ne[2] == 0 || (!slices.empty() && slices.back().step >= step)) {
        throw Error(cat("tensor ", in_quotes(info.name), " is empty, or steps are out of order"));
    }
    const uint64_t before = slices.empty() ? 0 : slices.back().bytes_so_far;
    slices.push_back({first, info.ne[2], step, tensor, before + info.bytes});
}

int64_t VersionIndex::n_stored(const Key& key, int32_t step) const {
    const auto found = slices_.find(key);
    if (found == slices_.end()) {
        return 0;
    }
    const auto slice = std::lower_bound(found->second.begin(), found->second.end(), step,
                                        [](const Slice& s, int32_t at) { return s.step < at; });
    return slice != found->second.end() && slice->step == step ? slice->count : 0;
}

GgmlType VersionIndex::type(const Key& key, const GgufReader& gguf, GgmlType otherwise) const {
    const auto found = slices_.find(key);
    return found == slices_.end() ? otherwise : gguf.tensor(found->second.front().tensor).type;
}

uint64_t VersionIndex::checked_bytes(const Key& key, const TensorData& wanted) const {
    const auto found = slices_.find(key);
    const uint64_t stored = found == slices_.end() ? 0 : found->second.back().bytes_so_far;
    const uint64_t bytes = tensor_bytes(wanted.type, wanted.ne);
    if (bytes > stored) {
        throw Error(cat("layer ", key.second, ", ", key.first, ": the record needs ", bytes,
                        " bytes, the file holds ", stored));
    }
    return bytes;
}

template <typename Use>
void VersionIndex::for_slices(const Key& key, int64_t first_id, int64_t count, Use use) const {
    const auto found = slices_.find(key);
    const int64_t n_versions =
        found == slices_.end() ? 0 : found->second.back().first_id + found->second.back().count;
    if (first_id < 0 || count > n_versions || first_id > n_versions - count) {
        throw Error(cat("layer ", key.second, ", ", key.first, ": ids ", first_id, " to ",
                        first_id + count - 1, " are not below ", n_versions));
    }
    auto slice = std::upper_bound(found->second.begin(), found->second.end(), first_id,
                                  [](int64_t id, const Slice& s) { return id < s.first_id; });
    for (--slice; count > 0; ++slice) {
        const int64_t skip = first_id - slice->first_id;
        const int64_t n = std::min(count, slice->count - skip);
        use(*slice, skip, n);
        first_id += n;
        count -= n;
    }
}

void VersionIndex::stamps(const Key& key, const std::string& sums_kind, const GgufReader& gguf,
                          int64_t first_id, int64_t count, std::vector<Stamp>& out) const {
    for_slices(key, first_id, count, [&](const Slice& slice, int64_t skip, int64_t n) {
        const GgufTensor sums = gguf.require_tensor(tensor_name(sums_kind, key.second, slice.step));
        if (sums.type != GgmlType::i64 || sums.ne != Shape{slice.count, 1, 1, 1}) {
            throw Error(cat("tensor ", in_quotes(sums.name), " is not one i64 for each of ", slice.count,
                            " versions"));
        }
        std::vector<uint64_t> some(static_cast<size_t>(n));
        gguf.read_bytes(sums, static_cast<uint64_t>(skip) * sizeof(uint64_t),
                        std::as_writable_bytes(std::span(some)));
        for (const uint64_t sum : some) {
            out.push_back({slice.step, sum});
        }
    });
}

void VersionIndex::read(const Key& key, const GgufReader& gguf, int64_t first_id, int64_t count,
                        uint64_t expected_bytes, TensorData& out) const {
    for_slices(key, first_id, count, [&](const Slice& slice, int64_t skip, int64_t n) {
        const GgufTensor tensor = gguf.tensor(slice.tensor);
        if (tensor.type != out.type || tensor.ne[0] != out.ne[0] || tensor.ne[1] != out.ne[1] ||
            tensor.ne[3] != 1) {
            throw Error(cat("tensor ", in_quotes(tensor.name), ": shape ", shape_text(tensor.ne),
                            " or its type differs from ", shape_text(out.ne), " of the record"));
        }
        const uint64_t each = tensor.bytes / static_cast<uint64_t>(slice.count);
        const size_t before = out.bytes.size();
        const uint64_t more = each * static_cast<uint64_t>(n);
        if (more > expected_bytes - before) {
            throw Error(cat("layer ", key.second, ", ", key.first, ": more rows than the record has"));
        }
        out.bytes.resize(before + more);
        gguf.read_bytes(tensor, each * static_cast<uint64_t>(skip), std::span(out.bytes).subspan(before));
    });
}

}  // namespace mixed_kv::trace
