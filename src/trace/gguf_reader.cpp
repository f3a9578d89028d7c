#include "trace/gguf_reader.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie in the file");

// A name's length, then four bytes of type and at least one byte of value.
constexpr uint64_t kMinKvBytes = 8 + 1 + 4 + 1;
// A name's length and one character, n_dims, type, offset (a tensor may have no dimensions).
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

// FNV-1a. Colliding names cost nothing but a comparison: the index is sorted by hash and then by name, so no
// choice of names makes it quadratic.
uint64_t hash_name(std::string_view name) noexcept {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const char c : name) {
        hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
    }
    return hash;
}

template <typename Index, typename NameAt>
std::optional<size_t> find_name(const Index& index, std::string_view name, NameAt name_at) noexcept {
    const uint64_t hash = hash_name(name);
    auto it = std::lower_bound(index.begin(), index.end(), hash,
                               [](const auto& entry, uint64_t wanted) { return entry.hash < wanted; });
    for (; it != index.end() && it->hash == hash; ++it) {
        if (name_at(it->index) == name) {
            return it->index;
        }
    }
    return std::nullopt;
}

}  // namespace

GgufReader::GgufReader(const std::filesystem::path& path, const GgufLimits& limits)
    : GgufReader(open_file_source(path), limits) {}

GgufReader::GgufReader(std::unique_ptr<ByteSource> source, const GgufLimits& limits)
    : source_(std::move(source)), limits_(limits) {
    ByteCursor cursor(*source_);
    read_header(cursor);
    read_kv(cursor);
    kv_index_ = index_names(kvs_, &Kv::key, "key");
    read_alignment();
    read_tensor_info(cursor);
    tensor_index_ = index_names(tensors_, &Tensor::name, "tensor name");
    check_data_layout(cursor);
}

void GgufReader::fail(const std::string& what) const { throw Error(file_name() + ": " + what); }

uint64_t GgufReader::read_count(ByteCursor& cursor, const char* what, uint64_t limit,
                                uint64_t bytes_each) const {
    const auto count = cursor.read<uint64_t>(what);
    if (count > cursor.remaining() / bytes_each) {
        fail(cat(what, " ", count, " at offset ", cursor.position() - 8, " cannot fit in the remaining ",
                 cursor.remaining(), " bytes"));
    }
    if (count > limit) {
        fail(cat(what, " ", count, " at offset ", cursor.position() - 8, " is above the limit of ", limit));
    }
    return count;
}

GgufReader::Name GgufReader::read_name(ByteCursor& cursor, const char* what, uint64_t max_length) {
    const uint64_t at = cursor.position();
    const uint64_t length = read_count(cursor, cat(what, " length").c_str(), max_length, 1);
    if (length == 0) {
        fail(cat(what, " at offset ", at, " is empty"));
    }
    if (names_.size() + length > UINT32_MAX) {
        fail(cat("names exceed 4 GiB at offset ", at));
    }
    const Name name{static_cast<uint32_t>(names_.size()), static_cast<uint32_t>(length)};
    names_.resize(names_.size() + length);
    cursor.read(std::as_writable_bytes(std::span(names_).subspan(name.position, length)), what);
    // Readers that keep C strings would see another, perhaps duplicate name.
    if (view(name).find('\0') != std::string_view::npos) {
        fail(cat(what, " ", in_quotes(view(name)), " at offset ", at, " holds a NUL character"));
    }
    return name;
}

void GgufReader::read_header(ByteCursor& cursor) {
    char magic[4] = {};
    cursor.read(std::as_writable_bytes(std::span(magic)), "magic");
    if (!std::equal(std::begin(magic), std::end(magic), std::begin(kGgufMagic))) {
        fail(cat("not a GGUF file: it begins with ", in_quotes(std::string_view(magic, sizeof(magic)))));
    }
    version_ = cursor.read<uint32_t>("version");
    if (version_ != 0 && (version_ & 0xffff) == 0) {
        fail("big-endian GGUF, written on or for a machine of the other byte order, is not supported");
    }
    if (version_ != 2 && version_ != 3) {
        fail(cat("GGUF version ", version_, " is not supported, only 2 and 3"));
    }
    n_tensors_declared_ = read_count(cursor, "number of tensors", limits_.max_tensors, kMinTensorBytes);
    n_kv_declared_ = read_count(cursor, "number of key-value pairs", limits_.max_kv, kMinKvBytes);
}

void GgufReader::read_kv(ByteCursor& cursor) {
    for (uint64_t i = 0; i < n_kv_declared_; ++i) {
        Kv kv;
        kv.key = read_name(cursor, "key", kMaxKey);
        const auto read_type = [&](const char* what) {
            const auto number = cursor.read<uint32_t>(what);
            if (number > static_cast<uint32_t>(GgufType::f64)) {
                fail(cat("key ", in_quotes(view(kv.key)), ": unknown value type ", number));
            }
            return static_cast<GgufType>(number);
        };
        kv.type = read_type("value type");
        if (kv.type == GgufType::array) {
            kv.is_array = true;
            kv.type = read_type("array value type");
            if (kv.type == GgufType::array) {
                fail(cat("key ", in_quotes(view(kv.key)), ": arrays of arrays are not supported"));
            }
            const uint64_t bytes_each = kv.type == GgufType::string ? 8 : gguf_value_bytes(kv.type);
            kv.count = read_count(cursor, "array length", limits_.max_array_values, bytes_each);
        }
        kv.position = cursor.position();
        read_values(cursor, kv);
        kvs_.push_back(kv);
    }
}

