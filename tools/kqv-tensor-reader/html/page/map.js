// All records at once: steps x layers.

const kMaxColumns = 400;

const mapMetrics = {
    error: {
        title: "error / limit", value: (r) => r.checked ? r.limit_share ?? Infinity : undefined,
        about: "Largest error of a row of kqv_out over what it may be. Blue: within tolerance, the deeper the closer to it. Red with a cross: beyond.",
        colour: (x) => x <= 1 ? ramp(x > 0 ? 1 + Math.log10(x) / 4 : 0) : mix(colour("bad"), colour("ink"), Math.min(0.6, Math.log10(Math.min(x, 1e6)) / 8)),
        legend: [[1e-4, "0.0001 or less"], [0.01, "0.01"], [1, "1: the limit"], [10, "beyond"]]
    },
    k: quantizationMetric("k"),
    v: quantizationMetric("v"),
    cold: {
        title: "cold rows", value: (r) => r.checked && r.n_hot + r.n_cold > 0 ? r.n_cold / (r.n_hot + r.n_cold) : undefined,
        about: "Share of the stored cells of K that are read from codes.",
        colour: (x) => mix(colour("hot"), colour("q4"), x), legend: [[0, "all exact"], [0.5, "half"], [1, "all cold"]]
    }
};

function quantizationMetric(side) {
    return {
        title: `quantization ${side.toUpperCase()}`, value: (r) => r.quantization?.[side]?.relative,
        about: `RMS of decoded ${side.toUpperCase()} against the original rows, over RMS of the originals; cells that are read from codes. Grey: none, or no originals known.`,
        colour: (x) => ramp(1 + Math.log10(Math.max(x, 1e-4)) / 3), legend: [[0.001, "0.1 %"], [0.01, "1 %"], [0.1, "10 %"], [1, "100 %"]]
    };
}

report.views.push({
    name: "map", title: "Map",
    draw: (place) => {
        const hasQuantization = trace.records.some((r) => r.quantization);
        const hasCold = trace.records.some((r) => r.n_cold > 0);
        const offered = {error: true, k: hasQuantization, v: hasQuantization, cold: hasCold};
        const names = Object.keys(mapMetrics).filter((name) => offered[name]);
        const name = names.includes(place.rest[0]) ? place.rest[0] : "error";
        return el("div", {},
            verdictText(), figures(),
            el("h2", {}, "Steps and layers"),
            choice("coloured by", names.map((n) => [n, mapMetrics[n].title]), name, (n) => go("map", n)),
            recordMap(mapMetrics[name]),
            failureList(), hasQuantization ? quantizationTable() : null, aboutFile());
    }
});

function verdictText() {
    const {report: r} = trace, failed = failures();
    if (failed.length === 0) {
        return el("div", {class: r.pass ? "fine" : "alarm"}, r.pass
            ? `Every recorded output is what its inputs give, within tolerance (${number(r.tolerance)}), against ${r.references}.`
            : "Some records could not be checked.");
    }
    const hosts = failed.filter((f) => f.cache === "standard").length;
    return el("div", {class: "alarm"}, el("strong", {}, `${failed.length} of ${trace.records.length} records are out of tolerance. `),
        hosts > 0 ? `${hosts} of them are llama.cpp's own kernel on its own cache, which rounds q to the cache's type and adds up F16 values. ` : "",
        "Click a red cell, or the worst below.");
}

function figures() {
    const {report: r} = trace;
    return el("div", {class: "cards"},
        card(r.cache, "cache", "cache"), card(r.steps, "steps", "steps"), card(r.layers, "layers", "layers"),
        card(number(r.max_error), "largest error", "max_error", r.max_error), card(number(r.tolerance), "tolerance", "tolerance"),
        r.mixed_records ? card(`${r.mixed_failed} of ${r.mixed_records}`, "mixed records failed", "mixed_failed") : null,
        r.standard_records ? card(`${r.standard_failed} of ${r.standard_records}`, "host's records failed", "standard_failed") : null,
        card(`${trace.details.size} of ${trace.records.length}`, "records with details here", "details"));
}

