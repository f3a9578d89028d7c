// Drives llama-server over HTTP on loopback, once with llama.cpp's own cache and once with the plugin, and compares what
// it answers.
//
//   node server_client.mjs LLAMA_SERVER PLUGIN MODEL
//
// With a window over the whole context every answer must equal the plain server's; with a small window and q8 keys and q4
// values nothing but an answer is asked for. Exit status 0 only when all is well.
import {spawn} from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";

const [server, plugin, model] = process.argv.slice(2);
if (!model) {
    console.error("usage: server_client.mjs LLAMA_SERVER PLUGIN MODEL");
    process.exit(2);
}
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "mixed-kv-server-"));

const freePort = () => new Promise((resolve) => {
    const probe = net.createServer().listen(0, "127.0.0.1", () => {
        const {port} = probe.address();
        probe.close(() => resolve(port));
    });
});

// Of every answer, per token: what was likely.
const probabilities = new Map();
// Greedy choices may differ where two tokens are as likely as rounding can tell: logits of the two servers differ by the
// host's F16 accumulation against our float32 one.
const kTie = 0.02;

// How sure the plain server was (difference of log probabilities) of the first token in which two answers differ.
const margin = (plain, other) => {
    const a = probabilities.get(plain) ?? [], b = probabilities.get(other) ?? [];
    const at = a.findIndex((token, i) => token.id !== b[i]?.id);
    if (at < 0) return Infinity;
    const [first, second] = a[at].top_logprobs;
    return first.logprob - second.logprob;
};

class Server {
    static async start(env, options) {
        const self = new Server();
        const port = await freePort();
        self.url = `http://127.0.0.1:${port}`;
        self.log = "";
        const clean = Object.fromEntries(Object.entries(process.env).filter(([k]) => !k.startsWith("GGML_")));
        self.process = spawn(server, ["-m", model, "--host", "127.0.0.1", "--port", String(port), "-t", "1", "-fa", "on",
            "--seed", "1", "--slot-save-path", folder + "/", "--no-warmup", "--slots", "-lv", "5", ...options],
            {env: {...clean, ...env}, stdio: ["ignore", "pipe", "pipe"]});
        for (const stream of [self.process.stdout, self.process.stderr]) stream.on("data", (d) => self.log += d);
        self.exited = new Promise((resolve) => self.process.on("exit", (code, signal) => resolve(signal ?? code)));
        let ended = false;
        self.exited.then(() => ended = true);
        for (let i = 0; i < 600 && !ended; ++i) {
            try {
                if ((await fetch(self.url + "/health")).ok) return self;
            } catch {}
            await new Promise((r) => setTimeout(r, 200));
        }
        throw new Error("the server does not start:\n" + self.log.slice(-3000));
    }
    async post(where, body, signal) {
        const response = await fetch(self_url(this) + where, {method: "POST", body: JSON.stringify(body), signal,
            headers: {"Content-Type": "application/json"}});
        const text = await response.text();
        if (!response.ok) throw new Error(`${where}: ${response.status} ${text.slice(0, 300)}`);
        return JSON.parse(text);
    }
    async complete(prompt, n, more = {}) {
        const r = await this.post("/completion",
            {prompt, n_predict: n, temperature: 0, ignore_eos: true, n_probs: 2, ...more});
        this.last = r;
        probabilities.set(r.content, r.completion_probabilities ?? []);
        return r.content;
    }
    async stop() {
        this.process.kill("SIGTERM");
        return await this.exited;
    }
}
const self_url = (s) => s.url;

const words = "the quick brown fox jumps over a lazy dog while seven grey cats watch from an old stone wall ".split(" ");
const text = (n, seed) => Array.from({length: n}, (_, i) => words[(i * (seed + 3) + (i >> 3)) % (words.length - 1)]).join(" ");

