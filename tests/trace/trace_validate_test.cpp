// Records and files whose parts do not fit together are refused, by the writer and by the reader.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_writer.h"
#include "trace/trace_reader.h"
#include "trace/trace_schema.h"
#include "trace/trace_writer.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

using ::testing::HasSubstr;

struct Fault {
    const char* name;
    const char* message;
    std::function<void(TraceRecord&)> inject;
};

const Fault kFaults[] = {
    {"nan_scale", "kq_scale nan", [](auto& r) { r.kq_scale = NAN; }},
    {"inf_scale", "kq_scale inf", [](auto& r) { r.kq_scale = INFINITY; }},
    {"nan_softcap", "logit_softcap", [](auto& r) { r.logit_softcap = NAN; }},
    {"negative_bias", "max_bias", [](auto& r) { r.max_bias = -1.0f; }},
    {"negative_layer", "layer -1", [](auto& r) { r.layer = -1; }},
    {"no_tokens", "n_tokens 0", [](auto& r) { r.n_tokens = 0; }},
    {"gqa", "no multiple of n_head_kv", [](auto& r) { r.n_head_kv = 3; }},
    {"n_kv", "n_kv", [](auto& r) { r.n_kv = int64_t{1} << 62; }},
    {"cells", "exceeds",
     [](auto& r) {
         r.n_kv = int64_t{1} << 30;
         r.n_stream = 1 << 19;
     }},
    {"head_dim", "head_dim_k 0", [](auto& r) { r.head_dim_k = 0; }},
    {"q_shape", "q: shape [32, 4], expected [32, 4, 2]",
     [](auto& r) {
         r.n_tokens = 2;
         r.kqv_out.ne[2] = 2;
         r.kqv_out.bytes.resize(r.kqv_out.bytes.size() * 2);
     }},
    {"q_type", "q: type f16 is not allowed", [](auto& r) { r.q.type = GgmlType::f16; }},
    {"q_bytes", "q: 516 bytes, its shape [32, 4] needs 512", [](auto& r) { r.q.bytes.resize(516); }},
    {"kqv_out_shape", "kqv_out: shape", [](auto& r) { r.head_dim_v = 33; }},
    {"k_type", "must be f16", [](auto& r) { r.k.rows.type = GgmlType::bf16; }},
    {"k_rows", "k: shape", [](auto& r) { r.k.cells.pop_back(); }},
    {"cell_range", "cell 256 is not below 256", [](auto& r) { r.k.cells.back() = 256; }},
    {"cell_negative", "cell -1", [](auto& r) { r.v.cells.back() = -1; }},
    {"cell_twice", "is held twice", [](auto& r) { r.k.cells.back() = r.k.cells[r.k.cells.size() - 2]; }},
    {"row_in_page", "cell 3 is held twice", [](auto& r) { r.k.cells[0] = 3; }},
    {"pages_overlap", "cell 63 is held twice", [](auto& r) { r.k.pages[1].first_cell = 63; }},
    {"page_rotated", "is rotated by 64 rows", [](auto& r) { r.k.pages[1].rotation = 64; }},
    {"page_holds_nothing", "holds no cell", [](auto& r) { r.k.pages[1].held = 0; }},
    {"page_range", "first cell 256", [](auto& r) { r.v.pages[1].first_cell = 256; }},
    {"page_negative", "first cell -64", [](auto& r) { r.v.pages[1].first_cell = -64; }},
    {"page_tokens", "page_tokens 0", [](auto& r) { r.k.cold.page_tokens = 0; }},
    {"block_bytes", "k_quant: shape [128, 2, 2], expected [127, 2, 2]",
     [](auto& r) { r.k.cold.block_bytes = 127; }},
    {"codes_bytes", "v_quant: ", [](auto& r) { r.v.codes.bytes.pop_back(); }},
    {"pages_without_format", "no cold format", [](auto& r) { r.k.cold.format.clear(); }},
    {"standard_with_pages", "a standard cache has the cold format",
     [](auto& r) { r.cache = CacheKind::standard; }},
    {"hole", "cell 199 is visible to a query but neither a row nor a page holds it",
     [](auto& r) { r.k.cells.back() = 210; }},
    {"not_held_by_page", "cell 70 is visible", [](auto& r) { r.v.pages[1].held = ~(uint64_t{1} << 6); }},
    {"no_mask_shows_all", "cell 200 is visible", [](auto& r) { r.mask.reset(); }},
    {"mask_width", "mask: shape", [](auto& r) { r.mask->ne[0] = 255; }},
    {"mask_type", "mask: type i16", [](auto& r) { r.mask->type = GgmlType::i16; }},
    {"mask_bytes", "mask: ", [](auto& r) { r.mask->bytes.clear(); }},
    {"mask_heads", "mask: shape", [](auto& r) { r.mask->ne[2] = 3; }},
    {"sinks_shape", "sinks: shape",
     [](auto& r) {
         r.sinks = TensorData{GgmlType::f32, {3, 1, 1, 1}, std::vector<std::byte>(12)};
     }},
    {"position", "position -1", [](auto& r) { r.position = -1; }},
    {"layout_without_format", "without a cold format",
     [](auto& r) {
         r.k.cold.format.clear();
         r.k.pages.clear();
     }},
    {"hole_in_standard", "cell 200 of a standard cache has no row",
     [](auto& r) {
         r = sample_record(0, 0, {.cache = CacheKind::standard});
         std::swap(r.k.cells[200], r.k.cells.back());
         r.k.cells.pop_back();
         r.k.rows.ne[2] -= 1;
         r.k.rows.bytes.resize(r.k.rows.bytes.size() - 128);
         r.k.cells[200] = 255;
     }},
    // views
    {"order", "does not follow from its strides",
     [](auto& r) {
         r.k_view.order = {0, 1, 2, 3};
     }},
    {"order_twice", "does not follow",
     [](auto& r) {
         r.k_view.order = {0, 1, 1, 3};
     }},
    {"view_type", "q: its view sees unknown", [](auto& r) { r.q_view.type = static_cast<GgmlType>(77); }},
    {"view_other_type", "sees bf16", [](auto& r) { r.k_view.type = GgmlType::bf16; }},
    {"view_shape", "sees f16 [32, 255, 2], recorded is f16 [32, 256, 2]",
     [](auto& r) { r.k_view.ne[1] = 255; }},
    {"view_offset", "begins at byte -2", [](auto& r) { r.v_view.view_offs = -2; }},
    {"view_odd_offset", "begins at byte 1", [](auto& r) { r.v_view.view_offs = 1; }},
    {"view_beyond", "leaves its origin [64, 256] along dimension 1",
     [](auto& r) { r.v_view.view_offs = 128; }},
    {"view_stride", "no multiple of an element", [](auto& r) { r.k_view.nb[1] += 1; }},
    {"view_wide_stride", "leaves its origin", [](auto& r) { r.k_view.nb[1] *= 2; }},
    {"view_narrow_stride", "overlap",
     [](auto& r) {
         r.k_view.nb[1] = 64;
         r.k_view.order = axis_order(r.k_view.ne, r.k_view.nb);
     }},
    {"view_single", "dimension of one element", [](auto& r) { r.k_view.nb[3] += 128; }},
    {"view_slanted", "is no step of its origin", [](auto& r) { r.k_view.nb[1] += 2; }},
    {"origin_type", "of an origin of type f32", [](auto& r) { r.k_view.origin_type = GgmlType::f32; }},
    {"origin_shape", "strides do not fit", [](auto& r) { r.k_view.origin_ne[0] *= 2; }},
    {"origin_strides", "strides do not fit", [](auto& r) { r.k_view.origin_nb[1] *= 2; }},
    {"origin_empty", "its origin has the shape", [](auto& r) { r.k_view.origin_ne[3] = 0; }},
    {"origin_longer", "along dimension 3", [](auto& r) { r.k_view.origin_ne[3] = 2; }},
    {"own_tensor_strided", "is not contiguous",
     [](auto& r) {
         r.q_view.origin_name.clear();
         r.q_view.view_offs = 4;
     }},
    {"view_of_nothing", "a view of what is not recorded", [](auto& r) { r.sinks_view = r.q_view; }},
    {"other_layers_query", "is named 'Qcur-1", [](auto& r) { r.q_view.origin_name = "Qcur-1"; }},
    {"mla_with_rows", "has rows, pages or a format of its own", [](auto& r) { r.v_is_view_of_k = true; }},
};

