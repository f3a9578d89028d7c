#!/usr/bin/env node
"use strict";
// mixed-kv-doctor of the npm package: whether the plugin fits the llama.cpp of a project's node-llama-cpp, or of a folder.
const {spawnSync} = require("node:child_process");
const {existsSync, readdirSync} = require("node:fs");
const path = require("node:path");
const plugin = require("./index.js");

const usage = `mixed-kv-doctor [--llama FOLDER] [--json]

Says which ggml a llama.cpp has and whether the plugin fits it. Without --llama: that of node-llama-cpp as installed for
the project in this folder.`;

function fail(message, status) {
    process.stderr.write(`mixed-kv-doctor: error: ${message}\n`);
    process.exit(status);
}

let llama = null;
let json = false;
const args = process.argv.slice(2);
while (args.length > 0) {
    const argument = args.shift();
    if (argument === "--help" || argument === "-h") {
        process.stdout.write(usage + "\n");
        process.exit(0);
    } else if (argument === "--version") {
        process.stdout.write(require("./package.json").version + "\n");
        process.exit(0);
    } else if (argument === "--json") {
        json = true;
    } else if (argument === "--llama") {
        llama = args.shift();
        if (llama == null) fail("--llama: no folder given", 2);
    } else {
        fail(`unknown argument ${argument}`, 2);
    }
}

const holdsGgml = (folder) => existsSync(folder) && readdirSync(folder).some((name) => /^libggml-base\.so/.test(name));

function find() {
    if (llama != null) {
        const below = [".", "lib", "lib64", "lib/x86_64-linux-gnu", "bin", "build/bin", "bins/linux-x64",
            "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"];
        return below.map((name) => path.resolve(llama, name)).find(holdsGgml) ??
            fail(`--llama: no libggml-base.so in ${llama} nor where installations have it below`, 1);
    }
    for (let folder = process.cwd(); ; folder = path.dirname(folder)) {
        const candidate = path.join(folder, "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64");
        if (holdsGgml(candidate)) return candidate;
        if (folder === path.dirname(folder)) break;
    }
    return fail("no @node-llama-cpp/linux-x64 here: npm install node-llama-cpp, or name a llama.cpp with --llama", 1);
}

const folder = find();
const result = spawnSync(path.join(__dirname, "lib/ggml-mixed-kv/look-at-llama"), [folder, plugin.path], {encoding: "utf8"});
if (result.error != null) fail(`look-at-llama: ${result.error.message}`, 1);
if (result.status !== 0) fail(`the libraries in ${folder} end the process that loads them (${result.signal ?? result.status})`, 1);
const facts = JSON.parse(result.stdout);
const fits = facts.fits === true;
if (json) {
    process.stdout.write(JSON.stringify({fits, ggml_version: facts.ggml_version ?? "", ggml_commit: facts.ggml_commit ?? "",
        api_version: facts.api_version ?? -1, folder, plugin: plugin.path, problem: facts.fault ?? (fits ? "" : facts.said)},
    null, 2) + "\n");
} else {
    process.stdout.write(`llama.cpp  ${folder}\n`);
    if (facts.ggml_version != null)
        process.stdout.write(`           ggml ${facts.ggml_version} (${facts.ggml_commit}), backend API ${facts.api_version ?? "unknown"}\n`);
    process.stdout.write(`plugin     ${plugin.path}\n`);
    process.stdout.write(fits ? "fits\n" : `problem    ${facts.fault ?? facts.said}\n`);
}
process.exit(fits ? 0 : 1);
