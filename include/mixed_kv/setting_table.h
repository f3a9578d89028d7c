#pragma once

#include <map>
#include <span>
#include <string>

#include "mixed_kv/settings.h"

namespace mixed_kv {

// One setting, in every form that it can be given: an environment variable, name=value in the text of
// mixed_kv_api.configure, and the tools' option --kv-NAME. src/settings/table.cpp has them all.
struct Setting {
    const char* variable;    // GGML_MIXED_KV_WINDOW
    const char* name;        // window
    const char* value_name;  // what is given, for --help: ROWS
    const char* meaning;     // "Newest rows of each sequence kept in FP16"
    std::string (*accepted)();
    // Takes over what is given, or throws Error. nullptr: Settings::from_environment does that, for settings
    // that say something only together.
    void (*read)(Settings& settings, const Setting& self, const std::string& text);
    std::string (*shown)(const Settings& settings);  // the value, "-" for none

    std::string option() const;  // --kv-window
};
// In the order in which they are read: what an earlier one sets, a later one changes.
std::span<const Setting> setting_table() noexcept;

// "window=32,k=q4,layers=0,-1:q8": the values by variable, MIXED_KV_ISA for isa=NAME. Throws Error for a name
// that no setting has.
std::map<std::string, std::string> settings_of_text(const std::string& text);

}  // namespace mixed_kv
