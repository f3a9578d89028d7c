#include <gtest/gtest.h>

#include <sys/mman.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cache/kv_driver.h"

namespace mixed_kv::test {
namespace {

// Two tensors of one cache under random operations, each beside its model.
class KvProperties : public testing::TestWithParam<int> {
  protected:
    struct Pinned {
        explicit Pinned(std::size_t n)
            : bytes(n),
              base(static_cast<std::byte*>(
                  mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
        ~Pinned() { munmap(base, bytes); }
        std::size_t bytes;
        std::byte* base;
    };
    struct Side {
        std::unique_ptr<KvTensor> tensor;
        std::unique_ptr<KvModel> model;
    };

    void SetUp() override {
        random_ = Random(static_cast<std::uint64_t>(GetParam()));
        const std::int64_t sizes[] = {64, 100, 192, 257, 400};
        const int windows[] = {0, 5, 64, 70, 1000};
        const HeadShape shapes[] = {{1, 32}, {2, 32}, {3, 40}, {1, 64}, {4, 20}};
        n_cells_ = sizes[random_.below(5)];
        n_stream_ = 1 + random_.below(3);
        shape_ = shapes[random_.below(5)];
        pairs_.n_pairs = 1 + random_.below(shape_.head_dim / 2);
        pairs_.first = random_.below(shape_.head_dim - 2 * pairs_.n_pairs + 1);
        pairs_.interleaved = random_.below(2) == 0;
        arena_ = std::make_unique<PageArena>();
        tracker_ = std::make_unique<WindowTracker>(
            WindowTracker::Config{n_cells_, n_stream_, windows[random_.below(5)], random_.below(2) * 4});
        // Every format gets its turn, and f16.
        const auto formats = cold_formats();
        const auto f = static_cast<std::size_t>(GetParam()) % (formats.size() + 1);
        const ColdFormat* format = f < formats.size() ? &formats[f] : nullptr;
        for (Side& side : sides_) {
            const auto role = random_.below(2) == 0 ? KvRole::key : KvRole::value;
            side.tensor = std::make_unique<KvTensor>(
                KvTensor::Config{role, n_cells_, n_stream_, shape_.row_elements(), format,
                                 &kernel_set("scalar"), arena_.get(), tracker_.get()});
            side.model = std::make_unique<KvModel>(*side.tensor, tracker_.get());
            if (random_.below(3) != 0) {
                EXPECT_TRUE(side.tensor->set_head_shape(shape_));
            }
        }
    }

    std::int64_t all_cells() const { return n_cells_ * n_stream_; }
    std::size_t row_bytes() const { return static_cast<std::size_t>(shape_.row_elements()) * 2; }
    int pick(std::int64_t n) { return random_.below(static_cast<int>(n)); }
    float value() {
        if (random_.below(20000) == 0) {
            const float odd[] = {std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::quiet_NaN(),
                                 7e4f,
                                 -3e4f,
                                 2000.0f,
                                 -0.0f,
                                 1e-7f};
            return odd[random_.below(7)];
        }
        return random_.normal();
    }

    std::string graph() {
        // Sequential rows in a ring, scattered rows, repeated rows.
        const int sizes[] = {1, 1, 2, 7, 64, 130};
        const int n = sizes[random_.below(6)];
        const int kind = random_.below(4);
        std::vector<std::int64_t> cells;
        const int stream = random_.below(n_stream_);
        for (int i = 0; i < n; ++i) {
            if (kind == 0) cursor_ = pick(n_cells_);
            if (kind == 1 && i > 0 && random_.below(4) == 0) cursor_ = pick(n_cells_);
            cursor_ = (cursor_ + 1) % n_cells_;
            cells.push_back(stream * n_cells_ + cursor_);
            if (kind == 3 && i > 0 && random_.below(3) == 0)
                cells.back() = cells[static_cast<std::size_t>(random_.below(i))];
        }
        tracker_->on_write(++epoch_, cells);
        for (Side& side : sides_) {
            const bool is_fp16 = random_.below(2) == 0;
            const auto row = static_cast<std::size_t>(shape_.row_elements());
            const std::size_t stride = row + static_cast<std::size_t>(random_.below(3));
            std::vector<float> rows(stride * cells.size());
            std::vector<fp16_t> halves(stride * cells.size());
            for (std::size_t i = 0; i < rows.size(); ++i) {
                rows[i] = value();
                halves[i] = fp32_to_fp16(rows[i]);
            }
            const auto item = is_fp16 ? sizeof(fp16_t) : sizeof(float);
            const void* data = is_fp16 ? static_cast<const void*>(halves.data()) : rows.data();
            write_rows(*side.tensor, cells, {data, static_cast<std::ptrdiff_t>(stride * item), is_fp16});
            for (std::size_t i = 0; i < cells.size(); ++i) side.model->write_row(cells[i], &rows[i * stride]);
        }
        return "graph of " + std::to_string(n);
    }
    void mask() {
        // Every query sees a random piece of the stream that ends at its own cell; what the tracker makes of
        // it is tested elsewhere.
        std::vector<std::vector<std::set<std::int64_t>>> visible(1);
        const std::int64_t back = 1 + pick(n_cells_);
        for (std::int64_t i = 0; i < back; ++i) {
            if (random_.below(8) != 0) {
                if (visible[0].empty()) visible[0].emplace_back();
                visible[0][0].insert((cursor_ - i + n_cells_) % n_cells_);
            }
        }
        if (visible[0].empty()) return;
        tracker_->on_mask(epoch_, Mask(visible, n_cells_).view(), random_.below(n_stream_), 1, 1, n_cells_);
    }
    std::string host_write(Side& side) {
        const std::size_t all = static_cast<std::size_t>(all_cells()) * row_bytes();
        const auto offset =
            random_.below(4) == 0 ? 0 : static_cast<std::size_t>(pick(static_cast<std::int64_t>(all)));
        const auto size = std::min(
            all - offset, static_cast<std::size_t>(1 + random_.below(random_.below(2) == 0 ? 300 : 60000)));
        if (random_.below(4) == 0) {
            const std::uint8_t fill = random_.below(3) == 0 ? 0x3c : 0;
            side.tensor->fill_bytes(offset, fill, size);
            side.model->fill_bytes(offset, fill, size);
            return "fill of " + std::to_string(size);
        }
        std::vector<fp16_t> data(size / 2 + 1);
        for (fp16_t& v : data) v = fp32_to_fp16(value());
        side.tensor->write_bytes(offset, data.data(), size);
        side.model->write_bytes(offset, data.data(), size);
        return "write of " + std::to_string(size) + " at " + std::to_string(offset);
    }
    std::string copy() {
        const int from = random_.below(2), to = random_.below(2);
        std::int64_t n = 1 + pick(n_cells_), source = pick(all_cells()), target = pick(all_cells());
        if (random_.below(2) == 0)
            source = source / n_cells_ * n_cells_, target = target / n_cells_ * n_cells_, n = n_cells_;
        n = std::min({n, all_cells() - source, all_cells() - target});
        auto& a = sides_[from];
        auto& b = sides_[to];
        b.tensor->copy_rows(*a.tensor, source, target, n);
        b.model->copy_rows(*a.model, source, target, n);
        return "copy of " + std::to_string(n) + " from " + std::to_string(source) + " to " +
               std::to_string(target);
    }
    // Runs of cells, or cells by turns as sequences on shared pages have them. Only written cells.
    std::string shift(Side& side) {
        if (side.tensor->pinned() || side.tensor->config().role != KvRole::key) return "no shift";
        std::vector<std::uint32_t> kinds(static_cast<std::size_t>(all_cells()));
        const bool by_turns = random_.below(2) == 0;
        const auto n_sequences = static_cast<std::uint32_t>(1 + random_.below(6));
        const std::int64_t first = pick(all_cells()), n = 1 + pick(all_cells());
        const auto one_kind = static_cast<std::uint32_t>(1 + random_.below(3));
        for (std::int64_t cell = 0; cell < all_cells(); ++cell) {
            const Page& page =
                side.tensor->pages(static_cast<int>(cell / n_cells_)).pages[cell % n_cells_ / kPageTokens];
            if ((page.written >> (cell % n_cells_ % kPageTokens) & 1) == 0) continue;
            auto& kind = kinds[static_cast<std::size_t>(cell)];
            if (by_turns) {
                kind = static_cast<std::uint32_t>(cell) % n_sequences % 4;
            } else if (cell >= first && cell < first + n) {
                kind = one_kind;
            }
        }
        const QuarterTurns quarters(shape_, pairs_, kinds);
        side.model->shift(quarters.shift);
        side.tensor->plan_shift(quarters.shift);
        if (random_.below(4) == 0) {  // planning changes nothing
            side.tensor->abandon_shift();
            side.tensor->plan_shift(quarters.shift);
        }
        side.tensor->commit_shift();
        return by_turns ? "shift of sequences" : "shift of a range";
    }

    Random random_{0};
    std::int64_t n_cells_ = 0, cursor_ = 0;
    int n_stream_ = 1;
    HeadShape shape_;
    RotaryPairs pairs_;
    std::unique_ptr<Pinned> memory_;
    std::unique_ptr<PageArena> arena_;
    std::unique_ptr<WindowTracker> tracker_;
    Side sides_[2];
    std::uint64_t epoch_ = 0;
};

TEST_P(KvProperties, EqualsThePlainArray) {
    RecordProperty("seed", GetParam());
    std::uint64_t events = 0;
    for (int step = 0; step < 120; ++step) {
        Side& side = sides_[random_.below(2)];
        const int kind = random_.below(40);
        bool is_graph = false;
        std::string what;
        if (kind < 24) {
            what = graph();
            is_graph = true;
        } else if (kind < 32) {
            what = host_write(side);
        } else if (kind < 35) {
            what = copy();
        } else if (kind < 38) {
            what = shift(side);
        } else if (kind == 38) {
            what = "shape";
            EXPECT_TRUE(side.tensor->set_head_shape(shape_));
        } else if (step > 90 && !memory_) {
            what = "pin";
            memory_ = std::make_unique<Pinned>(static_cast<std::size_t>(all_cells()) * row_bytes());
            side.tensor->pin(memory_->base);
        } else if (random_.below(3) == 0) {
            what = "clear";
            side.tensor->clear();
            side.model->clear();
        }
        std::size_t live = 0;
        for (Side& each : sides_) {
            const auto problems = each.model->check(is_graph);
            ASSERT_TRUE(problems.empty())
                << "seed " << GetParam() << " step " << step << " (" << what << "): " << problems.size()
                << " problems, the first: " << problems.front();
            live += each.model->live_bytes();
        }
        ASSERT_EQ(arena_->bytes_in_use(), live)
            << "seed " << GetParam() << " step " << step << " (" << what << ")";
        if (is_graph && random_.below(5) != 0) mask();
    }
    for (Side& side : sides_) events += side.tensor->counters().freezes + side.tensor->counters().promotions;
    RecordProperty("events", static_cast<int>(events));
}

INSTANTIATE_TEST_SUITE_P(Seeds, KvProperties, testing::Range(1, 65));

}  // namespace
}  // namespace mixed_kv::test