void GgufReader::read_values(ByteCursor& cursor, const Kv& kv) const {
    if (kv.type == GgufType::string) {
        for (uint64_t i = 0; i < kv.count; ++i) {
            cursor.skip(read_count(cursor, "string length", limits_.max_string_bytes, 1), "string");
        }
        return;
    }
    if (kv.type == GgufType::boolean && !kv.is_array) {
        const auto byte = cursor.read<uint8_t>("bool");
        if (byte > 1) {
            fail(cat("key ", in_quotes(view(kv.key)), ": bool value ", int{byte}, " is neither 0 nor 1"));
        }
        return;
    }
    // No overflow: the count was held against the remaining bytes.
    cursor.skip(kv.count * gguf_value_bytes(kv.type), "value");
}

void GgufReader::read_alignment() {
    if (!find_key(kGgufAlignmentKey)) {
        return;
    }
    const auto alignment = get<uint32_t>(kGgufAlignmentKey);
    // The specification asks for a multiple of 8.
    if (!std::has_single_bit(alignment) || alignment < 8 || alignment > limits_.max_alignment) {
        fail(cat(kGgufAlignmentKey, " ", alignment, " is no power of two between 8 and ",
                 limits_.max_alignment));
    }
    alignment_ = alignment;
}

void GgufReader::read_tensor_info(ByteCursor& cursor) {
    for (uint64_t i = 0; i < n_tensors_declared_; ++i) {
        Tensor tensor;
        tensor.name = read_name(cursor, "tensor name", kMaxTensorName);
        const auto describe = [&] { return cat("tensor ", in_quotes(view(tensor.name))); };
        tensor.n_dims = cursor.read<uint32_t>("number of dimensions");
        if (tensor.n_dims > tensor.ne.size()) {
            fail(cat(describe(), ": ", tensor.n_dims, " dimensions, at most 4 are supported"));
        }
        for (uint32_t d = 0; d < tensor.n_dims; ++d) {
            tensor.ne[d] = cursor.read<int64_t>("dimension");
        }
        const auto type_number = cursor.read<int32_t>("tensor type");
        const GgmlTypeInfo* type = find_ggml_type(type_number);
        if (type == nullptr) {
            fail(cat(describe(), ": unknown ggml type ", static_cast<uint32_t>(type_number)));
        }
        tensor.type = type->type;
        try {
            tensor.bytes = tensor_bytes(tensor.type, tensor.ne);
        } catch (const Error& error) {
            fail(cat(describe(), ": ", error.what()));
        }
        tensor.offset = cursor.read<uint64_t>("data offset");
        if (tensor.offset % alignment_ != 0) {
            fail(cat(describe(), ": data offset ", tensor.offset, " is no multiple of the alignment ",
                     alignment_));
        }
        if (tensor.offset > file_bytes() || tensor.bytes > file_bytes() - tensor.offset) {
            fail(cat(describe(), ": ", tensor.bytes, " bytes at data offset ", tensor.offset,
                     " lie outside the file of ", file_bytes(), " bytes"));
        }
        tensors_.push_back(tensor);
    }
}

// Everything the tensors claim lies in the file, padding included, and no two claim the same bytes. Offsets
// and sizes are at most the file's size here (read_tensor_info), so sums of two cannot wrap.
void GgufReader::check_data_layout(const ByteCursor& cursor) {
    const auto padded = [this](uint64_t n) { return (n + alignment_ - 1) / alignment_ * alignment_; };
    data_offset_ = padded(cursor.position());
    if (tensors_.empty()) {
        return;
    }
    if (data_offset_ > file_bytes()) {
        fail(cat("truncated: the data section begins at ", data_offset_, ", the file has ", file_bytes(),
                 " bytes"));
    }
    const uint64_t data_bytes = file_bytes() - data_offset_;
    std::vector<uint32_t> by_offset;
    by_offset.reserve(tensors_.size());
    for (uint32_t i = 0; i < tensors_.size(); ++i) {
        const Tensor& tensor = tensors_[i];
        // The padding after the last tensor counts too: ggml reads it.
        if (padded(tensor.offset + tensor.bytes) > data_bytes) {
            fail(cat("truncated: tensor ", in_quotes(view(tensor.name)), " with ", tensor.bytes,
                     " bytes at data offset ", tensor.offset, " ends beyond the data section of ", data_bytes,
                     " bytes"));
        }
        if (tensor.bytes > 0) {
            by_offset.push_back(i);
        }
    }
    std::sort(by_offset.begin(), by_offset.end(),
              [this](uint32_t a, uint32_t b) { return tensors_[a].offset < tensors_[b].offset; });
    for (size_t i = 1; i < by_offset.size(); ++i) {
        const Tensor& before = tensors_[by_offset[i - 1]];
        const Tensor& after = tensors_[by_offset[i]];
        if (before.offset + before.bytes > after.offset) {
            fail(cat("tensors ", in_quotes(view(before.name)), " and ", in_quotes(view(after.name)),
                     " overlap at data offset ", after.offset));
        }
    }
}

