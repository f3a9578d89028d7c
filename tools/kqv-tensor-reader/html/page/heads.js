// One record, one head: what it looks at, and where its errors are.

recordView("heads", "Heads", (record, detail, place) => {
    const d = detail.json, weights = detail.array("weights");
    const head = Math.min(d.heads_shown - 1, Math.max(0, Number(place.rest[2]) || 0));
    const q = Math.min(d.queries.length - 1, Math.max(0, Number(place.rest[3]) || 0));
    const log = place.rest[4] === "log";
    const to = (h, query, scale) => go("heads", record.layer, record.step, h, query, scale ? "log" : "linear");
    const heads = Array.from({length: d.heads_shown}, (_, h) => [h, h]);
    return el("div", {},
        heads.length <= 64 ? choice("head", heads, head, (h) => to(h, q, log))
            : el("label", {class: "soft"}, "head ", el("input", {type: "number", min: 0, max: heads.length - 1, value: head, change: (e) => to(e.target.value, q, log)})),
        d.heads_shown < d.n_head ? el("p", {class: "note"}, `Of ${d.n_head} heads the first ${d.heads_shown} are kept.`) : null,
        choice("query", d.queries.map((query, i) => [i, queryText(query, d)]), q, (i) => to(head, i, log)),
        choice("scale", [["linear", "linear"], ["log", "logarithmic"]], log ? "log" : "linear", (s) => to(head, q, s === "log")),
        headsByPages(detail, head, q, (h) => to(h, q, log)), weightChart(detail, weights, head, q, log), pageWeights(detail, head, q),
        detail.has("row_shares") ? errorCharts(detail, head) : null,
        valueMaps(detail, Math.floor(head / (d.n_head / d.n_head_kv))));
});

function queryText(query, d) {
    const text = query.position === null ? `token ${query.token}` : `position ${query.position}`;
    return d.n_stream > 1 ? `stream ${query.stream}, ${text}` : text;
}

// Codes of record_detail.cpp: 255 is 1, neighbours are a factor of 2^(24/254) apart.
function weightOf(code) {
    return code === 0 ? 0 : 2 ** ((code - 255) * 24 / 254);
}

// Colours of a stream's pages by what most of their cells are read from, as bands behind a chart over positions.
function pageBands(detail, stream) {
    const d = detail.json;
    return d.k.pages.filter(([first]) => Math.floor(first / d.n_kv) === stream).filter(([, , parts]) => parts.length).map(([first, n, parts]) => {
        const most = parts.reduce((a, b) => b[2] > a[2] ? b : a);
        return {from: first - stream * d.n_kv, to: first - stream * d.n_kv + n, colour: partColour(most)};
    });
}

// All heads at once, to see which one to look at.
function headsByPages(detail, head, q, choose) {
    const all = detail.array("page_weights"), [, heads, pages] = all.shape;
    if (heads < 2) return null;
    return el("section", {}, el("h3", {}, "Where every head looks"), cellMap({
        id: "heads-by-pages", columns: pages, rows: heads, maxCell: 40, rowHeight: Math.max(5, Math.min(16, 320 / heads)),
        title: "Share of each head's weight by page of 64 cells, the darker the more, from 0.01 % to all. A click shows that head.",
        cell: (c, r) => ({colour: ramp(all.at(q, r, c) > 0 ? 1 + Math.log10(all.at(q, r, c)) / 4 : 0)}),
        label: (c, r) => `head ${r}, page ${c}: ${percent(all.at(q, r, c))} of its weight`,
        pick: (c, r) => choose(r), rowLabel: (r) => r === head ? `▸ head ${r}` : `head ${r}`, columnLabel: (c) => c
    }));
}

