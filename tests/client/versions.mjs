// One release of node-llama-cpp with the plugin files of a package: started by scripts/test-versions.sh, which has put
// complete.mjs into the release's folder.
//
//   node versions.mjs [--short] RELEASE_FOLDER FRONT_PLUGIN MODEL
//
// --short: the mixed completion, and each plugin alone.
import assert from "node:assert/strict";
import {spawnSync} from "node:child_process";
import {copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync} from "node:fs";
import {tmpdir} from "node:os";
import {basename, dirname, join, resolve} from "node:path";

const short = process.argv[2] === "--short";
const [folder, front, model] = process.argv.slice(short ? 3 : 2).map((path) => resolve(path));
const variantFolder = join(dirname(front), "ggml-mixed-kv");
const variants = readdirSync(variantFolder).map((name) => join(variantFolder, name));
const scratch = mkdtempSync(join(tmpdir(), "mixed-kv-versions-"));

function complete(settings) {
    const env = Object.fromEntries(
        Object.entries(process.env).filter(([name]) => !/^(GGML_|MIXED_KV_|NODE_LLAMA_CPP_)/.test(name))
    );
    const request = {
        model, prompt: "Once upon a time there was a ".repeat(20), gpuLayers: "max", contextSize: 512, maxTokens: 12,
        threads: 1, flashAttention: true // earlier releases leave it off
    };
    const result = spawnSync(process.execPath, [join(folder, "complete.mjs"), JSON.stringify(request)],
        {env: {...env, ...settings}, encoding: "utf8", maxBuffer: 1 << 28, cwd: folder});
    assert.equal(result.signal, null, `node was killed by ${result.signal}\n${result.stderr.slice(-4000)}`);
    assert.equal(result.status, 0, result.stderr.slice(-4000));
    const answer = JSON.parse(result.stdout.trim().split("\n").at(-1));
    assert.equal(answer.error, undefined, answer.error);
    const said = [...answer.log, ...result.stderr.split("\n")].filter((line) => line.includes("mixed-kv: "));
    return {
        text: answer.text,
        mixed: said.some((line) => /: [1-9]\d* of \d+ K\/V tensors mixed/.test(line)),
        declined: [...new Set(said.filter((line) => line.startsWith("mixed-kv: declined: ")))]
    };
}

// Packages without plugins, with a truncated one, with something else under its name, with one for other hosts only:
// one line each, and the host's own text.
function halfInstalled(fitting, text) {
    const broken = (change) => {
        rmSync(join(scratch, "package"), {recursive: true, force: true});
        mkdirSync(join(scratch, "package/ggml-mixed-kv"), {recursive: true});
        copyFileSync(front, join(scratch, "package/libggml-mixed-kv.so"));
        change(join(scratch, "package/ggml-mixed-kv"));
        const answer = complete({GGML_BACKEND_PATH: join(scratch, "package/libggml-mixed-kv.so")});
        assert.equal(answer.text, text);
        assert.equal(answer.declined.length, 1);
        return answer.declined[0];
    };
    assert.match(broken(() => {}), /there is no plugin in .*: install the package again/);
    assert.match(broken((where) => {
        copyFileSync(fitting, join(where, "ggml-1.so"));
        truncateSync(join(where, "ggml-1.so"), 100000);
    }), /ggml-1.so is truncated: 100000 bytes of at least \d+: install the package again/);
    assert.match(broken((where) => writeFileSync(join(where, "ggml-1.so"), "text")), /is no library, but a file/);
    assert.match(broken((where) => {
        for (const file of variants.filter((file) => file !== fitting)) copyFileSync(file, join(where, basename(file)));
    }), /this host has ggml .* this plugin is for backend API 2/);
}

try {
    const plain = complete({});
    assert.ok(plain.text.length > 0 && !plain.mixed);

    const mixed = complete({GGML_BACKEND_PATH: front});
    assert.deepEqual(mixed.declined, []);
    assert.ok(mixed.mixed, "the cache is not mixed");

    if (!short) {
        const exact = complete({GGML_BACKEND_PATH: front, GGML_MIXED_KV_K: "f16", GGML_MIXED_KV_V: "f16"});
        assert.equal(exact.text, plain.text);
    }

    // Exactly one of the files fits; the others say so, and the host goes on with its own cache.
    const fitting = variants.filter((file) => {
        const alone = complete({GGML_BACKEND_PATH: file});
        if (alone.mixed) {
            assert.deepEqual(alone.declined, []);
            return true;
        }
        assert.equal(alone.declined.length, 1);
        assert.match(alone.declined[0],
            /^mixed-kv: declined: this host has ggml \S+ \(\S+\), its \w+ is another; this plugin is for backend API 2/);
        assert.match(alone.declined[0], /-DMIXED_KV_LLAMA_ROOT=/);
        assert.equal(alone.text, plain.text);
        return false;
    });
    assert.equal(fitting.length, 1, `${fitting.length} of ${variants.length} plugins fit`);

    if (!short) halfInstalled(fitting[0], plain.text);
    console.log(`${basename(fitting[0])} fits; ${variants.length - 1} declined`);
} finally {
    rmSync(scratch, {recursive: true, force: true});
}
