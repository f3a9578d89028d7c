#include "trace/gguf_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <vector>

#include "mixed_kv/error.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHuge = int64_t{1} << 62;

TEST(GgufReader, ReadsEveryKindOfValue) {
    const auto bytes = sample_gguf();
    const GgufReader file = open_bytes(bytes);
    EXPECT_EQ(file.version(), 3u);
    EXPECT_EQ(file.n_kv(), 16u);
    EXPECT_EQ(file.get<std::string>("general.architecture"), "sample");
    EXPECT_EQ(file.get<uint8_t>("u8"), 200);
    EXPECT_EQ(file.get<int8_t>("i8"), -5);
    EXPECT_EQ(file.get<uint16_t>("u16"), 60000);
    EXPECT_EQ(file.get<int16_t>("i16"), -30000);
    EXPECT_EQ(file.get<int32_t>("i32"), -7);
    EXPECT_EQ(file.get<float>("f32"), 1.5f);
    EXPECT_TRUE(file.get<bool>("bool"));
    EXPECT_EQ(file.get<uint64_t>("u64"), 1ull << 60);
    EXPECT_EQ(file.get<int64_t>("i64"), -(1ll << 60));
    EXPECT_EQ(file.get<double>("f64"), -2.25);
    EXPECT_EQ(file.get_array<int32_t>("i32s"), (std::vector<int32_t>{1, 2, 3}));
    EXPECT_EQ(file.get_array<std::string>("strings"), (std::vector<std::string>{"one", ""}));
    EXPECT_TRUE(file.get_array<float>("none").empty());
    EXPECT_EQ(file.key(1), "general.alignment");
    EXPECT_EQ(file.find_key("missing"), std::nullopt);
}

TEST(GgufReader, ReadsTensorsByExactNameTypeAndShape) {
    const auto bytes = sample_gguf();
    const GgufReader file = open_bytes(bytes);
    ASSERT_EQ(file.n_tensors(), 5u);
    EXPECT_EQ(file.tensor(1).name, "b");
    EXPECT_EQ(file.tensor(1).bytes, 68u);
    EXPECT_EQ(file.require_tensor("empty").bytes, 0u);
    EXPECT_EQ(file.read<float>("a", GgmlType::f32, {4, 2, 1, 1})[7], 3.5f);
    EXPECT_EQ(file.read<int32_t>("c", GgmlType::i32, {3, 1, 1, 1}), (std::vector<int32_t>{10, 20, 30}));
    EXPECT_EQ(file.read<int64_t>("d", GgmlType::i64, {2, 1, 1, 2})[3], 3000);

    EXPECT_THAT(error_of([&] {
                    file.read<float>("a", GgmlType::f32, {2, 4, 1, 1});
                }),
                HasSubstr("tensor 'a' is f32 [4, 2], not f32 [2, 4]"));
    EXPECT_THAT(error_of([&] {
                    file.read<int32_t>("a", GgmlType::i32, {4, 2, 1, 1});
                }),
                HasSubstr("not i32"));
    EXPECT_THAT(error_of([&] {
                    file.read<double>("a", GgmlType::f32, {4, 2, 1, 1});
                }),
                HasSubstr("of 8 bytes"));
    EXPECT_THAT(error_of([&] { file.require_tensor("A"); }), HasSubstr("tensor 'A' is missing"));
    EXPECT_THAT(error_of([&] { file.get<uint32_t>("i32"); }), HasSubstr("key 'i32' is i32, not u32"));
    EXPECT_THAT(error_of([&] { file.get<int32_t>("i32s"); }), HasSubstr("is an array of i32, not i32"));
    std::vector<std::byte> too_many(33);
    EXPECT_THAT(error_of([&] { file.read_bytes(file.require_tensor("a"), 0, too_many); }),
                HasSubstr("lie outside"));
}

TEST(GgufReader, RefusesEveryTruncation) {
    const auto bytes = sample_gguf();
    for (size_t n = 0; n < bytes.size(); ++n) {
        EXPECT_THROW(open_bytes(std::span(bytes).first(n)), Error)
            << "first " << n << " of " << bytes.size() << " bytes";
    }
}

