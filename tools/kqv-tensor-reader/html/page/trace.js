// A trace: its records (one layer in one step each), where one is among them, and their details.

const trace = {records: [], byPlace: new Map(), steps: [], layers: [], details: new Set()};

const placeKey = (layer, step) => `${layer}/${step}`;

report.title = "Trace of attention";
report.start = async () => {
    const {json} = await openPiece("index");
    Object.assign(trace, json, {records: json.report.records});
    for (const record of trace.records) trace.byPlace.set(placeKey(record.layer, record.step), record);
    const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
    trace.steps = sorted(trace.records.map((r) => r.step));
    trace.layers = sorted(trace.records.map((r) => r.layer));
    trace.details = new Set(json.details.map(([layer, step]) => placeKey(layer, step)));
};
report.subtitle = () => `${trace.report.file} (${bytesText(trace.file_bytes)}, ${trace.form} form)`;
report.badge = () => el("span", {class: `badge ${trace.report.pass ? "pass" : "fail"}`, id: "verdict"}, trace.report.pass ? "PASS" : "FAIL");
report.actions = () => el("button", {
    type: "button", id: "save", click: () => save("trace-report.json", JSON.stringify(trace.report, null, 2))
}, "save as JSON");

// The record that the address names, else the last.
function chosen(place) {
    const [layer, step] = place.rest.map(Number);
    return trace.byPlace.get(placeKey(layer, step)) ?? trace.records[trace.records.length - 1];
}

function isFailed(record) {
    return record.checked && !record.pass;
}

// Records out of tolerance, the worst first. null (NaN) is the worst of all.
function failures() {
    const size = (record) => record.limit_share ?? Infinity;
    return trace.records.filter(isFailed).sort((a, b) => size(b) - size(a));
}

function placeText(record) {
    return `layer ${record.layer}, step ${record.step}`;
}

function describe(record) {
    const lines = [`${placeText(record)} (${record.cache} cache)`];
    if (record.checked) {
        lines.push(`error: ${number(record.limit_share)} of the limit, largest ${number(record.max_error)}`,
            `${record.n_tokens} queries, ${record.n_kv} cells: ${record.n_hot} exact, ${record.n_cold} cold`);
        for (const side of ["k", "v"]) {
            const q = record.quantization?.[side];
            if (q) lines.push(`quantization error of ${side.toUpperCase()}: ${percent(q.relative)} RMS over ${q.n_cells} cells`);
        }
    } else {
        lines.push("recorded without sources");
    }
    return lines.join("\n");
}

// Layer, step and the way to neighbours, for the views of one record.
report.controls = (place) => {
    if (place.view === "map") return null;
    const record = chosen(place);
    const select = (label, values, value, onChange) => el("label", {class: "soft"}, `${label} `,
        el("select", {"data-select": label, change: (event) => onChange(Number(event.target.value))},
            values.map((v) => el("option", {value: v, selected: v === value}, v))));
    const to = (layer, step) => go(place.view, layer, step, ...place.rest.slice(2));
    return [
        el("span", {class: `badge ${isFailed(record) ? "fail" : "pass"}`}, record.checked ? isFailed(record) ? "FAIL" : "ok" : "not checked"),
        select("layer", trace.layers, record.layer, (layer) => to(layer, record.step)),
        select("step", trace.steps, record.step, (step) => to(record.layer, step))
    ];
};

// Left and right: steps; up and down: layers; 1, 2, ...: views.
report.keys = (event, place) => {
    const digit = Number(event.key);
    if (digit >= 1 && digit <= report.views.length) {
        go(report.views[digit - 1].name, ...(digit === 1 ? [] : place.rest));
        return true;
    }
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!move || place.view === "map") return false;
    const record = chosen(place);
    let l = trace.layers.indexOf(record.layer), s = trace.steps.indexOf(record.step);
    for (;;) {
        l += move[0];
        s += move[1];
        if (trace.layers[l] === undefined || trace.steps[s] === undefined) return true;
        if (trace.byPlace.has(placeKey(trace.layers[l], trace.steps[s]))) break;
    }
    go(place.view, trace.layers[l], trace.steps[s], ...place.rest.slice(2));
    return true;
};

// A view of one record: its details, or what to do without.
function recordView(name, title, draw) {
    report.views.push({
        name, title, keepsPlace: true,
        draw: async (place) => {
            const record = chosen(place);
            const detail = await openPiece(`record-${record.layer}-${record.step}`);
            const layout = detail && name !== "layout" && isFailed(record) && suspect(detail.json)
                ? [" ", el("a", {href: `#layout/${record.layer}/${record.step}`}, "A misread layout would explain it.")] : null;
            const content = el("div", {}, el("h2", {id: "place"}, `${placeText(record)}`),
                isFailed(record) ? el("div", {class: "alarm"}, el("strong", {}, "Out of tolerance. "), record.problem, layout) : null);
            content.append(detail ? draw(record, detail, place) : withoutDetail(record, place));
            return content;
        }
    });
}

function withoutDetail(record, place) {
    if (!record.checked) return el("p", {}, "This record was written without its sources (--no-trace-sources): there is nothing to show.");
    const near = trace.records.filter((r) => r.layer === record.layer && trace.details.has(placeKey(r.layer, r.step)))
        .sort((a, b) => Math.abs(a.step - record.step) - Math.abs(b.step - record.step)).slice(0, 6);
    return el("div", {id: "no-detail"},
        el("p", {}, `This page has details of ${trace.details.size} of ${trace.records.length} records: as many as fit into ${bytesText(trace.max_bytes)} (--html-size). This one is not among them.`),
        el("p", {}, "A page of this record alone: ", el("code", {}, `kqv-tensor-reader -i FILE --layer ${record.layer} --step ${record.step} --html report.html`)),
        near.length ? el("p", {}, "Near it, with details: ", near.map((r) => [el("a", {href: `#${place.view}/${r.layer}/${r.step}`}, placeText(r)), " "])) : null);
}
