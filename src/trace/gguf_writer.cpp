#include "trace/gguf_writer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are written as they lie in memory");

constexpr uint64_t kAlignment = kGgufDefaultAlignment;
constexpr uint64_t kFileBlock = 4096;
constexpr size_t kBufferBytes = 256 * 1024;
constexpr size_t kCopyBytes = 1024 * 1024;
constexpr uint64_t kHeaderBytes = 4 + 4 + 8 + 8;
constexpr std::string_view kPaddingKey = "mixed_kv.padding";
// Name length, a name as long as the schema's, n_dims, four dimensions, type, offset.
constexpr uint64_t kTypicalInfoBytes = 8 + 28 + 4 + 4 * 8 + 4 + 8;

constexpr uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

// Not insert(): GCC 12 sees an overflow in it that cannot happen (-Wstringop-overflow).
void put(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
    const size_t at = out.size();
    out.resize(at + bytes.size());
    if (!bytes.empty()) {
        std::memcpy(out.data() + at, bytes.data(), bytes.size());
    }
}

template <typename T>
void put_value(std::vector<std::byte>& out, T value) {
    put(out, std::as_bytes(std::span(&value, 1)));
}

void put_string(std::vector<std::byte>& out, std::string_view text) {
    put_value<uint64_t>(out, text.size());
    put(out, std::as_bytes(std::span(text)));
}

uint64_t header_room(const GgufWriterOptions& options) {
    return round_up(kHeaderBytes + options.expected_kv_bytes + options.expected_tensors * kTypicalInfoBytes,
                    kFileBlock);
}

}  // namespace

template <typename File>
void GgufStreamWriter::Appender<File>::append(std::span<const std::byte> bytes) {
    if (buffer_.size() + bytes.size() > kBufferBytes) {
        flush();
    }
    if (bytes.size() >= kBufferBytes) {
        file_.write_at(offset_, bytes);
        offset_ += bytes.size();
    } else {
        put(buffer_, bytes);
    }
}

template <typename File>
void GgufStreamWriter::Appender<File>::flush() {
    if (!buffer_.empty()) {
        file_.write_at(offset_, buffer_);
        offset_ += buffer_.size();
        buffer_.clear();
    }
}

GgufStreamWriter::GgufStreamWriter(const std::filesystem::path& path, const GgufWriterOptions& options)
    : file_(path, options.expected_bytes, options.temp),
      infos_file_(path),
      data_start_(header_room(options)),
      data_(file_, data_start_),
      infos_(infos_file_, 0) {}

GgufStreamWriter::~GgufStreamWriter() = default;

void GgufStreamWriter::require(State state, const char* what) const {
    if (state_ == state) {
        return;
    }
    const char* why = state_ == State::failed      ? "an earlier error made the file unusable"
                      : state_ == State::finished  ? "the file is finished"
                      : state_ == State::in_tensor ? "a tensor is still being written"
                                                   : "no tensor was begun";
    throw Error(cat("cannot write '", file_.target_name(), "': ", what, ": ", why));
}

template <typename Action>
void GgufStreamWriter::guarded(Action action) {
    try {
        action();
    } catch (...) {
        state_ = State::failed;
        throw;
    }
}

void GgufStreamWriter::set_raw(std::string_view key, GgufType type, std::span<const std::byte> value) {
    if (state_ == State::finished || state_ == State::failed) {
        require(State::open, "setting a key");
    }
    if (key.empty() || key.size() > kMaxKey || key == kGgufAlignmentKey || key == kPaddingKey) {
        throw Error(cat("cannot write '", file_.target_name(), "': key ", in_quotes(key), " is not allowed"));
    }
    std::vector<std::byte> stored;
    put_value(stored, type);
    put(stored, value);
    kvs_.insert_or_assign(std::string(key), std::move(stored));
}

