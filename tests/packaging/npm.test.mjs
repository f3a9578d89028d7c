// The npm package's own code: what enable() sets and refuses, and its types' names. The plugin itself is tried by
// scripts/test-package.sh, from the packed file.
import assert from "node:assert/strict";
import {copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from "node:fs";
import {createRequire} from "node:module";
import {tmpdir} from "node:os";
import {dirname, join} from "node:path";
import {after, test} from "node:test";
import {fileURLToPath} from "node:url";

const source = join(dirname(fileURLToPath(import.meta.url)), "../../packaging/npm");
const folder = mkdtempSync(join(tmpdir(), "mixed-kv-npm-"));
after(() => rmSync(folder, {recursive: true, force: true}));
copyFileSync(join(source, "index.js"), join(folder, "index.js"));
const plugin = createRequire(import.meta.url)(join(folder, "index.js"));
const install = () => {
    mkdirSync(join(folder, "lib"), {recursive: true});
    writeFileSync(plugin.path, "");
};

test("a half-installed package is refused, and nothing is set", () => {
    const environment = {};
    assert.throws(() => plugin.enable({k: "q6"}, environment), /libggml-mixed-kv\.so is missing: install the package again/);
    assert.deepEqual(environment, {});
});

test("enable sets the path and the settings", () => {
    install();
    const environment = {OTHER: "1"};
    assert.equal(plugin.enable({k: "q6", window: 0, limitMb: 200, v: undefined}, environment), plugin.path);
    assert.deepEqual(environment, {
        OTHER: "1", GGML_BACKEND_PATH: plugin.path, GGML_MIXED_KV_K: "q6", GGML_MIXED_KV_WINDOW: "0",
        GGML_MIXED_KV_LIMIT_MB: "200"
    });
    plugin.enable({}, environment); // again: no harm
});

test("an unknown setting and another backend are refused, and nothing is set", () => {
    install();
    const environment = {};
    assert.throws(() => plugin.enable({windwo: 5}, environment), /unknown setting 'windwo', known are: preset, window,/);
    assert.deepEqual(environment, {});
    const other = {GGML_BACKEND_PATH: "/other/backend.so"};
    assert.throws(() => plugin.enable({k: "q6"}, other), /names another backend already: \/other\/backend\.so/);
    assert.deepEqual(other, {GGML_BACKEND_PATH: "/other/backend.so"});
});

test("the types name every setting", () => {
    install();
    const types = readFileSync(join(source, "index.d.ts"), "utf8");
    const known = /known are: (.*)$/.exec((() => {
        try {
            plugin.enable({none: 1}, {});
        } catch (error) {
            return error.message;
        }
        return "";
    })())[1].split(", ");
    assert.deepEqual([...types.matchAll(/^ {4}(\w+)\?:/gm)].map((match) => match[1]), known);
});

test("every setting of the cache has a name", () => {
    const table = readFileSync(join(source, "../../src/settings/table.cpp"), "utf8");
    const inTable = new Set([...table.matchAll(/"(GGML_MIXED_KV\w*)"/g)].map((match) => match[1]));
    const here = new Set([...readFileSync(join(source, "index.js"), "utf8").matchAll(/"(GGML_MIXED_KV\w*)"/g)]
        .map((match) => match[1]));
    assert.ok(inTable.size > 5);
    assert.deepEqual([...here].sort(), [...inTable].sort());
});
