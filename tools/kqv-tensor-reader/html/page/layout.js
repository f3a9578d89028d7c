// One record: how its tensors lie in memory, and what is read by whoever takes a permuted view for contiguous.

const dimensionNames = {
    q: ["head_dim", "tokens", "heads", "streams"], k: ["head_dim", "cells", "KV heads", "streams"], v: ["head_dim", "cells", "KV heads", "streams"],
    mask: ["cells", "tokens", "heads", "streams"], sinks: ["heads", "1", "1", "1"], kqv_out: ["head_dim", "heads", "tokens", "streams"]
};
const headColours = ["#0b62c4", "#d9480f", "#1a7f37", "#8250df", "#9a6700", "#0e7490", "#b5179e", "#57606a"];

recordView("layout", "Layout", (record, detail, place) => {
    const d = detail.json, views = d.views.filter((v) => v.present);
    // Asked for, else under suspicion, else the first that could be misread.
    const suspected = suspect(d)?.what.match(/\b(q|k|v|kqv_out)\b/)?.[0];
    const source = views.find((v) => v.source === place.rest[2]) ?? views.find((v) => v.source === suspected) ??
        ["k", "v", "q"].map((name) => views.find((v) => v.source === name && !v.contiguous)).find(Boolean) ?? views[0];
    return el("div", {},
        verdictOfLayout(d), misreadingTable(detail),
        el("h2", {}, "A source, box by box"),
        choice("source", views.map((v) => [v.source, `${v.source}${v.contiguous ? "" : " (permuted)"}`]), source?.source, (s) => go("layout", record.layer, record.step, s)),
        source ? sourceOfLayout(source, d) : el("p", {}, "No views were recorded."));
});

// Relative distances: null where there is no number (NaN in the output).
const isNear = (x, limit) => x !== null && x < limit;

// The misreading that the recorded output is the result of, if what is right is not.
function suspect(d) {
    const [right, ...wrong] = d.misreadings ?? [];
    if (!right || isNear(right.against_recorded, 1e-3)) return null;
    const best = wrong.filter((m) => m.against_recorded !== null).sort((a, b) => a.against_recorded - b.against_recorded)[0];
    return best && isNear(best.against_recorded, 1e-2) && !isNear(right.against_recorded, 20 * best.against_recorded) ? best : null;
}

function misreadingText(what) {
    if (what === "nothing") return "everything read as it lies";
    if (what === "kqv_out") return "kqv_out written as [head_dim, tokens, heads]";
    return `${what} taken for contiguous`;
}

function verdictOfLayout(d) {
    const right = d.misreadings?.[0], found = suspect(d);
    if (!right) return el("p", {class: "note"}, "Too large to be recomputed here.");
    if (found) {
        return el("div", {class: "alarm", id: "layout-verdict"}, el("strong", {}, `The recorded output is what one gets with ${misreadingText(found.what)}. `),
            `It differs from that by ${percent(found.against_recorded, 2)}, from the right output by ${percent(right.against_recorded)}.`);
    }
    if (!isNear(right.against_recorded, 1e-3)) {
        return el("div", {class: "alarm", id: "layout-verdict"}, `The recorded output differs from the right one by ${percent(right.against_recorded)}, and no misreading of a layout explains it.`);
    }
    return el("div", {class: "fine", id: "layout-verdict"}, `The recorded output is right (${percent(right.against_recorded, 2)} off): the op read its sources as they lie.`);
}

