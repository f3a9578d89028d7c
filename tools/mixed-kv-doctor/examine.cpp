#include "mixed-kv-doctor/examine.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <ggml.h>
#include <llama.h>

#include <cstdlib>

#include "common/cpu_topology.h"
#include "common/llama_log.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/setting_table.h"

namespace mixed_kv::tools {

namespace {

const char* device_type_name(enum ggml_backend_dev_type type) {
    switch (type) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:
            return "CPU";
        case GGML_BACKEND_DEVICE_TYPE_GPU:
            return "GPU";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:
            return "IGPU";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL:
            return "ACCEL";
        default:
            return "other";
    }
}

std::optional<std::string> environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
}

void examine_llama_cpp(const BackendPaths& paths, Diagnosis& diagnosis) {
    const std::vector<std::string> cpu = mapped_files("libggml-cpu");
    const std::string cpu_backend = cpu.empty() ? "linked in" : cpu.front();
    // Only later releases say their version.
    const auto say_version = reinterpret_cast<const char* (*)()>(dlsym(RTLD_DEFAULT, "llama_version"));
    const std::string version = say_version != nullptr ? say_version() : "of unknown version";
    diagnosis.findings.push_back(
        {.key = "llama_cpp",
         .heading = "llama.cpp",
         .lines = {fmt::format("{}, {}", version, paths.llama_library),
                   fmt::format("ggml {} ({}), {}", ggml_version(), ggml_commit(), paths.ggml_library),
                   fmt::format("CPU backend: {}", cpu_backend)},
         .facts = {{"version", version},
                   {"library", paths.llama_library},
                   {"ggml_version", ggml_version()},
                   {"ggml_commit", ggml_commit()},
                   {"ggml_library", paths.ggml_library},
                   {"cpu_backend", cpu_backend}}});
}

// Why a plugin file that is there was not taken.
Problem why_not_loaded(const BackendPaths& paths, const std::vector<std::string>& said) {
    const std::string& path = paths.plugin;
    if (path.empty()) {
        return {"no plugin: libggml-mixed-kv.so is not beside this program and GGML_BACKEND_PATH is not set",
                "build it (cmake --build build), or set GGML_BACKEND_PATH to its file"};
    }
    if (!paths.plugin_fault.empty()) {
        return {"the plugin " + path + " " + paths.plugin_fault,
                paths.plugin_from_environment
                    ? "set GGML_BACKEND_PATH to the file libggml-mixed-kv.so, or unset it"
                    : "build or install it again"};
    }
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        return {std::string("the plugin cannot be loaded: ") + dlerror(),
                "install what it needs, or build it here (cmake --build build)"};
    }
    const bool is_backend = dlsym(library, "ggml_backend_init") != nullptr;
    const bool is_ours = path.find("mixed-kv") != std::string::npos;
    dlclose(library);
    if (!is_backend) {
        return {path + " is no ggml backend", "set GGML_BACKEND_PATH to libggml-mixed-kv.so"};
    }
    if (!is_ours) {
        return {path + " is another ggml backend", "set GGML_BACKEND_PATH to libggml-mixed-kv.so"};
    }
    return {"the plugin declined" + (said.empty() ? ", see its line above" : ": " + said.front()),
            "build it again against this llama.cpp (-DMIXED_KV_LLAMA_ROOT=PATH), or run the llama.cpp that "
            "it was "
            "built for"};
}

void examine_plugin(const BackendPaths& paths, const std::optional<Plugin>& plugin, Diagnosis& diagnosis) {
    std::vector<std::string> said = take_plugin_lines();
    for (std::string& line : take_logged_errors()) {
        said.push_back(std::move(line));
    }
    Finding finding = {.key = "plugin",
                       .heading = "plugin",
                       .lines = {paths.plugin.empty() ? "none"
                                                      : paths.plugin + (paths.plugin_from_environment
                                                                            ? " (GGML_BACKEND_PATH)"
                                                                            : " (beside this program)")},
                       .facts = {{"path", paths.plugin},
                                 {"from_environment", paths.plugin_from_environment},
                                 {"loaded", plugin.has_value()},
                                 {"messages", said}}};
    for (const std::string& line : said) {
        finding.lines.push_back(line);
    }
    if (plugin) {
        const std::string version = plugin->api().built_for_version();
        const std::string commit = plugin->api().built_for_commit();
        // It would not have loaded if its interface were not that of the ggml that runs here.
        finding.lines.push_back(
            fmt::format("built with ggml {} ({}), fits the one that runs here", version, commit));
        finding.facts["built_for_version"] = version;
        finding.facts["built_for_commit"] = commit;
        finding.facts["matches"] = true;
    } else if (ggml_backend_reg_by_name(MIXED_KV_REG_NAME) != nullptr) {
        diagnosis.problems.push_back({"the plugin speaks another version of its interface than this program",
                                      "use the plugin and the tools of one build"});
    } else {
        diagnosis.problems.push_back(why_not_loaded(paths, said));
    }
    diagnosis.findings.push_back(std::move(finding));
}

