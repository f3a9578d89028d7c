// Scores the GGUF file with unmodified llama.cpp libraries (F16 cache): recall by distance, mean loss
// of the recall contexts, and a greedy completion.
// Usage: node check_llama.mjs MODEL.gguf recall.jsonl [PROMPT]
// Needs node-llama-cpp where node finds it (NODE_LLAMA_DIR names another folder with node_modules).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [modelPath, recallPath, prompt = "And the king said unto"] = process.argv.slice(2);
const base = path.resolve(process.env.NODE_LLAMA_DIR ?? ".", "node_modules", "node-llama-cpp");
const { getLlama } = await import(pathToFileURL(path.join(base, "dist", "index.js")).href);

const buckets = [0, 256, 512, 1024, 1536, 2048];
const rows = buckets.slice(1).map((high, i) => ({ low: buckets[i], high, right: 0, asked: 0 }));

const llama = await getLlama({ build: "never", gpu: false, maxThreads: 1, logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 2048, batchSize: 512, flashAttention: false });
const sequence = context.getSequence();

const contexts = readFileSync(recallPath, "utf8").trim().split("\n").map((line) => JSON.parse(line));
for (const { text, n_tokens, asks } of contexts) {
    const tokens = [model.tokens.bos, ...model.tokenize(text)];
    if (tokens.length !== n_tokens)
        throw new Error(`${tokens.length} tokens instead of ${n_tokens}: the tokenizers disagree`);
    const asked = new Map(asks.map((ask) => [ask.ask_token, ask]));
    await sequence.clearHistory();
    const outputs = await sequence.controlledEvaluate(
        tokens.map((token, i) => asked.has(i)
            ? [token, { generateNext: { token: true, options: { temperature: 0 } } }] : token));
    for (const [i, ask] of asked) {
        const row = rows.find(({ low, high }) => ask.distance >= low && ask.distance < high);
        row.right += outputs[i].next.token === ask.answer_id;
        row.asked += 1;
    }
}
for (const { low, high, right, asked } of rows)
    console.log(`recall at distance ${low}-${high - 1}: ${right}/${asked} = ${(right / asked).toFixed(3)}`);
const right = rows.reduce((sum, row) => sum + row.right, 0);
const asked = rows.reduce((sum, row) => sum + row.asked, 0);
console.log(`recall: ${right}/${asked} = ${(right / asked).toFixed(4)}`);

await sequence.clearHistory();
const completion = [];
const prompted = model.tokenize(prompt);
for await (const token of sequence.evaluate([model.tokens.bos, ...prompted], { temperature: 0 })) {
    completion.push(token);
    if (completion.length === 40) break;
}
console.log("greedy: " + model.detokenize([...prompted, ...completion]));