function misreadingTable(detail) {
    const d = detail.json;
    if (!d.misreadings) return null;
    const kinds = d.misreadings, outputs = detail.array("misread_outputs"), recorded = detail.array("recorded_output"), found = suspect(d);
    const graph = el("div", {});
    const draw = (which, head) => {
        const values = (m) => Array.from({length: outputs.shape[2]}, (_, c) => outputs.at(m, head, c));
        const series = [{name: "right", values: values(0), colour: "var(--chart-3)", width: 2.6}];
        if (which > 0) series.push({name: misreadingText(kinds[which].what), values: values(which), colour: "var(--chart-2)"});
        series.push({name: "as recorded", values: Array.from({length: recorded.shape[1]}, (_, c) => recorded.at(head, c)), colour: "var(--ink)", dash: "2 3"});
        graph.replaceChildren(
            choice("show", kinds.map((m, i) => [i, misreadingText(m.what)]), which, (m) => draw(m, head)),
            outputs.shape[1] <= 64 ? choice("head", Array.from({length: outputs.shape[1]}, (_, h) => [h, h]), head, (h) => draw(which, h)) : null,
            el("p", {id: "misread-figure"}, which === 0 ? "Beside what is right: the recorded output." : `A reader with ${misreadingText(kinds[which].what)} gets an output that is ${percent(kinds[which].against_right)} off.`),
            chart({id: "misread-output", title: `Output of head ${head} for ${queryText({...d.misread_query, position: null}, d)}`, series, height: 190, xLabel: "channel", label: (c) => series.map((s) => `${s.name}: ${number(s.values[c])}`).join("\n")}));
    };
    draw(found ? kinds.indexOf(found) : kinds.length > 1 ? 1 : 0, 0);
    return el("section", {}, el("h2", {}, "What a reader gets who takes a permuted view for contiguous"),
        el("div", {class: "wide", id: "misreadings"}, table(["<reading", "off from what is right", "the record is off from it"],
            kinds.map((m) => ({bad: found ? m === found : false, data: {what: m.what}, cells: [misreadingText(m.what), m.what === "nothing" ? "–" : percent(m.against_right), percent(m.against_recorded)]})))),
        kinds.length === 1 ? el("p", {class: "note"}, "Nothing in this record can be misread that way: no view is permuted where it has more than one element.") : null,
        graph);
}

function sourceOfLayout(view, d) {
    return el("div", {"data-source": view.source}, viewChain(view), memoryStrip(view), indexFormula(view));
}

function tensorBox(title, name, rows, note) {
    return el("div", {class: "tensor"}, el("h4", {}, title), el("div", {class: "mono"}, name),
        rows ? el("table", {}, el("tbody", {}, rows.map((row) => el("tr", {}, row.map((c, i) => el("td", {class: i === 0 ? "text soft" : null}, c)))))) : null,
        note ? el("p", {class: "note"}, note) : null);
}

// Memory that is owned, the op's view of it, what the trace keeps.
function viewChain(view) {
    const names = dimensionNames[view.source];
    const dims = (ne, nb, labels) => [["", "ne", "nb (bytes)"], ...ne.map((n, i) => [`${i} ${labels ? labels[i] : ""}`, n, nb[i]])];
    const boxes = [];
    if (view.origin) boxes.push(tensorBox("memory", `${view.origin.name} (${view.origin.type})`, dims(view.origin.ne, view.origin.nb)), el("div", {class: "arrow"}, `+${view.offset} B →`));
    boxes.push(tensorBox(view.origin ? "what the op is given: a view" : "what the op is given", `${view.name || "(no name)"} (${view.type})`, dims(view.ne, view.nb, names),
        view.contiguous ? "contiguous: memory runs as ne says" : `permuted: memory runs ${view.order.filter((i) => view.ne[i] > 1).map((i) => names[i]).join(", then ")}`),
    el("div", {class: "arrow"}, "→"), tensorBox("what the trace keeps", view.source, null, "the values in memory's order, and this view of them"));
    return el("div", {}, el("h3", {}, "View chain"), el("div", {class: "chain", id: "chain"}, boxes));
}

function rowBytes(view) {
    return view.block_bytes * view.ne[0] / view.block_values;
}

// The element of the view at a byte from its start, from dimension `from` up, by strides; null between elements.
function elementAt(view, byte, from) {
    const dims = [0, 1, 2, 3].filter((d) => d >= from && view.ne[d] > 1).sort((a, b) => view.nb[b] - view.nb[a]);
    const at = [0, 0, 0, 0];
    for (const d of dims) {
        at[d] = Math.floor(byte / view.nb[d]);
        if (!(at[d] < view.ne[d])) return null;
        byte -= at[d] * view.nb[d];
    }
    return byte === 0 ? at : null;
}

