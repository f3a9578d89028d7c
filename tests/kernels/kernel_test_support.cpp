#include "kernels/kernel_test_support.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {

namespace {
constexpr double kRounding = 0x1p-24;  // relative error of one float operation
}

GuardedBytes::GuardedBytes(std::size_t size) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t usable = (size + page - 1) / page * page;
    map_size_ = usable + page;
    void* map = mmap(nullptr, map_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(static_cast<std::byte*>(map) + usable, page, PROT_NONE) != 0) {
        throw std::runtime_error("GuardedBytes: no memory for " + std::to_string(size) + " bytes");
    }
    map_ = static_cast<std::byte*>(map);
    data_ = map_ + usable - size;
    std::memset(map_, 0xff, usable);  // NaN as binary16 and as binary32
}

GuardedBytes::~GuardedBytes() { munmap(map_, map_size_); }

std::string to_string(RowData kind) {
    switch (kind) {
        case RowData::gaussian:
            return "gaussian";
        case RowData::outlier_channels:
            return "outlier_channels";
        case RowData::graded:
            return "graded";
        case RowData::constant:
            return "constant";
        case RowData::tiny:
            return "tiny";
        case RowData::huge:
            return "huge";
    }
    return "?";
}

std::vector<std::uint16_t> make_rows(RowData kind, int head_dim, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<std::uint16_t> rows(std::size_t(kPageTokens) * head_dim);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto channel = static_cast<int>(i % head_dim);
        float x = normal(rng);
        switch (kind) {
            case RowData::gaussian:
                break;
            case RowData::outlier_channels:
                x = channel % 7 == 0 ? 30.0f * x + 50.0f : x;
                break;
            case RowData::graded:
                x *= std::exp2(static_cast<float>(channel * 29 % 64) / 8.0f - 4.0f);
                break;
            case RowData::constant:
                x = static_cast<float>(channel) - 3.5f;
                break;
            case RowData::tiny:
                x *= 3e-7f;
                break;
            // Two signs per channel and few large channels: no rotated sum leaves binary16's range.
            case RowData::huge:
                x = channel % 37 == 0 ? 65504.0f * uniform(rng) : x;
                break;
        }
        rows[i] = fp32_to_fp16(x);
    }
    return rows;
}

void fill_queries(float* q, int n_rows, int head_dim, std::ptrdiff_t stride, float sigma, std::mt19937& rng) {
    std::normal_distribution<float> normal(0.0f, sigma / std::sqrt(static_cast<float>(head_dim)));
    for (int r = 0; r < n_rows; ++r) {
        for (std::ptrdiff_t c = 0; c < stride; ++c) {
            q[r * stride + c] = c < head_dim ? normal(rng) : 0.0f;
        }
    }
}

void fill_weights(float* p, int n_rows, int n_tokens, std::mt19937& rng) {
    std::normal_distribution<float> normal;
    for (int r = 0; r < n_rows; ++r) {
        float* row = p + r * kPageTokens;
        float largest = -INFINITY;
        for (int t = 0; t < kPageTokens; ++t) {
            row[t] = t < n_tokens && (rng() & 7) != 0 ? normal(rng) : -INFINITY;
            largest = std::max(largest, row[t]);
        }
        for (int t = 0; t < kPageTokens; ++t) {
            row[t] = std::isfinite(row[t]) ? std::exp(row[t] - largest) : 0.0f;
        }
    }
}

EncodedPage::EncodedPage(const ColdFormat& f, KvRole r, int dim, const std::vector<std::uint16_t>& rows,
                         std::uint64_t counted)
    : format(&f), role(r), head_dim(dim), block(f.block_bytes(r, dim)) {
    const kernels::EncodeArgs args{rows.data(), dim, dim, counted, block.data()};
    const bool ok =
        r == KvRole::key ? formats::encode_key(f.code_bits, args) : formats::encode_value(f.code_bits, args);
    if (!ok) {
        throw std::runtime_error("EncodedPage: the codec refused the rows");
    }
}