class TraceRecordFault : public ::testing::TestWithParam<Fault> {};

TEST_P(TraceRecordFault, IsRefused) {
    TraceRecord record = sample_record(0, 0);
    ASSERT_NO_THROW(validate(record));
    const std::string message = error_of([&] {
        GetParam().inject(record);
        validate(record);
    });
    EXPECT_THAT(message, HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Table, TraceRecordFault, ::testing::ValuesIn(kFaults),
                         [](const auto& test) { return std::string(test.param.name); });

// --- damage in files: container-valid, but tensors renamed, retyped, patched or missing

class DamagedTrace : public ::testing::Test {
  protected:
    // Copies a trace of two layers and steps, letting `edit` change or drop (return false) each tensor.
    struct Tensor {
        std::string name;
        GgmlType type;
        Shape ne;
        std::vector<std::byte> bytes;
    };
    std::string damage(TraceForm form, const std::function<bool(Tensor&)>& edit) {
        const TempFolder folder;
        TraceWriter writer(folder / "good.gguf", {.form = form});
        SampleShape shape;
        for (int step = 0; step < 2; ++step) {
            for (int layer = 0; layer < 2; ++layer) {
                writer.append(sample_record(layer, step, shape));
            }
            ++shape.n_used;
        }
        writer.finish();
        const GgufReader good(folder / "good.gguf");
        GgufStreamWriter copy(folder / "bad.gguf");
        copy.set("general.architecture", kTraceArchitecture);
        copy.set(kKeySchema, good.get<uint32_t>(kKeySchema));
        copy.set(kKeyForm, good.get<std::string>(kKeyForm));
        copy.set(kKeyRecords, good.get<uint64_t>(kKeyRecords));
        copy.set(kKeySum, good.get<uint64_t>(kKeySum));
        const auto strings = good.get_array<std::string>(kKeyStrings);
        copy.set_array(kKeyStrings, std::span<const std::string>(strings));
        for (size_t i = 0; i < good.n_tensors(); ++i) {
            const GgufTensor found = good.tensor(i);
            Tensor tensor{std::string(found.name), found.type, found.ne, good.read_bytes(found)};
            if (edit(tensor)) {
                copy.add_tensor(tensor.name, tensor.type, tensor.ne, tensor.bytes);
            }
        }
        copy.finish();
        return error_of([&] {
            const TraceReader trace(folder / "bad.gguf");
            for (const RecordId id : trace.records()) {
                (void)trace.load(id);
            }
        });
    }

    template <typename T>
    static std::function<bool(Tensor&)> patch(const char* name, size_t index, T value) {
        return [=](Tensor& tensor) {
            if (tensor.name == name) {
                std::memcpy(tensor.bytes.data() + index * sizeof(T), &value, sizeof(T));
            }
            return true;
        };
    }
    static std::function<bool(Tensor&)> drop(const char* name) {
        return [=](Tensor& tensor) { return tensor.name != name; };
    }
};

TEST_F(DamagedTrace, UndamagedCopyIsAccepted) {
    for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
        EXPECT_EQ(damage(form, [](Tensor&) { return true; }), "(no error)");
    }
}

