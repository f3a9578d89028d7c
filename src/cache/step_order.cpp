#include "cache/step_order.h"

#include <algorithm>
#include <tuple>

namespace mixed_kv::cache {

void StepOrder::add(const Page& page) {
    if (page.rung < last_rung_) pages_.push_back(page);
}

std::optional<Step> StepOrder::next() {
    // A heap, because mostly one page of many is asked for.
    const auto later = [](const Page& a, const Page& b) {
        return std::tie(a.is_held, a.rung, a.age, a.page) > std::tie(b.is_held, b.rung, b.age, b.page);
    };
    if (!is_heap_) std::make_heap(pages_.begin(), pages_.end(), later);
    is_heap_ = true;
    if (pages_.empty()) return std::nullopt;
    std::pop_heap(pages_.begin(), pages_.end(), later);
    const Page page = pages_.back();
    pages_.pop_back();
    if (page.is_held) return Step{page.page, last_rung_};
    if (page.rung > 0) return Step{page.page, page.rung + 1};
    return Step{page.page, widest_in_use_ > last_rung_ ? 1 : widest_in_use_};
}

}  // namespace mixed_kv::cache
