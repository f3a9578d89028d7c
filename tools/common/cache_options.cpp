#include "common/cache_options.h"

#include <cstdlib>

#include "mixed_kv/setting_table.h"

namespace mixed_kv::tools {

void CacheOptions::add_to(CommandLine& command) {
    for (const Setting& setting : setting_table()) {
        const std::string help =
            std::string(setting.meaning) + ": " + setting.accepted() + " (" + setting.variable + ")";
        command.option(setting.option(), values_.emplace_back(), help)
            .value_name(setting.value_name)
            .group("Mixed KV cache");
    }
}

void CacheOptions::export_all() const {
    std::size_t i = 0;
    for (const Setting& setting : setting_table()) {
        const auto& value = values_[i++];
        if (value) {
            setenv(setting.variable, value->c_str(), 1);
        }
    }
}

void CacheOptions::export_and_check() const {
    export_all();
    (void)Settings::from_environment();
}

}  // namespace mixed_kv::tools
