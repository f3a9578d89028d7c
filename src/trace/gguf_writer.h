#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trace/atomic_file.h"
#include "trace/ggml_types.h"
#include "trace/gguf_format.h"

namespace mixed_kv::trace {

struct GgufWriterOptions {
    // What the whole file will take; refused at once if the folder has less free. 0: unknown, not checked.
    uint64_t expected_bytes = 0;
    // How many tensors will come and how long their names are, about: decides how much room is kept for the
    // header. If it does not suffice, finish() moves the data once, in place.
    uint64_t expected_tensors = 0;
    uint64_t expected_kv_bytes = 4096;
    TempFile temp = TempFile::unnamed_if_possible;
};

// Writes a GGUF 3 file whose tensors are not known beforehand, in constant memory whatever their number and
// size, and shows it under its name only when it is complete (see AtomicFile).
//
// GGUF puts the tensor list before the data. The data are written first, behind a reserved gap; the list
// waits in a scratch file; finish() fills the gap with header, key-value pairs and list. What is left of the
// gap goes into a string of blanks under the key "mixed_kv.padding", so that stock readers find the data
// where they expect them.
//
// Errors throw mixed_kv::Error; afterwards the writer refuses everything and its destructor removes the
// unfinished file. A writer destroyed without finish() leaves nothing either.
class GgufStreamWriter {
  public:
    explicit GgufStreamWriter(const std::filesystem::path& path, const GgufWriterOptions& options = {});
    ~GgufStreamWriter();
    GgufStreamWriter(const GgufStreamWriter&) = delete;
    GgufStreamWriter& operator=(const GgufStreamWriter&) = delete;

    // Key-value pairs: any time before finish(); setting a key again replaces its value. Throws Error for a
    // key that is empty, longer than 65535 bytes, or reserved for the writer ("general.alignment").
    template <GgufNumber T>
    void set(std::string_view key, T value) {
        set_raw(key, kGgufTypeOf<T>, std::as_bytes(std::span(&value, 1)));
    }
    void set(std::string_view key, bool value);
    void set(std::string_view key, std::string_view value);
    void set(std::string_view key, const char* value) { set(key, std::string_view(value)); }
    template <GgufNumber T>
    void set_array(std::string_view key, std::span<const T> values) {
        set_raw_array(key, kGgufTypeOf<T>, values.size(), std::as_bytes(values));
    }
    void set_array(std::string_view key, std::span<const std::string> values);

    // Writes a tensor: `ne` in ggml's order, `data` contiguous and of exactly tensor_bytes(type, ne) bytes.
    // The name has 1 to 63 bytes; names must differ (finish() checks that).
    void add_tensor(std::string_view name, GgmlType type, const Shape& ne, std::span<const std::byte> data);

    // The same in pieces: begin_tensor, then data until the tensor is full, then end_tensor.
    void begin_tensor(std::string_view name, GgmlType type, const Shape& ne);
    void write_data(std::span<const std::byte> data);
    void end_tensor();

    // Completes the file and gives it its name. Nothing may follow.
    void finish();

    uint64_t n_tensors() const noexcept { return n_tensors_; }

    // Tensor data so far, padding included; the file will have this and a header.
    uint64_t data_bytes() const noexcept { return data_bytes_; }

  private:
    // Appends to a file through a buffer of fixed size.
    template <typename File>
    class Appender {
      public:
        Appender(File& file, uint64_t offset) : file_(file), offset_(offset) {}
        void append(std::span<const std::byte> bytes);
        void flush();
        uint64_t position() const noexcept { return offset_ + buffer_.size(); }

      private:
        File& file_;
        uint64_t offset_;  // where the buffer's first byte belongs
        std::vector<std::byte> buffer_;
    };
    enum class State { open, in_tensor, finished, failed };

    void require(State state, const char* what) const;
    // Runs `action`; an error makes the writer unusable.
    template <typename Action>
    void guarded(Action action);
    void set_raw(std::string_view key, GgufType type, std::span<const std::byte> value);
    void set_raw_array(std::string_view key, GgufType type, uint64_t count,
                       std::span<const std::byte> values);
    void put_tensor_info(std::string_view name, GgmlType type, const Shape& ne);
    void write_file();
    void check_names();
    void move_data(uint64_t from, uint64_t to);

    AtomicFile file_;
    ScratchFile infos_file_;
    uint64_t data_start_;  // offset of the data section in the unfinished file
    Appender<AtomicFile> data_;
    Appender<ScratchFile> infos_;
    std::map<std::string, std::vector<std::byte>, std::less<>> kvs_;  // key -> type and value as stored
    uint64_t n_tensors_ = 0;
    uint64_t data_bytes_ = 0;
    uint64_t tensor_bytes_left_ = 0;
    State state_ = State::open;
};

}  // namespace mixed_kv::trace
