#include "trace_test_support.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::trace::testing {

TempFolder::TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mixed-kv-trace-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
        throw Error("cannot create a temporary folder");
    }
    path_ = pattern;
}

TempFolder::~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TempFolder::entries() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
        names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
}

GgufBytes& GgufBytes::text(std::string_view raw) {
    const auto bytes = std::as_bytes(std::span(raw));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
}

GgufBytes& GgufBytes::header(uint64_t n_tensors, uint64_t n_kv, uint32_t version) {
    return text("GGUF").put(version).put(n_tensors).put(n_kv);
}

GgufBytes& GgufBytes::tensor(std::string_view name, const std::vector<int64_t>& ne, int32_t type,
                             uint64_t offset) {
    string(name).put(static_cast<uint32_t>(ne.size()));
    for (const int64_t n : ne) {
        put(n);
    }
    return put(type).put(offset);
}

GgufBytes& GgufBytes::pad(size_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    return *this;
}

GgufBytes& GgufBytes::zeros(size_t n) {
    bytes_.resize(bytes_.size() + n);
    return *this;
}

std::vector<std::byte> sample_gguf() {
    GgufBytes file;
    file.header(5, 16);
    file.key("general.architecture", 8).string("sample");
    file.key("general.alignment", 4).put<uint32_t>(32);
    file.key("u8", 0).put<uint8_t>(200).key("i8", 1).put<int8_t>(-5);
    file.key("u16", 2).put<uint16_t>(60000).key("i16", 3).put<int16_t>(-30000);
    file.key("i32", 5).put<int32_t>(-7).key("f32", 6).put(1.5f).key("bool", 7).put<uint8_t>(1);
    file.key("u64", 10).put<uint64_t>(1ull << 60).key("i64", 11).put<int64_t>(-(1ll << 60));
    file.key("f64", 12).put(-2.25);
    file.key("i32s", 9).put<uint32_t>(5).put<uint64_t>(3).put<int32_t>(1).put<int32_t>(2).put<int32_t>(3);
    file.key("strings", 9).put<uint32_t>(8).put<uint64_t>(2).string("one").string("");
    file.key("bools", 9).put<uint32_t>(7).put<uint64_t>(2).put<uint8_t>(1).put<uint8_t>(0);
    file.key("none", 9).put<uint32_t>(6).put<uint64_t>(0);
    file.tensor("a", {4, 2}, 0, 0);             // f32, 32 bytes
    file.tensor("b", {64}, 8, 32);              // q8_0, 68 bytes
    file.tensor("empty", {16, 2, 0}, 24, 128);  // i8, 0 bytes
    file.tensor("c", {3}, 26, 128);             // i32, 12 bytes
    file.tensor("d", {2, 1, 1, 2}, 27, 160);    // i64, 32 bytes
    file.pad();
    for (int i = 0; i < 8; ++i) {
        file.put(0.5f * static_cast<float>(i));
    }
    file.zeros(96).put<int32_t>(10).put<int32_t>(20).put<int32_t>(30).pad();
    for (int64_t i = 0; i < 4; ++i) {
        file.put(i * 1000);
    }
    return file.pad().bytes();
}

GgufReader open_bytes(std::span<const std::byte> bytes) {
    return GgufReader(memory_source(bytes, "crafted"));
}

void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

std::string read_text(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::byte> read_file(const std::filesystem::path& path) {
    const std::string text = read_text(path);
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
}

std::string error_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    return "(no error)";
}

int in_child(const std::function<int()>& action) {
    const pid_t child = ::fork();
    if (child == 0) {
        int status = 99;
        try {
            status = action();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "child: %s\n", error.what());
        }
        ::_exit(status);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
}

uint64_t resident_bytes() {
    std::ifstream in("/proc/self/statm");
    uint64_t total = 0;
    uint64_t resident = 0;
    in >> total >> resident;
    return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

bool sanitized() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return true;
#else
    return false;
#endif
#else
    return false;
#endif
}