TEST_F(DamagedTrace, MissingTensors) {
    for (const char* name : {"kqv_out-1_step_1", "q-1_step_1", "k-1_step_1", "v-1_step_1", "k_quant-1_step_1",
                             "v_quant-1_step_1", "k_rows-1_step_1", "v_rows-1_step_1", "k_pages-1_step_1",
                             "v_pages-1_step_1", "mask-1_step_1", "meta-1_step_1", "scalars-1_step_1",
                             "sums-1_step_1", "k_sums-1_step_1", "v_page_sums-1_step_1"}) {
        const std::string kind(name, std::strchr(name, '-'));
        EXPECT_THAT(damage(TraceForm::self_contained, drop(name)), HasSubstr("'" + kind)) << name;
    }
    for (const char* name : {"k-1_step_0", "k-1_step_1", "k_quant-0_step_0", "k_ids-1_step_1",
                             "v_page_ids-0_step_0", "mask-0_step_0", "k_sums-0_step_0"}) {
        EXPECT_NE(damage(TraceForm::compact, drop(name)), "(no error)") << name;
    }
}

TEST_F(DamagedTrace, WrongNamesTypesAndShapes) {
    const auto edit = [this](const char* name, const std::function<void(Tensor&)>& change) {
        return damage(TraceForm::self_contained, [&](Tensor& tensor) {
            if (tensor.name == name) {
                change(tensor);
            }
            return true;
        });
    };
    EXPECT_THAT(edit("mask-0_step_0", [](Tensor& t) { t.name = "maks-0_step_0"; }),
                HasSubstr("no part of a trace"));
    EXPECT_THAT(edit("mask-0_step_0", [](Tensor& t) { t.name = "mask-0_step_7"; }),
                HasSubstr("'meta' is missing"));
    EXPECT_THAT(edit("q-0_step_1", [](Tensor& t) { t.type = GgmlType::i32; }), HasSubstr("q: type i32"));
    EXPECT_THAT(edit("q-0_step_1", [](Tensor& t) { std::swap(t.ne[0], t.ne[1]); }),
                HasSubstr("q: shape [4, 32]"));
    EXPECT_THAT(edit("k_rows-0_step_0", [](Tensor& t) { t.type = GgmlType::f32; }), HasSubstr("not i32"));
    EXPECT_THAT(edit("meta-0_step_0",
                     [](Tensor& t) {
                         t.ne[0] -= 1;
                         t.bytes.resize(t.bytes.size() - 8);
                     }),
                HasSubstr("not i64 [232]"));
    EXPECT_THAT(edit("scalars-0_step_0", [](Tensor& t) { t.type = GgmlType::i32; }), HasSubstr("not f32"));
}

