#pragma once

#include <deque>
#include <optional>
#include <string>

#include "common/command_line.h"

namespace mixed_kv::tools {

// The settings of the cache as options: --kv-preset, --kv-window, --kv-k, ..., all that the table in
// mixed_kv/setting_table.h has. They become the environment variables that the plugin reads, so an option
// beats a variable that is set already.
class CacheOptions {
  public:
    void add_to(CommandLine& command);
    // Call before the plugin is loaded. Throws mixed_kv::Error when a setting is wrong, wherever it comes
    // from.
    void export_and_check() const;
    // The same without the check, for a program that reports what is wrong itself.
    void export_all() const;

  private:
    std::deque<std::optional<std::string>> values_;  // in the table's order; stay in place
};

}  // namespace mixed_kv::tools
