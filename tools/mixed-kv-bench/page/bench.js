// How fast: attention or whole models against depth, or the ubatches of a prompt, beside llama.cpp's own caches.

let bench = null;

report.start = async () => {
    bench = (await openPiece("report")).json.report;
    report.title = {attention: "Speed of attention", prefill: "Speed of prompt attention", model: "Tokens per second", prompt: "Speed of a prompt"}[bench.mode] ?? "Speed";
};
report.subtitle = () => `${bench.cpu}, ${counted(bench.threads, "thread")}, kernels ${bench.isa}, ggml ${bench.ggml}`;
report.actions = () => el("button", {type: "button", id: "save", click: () => save("speed.json", JSON.stringify(bench, null, 2))}, "save as JSON");

const benchColours = ["chart", "chart-3", "chart-4", "chart-5"];
const hostColours = ["chart-2", "none", "soft"];

report.views.push({
    name: "speed", title: "Speed",
    draw: () => el("div", {}, benchFacts(), benchCharts(), el("h2", {}, "Times and ratios"), benchTable(), el("p", {class: "note"}, "Medians; the JSON has their quartiles. Ours and the host's caches took turns in one run: compare within this page only."))
});

function benchFacts() {
    const facts = [];
    if (bench.description) facts.push(card(bench.description, "model"));
    if (bench.read_bandwidth) facts.push(card(`${number(bench.read_bandwidth / 1e9)} GB/s`, `read bandwidth (${bench.read_pattern})`, "bandwidth", bench.read_bandwidth));
    for (const [type, least] of Object.entries(bench.smallest_speedup ?? {})) facts.push(card(`${number(least.speedup)} x`, `smallest ratio to the host's ${type}`));
    if (bench.ours) facts.push(card(`${number(bench.ours.prompt_seconds)} s`, "whole prompt"));
    if (bench.kv_bytes) facts.push(card(bytesText(bench.kv_bytes), "our cache"));
    return el("div", {class: "cards"}, facts);
}

// Cases of one kind, along one axis: by K and V format, and whatever else differs.
function groups(cases, axis, names) {
    const all = new Map();
    for (const c of cases) {
        const key = names.filter((n) => new Set(cases.map((x) => x[n])).size > 1 || n === "k" || n === "v").map((n) => n === "k" || n === "v" ? c[n] : `${n} ${c[n]}`).join("/");
        if (!all.has(key)) all.set(key, []);
        all.get(key).push(c);
    }
    for (const list of all.values()) list.sort((a, b) => a[axis] - b[axis]);
    return all;
}

function lines(cases, axis, names, ours, host, title, yLabel, extra) {
    const series = [];
    let i = 0;
    for (const [key, list] of groups(cases, axis, names)) {
        series.push({name: `mixed ${key}`, colour: `var(--${benchColours[i++ % benchColours.length]})`, kind: "line", marks: true, width: 2.4, x: list.map((c) => c[axis]), values: list.map(ours)});
        if (extra) series.push({...extra, x: list.map((c) => c[axis]), values: list.map(extra.of), kind: "line", dash: "5 4", name: `${extra.name} ${key}`, colour: "var(--soft)"});
    }
    const first = [...groups(cases, axis, names).values()][0] ?? [];
    Object.keys(first[0]?.host ?? {}).forEach((type, h) => series.push({
        name: `host ${type}`, colour: `var(--${hostColours[h % hostColours.length]})`, kind: "line", marks: true, x: first.map((c) => c[axis]), values: first.map((c) => host(c, type))
    }));
    return chart({id: "speed", title, series, height: 340, low: 0, xLabel: axis === "n_kv" ? "cells in the cache" : "tokens in the cache", yLabel});
}

const hostMedian = (c, type) => c.host[type] ?? NaN;

function benchCharts() {
    if (bench.mode === "model") {
        const what = bench.n_prompt === 1 ? "Generation" : `Prompts of ${bench.n_prompt} tokens`;
        return lines(bench.cases, "depth", ["k", "v", "n_parallel"], (c) => c.tokens_per_second, hostMedian, `${what}: tokens per second against depth`, "tokens per second",
            bench.n_prompt === 1 ? {name: "ceiling: reads weights, K and V once", of: (c) => c.tokens_per_second_ceiling} : null);
    }
    if (bench.mode === "prompt") {
        return lines(bench.ubatches, "depth", [], (u) => u.n_tokens / u.seconds, (u, type) => u.n_tokens / hostMedian(u, type), `Each ubatch of ${bench.n_ubatch} tokens: tokens per second`, "tokens per second");
    }
    const rate = (us) => 1e6 / us;
    return el("div", {}, lines(bench.cases, "n_kv", ["k", "v", "n_q", "n_seq", "head_dim"], (c) => rate(c.us), (c, type) => rate(hostMedian(c, type)), "Calls of one layer's attention per second against depth", "calls per second"),
        chart({
            id: "roofline", title: "Share of the read bandwidth: of what the memory gives, how much of it is K and V", height: 260, low: 0, high: 1, xLabel: "cells in the cache", yLabel: "share",
            series: [...groups(bench.cases, "n_kv", ["k", "v", "n_q", "n_seq", "head_dim"])].map(([key, list], i) => ({name: `mixed ${key}`, colour: `var(--${benchColours[i % benchColours.length]})`, kind: "line", marks: true, x: list.map((c) => c.n_kv), values: list.map((c) => c.bandwidth_share)}))
        }));
}

function benchTable() {
    const cases = bench.cases ?? bench.ubatches, types = Object.keys(cases[0]?.host ?? {});
    const fixed = {
        model: [["depth", (c) => c.depth], ["parallel", (c) => c.n_parallel], ["<K", (c) => c.k], ["<V", (c) => c.v], ["tokens/s", (c) => number(c.tokens_per_second, 4)], ["KV", (c) => bytesText(c.kv_bytes)]],
        prompt: [["depth", (c) => c.depth], ["tokens", (c) => c.n_tokens], ["ms", (c) => number(1e3 * c.seconds, 4)]]
    }[bench.mode] ?? [["cells", (c) => c.n_kv], ["queries", (c) => c.n_q], ["sequences", (c) => c.n_seq], ["<K", (c) => c.k], ["<V", (c) => c.v], ["µs", (c) => number(c.us, 4)], ["of bandwidth", (c) => percent(c.bandwidth_share)], ["GFLOP/s", (c) => number(c.gflops)], ["relative RMS", (c) => number(c.relative_rms)]];
    const scale = bench.mode === "prompt" ? 1e3 : 1;
    const columns = [...fixed, ...types.map((t) => [`host ${t}`, (c) => number(scale * hostMedian(c, t), 4)]), ...types.map((t) => [`x ${t}`, (c) => number(c.speedup?.[t])])];
    return el("div", {class: "wide", id: "figures"}, table(columns.map(([h]) => h), cases.map((c) => columns.map(([, f]) => f(c)))));
}