TEST_F(DamagedTrace, WrongValues) {
    const auto self = TraceForm::self_contained;
    EXPECT_THAT(damage(self, patch("scalars-0_step_1", scalar_kq_scale, NAN)),
                HasSubstr("layer 0, step 1, scalars"));
    EXPECT_THAT(damage(self, patch("scalars-0_step_1", scalar_max_bias, -INFINITY)), HasSubstr("max_bias"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::layer, 0)),
                HasSubstr("says layer 0, step 1"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::schema, 3)), HasSubstr("schema 3"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::cache, 2)),
                HasSubstr("meta field 3 is 2"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::form, 1)), HasSubstr("form 1"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::flags, 2)),
                HasSubstr("meta field 5 is 2"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", 23, 1)), HasSubstr("meta field 23 is 1"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::position, 5)),
                HasSubstr("its position is 5"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::n_kv, int64_t{1} << 60)),
                HasSubstr("n_kv"));
    EXPECT_THAT(damage(self, patch<int64_t>("meta-1_step_1", meta::k_cold + meta::cold_n_rows, 3)),
                HasSubstr("k_rows-1_step_1"));
    EXPECT_THAT(damage(self, patch<int32_t>("k_rows-0_step_0", 0, 5000)), HasSubstr("cell 5000"));
    EXPECT_THAT(damage(self, patch<int64_t>("v_pages-0_step_0", 4, 32)), HasSubstr("held twice"));
}

TEST_F(DamagedTrace, WrongIds) {
    const auto compact = TraceForm::compact;
    // k_ids: runs of (first cell, count, first id)
    EXPECT_THAT(damage(compact, patch<int32_t>("k_ids-0_step_1", 2, -1)), HasSubstr("are not below"));
    EXPECT_THAT(damage(compact, patch<int32_t>("k_ids-0_step_1", 2, INT32_MAX)), HasSubstr("are not below"));
    EXPECT_THAT(damage(compact, patch<int32_t>("k_ids-0_step_1", 1, INT32_MAX)), HasSubstr("does not fit"));
    EXPECT_THAT(damage(compact, patch<int32_t>("k_ids-0_step_1", 1, 0)), HasSubstr("does not fit"));
    EXPECT_THAT(damage(compact, patch<int32_t>("k_ids-0_step_1", 0, -5)), HasSubstr("does not fit"));
    EXPECT_THAT(damage(compact, patch<int64_t>("v_page_ids-0_step_1", 3, 2)), HasSubstr("are not below 2"));
    // More rows than the file has versions, though every single run is fine.
    EXPECT_THAT(damage(compact, patch<int64_t>("meta-0_step_1", meta::k_cold + meta::cold_n_rows, 1 << 20)),
                HasSubstr("lists 75 of 1048576 rows"));
}

}  // namespace
}  // namespace mixed_kv::trace::testing
