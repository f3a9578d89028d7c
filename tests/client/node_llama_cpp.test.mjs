// node-llama-cpp, unmodified, with GGML_BACKEND_PATH as the only configuration.
import assert from "node:assert/strict";
import {execFileSync, spawnSync} from "node:child_process";
import {existsSync, mkdtempSync, readdirSync, readFileSync, rmSync} from "node:fs";
import {tmpdir} from "node:os";
import {dirname, join} from "node:path";
import {after, describe, test} from "node:test";
import {fileURLToPath} from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const plugin = process.env.MIXED_KV_TEST_PLUGIN ?? join(root, "build/lib/libggml-mixed-kv.so");
const makeModel = process.env.MIXED_KV_TEST_MAKE_MODEL ?? join(root, "build/bin/make-random-model");

function skip(why) {
    console.log(`SKIPPED: ${why}`);
    process.exit(0);
}
if (!existsSync(join(root, "node_modules/node-llama-cpp/package.json")))
    skip("node-llama-cpp is not installed; scripts/setup.sh installs it");
if (!existsSync(plugin))
    skip(`no plugin at ${plugin}`);

const scratch = mkdtempSync(join(tmpdir(), "mixed-kv-client-"));
after(() => rmSync(scratch, {recursive: true, force: true}));

// The bundled model when it is there, else one with random weights, which shows the same mechanics.
function findModel() {
    const bundled = readdirSync(join(root, "models")).filter((name) => name.endsWith(".gguf")).sort();
    if (bundled.length > 0)
        return {path: join(root, "models", bundled[0]), bundled: true};
    const path = join(scratch, "random.gguf");
    execFileSync(makeModel, ["--arch", "llama", "--out", path]);
    return {path, bundled: false};
}
const model = findModel();
console.log(model.bundled ? `model: ${model.path}` : "no model in models/: one with random weights");

// Far longer than the window, so that most rows are cold.
const evalText = existsSync(join(root, "models/eval.txt"))
    ? readFileSync(join(root, "models/eval.txt"), "utf8")
    : "It was a long way and nobody knew where it would end. ".repeat(100);
const prompt = model.bundled ? evalText.slice(0, 3000) : evalText.slice(0, 700);

// A completion in a process whose environment has nothing of ours but `settings`.
function complete(settings, request = {}) {
    const env = Object.fromEntries(
        Object.entries(process.env).filter(([name]) => !/^(GGML_|MIXED_KV_|NODE_LLAMA_CPP_)/.test(name))
    );
    const result = spawnSync(process.execPath, [
        join(here, "complete.mjs"),
        JSON.stringify({
            model: model.path, prompt, gpuLayers: "max", contextSize: 2048, maxTokens: 24,
            // One thread, so that a busy machine does not decide how long this takes.
            threads: 1, ...request
        })
    ], {env: {...env, ...settings}, encoding: "utf8", maxBuffer: 1 << 28, cwd: here});
    assert.equal(result.signal, null, `node was killed by ${result.signal}\n${result.stderr.slice(-4000)}`);
    assert.equal(result.status, 0, result.stderr.slice(-4000));
    const answer = JSON.parse(result.stdout.trim().split("\n").at(-1));
    if (request.fails !== true)
        assert.equal(answer.error, undefined, answer.log.slice(-20).join("\n"));
    answer.ours = answer.log.filter((line) => line.includes("mixed-kv: "));
    answer.creation = answer.ours.filter((line) => /tensors mixed/.test(line));
    return answer;
}

const withPlugin = {GGML_BACKEND_PATH: plugin};