void GgufStreamWriter::set_raw_array(std::string_view key, GgufType type, uint64_t count,
                                     std::span<const std::byte> values) {
    std::vector<std::byte> stored;
    put_value(stored, type);
    put_value(stored, count);
    put(stored, values);
    set_raw(key, GgufType::array, stored);
}

void GgufStreamWriter::set(std::string_view key, bool value) {
    const uint8_t byte = value ? 1 : 0;
    set_raw(key, GgufType::boolean, std::as_bytes(std::span(&byte, 1)));
}

void GgufStreamWriter::set(std::string_view key, std::string_view value) {
    std::vector<std::byte> stored;
    put_string(stored, value);
    set_raw(key, GgufType::string, stored);
}

void GgufStreamWriter::set_array(std::string_view key, std::span<const std::string> values) {
    std::vector<std::byte> stored;
    for (const std::string& value : values) {
        put_string(stored, value);
    }
    set_raw_array(key, GgufType::string, values.size(), stored);
}

void GgufStreamWriter::add_tensor(std::string_view name, GgmlType type, const Shape& ne,
                                  std::span<const std::byte> data) {
    begin_tensor(name, type, ne);
    write_data(data);
    end_tensor();
}

void GgufStreamWriter::begin_tensor(std::string_view name, GgmlType type, const Shape& ne) {
    require(State::open, "beginning a tensor");
    guarded([&] {
        if (name.empty() || name.size() > kMaxTensorName || name.find('\0') != std::string_view::npos) {
            throw Error(cat("cannot write '", file_.target_name(), "': tensor name ", in_quotes(name), " of ",
                            name.size(), " bytes: 1 to ", kMaxTensorName, " bytes and no NUL are allowed"));
        }
        tensor_bytes_left_ = tensor_bytes(type, ne);
        put_tensor_info(name, type, ne);
        state_ = State::in_tensor;
    });
}

void GgufStreamWriter::put_tensor_info(std::string_view name, GgmlType type, const Shape& ne) {
    uint32_t n_dims = 4;
    while (n_dims > 1 && ne[n_dims - 1] == 1) {
        --n_dims;
    }
    std::vector<std::byte> info;
    put_string(info, name);
    put_value(info, n_dims);
    for (uint32_t i = 0; i < n_dims; ++i) {
        put_value(info, ne[i]);
    }
    put_value(info, type);
    put_value(info, data_bytes_);
    infos_.append(info);
    ++n_tensors_;
}

void GgufStreamWriter::write_data(std::span<const std::byte> data) {
    require(State::in_tensor, "writing tensor data");
    guarded([&] {
        if (data.size() > tensor_bytes_left_) {
            throw Error(cat("cannot write '", file_.target_name(), "': ", data.size(),
                            " bytes of tensor data, the shape leaves room for ", tensor_bytes_left_));
        }
        data_.append(data);
        data_bytes_ += data.size();
        tensor_bytes_left_ -= data.size();
    });
}

void GgufStreamWriter::end_tensor() {
    require(State::in_tensor, "ending a tensor");
    guarded([&] {
        if (tensor_bytes_left_ != 0) {
            throw Error(cat("cannot write '", file_.target_name(), "': ", tensor_bytes_left_,
                            " bytes of tensor data are missing"));
        }
        constexpr std::array<std::byte, kAlignment> kZeros{};
        const uint64_t padding = round_up(data_bytes_, kAlignment) - data_bytes_;
        data_.append(std::span(kZeros).first(padding));
        data_bytes_ += padding;
        state_ = State::open;
    });
}

void GgufStreamWriter::finish() {
    require(State::open, "finishing");
    guarded([&] {
        write_file();
        state_ = State::finished;
    });
}