void examine_devices(const std::optional<Plugin>& plugin, Diagnosis& diagnosis) {
    Finding finding = {.key = "devices", .heading = "devices", .facts = nlohmann::ordered_json::array()};
    for (std::size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        ggml_backend_dev_props props = {};
        ggml_backend_dev_get_props(device, &props);
        const bool ours = plugin && device == plugin->device();
        const bool preferred = !ours && props.type == GGML_BACKEND_DEVICE_TYPE_GPU;
        finding.lines.push_back(fmt::format("{} ({}), {}{}", props.name, device_type_name(props.type),
                                            props.description, ours ? ": the mixed KV cache" : ""));
        if (preferred && plugin) {
            finding.lines.push_back(
                fmt::format("  llama.cpp prefers this GPU; --device {} makes it use the mixed cache",
                            ggml_backend_dev_name(plugin->device())));
        }
        finding.facts.push_back({{"name", props.name},
                                 {"description", props.description},
                                 {"type", device_type_name(props.type)},
                                 {"mixed_kv", ours},
                                 {"memory_free", props.memory_free},
                                 {"memory_total", props.memory_total}});
    }
    diagnosis.findings.push_back(std::move(finding));
}

void examine_cpu(const std::optional<Plugin>& plugin, Diagnosis& diagnosis) {
    const std::optional<std::string> forced = environment("MIXED_KV_ISA");
    const bool is_forced = forced && !forced->empty();
    std::string active = plugin ? plugin->api().isa() : "none";
    std::vector<std::string> supported;
    for (const std::string_view isa : supported_isas()) {
        supported.emplace_back(isa);
    }
    try {
        (void)kernel_set(is_forced ? *forced : "");
    } catch (const Error& error) {
        diagnosis.problems.push_back({error.what(), "correct MIXED_KV_ISA, or unset it"});
    }
    diagnosis.findings.push_back(
        {.key = "cpu",
         .heading = "CPU",
         .lines = {fmt::format("{}: {} cores, {} threads usable here", cpu_model_name(), usable_cores(),
                               usable_cpus()),
                   fmt::format("kernels: {}, {}; this CPU runs: {}", active,
                               is_forced ? "forced by MIXED_KV_ISA" : "the fastest of those it runs",
                               fmt::join(supported, " "))},
         .facts = {{"model", cpu_model_name()},
                   {"cores", usable_cores()},
                   {"threads", usable_cpus()},
                   {"isa", active},
                   {"isa_forced", is_forced},
                   {"isa_supported", supported}}});
}

void examine_settings(Diagnosis& diagnosis) {
    Finding finding = {.key = "settings", .heading = "settings", .facts = nlohmann::ordered_json::object()};
    Settings settings;
    try {
        settings = Settings::from_environment();
    } catch (const Error& error) {
        diagnosis.problems.push_back({error.what(), "correct the variable, or unset it (docs/settings.md)"});
        settings = Settings::from_environment([](const char*) { return std::nullopt; });
    }
    for (const Setting& setting : setting_table()) {
        const std::optional<std::string> given = environment(setting.variable);
        const std::string value = given ? *given : setting.shown(settings);
        finding.lines.push_back(
            fmt::format("{:<26}{:<9} {}", setting.variable, value, given ? "set" : "default"));
        finding.facts[setting.variable] = {{"value", value}, {"set", given.has_value()}};
    }
    diagnosis.findings.push_back(std::move(finding));
}

}  // namespace

std::optional<Plugin> examine_installation(Diagnosis& diagnosis) {
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, PluginUse::load);
    const std::optional<Plugin> plugin = Plugin::find();
    // The first member of a registration, in every ggml.
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    diagnosis.ggml = {.fits = plugin.has_value(),
                      .version = ggml_version(),
                      .commit = ggml_commit(),
                      .api_version = *reinterpret_cast<const int*>(ggml_backend_dev_backend_reg(cpu))};
    examine_llama_cpp(paths, diagnosis);
    examine_plugin(paths, plugin, diagnosis);
    examine_devices(plugin, diagnosis);
    examine_cpu(plugin, diagnosis);
    examine_settings(diagnosis);
    return plugin;
}

}  // namespace mixed_kv::tools
