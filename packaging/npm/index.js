"use strict";
// ggml-mixed-kv: where the plugin is, and how a host is told. The host reads its environment when it loads its backends,
// so enable() comes before node-llama-cpp (or any other llama.cpp) is imported.
const path = require("node:path");
const {existsSync} = require("node:fs");

const pluginPath = path.join(__dirname, "lib", "libggml-mixed-kv.so");
const variables = {
    preset: "GGML_MIXED_KV",
    window: "GGML_MIXED_KV_WINDOW",
    sinks: "GGML_MIXED_KV_SINKS",
    k: "GGML_MIXED_KV_K",
    v: "GGML_MIXED_KV_V",
    layers: "GGML_MIXED_KV_LAYERS",
    bits: "GGML_MIXED_KV_BITS",
    calibration: "GGML_MIXED_KV_CALIBRATION",
    limitMb: "GGML_MIXED_KV_LIMIT_MB",
    budgetMb: "GGML_MIXED_KV_BUDGET_MB",
    ladder: "GGML_MIXED_KV_LADDER",
    verbose: "GGML_MIXED_KV_VERBOSE"
};

function enable(settings = {}, environment = process.env) {
    if (process.platform !== "linux" || process.arch !== "x64")
        throw new Error(`ggml-mixed-kv: this package is for Linux on x64, this is ${process.platform} on ${process.arch}`);
    if (!existsSync(pluginPath))
        throw new Error(`ggml-mixed-kv: ${pluginPath} is missing: install the package again`);
    for (const name of Object.keys(settings)) {
        if (!Object.hasOwn(variables, name))
            throw new Error(`ggml-mixed-kv: unknown setting '${name}', known are: ${Object.keys(variables).join(", ")}`);
    }
    const other = environment.GGML_BACKEND_PATH;
    if (other != null && other !== "" && path.resolve(other) !== pluginPath)
        throw new Error(`ggml-mixed-kv: GGML_BACKEND_PATH names another backend already: ${other}`);
    for (const [name, value] of Object.entries(settings)) {
        if (value != null)
            environment[variables[name]] = String(value);
    }
    environment.GGML_BACKEND_PATH = pluginPath;
    return pluginPath;
}

module.exports = {path: pluginPath, enable};
