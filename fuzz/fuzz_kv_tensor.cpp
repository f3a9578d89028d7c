// libFuzzer harness for the cache core: the bytes choose shapes, formats and a sequence of operations on two
// KvTensors of one cache; the model of tests/cache (plain arrays of rows) says after each what must hold.
// Anything else than agreement or mixed_kv::Error ends the process.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/bin/fuzz_kv_tensor -max_len=4096 WORK_FOLDER fuzz/corpus/kv_tensor

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "cache/kv_model.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/page_arena.h"

namespace {

using namespace mixed_kv;
using test::KvModel;

// The input as an endless source of choices: zeros when it is used up.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    bool empty() const { return at_ >= size_; }
    unsigned byte() { return at_ < size_ ? data_[at_++] : 0u; }
    // 0 .. n - 1, from two bytes.
    std::int64_t below(std::int64_t n) {
        const auto high = byte();
        return std::int64_t(high << 8 | byte()) % n;
    }
    float value() {
        const auto b = byte();
        constexpr float kOdd[] = {0.0f, -0.0f, 7e4f, -3e4f, 1e-7f, 65504.0f};
        return b < 6 && byte() < 8 ? kOdd[b] : (float(b) - 128.0f) / 32.0f;
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

class Cache {
  public:
    explicit Cache(Choices& in) : in_(in) {
        constexpr std::int64_t kCells[] = {64, 100, 192, 257};
        constexpr int kWindows[] = {0, 5, 64, 1000};
        constexpr HeadShape kShapes[] = {{1, 32}, {2, 16}, {3, 20}, {1, 40}};
        n_cells_ = kCells[in.byte() % 4];
        n_stream_ = 1 + int(in.byte() % 2);
        shape_ = kShapes[in.byte() % 4];
        tracker_ = std::make_unique<WindowTracker>(
            WindowTracker::Config{n_cells_, n_stream_, kWindows[in.byte() % 4], int(in.byte() % 5)});
        const auto formats = cold_formats();
        const auto f = in.byte() % (formats.size() + 1);
        const auto set = in.byte() % 4;
        for (Side& side : sides_) {
            side.tensor = std::make_unique<KvTensor>(KvTensor::Config{
                in.byte() % 2 == 0 ? KvRole::key : KvRole::value, n_cells_, n_stream_, shape_.row_elements(),
                f < formats.size() ? &formats[f] : nullptr, &kernel_set("scalar"), &arena_, tracker_.get()});
            side.model = std::make_unique<KvModel>(*side.tensor, tracker_.get());
            if (set != 0 && !side.tensor->set_head_shape(shape_)) std::abort();
        }
    }

    void step() {
        const bool is_graph = in_.byte() % 2 == 0;
        if (is_graph) {
            graph();
        } else {
            host_access();
        }
        for (Side& side : sides_) {
            const auto problems = side.model->check(is_graph);
            if (problems.empty()) continue;
            std::fprintf(stderr, "%s\n", problems.front().c_str());
            std::abort();
        }
        if (arena_.bytes_in_use() != sides_[0].model->live_bytes() + sides_[1].model->live_bytes())
            std::abort();
    }

  private:
    struct Side {
        std::unique_ptr<KvTensor> tensor;
        std::unique_ptr<KvModel> model;
    };

    void graph() {
        const std::int64_t all = n_cells_ * n_stream_;
        const auto n = std::size_t(1 + in_.below(70));
        std::vector<std::int64_t> cells(n);
        const std::int64_t first = in_.below(all);
        const bool scattered = in_.byte() % 4 == 0;
        for (std::size_t i = 0; i < n; ++i)
            cells[i] = scattered ? in_.below(all) : (first + std::int64_t(i)) % all;
        tracker_->on_write(++epoch_, cells);
        for (Side& side : sides_) {
            const auto row = std::size_t(shape_.row_elements());
            std::vector<float> rows(row * n);
            const float seed = in_.value(), slope = in_.value();
            for (std::size_t i = 0; i < rows.size(); ++i)
                rows[i] = seed + slope * float(i * 37 % 101) / 50.0f;
            test::write_rows(*side.tensor, cells, {rows.data(), std::ptrdiff_t(row * sizeof(float)), false});
            for (std::size_t i = 0; i < n; ++i) side.model->write_row(cells[i], &rows[i * row]);
        }
    }

    void host_access() {
        Side& side = sides_[in_.byte() % 2];
        const std::size_t all = std::size_t(n_cells_ * n_stream_ * shape_.row_elements()) * sizeof(fp16_t);
        const auto offset = std::size_t(in_.below(std::int64_t(all)));
        const auto size =
            std::size_t(in_.below(std::int64_t(std::min<std::size_t>(all - offset, 20000)) + 1));
        switch (in_.byte() % 7) {
            case 0: {
                std::vector<std::byte> bytes(size + 2);
                // Finite values: what a block makes of others is the codec's business.
                for (std::size_t i = 0; i < bytes.size(); ++i)
                    bytes[i] = std::byte((i * 29 + in_.byte()) & 0x3b);
                side.tensor->write_bytes(offset, bytes.data(), size);
                side.model->write_bytes(offset, bytes.data(), size);
                break;
            }
            case 1: {
                const auto value = std::uint8_t(in_.byte() % 3 == 0 ? 0x11 : 0);
                side.tensor->fill_bytes(offset, value, size);
                side.model->fill_bytes(offset, value, size);
                break;
            }
            case 2: {
                std::vector<std::byte> bytes(size);
                side.tensor->read_bytes(offset, bytes.data(), size);
                if (!equals_model(*side.model, offset, bytes)) std::abort();
                break;
            }
            case 3: {
                const std::int64_t cells = n_cells_ * n_stream_, from = in_.below(cells),
                                   to = in_.below(cells);
                const std::int64_t n = in_.below(cells - std::max(from, to) + 1);
                side.tensor->copy_rows(*side.tensor, from, to, n);
                side.model->copy_rows(*side.model, from, to, n);
                break;
            }
            case 4:
                for (Side& each : sides_) {
                    each.tensor->clear();
                    each.model->clear();
                }
                tracker_->clear();
                break;
            case 5:
                shift(side);
                break;
            default:  // beyond the end: refused, and nothing changes
                try {
                    side.tensor->read_bytes(all - size / 2, nullptr, size + 1);
                    std::abort();
                } catch (const Error&) {
                }
                break;
        }
    }

    // Byte for byte, but for the signs of zeros: a turn may negate those of rows that are stored.
    static bool equals_model(const KvModel& model, std::size_t offset, const std::vector<std::byte>& bytes) {
        const auto* want = reinterpret_cast<const std::byte*>(model.rows().data());
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            const std::size_t at = offset + i;
            const bool is_zero = (model.rows()[at / sizeof(fp16_t)] & 0x7fff) == 0;
            const std::byte difference = bytes[i] ^ want[at];
            const bool is_sign = at % 2 == 1 && difference == std::byte{0x80};
            if (difference != std::byte{0} && !(is_zero && is_sign)) return false;
        }
        return true;
    }

    // Of keys: cells of one range, or of sequences that take turns on every page, or each for itself.
    void shift(Side& side) {
        if (side.tensor->config().role != KvRole::key) return;
        const int d = shape_.head_dim;
        const RotaryPairs layouts[] = {{0, d / 2, false}, {0, d / 2, true}, {4, d / 4, false}};
        const RotaryPairs pairs = layouts[in_.byte() % 3];
        const std::int64_t all = n_cells_ * n_stream_, first = in_.below(all), n = in_.below(all) + 1;
        const auto kind = in_.byte() % 4, sequences = 1 + in_.byte() % 5, step = in_.byte() % 4;
        const bool scattered = in_.byte() % 8 == 0;
        std::vector<std::uint32_t> kinds(static_cast<std::size_t>(all));
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t cell = (first + i) % all;
            kinds[std::size_t(cell)] =
                scattered ? in_.byte() % 4 : unsigned(kind + step * (cell % sequences)) % 4;
        }
        const test::QuarterTurns quarters(shape_, pairs, kinds);
        side.model->shift(quarters.shift);
        side.tensor->plan_shift(quarters.shift);
        if (in_.byte() % 8 == 0) {  // planned anew: a plan alone changes nothing
            side.tensor->abandon_shift();
            side.tensor->plan_shift(quarters.shift);
        }
        side.tensor->commit_shift();
    }

    Choices& in_;
    std::int64_t n_cells_ = 0;
    int n_stream_ = 1;
    HeadShape shape_;
    PageArena arena_;
    std::unique_ptr<WindowTracker> tracker_;
    Side sides_[2];
    std::uint64_t epoch_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Choices in(data, size);
    Cache cache(in);
    for (int steps = 0; steps < 200 && !in.empty(); ++steps) cache.step();
    return 0;
}
