// Our programs as the tests of pages use them, and a folder for what they write.
import assert from "node:assert/strict";
import {execFileSync, spawnSync} from "node:child_process";
import {mkdtempSync, rmSync, statSync} from "node:fs";
import {tmpdir} from "node:os";
import {dirname, join} from "node:path";
import {after} from "node:test";
import {fileURLToPath} from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const bundled = join(root, "models/tiny-recall.gguf");

const bin = process.env.MIXED_KV_TEST_BIN ?? join(root, "build/bin");
const scratch = mkdtempSync(join(tmpdir(), "mixed-kv-page-"));
after(() => rmSync(scratch, {recursive: true, force: true}));

// A path in the scratch folder.
export const at = (name) => join(scratch, name);

// ctest shows the test as skipped.
export function skip(why) {
    console.log(`SKIPPED: ${why}`);
    process.exit(0);
}

// Standard output of one of our programs.
export function tool(name, ...args) {
    return execFileSync(join(bin, name), args.map(String), {encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"]});
}

export function record(model, trace, ...more) {
    tool("kqv-trace-monitor", "-m", model, "-t", 1, "-fa", "on", "--seed", 1, "-q", "--save-gguf", trace, ...more);
    return trace;
}

const models = new Map();
export function randomModel(arch) {
    if (!models.has(arch)) {
        tool("make-random-model", "--arch", arch, "--out", at(`${arch}.gguf`));
        models.set(arch, at(`${arch}.gguf`));
    }
    return models.get(arch);
}

// The page and the reader's JSON of one run.
export function read(trace, ...more) {
    const page = `${trace}.html`;
    const result = spawnSync(join(bin, "kqv-tensor-reader"), ["-i", trace, "--json", "--html", page, ...more], {encoding: "utf8", maxBuffer: 1 << 28});
    assert.ok(result.status === 0 || result.status === 1, result.stderr);
    return {page, json: JSON.parse(result.stdout), bytes: statSync(page).size};
}

// n letters: about as many tokens of a random model.
export const words = (n) => Array.from({length: n}, (_, i) => String.fromCharCode(97 + (i * i + 3 * i) % 26)).join("");
