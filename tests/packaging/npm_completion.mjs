// What a user of the npm package writes; scripts/test-packages.sh runs it beside node_modules. Fails where the cache is
// not mixed.
import {createRequire} from "node:module";
createRequire(import.meta.url)("ggml-mixed-kv").enable({window: 32});
const {getLlama, LlamaCompletion, LlamaLogLevel} = await import("node-llama-cpp");

let mixed = false;
const llama = await getLlama({
    build: "never",
    logLevel: LlamaLogLevel.debug,
    logger: (_, text) => { mixed ||= /[1-9]\d* of \d+ K\/V tensors mixed, window 32/.test(text); }
});
const model = await llama.loadModel({modelPath: process.argv[2], gpuLayers: "max"});
const context = await model.createContext({contextSize: 512, threads: 1, flashAttention: true});
const text = await new LlamaCompletion({contextSequence: context.getSequence()})
    .generateCompletion("Once upon a time ".repeat(20), {maxTokens: 4, temperature: 0});
await llama.dispose();
if (!mixed || text.length === 0) throw new Error(`mixed: ${mixed}, text: ${JSON.stringify(text)}`);
