// What our device costs node-llama-cpp, which attaches no thread pool: each change between the CPU's and our splits
// starts threads anew. Generates with the mixed cache and with llama.cpp's own in turn and compares medians.
//
//   GGML_BACKEND_PATH=build/lib/libggml-mixed-kv.so node tests/client/split_cost.mjs MODEL [TOKENS=32] [ROUNDS=7]
//
// Prints one JSON object: milliseconds per token of both, the speed of the mixed one as a share of the other,
// microseconds per pair of splits (ours and the CPU's behind it; one pair per layer).
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [modelPath, nTokens = "32", nRounds = "7", threads = "0"] = process.argv.slice(2);
if (modelPath == null) {
    console.error("usage: split_cost.mjs MODEL [TOKENS] [ROUNDS] [THREADS]");
    process.exit(1);
}
const llama = await getLlama({build: "never", logLevel: LlamaLogLevel.error});

async function open(gpuLayers) {
    const model = await llama.loadModel({modelPath, gpuLayers});
    const context = await model.createContext({
        contextSize: 512,
        ...(Number(threads) > 0 ? {threads: Number(threads)} : {})
    });
    return {model, sequence: context.getSequence(), perToken: []};
}

async function round(side) {
    await side.sequence.clearHistory();
    let n = 0;
    let start = 0;
    const first = side.model.tokens.bos ?? 1;
    for await (const _ of side.sequence.evaluate([first, first], {temperature: 0, yieldEogToken: true})) {
        if (n++ === 0) start = performance.now(); // the first one includes the prompt
        if (n > Number(nTokens)) break;
    }
    side.perToken.push((performance.now() - start) / Number(nTokens));
}

const mixed = await open("max");
const own = await open(0);
for (const side of [mixed, own]) {
    await round(side); // warm up
    side.perToken = [];
}
for (let i = 0; i < Number(nRounds); ++i) {
    for (const side of i % 2 === 0 ? [mixed, own] : [own, mixed]) await round(side);
}
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const ratios = mixed.perToken.map((ms, i) => own.perToken[i] / ms);
const [a, b] = [median(mixed.perToken), median(own.perToken)];
const layers = mixed.model.fileInfo.metadata[mixed.model.fileInfo.metadata.general.architecture].block_count;
process.stdout.write(JSON.stringify({
    ms_per_token_mixed: a,
    ms_per_token_own: b,
    share: median(ratios),
    n_layers: layers,
    us_per_split_pair: 1000 * (a - b) / layers
}) + "\n");
await llama.dispose();
