// One completion with node-llama-cpp as its users write it; the result as JSON on stdout. Started by
// node_llama_cpp.test.mjs as a process of its own, since backends and settings are read once per process.
//
//   node complete.mjs '{"model": FILE, "prompt": TEXT, "gpuLayers": "max", "contextSize": N, "maxTokens": N}'
import {getLlama, LlamaCompletion, LlamaLogLevel} from "node-llama-cpp";

const request = JSON.parse(process.argv[2]);
const log = [];
const llama = await getLlama({
    build: "never",
    logLevel: LlamaLogLevel.debug,
    logger: (level, text) => log.push(...text.trimEnd().split("\n"))
});
const answer = {
    gpu: llama.gpu,
    supportsGpuOffloading: llama.supportsGpuOffloading,
    buildType: llama.buildType
};
try {
    const model = await llama.loadModel({modelPath: request.model, gpuLayers: request.gpuLayers});
    answer.gpuLayers = model.gpuLayers;
    const context = await model.createContext({
        contextSize: request.contextSize,
        ...(request.flashAttention != null ? {flashAttention: request.flashAttention} : {}),
        ...(request.threads != null ? {threads: request.threads} : {})
    });
    const completion = new LlamaCompletion({contextSequence: context.getSequence()});
    const start = performance.now();
    answer.text = await completion.generateCompletion(request.prompt, {maxTokens: request.maxTokens, temperature: 0});
    answer.milliseconds = performance.now() - start;
    await context.dispose();
    await model.dispose();
} catch (error) {
    answer.error = error.message;
}
await llama.dispose();
process.stdout.write(JSON.stringify({...answer, log}) + "\n");
