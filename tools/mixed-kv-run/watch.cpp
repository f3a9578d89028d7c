#include "mixed-kv-run/watch.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string_view>

#include "common/host_kv_tensors.h"
#include "mixed_kv/page.h"

namespace mixed_kv::tools {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSecondsBetweenPanels = 0.1, kSecondsBetweenLines = 2;
constexpr int kMinTerminalRows = 12, kMaxPanelRows = 18;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// All rows scroll again, and the cursor is below the text. Written by a signal handler, too.
constexpr char kGiveBack[] = "\0337\033[r\0338\033[J";

extern "C" void give_back_and_end(int signal) {
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kGiveBack, sizeof kGiveBack - 1);
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

}  // namespace

// The bottom rows of the terminal, kept out of its scrolling.
class Watch::Panel {
  public:
    // Null where standard error is no terminal that can do this.
    static std::unique_ptr<Panel> make() {
        const char* term = std::getenv("TERM");
        winsize size = {};
        if (isatty(STDERR_FILENO) != 1 || term == nullptr || std::string_view(term) == "dumb" ||
            ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < kMinTerminalRows) {
            return nullptr;
        }
        return std::unique_ptr<Panel>(new Panel());
    }

    ~Panel() {
        if (n_kept_ == 0) return;
        put(kGiveBack);
        for (const int signal : kSignals) std::signal(signal, SIG_DFL);
    }

    void draw(const WatchState& state) {
        winsize size = {};
        if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < kMinTerminalRows) return;
        const int rows = size.ws_row;
        const bool colour = std::getenv("NO_COLOR") == nullptr;
        const std::vector<std::string> lines =
            watch_panel(state, std::min(kMaxPanelRows, rows / 2), size.ws_col, colour);
        std::string out;
        if (int(lines.size()) != n_kept_ || rows != n_rows_) out += keep(int(lines.size()), rows);
        out += "\0337";
        for (std::size_t i = 0; i < lines.size(); i++) {
            out += fmt::format("\033[{};1H\033[2K{}", rows - int(lines.size()) + 1 + int(i), lines[i]);
        }
        put(out + "\0338");
    }

  private:
    static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    // Moves what stands there up, then lets only the rows above scroll.
    std::string keep(int n, int rows) {
        if (n_kept_ == 0) {
            for (const int signal : kSignals) std::signal(signal, give_back_and_end);
        }
        n_kept_ = n;
        n_rows_ = rows;
        return std::string("\033[r") + std::string(std::size_t(n), '\n') +
               fmt::format("\033[{}A\0337\033[1;{}r\0338", n, rows - n);
    }

    static void put(const std::string& text) {
        std::fflush(stdout);  // the order on the terminal is that of the program
        std::fputs(text.c_str(), stderr);
        std::fflush(stderr);
    }

    int n_kept_ = 0, n_rows_ = 0;
};

Watch::Watch(const Plugin& plugin) : plugin_(plugin), panel_(Panel::make()) {}
Watch::~Watch() = default;

void Watch::begin() {
    phase_start_ = last_shown_ = Clock::now();
    progress_ = {};
}

void Watch::on_prompt(int done, int total) {
    progress_.n_prompt = total;
    progress_.n_prompt_done = done;
    const double seconds = seconds_since(phase_start_);
    progress_.tokens_per_second = seconds > 0 ? done / seconds : 0;
    show(done == total);
}

void Watch::on_generated() {
    if (progress_.n_generated == 0) phase_start_ = Clock::now();  // the first comes from the prompt's logits
    const double seconds = seconds_since(phase_start_);
    progress_.tokens_per_second =
        progress_.n_generated > 0 && seconds > 0 ? progress_.n_generated / seconds : 0;
    ++progress_.n_generated;
    show(false);
}

void Watch::finish() { show(true); }

void Watch::show(bool now) {
    const double between = panel_ ? kSecondsBetweenPanels : kSecondsBetweenLines;
    if (!now && seconds_since(last_shown_) < between) return;
    last_shown_ = Clock::now();
    if (panel_) {
        panel_->draw(state());
    } else {
        std::fflush(stdout);
        fmt::print(stderr, "mixed-kv-run: {}\n", watch_line(state()));
    }
}

WatchState Watch::state() const {
    WatchState state;
    state.progress = progress_;
    const mixed_kv_counters counters = plugin_.counters();
    state.bytes = counters.hot_bytes + counters.cold_bytes + counters.overlay_bytes + counters.pinned_bytes +
                  counters.bookkeeping_bytes;
    state.f16_bytes = counters.f16_bytes_written;
    std::map<int, WatchedLayer> layers;
    for (const mixed_kv_tensor_info& t : plugin_.tensors()) {
        if (t.n_head == 0) continue;  // nothing written yet
        const int number = kv_tensor_layer(t.name);
        WatchedLayer& layer = layers[number];
        layer.layer = number;
        const std::uint64_t hot_page = std::uint64_t(t.n_head) * std::uint64_t(t.head_dim) * kPageTokens * 2;
        const auto n_hot = std::int64_t((t.hot_bytes + t.pinned_bytes) / hot_page);
        // One sequence fills its pages one after the other; cold ones may be of several formats.
        const auto n_pages = std::int64_t((t.rows_written + kPageTokens - 1) / kPageTokens);
        layer.n_hot += n_hot;
        layer.n_cold += std::max<std::int64_t>(0, n_pages - n_hot);
    }
    for (const auto& [number, layer] : layers) state.layers.push_back(layer);
    return state;
}

}  // namespace mixed_kv::tools