std::vector<EncodedPage::Part> EncodedPage::parts() const {
    const bool is_key = role == KvRole::key;
    if (!formats::is_tiered(is_key, format->code_bits, head_dim)) {
        return {{format->code_bits, 0, head_dim, block.data(),
                 formats::block_layout(is_key, format->code_bits, head_dim)}};
    }
    const formats::KeyTiers tiers = formats::read_key_tiers(block.data(), head_dim);
    std::vector<Part> parts;
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        parts.push_back({tier.width, tier.first, tier.n_channels, block.data() + tier.offset,
                         formats::block_layout_of_tier(tier.width, tier.n_channels)});
    }
    return parts;
}

void EncodedPage::make_integer_only() {
    for (const Part& part : parts()) {
        const auto put_scale = [&part](int index, float value) {
            const std::uint16_t bits = fp32_to_fp16(value);
            if (part.layout.scale_form == formats::ScaleForm::byte) {
                part.data[index] = std::byte(formats::scale_to_byte(bits));
            } else {
                std::memcpy(part.data + std::size_t(index) * 2, &bits, sizeof bits);
            }
        };
        const auto put_offset = [&part](int index, float value) {
            const std::uint16_t bits = fp32_to_fp16(value);
            std::memcpy(part.data + part.layout.offsets + std::size_t(index) * 2, &bits, sizeof bits);
        };
        if (role == KvRole::key) {
            for (int c = 0; c < part.n_channels; ++c) {
                const float scale = std::ldexp(1.0f, -(c * 5 % 4));
                if (part.width > 0) put_scale(c, scale);
                put_offset(
                    c, part.width > 0 ? -scale * static_cast<float>(formats::code_centre(part.width)) : 0.0f);
            }
            continue;
        }
        // A centred value code is half a step above the mean: equal scales let means of minus half a step
        // undo it.
        for (int t = 0; t < kPageTokens; ++t) put_scale(t, 0.25f);
        for (int c = 0; c < head_dim; ++c) put_offset(c, -0.25f * formats::kCentreAboveMiddle);
    }
}

QuerySteps query_steps(const EncodedPage& page, const float* q) {
    const formats::BlockReader reader = page.reader();
    std::map<int, double> largest;
    std::map<int, int> n_channels;
    for (int c = 0; c < page.head_dim; ++c) {
        double& of_width = largest[reader.width(c)];
        of_width = std::max(of_width, std::abs(double(q[c]) * reader.scale(0, c)));
        ++n_channels[reader.width(c)];
    }
    QuerySteps steps;
    for (const auto& [width, value] : largest) {
        steps[width] = width == 0 ? 0.0 : value / formats::q16_limit(width, n_channels[width]);
    }
    return steps;
}

Reference reference_qk(const EncodedPage& page, const float* q) {
    const formats::BlockReader reader = page.reader();
    const int dim = page.head_dim;
    const QuerySteps steps = query_steps(page, q);
    const auto n_sums = steps.size() > 1 ? double(steps.size()) : 0.0;  // in float, of tiers
    Reference want;
    for (int t = 0; t < kPageTokens; ++t) {
        double value = 0, bound = 1e-30;
        for (int c = 0; c < dim; ++c) {
            const double scale = reader.scale(t, c), zero = reader.offset(t, c);
            const int width = reader.width(c), centre = width == 0 ? 0 : formats::code_centre(width);
            value += double(q[c]) * (scale * reader.code(t, c) + zero);
            bound += std::abs(reader.code(t, c) - centre) *
                     (0.5 * steps.at(width) + (6 + n_sums) * kRounding * std::abs(q[c] * scale));
            bound += (dim + 8 + n_sums) * kRounding * std::abs(q[c]) * (std::abs(zero) + centre * scale);
        }
        want.value.push_back(value);
        want.bound.push_back(bound);
    }
    return want;
}

