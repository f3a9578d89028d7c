#include "mixed-kv-run/watch_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace mixed_kv::tools {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr const char* kOrange = "\033[33m";
constexpr const char* kBlue = "\033[34m";
constexpr const char* kPlain = "\033[0m";

std::string progress_text(const WatchProgress& p) {
    const std::string done = p.n_prompt_done < p.n_prompt || p.n_generated == 0
                                 ? fmt::format("prompt {} of {} tokens", p.n_prompt_done, p.n_prompt)
                                 : fmt::format("generated {} tokens", p.n_generated);
    return p.tokens_per_second > 0 ? fmt::format("{}, {:.4g} t/s", done, p.tokens_per_second) : done;
}

// Layers first .. last as one.
struct Row {
    int first = 0, last = 0;
    std::int64_t n_hot = 0, n_cold = 0;
};

std::vector<Row> rows_of(const std::vector<WatchedLayer>& layers, std::size_t n_rows) {
    std::vector<Row> rows;
    if (layers.empty() || n_rows == 0) return rows;
    const std::size_t together = (layers.size() + n_rows - 1) / n_rows;
    for (std::size_t i = 0; i < layers.size(); i++) {
        if (i % together == 0) rows.push_back({.first = layers[i].layer});
        Row& row = rows.back();
        row.last = layers[i].layer;
        row.n_hot += layers[i].n_hot;
        row.n_cold += layers[i].n_cold;
    }
    return rows;
}

}  // namespace

std::string watch_line(const WatchState& state) {
    std::int64_t n_hot = 0, n_cold = 0;
    for (const WatchedLayer& layer : state.layers) {
        n_hot += layer.n_hot;
        n_cold += layer.n_cold;
    }
    return fmt::format("{}; {} hot and {} cold pages, {:.2f} MiB (F16: {:.2f} MiB)",
                       progress_text(state.progress), n_hot, n_cold, double(state.bytes) / kMiB,
                       double(state.f16_bytes) / kMiB);
}

std::vector<std::string> watch_panel(const WatchState& state, int n_rows, int width, bool colour) {
    std::vector<std::string> lines = {watch_line(state).substr(0, std::size_t(std::max(0, width)))};
    const std::vector<Row> rows = rows_of(state.layers, std::size_t(std::max(0, n_rows - 1)));
    std::int64_t most = 1;
    for (const Row& row : rows) most = std::max(most, row.n_hot + row.n_cold);
    constexpr int kTexts = 38;  // beside the bar
    const auto bar_width = std::int64_t(std::clamp(width - kTexts, 0, 60));
    for (const Row& row : rows) {
        const std::string name = row.first == row.last ? fmt::format("layer {}", row.first)
                                                       : fmt::format("layers {}-{}", row.first, row.last);
        // A few hot pages among many cold ones are still one character.
        const std::int64_t hot = row.n_hot == 0 ? 0 : std::max<std::int64_t>(1, row.n_hot * bar_width / most);
        const std::int64_t cold = row.n_cold * bar_width / most;
        const std::string cold_bar(std::size_t(std::min(cold, bar_width - std::min(hot, bar_width))), '=');
        const std::string hot_bar(std::size_t(std::min(hot, bar_width)), '#');
        const std::string blank(std::size_t(bar_width) - cold_bar.size() - hot_bar.size(), ' ');
        const std::string head = fmt::format("{:<14}", name);
        const std::string tail = fmt::format(" {} hot, {} cold", row.n_hot, row.n_cold);
        if (int(head.size() + std::size_t(bar_width) + tail.size()) > width) {
            lines.push_back((head + tail).substr(0, std::size_t(std::max(0, width))));
        } else if (colour) {
            lines.push_back(head + kBlue + cold_bar + kOrange + hot_bar + kPlain + blank + tail);
        } else {
            lines.push_back(head + cold_bar + hot_bar + blank + tail);
        }
    }
    return lines;
}

}  // namespace mixed_kv::tools