TEST(GgufReader, AcceptsVersion2AndTrailingData) {
    auto bytes = sample_gguf();
    bytes[4] = std::byte{2};
    bytes.resize(bytes.size() + 100);
    EXPECT_EQ(open_bytes(bytes).version(), 2u);
}

// A mutated byte may leave a valid file, never a crash; every reading function is tried.
TEST(GgufReader, SurvivesEveryByteFlip) {
    const auto good = sample_gguf();
    for (size_t at = 0; at < good.size(); ++at) {
        for (const unsigned flip : {0x01u, 0x80u, 0xffu}) {
            auto bytes = good;
            bytes[at] ^= std::byte{static_cast<uint8_t>(flip)};
            try {
                const GgufReader file = open_bytes(bytes);
                for (size_t i = 0; i < file.n_tensors(); ++i) {
                    file.read_bytes(file.tensor(i));
                }
            } catch (const Error&) {
            }
        }
    }
}

struct Crafted {
    const char* name;
    const char* message;  // part of it
    std::vector<std::byte> bytes;
};

std::vector<std::byte> one_tensor(const std::vector<int64_t>& ne, int32_t type, uint64_t offset,
                                  size_t data) {
    return GgufBytes().header(1, 0).tensor("t", ne, type, offset).pad().zeros(data).bytes();
}