// The first rows in memory: whose they are, and whose they would be.
function memoryStrip(view) {
    const names = dimensionNames[view.source], rows = rowBytes(view), n = Math.min(14, view.ne[1] * view.ne[2] * view.ne[3]);
    if (view.nb[0] * view.block_values !== rows / view.ne[0] * view.block_values && view.ne[0] > 1 && view.nb[0] !== view.block_bytes)
        return el("p", {class: "note"}, "Elements of one row do not lie side by side here, so there are no rows to draw.");
    const boxesOf = (find) => Array.from({length: n}, (_, r) => find(r));
    const right = boxesOf((r) => elementAt(view, r * rows, 1));
    const naive = boxesOf((r) => [0, r % view.ne[1], Math.floor(r / view.ne[1]) % view.ne[2], Math.floor(r / view.ne[1] / view.ne[2])]);
    const same = (a, b) => a && b && a.every((x, i) => x === b[i]);
    const singular = (name) => name.replace(/s$/, "");
    const box = (at, wrong) => el("div", {class: wrong ? "box wrong" : "box", style: at ? `border-bottom: 6px ${wrong ? "dashed" : "solid"} ${headColours[at[2] % headColours.length]}` : null},
        at ? [el("div", {}, `${singular(names[1])} ${at[1]}`), el("div", {}, `${singular(names[2])} ${at[2]}`), view.ne[3] > 1 ? el("div", {}, `stream ${at[3]}`) : null] : "outside");
    const strip = (title, boxes, wrong) => el("div", {class: "memory"}, el("div", {class: "head"}, title), boxes.map((at, i) => box(at, wrong(i))), el("div", {class: "head"}, "…"));
    const wrongs = naive.filter((at, i) => !same(at, right[i])).length;
    return el("section", {}, el("h3", {}, "Memory, one box per row of head_dim values"),
        el("div", {id: "memory", "data-wrong": wrongs},
            strip("what lies there", right, () => false), strip("taken for contiguous", naive, (i) => !same(naive[i], right[i]))),
        el("p", {class: "note"}, view.contiguous ? "Both are the same: this view may be read as it comes." : `Dashed: a reader who ignores nb takes this row for another one's. ${wrongs} of the first ${n}.`));
}

function indexFormula(view) {
    const names = dimensionNames[view.source], {ne, nb, offset} = view;
    const at = ne.map((n, d) => d === 1 || d === 2 ? Math.min(n - 1, 1) : 0), out = el("div", {});
    const size = view.block_bytes / view.block_values;
    const show = () => {
        const inView = at.reduce((sum, i, d) => sum + (d === 0 && view.block_values > 1 ? Math.floor(i / view.block_values) : i) * nb[d], 0);
        const flat = ((at[3] * ne[2] + at[2]) * ne[1] + at[1]) * ne[0] + at[0], naive = flat * size;
        const hit = view.block_values === 1 ? elementAt(view, naive, 0) : null;
        out.replaceChildren(
            el("p", {class: "mono", id: "right-byte"}, `right:      byte = ${offset} + ${at.map((i, d) => `${i}·${nb[d]}`).join(" + ")} = ${offset + inView}`),
            el("p", {class: "mono", id: "naive-byte"}, `contiguous: byte = ${offset} + (((${at[3]}·${ne[2]} + ${at[2]})·${ne[1]} + ${at[1]})·${ne[0]} + ${at[0]})·${size} = ${offset + naive}`),
            el("p", {}, inView === naive ? "Both are the same element." : hit
                ? ["At that place lies ", el("strong", {}, names.map((name, d) => ne[d] > 1 ? `${name} ${hit[d]}` : null).filter(Boolean).join(", ")), " instead."]
                : "At that place lies no element of this view."));
    };
    const inputs = ne.map((n, d) => el("label", {class: "soft"}, `${names[d]} `, el("input", {
        type: "number", min: 0, max: n - 1, value: at[d], "data-index": d, disabled: n < 2,
        input: (event) => {
            at[d] = Math.max(0, Math.min(n - 1, Math.floor(Number(event.target.value)) || 0));
            show();
        }
    })));
    show();
    return el("section", {}, el("h3", {}, "Where is an element?"),
        el("p", {class: "mono"}, "byte(i0, i1, i2, i3) = view_offs + i0·nb0 + i1·nb1 + i2·nb2 + i3·nb3"), el("div", {class: "row controls"}, inputs), out);
}