void GgufStreamWriter::write_file() {
    data_.flush();
    infos_.flush();
    check_names();

    std::vector<std::byte> head;
    put(head, std::as_bytes(std::span(kGgufMagic)));
    put_value(head, kGgufVersion);
    put_value<uint64_t>(head, n_tensors_);
    put_value<uint64_t>(head, kvs_.size() + 1);
    for (const auto& [key, stored] : kvs_) {
        put_string(head, key);
        put(head, stored);
    }
    put_string(head, kPaddingKey);
    put_value(head, GgufType::string);
    const uint64_t infos_bytes = infos_.position();
    const uint64_t needed = head.size() + sizeof(uint64_t) + infos_bytes;
    if (needed > data_start_) {
        const uint64_t start = round_up(needed, kAlignment);
        move_data(data_start_, start);
        data_start_ = start;
    }
    put_value<uint64_t>(head, data_start_ - needed);

    // The padding may be long: written in pieces, like the list of tensors behind it.
    Appender<AtomicFile> out(file_, 0);
    out.append(head);
    std::vector<std::byte> piece(kCopyBytes, std::byte{' '});
    for (uint64_t left = data_start_ - needed; left > 0;) {
        const uint64_t n = std::min<uint64_t>(left, piece.size());
        out.append(std::span(piece).first(n));
        left -= n;
    }
    for (uint64_t done = 0; done < infos_bytes;) {
        const std::span<std::byte> part =
            std::span(piece).first(std::min<uint64_t>(infos_bytes - done, piece.size()));
        infos_file_.read_at(done, part);
        out.append(part);
        done += part.size();
    }
    out.flush();
    file_.resize(data_start_ + data_bytes_);
    file_.publish();
}

// Names are compared once, here, by hash: remembering a million names while streaming would not be constant
// memory. A hash that occurs twice is settled by comparing the names themselves.
void GgufStreamWriter::check_names() {
    struct Entry {
        uint64_t hash;
        uint64_t position;  // of the name's length in the scratch file
    };
    std::vector<Entry> entries;
    entries.reserve(n_tensors_);
    const auto name_at = [this](uint64_t position) {
        uint64_t length = 0;
        infos_file_.read_at(position, std::as_writable_bytes(std::span(&length, 1)));
        std::string name(length, '\0');
        infos_file_.read_at(position + sizeof(length), std::as_writable_bytes(std::span(name)));
        return name;
    };
    std::vector<std::byte> window;
    uint64_t window_start = 0;
    const auto load = [&](uint64_t position, void* out, size_t n) {
        if (position < window_start || position + n > window_start + window.size()) {
            window.resize(std::min<uint64_t>(kCopyBytes, infos_.position() - position));
            infos_file_.read_at(position, window);
            window_start = position;
        }
        std::memcpy(out, window.data() + (position - window_start), n);
    };
    for (uint64_t position = 0; position < infos_.position();) {
        uint64_t length = 0;
        load(position, &length, sizeof(length));
        std::array<char, kMaxTensorName> name{};
        load(position + sizeof(length), name.data(), length);
        entries.push_back({std::hash<std::string_view>{}({name.data(), length}), position});
        uint32_t n_dims = 0;
        load(position + sizeof(length) + length, &n_dims, sizeof(n_dims));
        position += sizeof(length) + length + sizeof(n_dims) + 8 * uint64_t{n_dims} + 4 + 8;
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.hash < b.hash; });
    for (size_t i = 1; i < entries.size(); ++i) {
        for (size_t j = i; j > 0 && entries[j - 1].hash == entries[i].hash; --j) {
            if (name_at(entries[j - 1].position) == name_at(entries[i].position)) {
                throw Error(cat("cannot write '", file_.target_name(), "': two tensors are named ",
                                in_quotes(name_at(entries[i].position))));
            }
        }
    }
}

// Moves the data section towards the end, last piece first because source and destination overlap.
void GgufStreamWriter::move_data(uint64_t from, uint64_t to) {
    std::vector<std::byte> piece(kCopyBytes);
    for (uint64_t left = data_bytes_; left > 0;) {
        const std::span<std::byte> part = std::span(piece).first(std::min<uint64_t>(left, piece.size()));
        left -= part.size();
        file_.read_at(from + left, part);
        file_.write_at(to + left, part);
    }
}

}  // namespace mixed_kv::trace
