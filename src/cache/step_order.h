#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace mixed_kv::cache {

// A page steps down to a rung. Rung 0 is FP16, rung i the i-th format of the ladder.
struct Step {
    std::uint32_t page;
    int to_rung;
};

// Which page steps down next, and how far.
//
// The widest page goes first, and of equally wide ones the oldest: nobody is on a rung while somebody is two
// above, as far as pages are free to go. A page leaves FP16 for the widest rung that others are on, so that
// it does not take each rung between by itself. Pages that are held (in a window, not full) go last, and then
// all the way down.
class StepOrder {
  public:
    struct Page {
        std::uint32_t page;
        int rung;  // the widest that it has
        bool is_held;
        std::uint32_t age;  // write order of its newest row: lower is older
    };
    explicit StepOrder(int last_rung) : last_rung_(last_rung), widest_in_use_(last_rung + 1) {}

    void add(const Page& page);
    // Blocks of this rung are in use.
    void note_in_use(int rung) noexcept {
        if (rung < widest_in_use_) widest_in_use_ = rung;
    }
    // In order, each page once. Nothing when no page is left.
    std::optional<Step> next();

    int last_rung() const noexcept { return last_rung_; }

  private:
    int last_rung_;
    int widest_in_use_;  // last_rung + 1: none
    bool is_heap_ = false;
    std::vector<Page> pages_;
};

}  // namespace mixed_kv::cache
