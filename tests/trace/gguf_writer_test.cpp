#include "trace/gguf_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_reader.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::byte> numbers(size_t n_floats, float first) {
    std::vector<float> values(n_floats);
    std::iota(values.begin(), values.end(), first);
    const auto bytes = std::as_bytes(std::span(values));
    return {bytes.begin(), bytes.end()};
}

TEST(GgufStreamWriter, RoundTripsEverything) {
    const TempFolder folder;
    const auto path = folder / "all.gguf";
    GgufStreamWriter writer(path);
    writer.set("u8", uint8_t{200});
    writer.set("i64", int64_t{-5});
    writer.set("f32", 1.5f);
    writer.set("flag", true);
    writer.set("text", "first text");
    writer.set("text", "a text");
    const std::vector<int32_t> list = {1, -2, 3};
    writer.set_array("list", std::span<const int32_t>(list));
    const std::vector<std::string> texts = {"x", "", "long text"};
    writer.set_array("texts", std::span<const std::string>(texts));
    writer.add_tensor("first", GgmlType::f32, {5, 3, 1, 1}, numbers(15, 0.0f));
    writer.add_tensor("empty", GgmlType::i8, {16, 2, 0, 1}, {});
    writer.begin_tensor("pieces", GgmlType::f32, {4, 1, 1, 5});
    const auto data = numbers(20, 100.0f);
    for (size_t at = 0; at < data.size(); at += 16) {
        writer.write_data(std::span(data).subspan(at, 16));
    }
    writer.end_tensor();
    EXPECT_THAT(folder.entries(), IsEmpty());  // nothing to see before it is complete
    writer.finish();

    const GgufReader file(path);
    EXPECT_EQ(file.version(), 3u);
    EXPECT_EQ(file.get<uint8_t>("u8"), 200);
    EXPECT_EQ(file.get<int64_t>("i64"), -5);
    EXPECT_EQ(file.get<float>("f32"), 1.5f);
    EXPECT_TRUE(file.get<bool>("flag"));
    EXPECT_EQ(file.get<std::string>("text"), "a text");
    EXPECT_EQ(file.get_array<int32_t>("list"), list);
    EXPECT_EQ(file.get_array<std::string>("texts"), texts);
    EXPECT_EQ(file.read<float>("first", GgmlType::f32, {5, 3, 1, 1})[14], 14.0f);
    EXPECT_EQ(file.require_tensor("empty").ne, (Shape{16, 2, 0, 1}));
    EXPECT_EQ(file.read<float>("pieces", GgmlType::f32, {4, 1, 1, 5})[19], 119.0f);
    EXPECT_THAT(folder.entries(), ElementsAre("all.gguf"));
}

TEST(GgufStreamWriter, WritesAFileWithoutTensors) {
    const TempFolder folder;
    GgufStreamWriter writer(folder / "none.gguf");
    writer.finish();
    EXPECT_EQ(GgufReader(folder / "none.gguf").n_tensors(), 0u);
}

// Whether the reserved header is far too small (data are moved), just too small, fitting or far too large.
class GgufHeaderRoom : public ::testing::TestWithParam<uint64_t> {};

TEST_P(GgufHeaderRoom, FileIsTheSame) {
    constexpr int kTensors = 3000;
    const TempFolder folder;
    const auto path = folder / "room.gguf";
    GgufStreamWriter writer(path, {.expected_tensors = GetParam(), .expected_kv_bytes = 0});
    writer.set("text", std::string(5000, 't'));
    for (int i = 0; i < kTensors; ++i) {
        writer.add_tensor("tensor-" + std::to_string(i), GgmlType::f32, {100, 1 + i % 7, 1, 1},
                          numbers(static_cast<size_t>(100 * (1 + i % 7)), static_cast<float>(i)));
    }
    writer.finish();
    const GgufReader file(path);
    ASSERT_EQ(file.n_tensors(), static_cast<size_t>(kTensors));
    for (int i = 0; i < kTensors; ++i) {
        const auto values =
            file.read<float>("tensor-" + std::to_string(i), GgmlType::f32, {100, 1 + i % 7, 1, 1});
        ASSERT_EQ(values.front(), static_cast<float>(i));
        ASSERT_EQ(values.back(), static_cast<float>(i + 100 * (1 + i % 7) - 1));
    }
}

INSTANTIATE_TEST_SUITE_P(Reserves, GgufHeaderRoom, ::testing::Values(0, 1500, 2000, 3000, 100000));

TEST(GgufStreamWriter, RefusesWrongUse) {
    const TempFolder folder;
    const auto path = folder / "wrong.gguf";
    const auto data = numbers(4, 0.0f);
    const auto refused = [&](const std::function<void(GgufStreamWriter&)>& action) {
        GgufStreamWriter writer(path);
        const std::string message = error_of([&] { action(writer); });
        // After an error in the data nothing may make the file appear.
        (void)error_of([&] { writer.finish(); });
        return message;
    };
    const Shape four{4, 1, 1, 1};
    EXPECT_THAT(refused([&](auto& w) { w.add_tensor("", GgmlType::f32, four, data); }),
                HasSubstr("1 to 63 bytes"));
    EXPECT_THAT(refused([&](auto& w) { w.add_tensor(std::string(64, 'n'), GgmlType::f32, four, data); }),
                HasSubstr("1 to 63 bytes"));
    EXPECT_THAT(refused([&](auto& w) {
                    w.add_tensor("t", GgmlType::f32, {5, 1, 1, 1}, data);
                }),
                HasSubstr("4 bytes of tensor data are missing"));
    EXPECT_THAT(refused([&](auto& w) {
                    w.add_tensor("t", GgmlType::f32, {3, 1, 1, 1}, data);
                }),
                HasSubstr("leaves room for 12"));
    EXPECT_THAT(refused([&](auto& w) { w.add_tensor("t", GgmlType::q8_0, four, data); }),
                HasSubstr("no multiple"));
    EXPECT_THAT(refused([&](auto& w) {
                    w.begin_tensor("t", GgmlType::f32, four);
                    w.finish();
                }),
                HasSubstr("still being written"));
    EXPECT_THAT(refused([&](auto& w) {
                    w.add_tensor("t", GgmlType::f32, four, data);
                    w.add_tensor("u", GgmlType::f32, four, data);
                    w.add_tensor("t", GgmlType::f32, four, data);
                    w.finish();
                }),
                HasSubstr("two tensors are named 't'"));
    EXPECT_THAT(folder.entries(), IsEmpty());
    EXPECT_THAT(refused([&](auto& w) { w.set("general.alignment", uint32_t{64}); }),
                HasSubstr("not allowed"));
    EXPECT_THAT(refused([&](auto& w) {
                    w.finish();
                    w.finish();
                }),
                HasSubstr("is finished"));
}

}  // namespace
}  // namespace mixed_kv::trace::testing