describe("node-llama-cpp", () => {
    test("loads the plugin and completes text with the mixed cache", () => {
        const answer = complete(withPlugin);
        assert.equal(answer.buildType, "prebuilt");
        assert.ok(answer.supportsGpuOffloading, "the device was not seen");
        assert.ok(answer.gpuLayers > 0);
        assert.ok(answer.creation.length > 0, `no creation line; ours: ${answer.ours.join("\n")}`);
        assert.match(answer.creation.at(-1), /K q4, V q4/);
        assert.doesNotMatch(answer.creation.at(-1), /: 0 of \d+ K\/V tensors mixed/);
        assert.ok(answer.log.some((line) => /KV buffer size/.test(line) && !/CPU KV buffer/.test(line)),
            "llama.cpp put the cache elsewhere");
        assert.ok(answer.text.length > 0);
    });

    test("numbers of gpuLayers work like \"max\", and its own choice of threads", () => {
        const answer = complete(withPlugin, {gpuLayers: 99, maxTokens: 4, threads: null});
        assert.ok(answer.gpuLayers > 0);
        assert.ok(answer.creation.length > 0);
    });

    test("exact formats give the text of llama.cpp's own cache", () => {
        const exact = complete({...withPlugin, GGML_MIXED_KV_K: "f16", GGML_MIXED_KV_V: "f16"});
        const plain = complete({});
        assert.equal(plain.ours.length, 0);
        assert.match(exact.creation.at(-1), /K f16, V f16/);
        assert.equal(exact.text, plain.text);
        console.log(`24 tokens after the prompt: ${exact.milliseconds.toFixed(0)} ms with the plugin at f16, ` +
            `${plain.milliseconds.toFixed(0)} ms without`);
    });

    test("settings reach the plugin through the environment", () => {
        const q8 = complete({...withPlugin, GGML_MIXED_KV_K: "q8", GGML_MIXED_KV_V: "q8", GGML_MIXED_KV_WINDOW: "0"});
        assert.match(q8.creation.at(-1), /window 0/);
        assert.match(q8.creation.at(-1), /K q8, V q8/);
        assert.ok(q8.text.length > 0);
    });

    test("without gpuLayers node-llama-cpp keeps its own cache", () => {
        // It takes "auto" as no layers when it knows no GPU of its own kinds: docs/recipes.md says to set gpuLayers.
        const answer = complete(withPlugin, {gpuLayers: "auto"});
        assert.equal(answer.gpu, false);
        assert.equal(answer.gpuLayers, 0);
        assert.equal(answer.creation.length, 0);
        assert.ok(answer.text.length > 0);
    });

    test("a limit is kept, or the context refused in words: never a cache of the host's own", () => {
        for (const limit of [1, 20, 100, 200, 500]) {
            for (const contextSize of [4096, "auto"]) {
                const where = `limit ${limit} MiB, contextSize ${contextSize}`;
                const answer = complete({...withPlugin, GGML_MIXED_KV_LIMIT_MB: String(limit)},
                    {prompt: "The", contextSize, maxTokens: 2, fails: true});
                assert.ok(!answer.log.some((line) => /CPU KV buffer size/.test(line)), where);
                // node-llama-cpp asks for less where a context was refused, a few times.
                const refused = answer.ours.filter((line) => line.includes(`GGML_MIXED_KV_LIMIT_MB=${limit}: refused`));
                if (answer.error != null) {
                    // "max" is refused by node-llama-cpp itself where the weights, too, would not fit the limit.
                    assert.ok(refused.length > 0 || /Not enough VRAM/.test(answer.error),
                        `${where}: ${answer.error}\n${answer.ours.join("\n")}`);
                    continue;
                }
                const [, mib] = answer.creation.at(-1).match(/, ([\d.]+) MiB \(F16/);
                assert.ok(Number(mib) <= limit, `${where}: ${answer.creation.at(-1)}`);
                console.log(`${where}: ${mib} MiB${refused.length > 0 ? `, ${refused.length} refused before` : ""}`);
            }
        }
    });

    test("a wrong setting is refused in one line and does not take the host down", () => {
        const answer = complete({...withPlugin, GGML_MIXED_KV_WINDOW: "-1"}, {fails: true});
        assert.equal(answer.creation.length, 0);
        assert.match(answer.error, /context/);
        const lines = answer.ours.filter((line) => line.includes("GGML_MIXED_KV_WINDOW='-1'"));
        assert.ok(lines.length > 0, answer.ours.join("\n"));
    });
});
