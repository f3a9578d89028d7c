#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "trace/gguf_reader.h"
#include "trace/trace_stamps.h"

namespace mixed_kv::trace {

// Internal to the trace library: the rows and pages of a compact file, each stored once and numbered from 0
// through the file within its layer and kind ("k", "v", "k_quant", "v_quant").
class VersionIndex {
  public:
    using Key = std::pair<std::string, int32_t>;  // kind and layer

    // The file's tensor `tensor` holds versions; tensors come in the order of their steps.
    void add(const Key& key, int32_t step, const GgufReader& gguf, size_t tensor);

    // Versions that the layer's record of this step stores.
    int64_t n_stored(const Key& key, int32_t step) const;

    // The type of the values, `otherwise` if there is no version.
    GgmlType type(const Key& key, const GgufReader& gguf, GgmlType otherwise) const;

    // Bytes of the rows or pages of a record. Throws Error if they are more than all versions together, which
    // one record cannot hold: without this a small file could list one large row a million times.
    uint64_t checked_bytes(const Key& key, const TensorData& wanted) const;

    // The stamps of the versions [first_id, first_id + count): `sums_kind` are the tensors of checksums
    // beside those of versions. Throws Error for ids that are not there.
    void stamps(const Key& key, const std::string& sums_kind, const GgufReader& gguf, int64_t first_id,
                int64_t count, std::vector<Stamp>& out) const;

    // Appends the bytes of versions [first_id, first_id + count) to out, which are to be expected_bytes in
    // all.
    void read(const Key& key, const GgufReader& gguf, int64_t first_id, int64_t count,
              uint64_t expected_bytes, TensorData& out) const;

  private:
    struct Slice {
        int64_t first_id = 0;
        int64_t count = 0;
        int32_t step = 0;
        size_t tensor = 0;
        uint64_t bytes_so_far = 0;  // of all versions up to and with this tensor
    };
    // Calls use(slice, skip, n) for every tensor that holds some of these versions: n of them behind the
    // first skip.
    template <typename Use>
    void for_slices(const Key& key, int64_t first_id, int64_t count, Use use) const;

    std::map<Key, std::vector<Slice>> slices_;
};

}  // namespace mixed_kv::trace