// More steps than columns: a column is several, and shows the largest value of each layer.
function recordMap(metric) {
    const per = Math.ceil(trace.steps.length / kMaxColumns), columns = Math.ceil(trace.steps.length / per);
    const cells = [];
    for (let l = 0; l < trace.layers.length; ++l) {
        for (let c = 0; c < columns; ++c) {
            let worst = null;
            for (const step of trace.steps.slice(c * per, (c + 1) * per)) {
                const record = trace.byPlace.get(placeKey(trace.layers[l], step));
                if (record && (!worst || (metric.value(record) ?? -1) > (metric.value(worst) ?? -1))) worst = record;
            }
            cells.push(worst);
        }
    }
    const at = (c, r) => cells[r * columns + c];
    return el("div", {},
        cellMap({
            columns, rows: trace.layers.length, title: `${metric.about}${per > 1 ? ` A column is ${per} steps and shows the largest.` : ""}`, id: "records",
            cell: (c, r) => {
                const record = at(c, r);
                if (!record) return null;
                const value = metric.value(record);
                return {colour: value === undefined ? colour("none") : metric.colour(value), cross: isFailed(record)};
            },
            label: (c, r) => describe(at(c, r)),
            pick: (c, r) => go("pages", at(c, r).layer, at(c, r).step),
            rowLabel: (r) => `layer ${trace.layers[r]}`, columnLabel: (c) => trace.steps[c * per]
        }),
        el("div", {class: "legend"}, metric.legend.map(([value, text]) => el("span", {}, swatch(metric.colour(value)), text)),
            el("span", {}, "columns: steps. Arrow keys move, Enter opens.")));
}

function recordRow(record) {
    return {
        bad: isFailed(record), pick: () => go("pages", record.layer, record.step),
        data: {layer: record.layer, step: record.step},
        cells: [el("a", {href: `#pages/${record.layer}/${record.step}`}, placeText(record)), record.cache, record.n_tokens, record.n_kv, record.n_hot, record.n_cold,
            number(record.max_error), number(record.rms_error), number(record.limit_share), record.problem ?? "ok"]
    };
}

function failureList() {
    const failed = failures(), kShown = 12;
    const worst = failed.length ? failed.slice(0, kShown)
        : trace.records.filter((r) => r.checked).sort((a, b) => b.limit_share - a.limit_share).slice(0, 5);
    if (!worst.length) return null;
    return el("section", {}, el("h2", {}, failed.length ? `What fails${failed.length > kShown ? `: the worst ${kShown} of ${failed.length}` : ""}` : "Closest to the limit"),
        el("div", {class: "wide", id: "worst"}, table(["<record", "<cache", "queries", "cells", "exact", "cold", "max error", "RMS", "of limit", "<"], worst.map(recordRow))));
}

function quantizationTable() {
    const rows = (trace.report.quantization ?? []).map((q) => [`layer ${q.layer}`,
        ...["k", "v"].flatMap((side) => q[side] ? [q[side].n_cells, number(q[side].rms), percent(q[side].relative), number(q[side].max_error)] : ["–", "–", "–", "–"])]);
    return el("section", {}, el("h2", {}, "Quantization error by layer"),
        el("p", {class: "note"}, `Decoded rows against ${trace.report.originals}, at each layer's last step: cells that are read from codes, all KV heads.`),
        el("div", {class: "wide", id: "quantization"}, table(["<layer", "K cells", "K RMS", "K RMS / original", "K largest", "V cells", "V RMS", "V RMS / original", "V largest"], rows)));
}

function aboutFile() {
    const info = Object.entries(trace.info ?? {});
    return el("section", {}, el("h2", {}, "About the trace"),
        el("div", {class: "wide"}, el("table", {}, el("tbody", {}, info.map(([name, text]) => el("tr", {}, el("td", {class: "text soft"}, name), el("td", {class: "text mono"}, text)))))),
        el("p", {class: "note"}, "Keys: 1 to 4 choose a view; in a record's view, arrows go to the steps and layers beside it."));
}
