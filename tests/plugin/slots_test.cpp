// Several slots on one unified stream: each keeps its own window and its own sinks, and rows that nobody
// writes keep their block bit for bit.
#include <gtest/gtest.h>

#include <algorithm>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr int kWindow = 32;  // as set by CMakeLists.txt
constexpr int kSinks = 4;

bool is_exact(int cell) { return cell == MIXED_KV_CELL_HOT || cell == MIXED_KV_CELL_OVERLAY; }

// A unified cache with a fresh context hands out cells in the order tokens arrive: cell of each (sequence,
// position).
class Slots {
  public:
    Slots() : model_(small_model(), CacheOwner::kPlugin), context_(model_, options()) {}

    void append(int sequence, int n, int batch = 16) {
        for (int done = 0; done < n; done += batch) {
            const int count = std::min(batch, n - done);
            std::vector<BatchToken> tokens;
            for (int i = 0; i < count; ++i) {
                const int position = int(cells_[sequence].size());
                tokens.push_back(
                    {llama_token(10 + (sequence * 37 + position * 11) % 400), position, {sequence}, false});
                cells_[sequence].push_back(next_cell_++);
            }
            tokens.back().wants_logits = true;
            context_.decode_batch(tokens);
        }
    }

    PageRecorder& recorder() { return recorder_; }
    const std::vector<std::int64_t>& cells(int sequence) { return cells_[sequence]; }
    Context& context() { return context_; }

  private:
    ContextOptions options() {
        ContextOptions o;
        o.n_ctx = 1024;
        o.n_seq_max = 4;
        o.kv_unified = true;
        o.n_threads = 1;
        o.eval_callback = PageRecorder::callback;
        o.eval_callback_data = &recorder_;
        return o;
    }

    PageRecorder recorder_;
    Model model_;
    Context context_;
    std::map<int, std::vector<std::int64_t>> cells_;
    std::int64_t next_cell_ = 0;
};

}  // namespace

TEST(Slots, EachKeepsItsOwnWindowAndSinks) {
    Slots slots;
    for (int round = 0; round < 10; ++round) {
        for (int sequence = 0; sequence < 3; ++sequence) slots.append(sequence, 20);
    }
    slots.append(0, 150);  // the others are idle meanwhile, and must not lose what they have

    ASSERT_FALSE(slots.recorder().tensors.empty());
    for (const auto& [name, tensor] : slots.recorder().tensors) {
        SCOPED_TRACE(name);
        int n_cold = 0;
        for (int sequence = 0; sequence < 3; ++sequence) {
            const auto& cells = slots.cells(sequence);
            const std::size_t n = cells.size();
            for (std::size_t position = 0; position < n; ++position) {
                const int state = tensor.cell(cells[position]);
                ASSERT_NE(state, MIXED_KV_CELL_EMPTY) << "sequence " << sequence << " position " << position;
                const bool must_be_exact = position < kSinks || position + kWindow >= n;
                if (must_be_exact) {
                    EXPECT_TRUE(is_exact(state))
                        << "sequence " << sequence << " position " << position << " is " << state;
                }
                n_cold += state == MIXED_KV_CELL_COLD;
            }
        }
        // Of 750 rows all but the windows, the sinks, and pages that hold one of them whole should be cold.
        EXPECT_GT(n_cold, 400);
    }
}

TEST(Slots, RowsNobodyWroteKeepTheirBlock) {
    Slots slots;
    for (int round = 0; round < 8; ++round) {
        for (int sequence = 0; sequence < 3; ++sequence) slots.append(sequence, 20);
    }
    const auto before = slots.recorder().tensors;
    // Slot 1 leaves; slot 3 moves into its cells, which lie among those of slots 0 and 2.
    ASSERT_TRUE(slots.context().remove(1, -1, -1));
    std::vector<BatchToken> tokens;
    for (int i = 0; i < 8; ++i) tokens.push_back({llama_token(20 + i), i, {3}, i == 7});
    slots.context().decode_batch(tokens);

    int pages_with_new_rows = 0;
    for (const auto& [name, tensor] : slots.recorder().tensors) {
        SCOPED_TRACE(name);
        const TensorPages& old = before.at(name);
        for (std::size_t i = 0; i < tensor.pages.size(); ++i) {
            if (old.pages[i].state != MIXED_KV_CELL_COLD) continue;
            EXPECT_EQ(tensor.pages[i].state, MIXED_KV_CELL_COLD) << "page " << i;
            EXPECT_EQ(tensor.pages[i].block, old.pages[i].block) << "page " << i;
            pages_with_new_rows += tensor.pages[i].overlay != old.pages[i].overlay;
        }
    }
    EXPECT_GT(pages_with_new_rows, 0) << "no row was written into a cold page: this test has tested nothing";
}
