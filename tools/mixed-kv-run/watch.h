#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "common/plugin.h"
#include "mixed-kv-run/watch_text.h"

namespace mixed_kv::tools {

// Shows on standard error how a run's cache fills: a panel at the bottom of a terminal, renewed in place
// while the text scrolls above it; a line now and then elsewhere. Ends with the object, also when a signal
// ends the process: the terminal is as before.
class Watch {
  public:
    explicit Watch(const Plugin& plugin);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    // The prompt begins.
    void begin();
    void on_prompt(int done, int total);
    void on_generated();
    // Shows the final state.
    void finish();

  private:
    class Panel;
    WatchState state() const;
    void show(bool now);

    const Plugin& plugin_;
    std::unique_ptr<Panel> panel_;  // null: no terminal
    WatchProgress progress_;
    std::chrono::steady_clock::time_point phase_start_, last_shown_;
};

}  // namespace mixed_kv::tools
