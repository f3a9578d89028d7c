// libFuzzer harness for everything that reads untrusted files: the GGUF reader and the trace reader. Whatever
// the bytes are, the only outcome besides success is mixed_kv::Error.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/bin/fuzz_gguf_reader -dict=fuzz/gguf.dict -max_len=32768 WORK_FOLDER fuzz/corpus/gguf_reader

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_reader.h"
#include "trace/trace_reader.h"

namespace {

using namespace mixed_kv::trace;

template <typename T>
void read_kv(const GgufReader& file, size_t index) {
    const std::string key(file.key(index));
    try {
        if (file.kv_is_array(index)) {
            if constexpr (!std::is_same_v<T, bool>) {
                (void)file.get_array<T>(key);
            }
        } else {
            (void)file.get<T>(key);
        }
    } catch (const mixed_kv::Error&) {
    }
}

void read_everything(const GgufReader& file) {
    for (size_t i = 0; i < file.n_kv(); ++i) {
        switch (file.kv_type(i)) {
            case GgufType::string:
                read_kv<std::string>(file, i);
                break;
            case GgufType::boolean:
                read_kv<bool>(file, i);
                break;
            case GgufType::f64:
                read_kv<double>(file, i);
                break;
            case GgufType::u8:
                read_kv<uint8_t>(file, i);
                break;
            default:
                read_kv<int32_t>(file, i);
                break;
        }
    }
    for (size_t i = 0; i < file.n_tensors(); ++i) {
        const GgufTensor tensor = file.tensor(i);
        (void)file.read_bytes(tensor);
        (void)file.require_tensor(tensor.name);
    }
}

void read_trace(GgufReader file) {
    constexpr size_t kMaxRecords = 8;  // enough to meet every kind; more only slow the search down
    const TraceReader trace(std::move(file));
    (void)trace.info();
    size_t n = 0;
    for (const RecordId id : trace.records()) {
        if (++n > kMaxRecords) {
            break;
        }
        try {
            const TraceRecord record = trace.load(id);
            (void)locate_cells(record, record.k);
            (void)locate_cells(record, record.v);
        } catch (const mixed_kv::Error&) {
        }
        (void)trace.tensors(id);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try {
        GgufReader file(memory_source(bytes, "fuzz"));
        read_everything(file);
        read_trace(std::move(file));
    } catch (const mixed_kv::Error&) {
    }
    return 0;
}
