// What a cache's storage costs in quality: KLD against bits, its tail, recall by distance.

let evaluation = null;

report.title = "Quality of KV caches";
report.start = async () => {
    evaluation = (await openPiece("report")).json.report;
};
report.subtitle = () => `${evaluation.positions} scored positions against exact F16 rows`;
report.actions = () => el("button", {type: "button", id: "save", click: () => save("quality.json", JSON.stringify(evaluation, null, 2))}, "save as JSON");

const evalMeasures = [["kld_mean", "mean"], ["kld_median", "median"], ["kld_p99", "99 %"], ["kld_p999", "99.9 %"], ["kld_max", "largest"]];
// "host:q4_0+64+4" is rows of that type beside a window, no cache of llama.cpp's.
const isHost = (c) => c.name.startsWith("host:") && !c.name.includes("+");

report.views.push({
    name: "quality", title: "Quality",
    draw: (place) => {
        const measure = evalMeasures.some(([name]) => name === place.rest[0]) ? place.rest[0] : "kld_mean";
        return el("div", {},
            el("h2", {}, "Divergence against memory"),
            el("p", {}, "KLD: how far the next token's distribution is from the one with exact rows. Lower and further left is better."),
            choice("KLD", evalMeasures, measure, (name) => go("quality", name)),
            kldChart(measure), el("h2", {}, "The tail"), tailChart(), recallSection(), evalTable());
    }
});

function kldChart(measure) {
    const of = (list) => {
        const sorted = list.filter((c) => c[measure] > 0).sort((a, b) => a.bits_per_value - b.bits_per_value);
        return {x: sorted.map((c) => c.bits_per_value), values: sorted.map((c) => c[measure]), labels: sorted.map((c) => c.name), marks: true};
    };
    const series = [
        {name: "llama.cpp's own caches", colour: "var(--chart-2)", kind: "line", ...of(evaluation.configs.filter(isHost))},
        {name: "mixed", colour: "var(--chart)", kind: "points", ...of(evaluation.configs.filter((c) => !isHost(c)))}
    ].filter((s) => s.values.length);
    const floor = evaluation.noise_floor, xs = series.flatMap((s) => s.x);
    if (measure === "kld_mean" && floor > 0 && xs.length)
        series.push({name: "three times the noise floor: what lies below is not resolved", colour: "var(--soft)", kind: "line", dash: "5 4", x: [Math.min(...xs), Math.max(...xs)], values: [3 * floor, 3 * floor]});
    if (!xs.length) return el("p", {class: "note"}, "Nothing above 0 to draw.");
    // Room for the names at the right.
    const high = Math.max(...xs), low = Math.min(...xs);
    return chart({id: "kld", title: `KLD (${evalMeasures.find(([n]) => n === measure)[1]}) against stored bits per value`, series, log: true, height: 380, xLabel: "bits per value", yLabel: "KLD", lowX: low - 0.3, highX: high + (high - low || 1) * 0.12});
}

// A colour for each cache, and dashes for the host's.
function evalLine(c) {
    const colours = ["chart", "chart-2", "chart-3", "chart-4", "chart-5"];
    const alike = evaluation.configs.filter((other) => isHost(other) === isHost(c));
    return {kind: "line", marks: true, dash: isHost(c) ? "6 4" : undefined, colour: `var(--${colours[alike.indexOf(c) % colours.length]})`};
}

function tailChart() {
    const order = [evalMeasures[1], evalMeasures[0], ...evalMeasures.slice(2)];
    const series = evaluation.configs.map((c) => ({
        name: c.name, ...evalLine(c), x: order.map((_, j) => j), values: order.map(([name]) => c[name])
    }));
    return chart({id: "tail", title: "From the median to the worst position; dashed: llama.cpp's own caches", series, log: true, height: 280, lowX: -0.2, highX: order.length - 0.8, xTicks: order.map((_, j) => j), xText: (j) => order[j][1], yLabel: "KLD"});
}

function recallSection() {
    const with_ = evaluation.configs.filter((c) => c.recall_by_distance);
    if (!with_.length) return null;
    const low = Math.min(...with_.flatMap((c) => c.recall_by_distance));
    return el("section", {}, el("h2", {}, "Recall by distance"),
        el("p", {}, "Share of planted facts that are found again, by how far back they lie: the nearest quarter to the farthest."),
        chart({
            id: "recall", title: `Recall (${counted(with_[0].recall_trials, "question")} each)`, height: 220, low: Math.floor(10 * low) / 10 - 0.1, high: 1, lowX: -0.2, highX: 3.2, xTicks: [0, 1, 2, 3], xText: (i) => ["nearest quarter", "second", "third", "farthest"][i], yLabel: "share",
            series: with_.map((c) => ({name: c.name, ...evalLine(c), x: [0, 1, 2, 3], values: c.recall_by_distance}))
        }));
}

function evalTable() {
    const {configs} = evaluation, has = (name) => configs.some((c) => c[name] !== undefined);
    const columns = [
        ["<cache", (c) => c.name], ["bits per value", (c) => c.bits_per_value.toFixed(2)], ["mean KLD", (c) => `${number(c.kld_mean)}${c.resolved ? "" : " (not resolved)"}`],
        ["median", (c) => number(c.kld_median)], ["99 %", (c) => number(c.kld_p99)], ["99.9 %", (c) => number(c.kld_p999)], ["same top token", (c) => percent(c.top1, 4)], ["RMS Δp", (c) => number(c.rms_delta_p)],
        ["perplexity", (c) => number(c.ppl, 5)], ["KV", (c) => bytesText(c.kv_bytes)],
        has("kld_mean_ratio") ? [`mean of ${evaluation.baseline}'s`, (c) => typeof c.kld_mean_ratio === "number" ? number(c.kld_mean_ratio) : "not resolved"] : null,
        has("recall") ? ["recall", (c) => c.recall === undefined ? "–" : percent(c.recall)] : null,
        has("greedy_same_mean") ? ["greedy tokens alike", (c) => c.greedy_same_mean === undefined ? "–" : number(c.greedy_same_mean)] : null
    ].filter(Boolean);
    return el("section", {}, el("h2", {}, "All figures"), el("div", {class: "wide", id: "figures"},
        table(columns.map(([h]) => h), configs.map((c) => ({data: {config: c.name, kldMean: c.kld_mean}, cells: columns.map(([, f]) => f(c))})))));
}
