// Whether mixed-kv-eval and llama.cpp's own llama-perplexity say the same of llama.cpp's cache types:
//
//   node tests/stress/upstream/perplexity.mjs BUILD_FOLDER MIXED_KV_EVAL [MODEL TEXT [CONTEXT]]
//
// BUILD_FOLDER: of the project in this folder; llama-perplexity is built there when it is missing. Both score the same
// tokens: of one context the second half, without the last position, whose next token llama-perplexity does not have.
import {execFileSync, spawnSync} from "node:child_process";
import {existsSync, mkdtempSync, readFileSync, rmSync} from "node:fs";
import {tmpdir} from "node:os";
import path from "node:path";
import {fileURLToPath} from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const models = path.resolve(here, "../../../models");
const [build, evalTool, model = path.join(models, "tiny-recall.gguf"), text = path.join(models, "eval.txt"),
    context = "1024"] = process.argv.slice(2);
if (evalTool === undefined) {
    console.error("usage: perplexity.mjs BUILD_FOLDER MIXED_KV_EVAL [MODEL TEXT [CONTEXT]]");
    process.exit(2);
}
const types = ["q8_0", "q5_0", "q4_0"];
// llama-perplexity prints six decimals, of log-probabilities that it keeps in 16 bits.
const allowed = (kld) => 2e-6 + 0.005 * kld;

function run(program, args, options = {}) {
    const result = spawnSync(program, args, {encoding: "utf8", maxBuffer: 1 << 28, ...options});
    if (result.status !== 0) {
        console.error(`${program} ${args.join(" ")} ended with ${result.status ?? result.error}:\n${result.stderr}`);
        process.exit(1);
    }
    return result.stdout + result.stderr;
}

const perplexity = path.join(build, "bin/llama-perplexity");
if (!existsSync(perplexity)) {
    execFileSync("cmake", ["-S", here, "-B", build, "-G", "Ninja"], {stdio: "ignore"});
    run("cmake", ["--build", build, "--target", "llama-perplexity"]);
}

const scratch = mkdtempSync(path.join(tmpdir(), "perplexity-"));
let failed = false;
try {
    const base = path.join(scratch, "base"), progress = path.join(scratch, "progress.jsonl");
    const common = ["-m", model, "-c", context, "-b", context, "-ub", "64", "-t", "1", "-fa", "on", "--chunks", "1",
        "--kl-divergence-base", base];
    // The plugin stays out of llama.cpp's own figures.
    const env = {...process.env};
    delete env.GGML_BACKEND_PATH;
    run(perplexity, [...common, "-f", text], {env});

    run(evalTool, ["-m", model, "-f", text, "-c", context, "--ubatch", "64", "-t", "1", "--chunks", "1", "--configs",
        types.map((type) => `host:${type}`).join(","), "--resume", progress]);
    const results = new Map(readFileSync(progress, "utf8").trim().split("\n").map((line) => JSON.parse(line))
        .map((result) => [result.name, result.divergence.kld.slice(0, -1)]));

    for (const type of types) {
        const printed = run(perplexity, [...common, "--kl-divergence", "-ctk", type, "-ctv", type], {env});
        const found = /Mean\s+KLD:\s+([0-9.]+)/.exec(printed);
        if (found === null) {
            console.error(`llama-perplexity printed no mean KLD:\n${printed}`);
            process.exit(1);
        }
        const theirs = Number(found[1]), klds = results.get(`host:${type}`);
        const ours = klds.reduce((sum, kld) => sum + kld, 0) / klds.length;
        const agrees = Math.abs(ours - theirs) <= allowed(theirs);
        console.log(`${type}: llama-perplexity ${theirs.toFixed(6)}, mixed-kv-eval ${ours.toFixed(6)}`
            + (agrees ? "" : "  DIFFERENT"));
        failed ||= !agrees;
    }
} finally {
    rmSync(scratch, {recursive: true});
}
process.exit(failed ? 1 : 0);