template <typename Entries>
std::vector<GgufReader::Hashed> GgufReader::index_names(const Entries& entries,
                                                        Name Entries::value_type::*name, const char* what) {
    std::vector<Hashed> index;
    index.reserve(entries.size());
    for (uint32_t i = 0; i < entries.size(); ++i) {
        index.push_back({hash_name(view(entries[i].*name)), i});
    }
    std::sort(index.begin(), index.end(), [&](const Hashed& a, const Hashed& b) {
        return a.hash != b.hash ? a.hash < b.hash
                                : view(entries[a.index].*name) < view(entries[b.index].*name);
    });
    for (size_t i = 1; i < index.size(); ++i) {
        const std::string_view here = view(entries[index[i].index].*name);
        if (index[i - 1].hash == index[i].hash && view(entries[index[i - 1].index].*name) == here) {
            fail(cat("duplicate ", what, " ", in_quotes(here)));
        }
    }
    return index;
}

std::optional<size_t> GgufReader::find_key(std::string_view key) const noexcept {
    return find_name(kv_index_, key, [this](uint32_t i) { return view(kvs_[i].key); });
}

std::optional<size_t> GgufReader::find_tensor(std::string_view name) const noexcept {
    return find_name(tensor_index_, name, [this](uint32_t i) { return view(tensors_[i].name); });
}

const GgufReader::Kv& GgufReader::require_kv(std::string_view key, GgufType type, bool is_array) const {
    const std::optional<size_t> index = find_key(key);
    if (!index) {
        fail(cat("key ", in_quotes(key), " is missing"));
    }
    const Kv& kv = kvs_[*index];
    if (kv.type != type || kv.is_array != is_array) {
        fail(cat("key ", in_quotes(key), " is ", kv.is_array ? "an array of " : "", gguf_type_name(kv.type),
                 ", not ", is_array ? "an array of " : "", gguf_type_name(type)));
    }
    return kv;
}

std::vector<std::string> GgufReader::read_strings(const Kv& kv) const {
    std::vector<std::string> strings;
    uint64_t at = kv.position;
    for (uint64_t i = 0; i < kv.count; ++i) {
        uint64_t length = 0;
        source_->read_at(at, std::as_writable_bytes(std::span(&length, 1)));
        at += sizeof(length);
        // Opening checked every length, but the file may have been overwritten since.
        if (length > limits_.max_string_bytes || length > file_bytes() - at) {
            fail(cat("key ", in_quotes(view(kv.key)), " changed while the file was open"));
        }
        std::string& text = strings.emplace_back(length, '\0');
        source_->read_at(at, std::as_writable_bytes(std::span(text)));
        at += length;
    }
    return strings;
}

GgufTensor GgufReader::tensor(size_t index) const {
    const Tensor& found = tensors_.at(index);
    return {view(found.name), found.type, found.n_dims, found.ne, data_offset_ + found.offset, found.bytes};
}

GgufTensor GgufReader::require_tensor(std::string_view name) const {
    const std::optional<size_t> index = find_tensor(name);
    if (!index) {
        fail(cat("tensor ", in_quotes(name), " is missing"));
    }
    return tensor(*index);
}

GgufTensor GgufReader::require_tensor(std::string_view name, GgmlType type, const Shape& ne,
                                      size_t value_bytes) const {
    const GgufTensor found = require_tensor(name);
    const GgmlTypeInfo& info = ggml_type_info(type);
    if (found.type != type || found.ne != ne) {
        fail(cat("tensor ", in_quotes(name), " is ", ggml_type_info(found.type).name, " ",
                 shape_text(found.ne), ", not ", info.name, " ", shape_text(ne)));
    }
    if (info.block_values != 1 || static_cast<size_t>(info.block_bytes) != value_bytes) {
        fail(cat("tensor ", in_quotes(name), " of type ", info.name, " cannot be read as values of ",
                 value_bytes, " bytes"));
    }
    return found;
}

void GgufReader::read_bytes(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const {
    if (offset > tensor.bytes || out.size() > tensor.bytes - offset) {
        fail(cat("tensor ", in_quotes(tensor.name), ": bytes ", offset, " to ", offset + out.size(),
                 " lie outside its ", tensor.bytes, " bytes"));
    }
    source_->read_at(tensor.offset + offset, out);
}

std::vector<std::byte> GgufReader::read_bytes(const GgufTensor& tensor) const {
    std::vector<std::byte> bytes(tensor.bytes);
    read_bytes(tensor, 0, bytes);
    return bytes;
}

}  // namespace mixed_kv::trace