function weightChart(detail, weights, head, q, log) {
    const d = detail.json, per = d.cells_per_bin, n = weights.shape[2];
    const values = Array.from({length: n}, (_, i) => weightOf(weights.at(q, head, i)));
    const x = Array.from({length: n + 1}, (_, i) => Math.min(i * per, d.n_kv));
    const sink = detail.array("sink_weights").at(q, head);
    return el("section", {}, el("h3", {}, `Attention weights of head ${head}`),
        chart({
            id: "weights", title: `Softmax weight by cell, recomputed${per > 1 ? `; the largest of every ${per} cells` : ""}. Background: how the page is stored (orange hot, blue cold).`,
            series: [{kind: "bar", values, x, colour: "var(--chart)"}], log, low: log ? 1e-7 : 0, bands: pageBands(detail, d.queries[q].stream),
            xLabel: "cell", yLabel: "weight", points: n,
            label: (i) => `cell ${i * per}${per > 1 ? ` to ${Math.min(d.n_kv, (i + 1) * per) - 1}` : ""}\nweight ${number(values[i], 2)} (within 3 %)`
        }),
        d.has_sinks ? el("p", {class: "note"}, `The learned sink takes ${percent(sink)} of the weight.`) : null);
}

function pageWeights(detail, head, q) {
    const d = detail.json, all = detail.array("page_weights"), stream = d.queries[q].stream;
    const values = Array.from({length: all.shape[2]}, (_, page) => all.at(q, head, page));
    const pages = d.k.pages.filter(([first]) => Math.floor(first / d.n_kv) === stream);
    const byKind = new Map();
    values.forEach((value, page) => {
        const parts = pages[page]?.[2] ?? [];
        const most = parts.length ? parts.reduce((a, b) => b[2] > a[2] ? b : a) : null;
        const kind = most ? most[0] === "block" ? `cold ${most[1]}` : most[0] : "nothing stored";
        byKind.set(kind, (byKind.get(kind) ?? 0) + value);
    });
    return el("section", {}, el("h3", {}, "Which pages hold it"),
        chart({
            id: "page-weights", title: "Share of the head's weight by page of 64 cells", height: 150, series: [{kind: "bar", values, colour: "var(--chart-3)"}], low: 0,
            bands: pageBands(detail, stream).map((b) => ({...b, from: b.from / 64, to: b.to / 64})), xLabel: "page", yLabel: "share",
            label: (i) => `page ${i}: ${percent(values[i])}\n${(pages[i]?.[2] ?? []).map(partText).join("\n")}`
        }),
        el("p", {id: "kind-shares"}, "Pages by what most of their cells are: ", [...byKind].filter(([, v]) => v > 0).map(([kind, v]) => `${kind} ${percent(v)}`).join(", ") || "none", "."));
}

function errorCharts(detail, head) {
    const d = detail.json, channels = detail.array("channel_errors"), rows = detail.array("row_shares"), per = d.queries_per_row;
    const values = Array.from({length: channels.shape[1]}, (_, c) => channels.at(head, c));
    return el("section", {}, el("h3", {}, "Where the output is off"),
        chart({id: "channel-errors", title: `Largest error of head ${head}'s output by channel, over all queries`, height: 150, series: [{kind: "bar", values, colour: "var(--chart-2)"}], low: 0, xLabel: "channel of V", label: (c) => `channel ${c}: ${number(values[c])}`}),
        rows.shape[1] <= 512 ? cellMap({
            id: "row-errors", columns: rows.shape[0], rows: rows.shape[1], maxCell: 16, title: `Error of each row over its limit: queries (columns${per > 1 ? `, ${per} each, the largest` : ""}) and heads. ${mapMetrics.error.about}`,
            cell: (c, r) => ({colour: mapMetrics.error.colour(ratioOf(rows.at(c, r))), cross: !(rows.at(c, r) <= 1)}),
            label: (c, r) => `query ${c * per}, head ${r}: ${number(rows.at(c, r))} of the limit`, rowLabel: (r) => `head ${r}`
        }) : null);
}

function ratioOf(x) {
    return Number.isNaN(x) ? Infinity : x;
}