std::vector<Crafted> crafted_files() {
    const auto file = [] { return GgufBytes(); };
    const std::string long_name(64, 'n');
    const std::string nul_name("a\0b", 3);
    GgufBytes deep = file();
    deep.header(0, 1).key("k", 9).put<uint32_t>(9).put<uint64_t>(1).zeros(64);
    return {
        {"empty", "truncated", {}},
        {"magic", "not a GGUF file", file().text("GGML").zeros(64).bytes()},
        {"version_0", "version 0", file().header(0, 0, 0).bytes()},
        {"version_1", "version 1", file().header(0, 0, 1).bytes()},
        {"version_4", "version 4", file().header(0, 0, 4).bytes()},
        {"big_endian", "big-endian", file().header(0, 0, 0x03000000u).bytes()},
        {"big_endian_2", "big-endian", file().header(0, 0, 0x02000000u).bytes()},
        {"huge_tensor_count", "number of tensors 18446744073709551615",
         file().header(~0ull, 0).zeros(64).bytes()},
        {"tensor_count_over_file", "number of tensors 1000", file().header(1000, 0).zeros(1000).bytes()},
        {"huge_kv_count", "key-value pairs 4611686018427387904",
         file().header(0, 1ull << 62).zeros(64).bytes()},
        {"huge_key_length", "key length 18446744073709551615",
         file().header(0, 1).put(~0ull).zeros(64).bytes()},
        {"long_key", "key length 70000 at offset 24 is above the limit of 65535",
         file().header(0, 1).put<uint64_t>(70000).zeros(80000).bytes()},
        {"empty_key", "key at offset 24 is empty", file().header(0, 1).key("", 4).zeros(16).bytes()},
        {"nul_key", "NUL", file().header(0, 1).key(nul_name, 4).zeros(16).bytes()},
        {"duplicate_key", "duplicate key 'k'",
         file().header(0, 2).key("k", 0).put<uint8_t>(1).key("k", 0).put<uint8_t>(2).bytes()},
        {"kv_type", "unknown value type 13", file().header(0, 1).key("k", 13).zeros(16).bytes()},
        {"kv_type_negative", "unknown value type 4294967295",
         file().header(0, 1).key("k", ~0u).zeros(16).bytes()},
        {"array_type", "unknown value type 99",
         file().header(0, 1).key("k", 9).put<uint32_t>(99).put<uint64_t>(1).zeros(64).bytes()},
        {"nested_array", "arrays of arrays", deep.bytes()},
        {"huge_array", "array length 2305843009213693952",
         file().header(0, 1).key("k", 9).put<uint32_t>(10).put<uint64_t>(1ull << 61).zeros(64).bytes()},
        {"wrapping_array", "array length",  // count * 8 wraps to 8
         file().header(0, 1).key("k", 9).put<uint32_t>(10).put<uint64_t>((1ull << 61) + 1).zeros(64).bytes()},
        {"huge_string_array", "array length",
         file().header(0, 1).key("k", 9).put<uint32_t>(8).put<uint64_t>(1ull << 61).zeros(64).bytes()},
        {"huge_string", "string length 9223372036854775807",
         file().header(0, 1).key("k", 8).put<uint64_t>(INT64_MAX).zeros(64).bytes()},
        {"string_in_array", "string length 1000",
         file()
             .header(0, 1)
             .key("k", 9)
             .put<uint32_t>(8)
             .put<uint64_t>(1)
             .put<uint64_t>(1000)
             .zeros(64)
             .bytes()},
        {"bool", "neither 0 nor 1", file().header(0, 1).key("k", 7).put<uint8_t>(2).bytes()},
        {"alignment_0", "general.alignment 0",
         file().header(0, 1).key("general.alignment", 4).put<uint32_t>(0).bytes()},
        {"alignment_48", "no power of two",
         file().header(0, 1).key("general.alignment", 4).put<uint32_t>(48).bytes()},
        {"alignment_2g", "no power of two",
         file().header(0, 1).key("general.alignment", 4).put<uint32_t>(1u << 31).bytes()},
        {"alignment_type", "is u64, not u32",
         file().header(0, 1).key("general.alignment", 10).put<uint64_t>(32).bytes()},
        {"name_of_64", "tensor name length 64 at offset 24 is above the limit of 63",
         file().header(1, 0).tensor(long_name, {1}, 0, 0).pad().zeros(32).bytes()},
        {"empty_name", "tensor name at offset 24 is empty",
         file().header(1, 0).tensor("", {1}, 0, 0).pad().zeros(32).bytes()},
        {"nul_name", "NUL", file().header(1, 0).tensor(nul_name, {1}, 0, 0).pad().zeros(32).bytes()},
        {"duplicate_tensor", "duplicate tensor name 't'",
         file().header(2, 0).tensor("t", {8}, 0, 0).tensor("t", {8}, 0, 32).pad().zeros(64).bytes()},
        {"dims_5", "5 dimensions",
         file().header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).pad().zeros(32).bytes()},
        {"dims_many", "4294967295 dimensions", file().header(1, 0).string("t").put(~0u).zeros(200).bytes()},
        {"negative_dim", "negative dimension", one_tensor({-1}, 0, 0, 64)},
        {"negative_two_dims", "negative dimension", one_tensor({-4, -4}, 0, 0, 64)},
        {"wrapped_product", "does not fit in 63 bits", one_tensor({kHuge, 4}, 0, 0, 64)},
        {"wrapped_to_small", "does not fit in 63 bits",
         one_tensor({int64_t{1} << 32, int64_t{1} << 32, 1, 1}, 0, 0, 64)},
        {"wrapped_bytes", "does not fit in 63 bits", one_tensor({kHuge}, 0, 0, 64)},
        {"wrapped_behind_zero", "does not fit in 63 bits", one_tensor({kHuge, 4, 0}, 0, 0, 64)},
        {"dim_2_62", "lie outside the file", one_tensor({kHuge}, 24, 0, 64)},
        {"four_tib", "lie outside the file", one_tensor({int64_t{1} << 40}, 0, 0, 64)},
        {"padding_wrap", "lie outside the file", one_tensor({INT64_MAX}, 24, 0, 64)},
        {"type_removed", "unknown ggml type 4", one_tensor({32}, 4, 0, 64)},
        {"type_negative", "unknown ggml type 4294967295", one_tensor({32}, -1, 0, 64)},
        {"type_43", "unknown ggml type 43", one_tensor({32}, 43, 0, 64)},
        {"block", "no multiple of the block", one_tensor({33}, 8, 0, 64)},
        {"offset_unaligned", "no multiple of the alignment", one_tensor({8}, 0, 16, 64)},
        {"offset_beyond", "lie outside the file", one_tensor({8}, 0, 1u << 20, 64)},
        {"offset_wrap", "lie outside the file", one_tensor({16}, 0, ~0ull - 31, 64)},
        {"data_short", "ends beyond the data section", one_tensor({17}, 0, 0, 64)},
        {"padding_short", "ends beyond the data section", one_tensor({7}, 0, 0, 28)},
        {"overlap", "overlap",
         file().header(2, 0).tensor("t", {16}, 0, 0).tensor("u", {8}, 0, 32).pad().zeros(128).bytes()},
        {"overlap_same", "overlap",
         file().header(2, 0).tensor("t", {8}, 0, 32).tensor("u", {8}, 0, 32).pad().zeros(128).bytes()},
        {"overlap_unsorted", "overlap",
         file().header(2, 0).tensor("t", {8}, 0, 64).tensor("u", {24}, 0, 0).pad().zeros(128).bytes()},
    };
}