const scenarios = {
    async "completion and regenerate"(env) {
        const s = await Server.start(env, ["-c", "1024", "-np", "1"]);
        const out = [await s.complete(text(150, 1), 40), await s.complete(text(150, 1), 40),
            await s.complete(text(150, 1) + " and then", 40), await s.complete(text(60, 1), 40)];
        return [s, out];
    },
    async "chat"(env) {
        const s = await Server.start(env, ["-c", "1024", "-np", "1", "--chat-template", "chatml"]);
        const messages = [{role: "user", content: text(80, 2)}];
        const out = [];
        for (let turn = 0; turn < 3; ++turn) {
            const r = await s.post("/v1/chat/completions", {messages, max_tokens: 30, temperature: 0});
            out.push(r.choices[0].message.content);
            messages.push(r.choices[0].message, {role: "user", content: text(20, turn)});
        }
        return [s, out];
    },
    async "four slots in parallel"(env) {
        const s = await Server.start(env, ["-c", "2048", "-np", "4"]);
        const out = [];
        for (let round = 0; round < 3; ++round) {
            out.push(...await Promise.all([0, 1, 2, 3].map((slot) =>
                s.complete(text(60 + 20 * round, slot), 40, {id_slot: slot}))));
        }
        return [s, out];
    },
    async "save, erase and restore a slot"(env) {
        const s = await Server.start(env, ["-c", "1024", "-np", "2"]);
        const out = [await s.complete(text(120, 3), 20, {id_slot: 0})];
        await s.post("/slots/0?action=save", {filename: "slot.bin"});
        await s.post("/slots/0?action=erase", {});
        out.push(await s.complete(text(100, 4), 20, {id_slot: 0}));
        await s.post("/slots/0?action=restore", {filename: "slot.bin"});
        out.push(await s.complete(text(120, 3) + " again", 20, {id_slot: 0}));
        // A damaged file is refused, and the server goes on.
        const file = path.join(folder, "slot.bin");
        fs.truncateSync(file, fs.statSync(file).size / 2);
        const refused = await s.post("/slots/1?action=restore", {filename: "slot.bin"}).then(() => false, () => true);
        out.push(`damaged file refused: ${refused}`, await s.complete(text(50, 5), 20, {id_slot: 1}));
        return [s, out];
    },
    async "context shift past three windows"(env) {
        const s = await Server.start(env, ["-c", "256", "-np", "1", "--context-shift"]);
        return [s, [await s.complete(text(40, 6), 900, {n_keep: 8})]];
    },
    async "speculative decoding, every draft accepted"(env) {
        const s = await Server.start(env, ["-c", "1024", "-np", "1", "-md", model, "--spec-type", "draft-simple", "--spec-draft-n-max", "4", "--spec-draft-p-min", "0"]);
        const out = [await s.complete(text(100, 7), 60)];
        s.note = `${s.last.timings.draft_n_accepted} of ${s.last.timings.draft_n} drafted tokens accepted`;
        return [s, out];
    },
    async "speculative decoding, no draft accepted"(env) {
        // The same model with the end of its weights erased.
        const wrong = path.join(folder, "wrong.gguf");
        const bytes = fs.readFileSync(model);
        bytes.fill(0, Math.floor(bytes.length * 0.25));
        fs.writeFileSync(wrong, bytes);
        const s = await Server.start(env, ["-c", "1024", "-np", "1", "-md", wrong, "--spec-type", "draft-simple", "--spec-draft-n-max", "4", "--spec-draft-p-min", "0"]);
        const out = [await s.complete(text(100, 7), 60)];
        s.note = `${s.last.timings.draft_n_accepted} of ${s.last.timings.draft_n} drafted tokens accepted`;
        return [s, out];
    },
    async "client gone in mid-prefill"(env) {
        const s = await Server.start(env, ["-c", "2048", "-np", "2", "-ub", "32", "-b", "32"]);
        for (const ms of [5, 30, 100]) {
            await s.post("/completion", {prompt: text(700, 8), n_predict: 5}, AbortSignal.timeout(ms)).catch(() => {});
        }
        return [s, [await s.complete(text(80, 9), 30)]];
    },
};

const exact = {GGML_BACKEND_PATH: plugin, GGML_MIXED_KV_WINDOW: "1048576"};
const cold = {GGML_BACKEND_PATH: plugin, GGML_MIXED_KV_WINDOW: "32", GGML_MIXED_KV_K: "q8", GGML_MIXED_KV_V: "q4"};
let failed = 0;
const only = process.env.ONLY;
for (const [name, scenario] of Object.entries(scenarios)) {
    if (only && !name.includes(only)) continue;
    const answers = {};
    for (const [who, env] of Object.entries({plain: {}, exact, cold})) {
        try {
            const [s, out] = await scenario(env);
            const status = await s.stop();
            const mixed = /mixed-kv: cache of [^\n]*/.exec(s.log);
            answers[who] = out;
            if (s.note) console.log(`  ${who}: ${s.note}`);
            if (who !== "plain" && !mixed) throw new Error("the plugin was not in effect");
            if (status !== 0) throw new Error(`the server ended with ${status}\n${s.log.slice(-2000)}`);
        } catch (e) {
            console.log(`  ${who}: ${e.message}`);
            answers[who] ??= [`failed`];
            ++failed;
        }
    }
    const differing = answers.plain.map((a, i) => [i, a, answers.exact[i] ?? ""]).filter(([, a, b]) => a !== b);
    const equal = differing.every(([, a, b]) => margin(a, b) < kTie);
    for (const [i, a, b] of differing)
        console.log(`  answer ${i} differs where the plain server is sure by ${margin(a, b).toFixed(4)} nats`);
    const length = answers.plain.join("").length;
    if (!equal) ++failed;
    console.log(`${!equal ? "DIFFERENT" : differing.length > 0 ? "equal but for ties" : "equal"}: ${name} (${answers.plain.length} answers, ${length} characters)`);
}
fs.rmSync(folder, {recursive: true});
process.exit(failed === 0 ? 0 : 1);