namespace {

constexpr int64_t kPage = 64;
constexpr int64_t kBlockBytes = 128;

// Cheap and reproducible; not shared state, so that content depends on its arguments alone.
uint32_t mix(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t h = a * 0x9e3779b1u ^ b * 0x85ebca77u ^ c * 0xc2b2ae3du;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    return h ^ (h >> 13);
}

template <typename T, typename Fill>
TensorData make_tensor(GgmlType type, const Shape& ne, Fill fill) {
    TensorData tensor{type, ne, std::vector<std::byte>(tensor_bytes(type, ne))};
    for (size_t i = 0; i < tensor.bytes.size() / sizeof(T); ++i) {
        const T value = fill(i);
        std::memcpy(tensor.bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
    return tensor;
}

CachePart make_part(uint32_t salt, int32_t layer, const SampleShape& shape, int64_t n_kv) {
    CachePart part;
    const auto add_row = [&part](int64_t cell) { part.cells.push_back(static_cast<int32_t>(cell)); };
    int64_t n_cold = 0;
    if (shape.cache == CacheKind::mixed) {
        part.cold = {"q4", kPage, kBlockBytes, salt == 2 ? 32 : 0};
        n_cold = std::max<int64_t>(shape.n_used - shape.hot_rows, 0) / kPage;
        for (int64_t page = 0; page < n_cold; ++page) {
            part.pages.push_back({page * kPage, page == 0 ? ~uint64_t{3} : ~uint64_t{0}});
        }
        for (int64_t cell = 0; cell < 2 && n_cold > 0; ++cell) {
            add_row(cell);
        }
        part.codes =
            make_tensor<uint8_t>(GgmlType::i8, {kBlockBytes, shape.n_head_kv, n_cold, 1}, [&](size_t i) {
                return static_cast<uint8_t>(
                    mix(salt, static_cast<uint32_t>(layer), static_cast<uint32_t>(i)));
            });
    }
    const int64_t end = shape.cache == CacheKind::mixed ? shape.n_used : n_kv;
    for (int64_t cell = n_cold * kPage; cell < end; ++cell) {
        add_row(cell);
    }
    const auto row_values = static_cast<size_t>(shape.head_dim * shape.n_head_kv);
    part.rows = make_tensor<fp16_t>(
        GgmlType::f16, {shape.head_dim, shape.n_head_kv, static_cast<int64_t>(part.cells.size()), 1},
        [&](size_t i) {
            const auto cell = static_cast<uint32_t>(part.cells[i / row_values]);
            const uint32_t bits =
                mix(salt + 7 * cell, static_cast<uint32_t>(layer), static_cast<uint32_t>(i % row_values));
            return fp32_to_fp16(static_cast<float>(bits % 2001) / 1000.0f - 1.0f);
        });
    return part;
}

SourceView make_view(const std::string& name, GgmlType type, const Shape& ne, const std::string& origin) {
    SourceView view;
    view.present = true;
    view.name = name + " (permuted)";
    view.type = type;
    view.ne = ne;
    const Shape dense = contiguous_strides(type, {ne[0], ne[2], ne[1], ne[3]});
    view.nb = {dense[0], dense[2], dense[1], dense[3]};
    view.order = axis_order(view.ne, view.nb);
    view.origin_name = origin;
    view.origin_type = type;
    view.origin_ne = {ne[0] * ne[2], ne[1], ne[3], 1};
    view.origin_nb = contiguous_strides(type, view.origin_ne);
    return view;
}

}  // namespace

TraceRecord sample_record(int32_t layer, int32_t step, const SampleShape& shape) {
    TraceRecord r;
    r.layer = layer;
    r.step = step;
    r.cache = shape.cache;
    r.n_tokens = shape.n_tokens;
    r.n_head = shape.n_head;
    r.n_head_kv = shape.n_head_kv;
    r.n_kv = (shape.n_used + 255) / 256 * 256;
    r.head_dim_k = shape.head_dim;
    r.head_dim_v = shape.head_dim;
    r.kq_scale = 0.125f;
    r.logit_softcap = 30.0f;
    r.position = shape.position >= 0 ? shape.position : step * shape.n_tokens;
    const auto stepped = [&](uint32_t salt) {
        return [&r, salt](size_t i) {
            const uint32_t bits =
                mix(salt, static_cast<uint32_t>(r.layer * 65536 + r.step), static_cast<uint32_t>(i));
            return static_cast<float>(bits % 2001) / 1000.0f - 1.0f;
        };
    };
    const Shape q_shape{shape.head_dim, shape.n_head, shape.n_tokens, 1};
    r.q = make_tensor<float>(GgmlType::f32, q_shape, stepped(11));
    r.kqv_out = make_tensor<float>(GgmlType::f32, q_shape, stepped(12));
    r.k = make_part(1, layer, shape, r.n_kv);
    r.v = make_part(2, layer, shape, r.n_kv);
    if (shape.with_mask) {
        r.mask = make_tensor<fp16_t>(GgmlType::f16, {r.n_kv, shape.n_tokens, 1, 1}, [&](size_t i) {
            const auto cell = static_cast<int64_t>(i) % r.n_kv;
            const auto token = static_cast<int64_t>(i) / r.n_kv;
            return fp32_to_fp16(cell <= shape.n_used - shape.n_tokens + token ? 0.0f : -INFINITY);
        });
    }
    if (shape.with_sinks) {
        r.sinks = make_tensor<float>(GgmlType::f32, {shape.n_head, 1, 1, 1}, [&](size_t i) {
            return static_cast<float>(i) + static_cast<float>(layer);
        });
    }
    const std::string l = std::to_string(layer);
    r.q_view =
        make_view("Qcur-" + l, GgmlType::f32, {shape.head_dim, shape.n_tokens, shape.n_head, 1}, "Qcur-" + l);
    r.k_view = make_view("cache_k_l" + l, GgmlType::f16, {shape.head_dim, r.n_kv, shape.n_head_kv, 1},
                         "cache_k_l" + l);
    r.v_view = make_view("cache_v_l" + l, GgmlType::f16, {shape.head_dim, r.n_kv, shape.n_head_kv, 1},
                         "cache_v_l" + l);
    return r;
}

namespace {

void expect_equal_tensor(const char* name, const TensorData& a, const TensorData& b) {
    EXPECT_EQ(a.type, b.type) << name;
    EXPECT_EQ(a.ne, b.ne) << name;
    EXPECT_TRUE(a.bytes == b.bytes) << name << " differs";
}

void expect_equal_part(const char* name, const CachePart& a, const CachePart& b) {
    expect_equal_tensor(name, a.rows, b.rows);
    EXPECT_EQ(a.cells, b.cells) << name;
    EXPECT_EQ(a.pages, b.pages) << name;
    EXPECT_EQ(a.cold.format, b.cold.format) << name;
    EXPECT_EQ(a.cold.page_tokens, b.cold.page_tokens) << name;
    EXPECT_EQ(a.cold.block_bytes, b.cold.block_bytes) << name;
    EXPECT_EQ(a.cold.rotation_block, b.cold.rotation_block) << name;
    if (!a.cold.format.empty()) {
        expect_equal_tensor(name, a.codes, b.codes);
    }
}

void expect_equal_view(const char* name, const SourceView& a, const SourceView& b) {
    EXPECT_EQ(a.present, b.present) << name;
    EXPECT_EQ(a.name, b.name) << name;
    EXPECT_EQ(a.type, b.type) << name;
    EXPECT_EQ(a.ne, b.ne) << name;
    EXPECT_EQ(a.nb, b.nb) << name;
    EXPECT_EQ(a.order, b.order) << name;
    EXPECT_EQ(a.view_offs, b.view_offs) << name;
    EXPECT_EQ(a.origin_name, b.origin_name) << name;
    EXPECT_EQ(a.origin_ne, b.origin_ne) << name;
    EXPECT_EQ(a.origin_nb, b.origin_nb) << name;
}

}  // namespace

void expect_equal(const TraceRecord& a, const TraceRecord& b) {
    SCOPED_TRACE("layer " + std::to_string(a.layer) + ", step " + std::to_string(a.step));
    EXPECT_EQ(a.layer, b.layer);
    EXPECT_EQ(a.step, b.step);
    EXPECT_EQ(a.cache, b.cache);
    EXPECT_EQ(a.has_sources, b.has_sources);
    EXPECT_EQ(a.v_is_view_of_k, b.v_is_view_of_k);
    EXPECT_EQ(a.n_tokens, b.n_tokens);
    EXPECT_EQ(a.n_head, b.n_head);
    EXPECT_EQ(a.n_head_kv, b.n_head_kv);
    EXPECT_EQ(a.n_kv, b.n_kv);
    EXPECT_EQ(a.n_stream, b.n_stream);
    EXPECT_EQ(a.head_dim_k, b.head_dim_k);
    EXPECT_EQ(a.head_dim_v, b.head_dim_v);
    EXPECT_EQ(a.kq_scale, b.kq_scale);
    EXPECT_EQ(a.max_bias, b.max_bias);
    EXPECT_EQ(a.logit_softcap, b.logit_softcap);
    EXPECT_EQ(a.position, b.position);
    expect_equal_tensor("kqv_out", a.kqv_out, b.kqv_out);
    if (a.has_sources && b.has_sources) {
        expect_equal_tensor("q", a.q, b.q);
        expect_equal_part("k", a.k, b.k);
        if (!a.v_is_view_of_k) {
            expect_equal_part("v", a.v, b.v);
        }
        ASSERT_EQ(a.mask.has_value(), b.mask.has_value());
        ASSERT_EQ(a.sinks.has_value(), b.sinks.has_value());
        if (a.mask) {
            expect_equal_tensor("mask", *a.mask, *b.mask);
        }
        if (a.sinks) {
            expect_equal_tensor("sinks", *a.sinks, *b.sinks);
        }
    }
    expect_equal_view("kqv_out", a.kqv_out_view, b.kqv_out_view);
    expect_equal_view("q", a.q_view, b.q_view);
    expect_equal_view("k", a.k_view, b.k_view);
    expect_equal_view("v", a.v_view, b.v_view);
    expect_equal_view("mask", a.mask_view, b.mask_view);
    expect_equal_view("sinks", a.sinks_view, b.sinks_view);
}

}  // namespace mixed_kv::trace::testing