class GgufReaderRefuses : public ::testing::TestWithParam<Crafted> {};

TEST_P(GgufReaderRefuses, Quickly) {
    const auto start = std::chrono::steady_clock::now();
    const std::string message = error_of([] { open_bytes(GetParam().bytes); });
    EXPECT_THAT(message, HasSubstr(GetParam().message));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    if (!sanitized()) {
        EXPECT_LT(usage.ru_maxrss, 256 * 1024) << "KiB";
    }
}

INSTANTIATE_TEST_SUITE_P(Table, GgufReaderRefuses, ::testing::ValuesIn(crafted_files()),
                         [](const auto& test) { return std::string(test.param.name); });

// Sizes that only a sparse file can claim: counts fit into the file, the reader must stop at its own limits.
TEST(GgufReader, RefusesHugeSparseFiles) {
    const TempFolder folder;
    const struct {
        GgufBytes bytes;
        const char* message;
    } cases[] = {
        {GgufBytes().header(1ull << 33, 0), "above the limit"},
        {GgufBytes().header(3'000'000, 0), "tensor name at offset 24 is empty"},
        {GgufBytes().header(0, 1ull << 33), "above the limit"},
        {GgufBytes().header(0, 1).key("k", 8).put<uint64_t>(1ull << 38), "above the limit"},
        {GgufBytes().header(0, 1).key("k", 9).put<uint32_t>(8).put<uint64_t>(1ull << 35), "above the limit"},
        {GgufBytes().header(0, 1).key("k", 9).put<uint32_t>(0).put<uint64_t>(1ull << 38), "above the limit"},
    };
    for (const auto& test : cases) {
        const auto path = folder / "sparse.gguf";
        write_file(path, test.bytes.bytes());
        ASSERT_EQ(::truncate(path.c_str(), off_t{1} << 39), 0);
        const auto start = std::chrono::steady_clock::now();
        EXPECT_THAT(error_of([&] { GgufReader reader(path); }), HasSubstr(test.message));
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    }
}

TEST(GgufReader, RefusesWhatIsNoRegularFile) {
    const TempFolder folder;
    EXPECT_THAT(error_of([&] { GgufReader reader(folder.path()); }), HasSubstr("not a regular file"));
    EXPECT_THAT(error_of([&] { GgufReader reader("/dev/zero"); }), HasSubstr("not a regular file"));
    EXPECT_THAT(error_of([&] { GgufReader reader(folder / "none"); }), HasSubstr("No such file"));
    ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
    EXPECT_THAT(error_of([&] { GgufReader reader(folder / "pipe"); }), HasSubstr("not a regular file"));
}

TEST(GgufReader, ReportsAFileThatShrinksWhileOpen) {
    const TempFolder folder;
    const auto path = folder / "shrinks.gguf";
    write_file(path, sample_gguf());
    const GgufReader file(path);
    ASSERT_EQ(::truncate(path.c_str(), 100), 0);
    EXPECT_THAT(error_of([&] { file.read_bytes(file.tensor(4)); }), HasSubstr("became shorter"));
}

TEST(GgufReader, ShowsHostileNamesOnOneLine) {
    const auto bytes = GgufBytes().header(1, 0).tensor("x\n\x1b[31m", {8}, 99, 0).pad().zeros(32).bytes();
    EXPECT_THAT(error_of([&] { open_bytes(bytes); }), HasSubstr("tensor 'x??[31m': unknown ggml type 99"));
}

}  // namespace
}  // namespace mixed_kv::trace::testing