Reference reference_pv(const EncodedPage& page, const float* p, const float* o) {
    const formats::BlockReader reader = page.reader();
    const int centre = formats::code_centre(page.format->code_bits);
    double largest = 0;
    for (int t = 0; t < kPageTokens; ++t) {
        largest = std::max(largest, std::abs(double(p[t]) * reader.scale(t, 0)));
    }
    const double step = largest / formats::q16_limit(page.format->code_bits, kPageTokens);
    Reference want;
    for (int c = 0; c < page.head_dim; ++c) {
        double value = o[c], bound = 1e-30 + 4 * kRounding * std::abs(o[c]);
        for (int t = 0; t < kPageTokens; ++t) {
            const double scale = reader.scale(t, c), mean = reader.offset(t, c);
            value += double(p[t]) * (scale * (reader.code(t, c) - double(reader.shift())) + mean);
            bound +=
                std::abs(reader.code(t, c) - centre) * (0.5 * step + 6 * kRounding * std::abs(p[t] * scale));
            bound += (kPageTokens + 8) * kRounding * std::abs(p[t]) * (std::abs(mean) + centre * scale);
        }
        want.value.push_back(value);
        want.bound.push_back(bound);
    }
    return want;
}

::testing::AssertionResult within_bound(const Reference& want, std::span<const float> got) {
    if (got.size() < want.value.size()) {
        return ::testing::AssertionFailure() << "only " << got.size() << " results";
    }
    for (std::size_t i = 0; i < want.value.size(); ++i) {
        const double error = std::abs(got[i] - want.value[i]);
        if (!(error <= want.bound[i])) {
            return ::testing::AssertionFailure()
                   << "element " << i << " is " << got[i] << ", not " << want.value[i] << ": off by " << error
                   << ", allowed " << want.bound[i];
        }
    }
    return ::testing::AssertionSuccess();
}

::testing::AssertionResult relative_rms(const Reference& want, std::span<const float> got, double tolerance) {
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < want.value.size(); ++i) {
        error += (got[i] - want.value[i]) * (got[i] - want.value[i]);
        norm += want.value[i] * want.value[i];
    }
    const double relative = std::sqrt(error / norm);
    if (!(relative <= tolerance)) {
        return ::testing::AssertionFailure()
               << "relative RMS error " << relative << ", allowed " << tolerance;
    }
    return ::testing::AssertionSuccess();
}

std::vector<int> row_counts(const kernels::KernelSet& set) {
    std::vector<int> counts{1, 3, 4, 8, 16, 32};
    if (set.max_rows > kernels::kMaxDecodeRows) {
        for (const int n : {9, 17, 63, set.max_rows}) counts.push_back(n);
    }
    return counts;
}

bool is_supported(std::string_view isa) {
    const std::vector<std::string_view> isas = supported_isas();
    return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

std::vector<std::string_view> required_isas() {
    const char* list = std::getenv("MIXED_KV_REQUIRE_ISA");
    std::vector<std::string_view> names;
    std::string_view rest = list != nullptr ? list : "";
    while (!rest.empty()) {
        const std::size_t comma = std::min(rest.find(','), rest.size());
        if (comma > 0) {
            names.push_back(rest.substr(0, comma));
        }
        rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    return names;
}

void IsaTest::SetUp() {
    if (is_supported(GetParam())) {
        return;
    }
    const std::vector<std::string_view> required = required_isas();
    if (std::find(required.begin(), required.end(), GetParam()) != required.end()) {
        FAIL() << "MIXED_KV_REQUIRE_ISA asks for " << GetParam() << ", which this CPU cannot run";
    }
    GTEST_SKIP() << "this CPU cannot run " << GetParam();
}

const kernels::KernelSet& scalar_kernels() { return kernel_set("scalar"); }

std::string isa_name(const ::testing::TestParamInfo<std::string_view>& info) {
    return std::string(info.param);
}

}  // namespace mixed_kv::testing
