// mixed-kv-doctor --llama FOLDER and --find: other installations of llama.cpp, looked at by processes of
// their own.
#include <fmt/format.h>

#include <filesystem>
#include <stdexcept>

#include "common/llama_installation.h"
#include "mixed-kv-doctor/examine.h"

namespace mixed_kv::tools {

namespace {

std::string plugin_file() {
    const BackendPaths paths = find_backend_paths();
    if (paths.plugin.empty()) {
        throw std::runtime_error(
            "no libggml-mixed-kv.so beside this program, and GGML_BACKEND_PATH is not set");
    }
    return std::filesystem::absolute(paths.plugin).string();
}

}  // namespace

void examine_llama(const std::string& installation, Diagnosis& diagnosis) {
    const std::string plugin = plugin_file();
    const std::string folder = llama_library_folder("--llama", installation);
    const nlohmann::ordered_json facts = look_at_llama(folder, plugin);
    const std::string fault = facts.value("fault", "");
    diagnosis.ggml = {.fits = facts.value("fits", false),
                      .version = facts.value("ggml_version", ""),
                      .commit = facts.value("ggml_commit", ""),
                      .api_version = facts.value("api_version", -1)};
    Finding finding = {.key = "llama_cpp", .heading = "llama.cpp", .facts = facts};
    finding.facts["folder"] = folder;
    finding.facts["plugin"] = plugin;
    finding.lines.push_back(folder);
    if (!diagnosis.ggml.version.empty()) {
        finding.lines.push_back(fmt::format(
            "ggml {} ({}), backend API {}", diagnosis.ggml.version, diagnosis.ggml.commit,
            diagnosis.ggml.api_version < 0 ? "unknown" : std::to_string(diagnosis.ggml.api_version)));
    }
    if (!fault.empty()) {
        diagnosis.problems.push_back({fault, "install that llama.cpp again, or name another folder"});
    } else if (!facts.value("has_cpu_backend", false)) {
        diagnosis.problems.push_back(
            {"no CPU backend in " + folder,
             "name the folder that has libggml-cpu-*.so, or install that llama.cpp again"});
    }
    if (diagnosis.ggml.fits) {
        finding.lines.push_back("fits: GGML_BACKEND_PATH=" + plugin);
    } else if (fault.empty()) {
        const std::string said = facts.value("said", "");
        diagnosis.problems.push_back(
            {said.empty() ? "the plugin does not load there" : said,
             "use a llama.cpp of docs/versions.md's table, or build the plugin for this one: "
             "cmake -B build -DMIXED_KV_LLAMA_ROOT=" +
                 installation + " && cmake --build build"});
    }
    diagnosis.findings.push_back(std::move(finding));
}

void examine_installed_llamas(Diagnosis& diagnosis) {
    const std::string plugin = plugin_file();
    Finding finding = {
        .key = "installations", .heading = "llama.cpp", .facts = nlohmann::ordered_json::array()};
    for (const std::string& folder : installed_llama_folders()) {
        nlohmann::ordered_json facts = {{"folder", folder}};
        try {
            facts.update(look_at_llama(folder, plugin));
        } catch (const std::runtime_error& error) {
            facts["fault"] = error.what();
        }
        const std::string why = facts.value("fault", facts.value("said", ""));
        const Ggml ggml = {.fits = facts.value("fits", false),
                           .version = facts.value("ggml_version", "?"),
                           .commit = facts.value("ggml_commit", "?"),
                           .api_version = facts.value("api_version", -1)};
        finding.lines.push_back(fmt::format("{}: ggml {} ({}), {}", folder, ggml.version, ggml.commit,
                                            ggml.fits ? "fits" : "does not fit: " + why));
        finding.facts.push_back(std::move(facts));
        // The first that fits speaks for all.
        if (!diagnosis.ggml.fits) diagnosis.ggml = ggml;
    }
    if (!diagnosis.ggml.fits) {
        diagnosis.problems.push_back({finding.lines.empty() ? "no llama.cpp found in the usual places"
                                                            : "the plugin fits none of them",
                                      "name the folder of another one with --llama"});
    }
    diagnosis.findings.push_back(std::move(finding));
}

}  // namespace mixed_kv::tools
