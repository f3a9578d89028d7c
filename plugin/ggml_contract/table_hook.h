#pragma once

namespace mixed_kv::plugin {

// Replaces an entry of one of the host's interface tables. Other threads may be calling through it: they find
// the old function or the new one, and behind the new one everything that was written before.
template <typename Fn>
void replace_entry(Fn*& entry, Fn* function) noexcept {
    __atomic_store_n(&entry, function, __ATOMIC_RELEASE);
}

}  // namespace mixed_kv::plugin
