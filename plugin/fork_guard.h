#pragma once

namespace mixed_kv::plugin {

// Servers load a model, warm it up, and fork. The child has the memory of its parent but only the thread that
// called fork(): pools lent by us have no threads there, and a lock that another thread held stays locked for
// good. The guard takes pools back from the contexts of the forking thread and holds the plugin's own locks
// over the fork; what else is lent is noticed as stale by process_generation().
void install_fork_guard();

// Counts the forks between the process that loaded the plugin and this one.
unsigned process_generation() noexcept;

}  // namespace mixed_kv::plugin
