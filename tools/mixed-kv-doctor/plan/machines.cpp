#include "mixed-kv-doctor/plan/machines.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "common/run_tool.h"
#include "common/text_file.h"

namespace mixed_kv::tools {

namespace {

using nlohmann::json;

struct Key {
    const char* name;
    double Machine::*value;
};
constexpr Key kNumbers[] = {{"memory_mib", &Machine::memory_mib},
                            {"gb_s", &Machine::gb_s},
                            {"link_mbit", &Machine::link_mbit},
                            {"latency_ms", &Machine::latency_ms}};

// nlohmann's parser keeps the last of several equal keys; here they are an error.
json parse(const std::string& text) {
    std::vector<std::set<std::string>> keys;
    return json::parse(text, [&](int, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
            throw std::runtime_error(fmt::format("the key {} is given twice", value.dump()));
        return true;
    });
}

Machine machine_of(const json& object) {
    if (!object.is_object()) throw std::runtime_error("it is no object");
    for (const auto& item : object.items()) {
        const auto is_it = [&](const Key& known) { return item.key() == known.name; };
        if (item.key() == "name" || std::any_of(std::begin(kNumbers), std::end(kNumbers), is_it)) continue;
        throw std::runtime_error(
            fmt::format("the key {} is unknown; there are name, memory_mib, gb_s, link_mbit and latency_ms",
                        json(item.key()).dump()));
    }
    Machine machine;
    if (!object.contains("name")) throw std::runtime_error("name is missing");
    if (!object["name"].is_string() || object["name"].get<std::string>().empty())
        throw std::runtime_error(fmt::format("name is {}, and must be a text", object["name"].dump()));
    machine.name = object["name"].get<std::string>();
    for (const Key& key : kNumbers) {
        if (!object.contains(key.name)) throw std::runtime_error(fmt::format("{} is missing", key.name));
        const json& value = object[key.name];
        const double number = value.is_number() ? value.get<double>() : 0;
        if (!(number > 0) || !std::isfinite(number))
            throw std::runtime_error(
                fmt::format("{} is {}, and must be a number above 0", key.name, value.dump()));
        machine.*key.value = number;
    }
    return machine;
}

}  // namespace

std::vector<Machine> read_machines(const std::string& path) {
    const std::string text = read_text_file("the list of machines", path);
    const auto refuse = [&path](const std::string& where, const std::string& why) {
        throw std::runtime_error(one_line(fmt::format("the list of machines '{}'{}: {}", path, where, why)));
    };
    json list;
    try {
        list = parse(text);
    } catch (const std::exception& error) {
        refuse("", error.what());
    }
    if (!list.is_array() || list.empty()) refuse("", "it must be a list of at least one machine");
    std::vector<Machine> machines;
    std::set<std::string> names;
    for (const json& object : list) {
        const std::string where = fmt::format(", machine {}", machines.size() + 1);
        try {
            machines.push_back(machine_of(object));
        } catch (const std::exception& error) {
            refuse(where, error.what());
        }
        if (!names.insert(machines.back().name).second)
            refuse(where, fmt::format("another one is called {}, too", json(machines.back().name).dump()));
    }
    return machines;
}

}  // namespace mixed_kv::tools
