// K's and V's values by channel: outliers show as columns. Before and after decoding where originals are known.

function valueMaps(detail, kvHead) {
    const d = detail.json, sides = d.v_is_view_of_k ? ["k"] : ["k", "v"];
    return el("section", {}, el("h3", {}, `Values of KV head ${kvHead} by channel`),
        sides.map((side) => detail.has(`${side}_samples`) ? sideOfValues(detail, side, kvHead) : el("p", {class: "note"}, `${side.toUpperCase()}: nothing stored, or too wide to be kept.`)));
}

function sideOfValues(detail, side, kvHead) {
    const d = detail.json, name = side.toUpperCase(), {sampled_cells: cells, sample_scale: scale} = d[side];
    const channels = detail.array(`${side}_channels`), after = detail.array(`${side}_samples`), n = after.shape[2];
    const before = detail.has(`${side}_originals`) ? detail.array(`${side}_originals`) : null;
    const column = (i) => Array.from({length: n}, (_, c) => channels.at(kvHead, c, i));
    const [low, high, rms, error] = [0, 1, 2, 3].map(column);
    const series = [{name: "largest", values: high, colour: "var(--chart)"}, {name: "smallest", values: low, colour: "var(--chart-4)"}, {name: "RMS", values: rms, colour: "var(--chart-3)"}];
    if (before) series.push({name: "RMS of the quantization error", values: error, colour: "var(--chart-2)", width: 2.4});
    const map = (values, title, id, gain = 1) => cellMap({
        id, columns: n, rows: cells.length, maxCell: 16, rowHeight: 7, title,
        cell: (c, r) => {
            const x = values(r, c);
            return {colour: x === null ? colour("none") : signed(gain * x / 127)};
        },
        label: (c, r) => `cell ${cells[r]}, channel ${c}: ${values(r, c) === null ? "not known" : number(values(r, c) * scale)}`
    });
    const known = (array) => (r, c) => array.at(r, kvHead, c) === -128 ? null : array.at(r, kvHead, c);
    const difference = (r, c) => before.at(r, kvHead, c) === -128 || after.at(r, kvHead, c) === -128 ? null : after.at(r, kvHead, c) - before.at(r, kvHead, c);
    return el("div", {"data-values": side},
        chart({id: `${side}-channels`, title: `${name}: all stored cells, by channel`, height: 150, series, xLabel: "channel", label: (c) => `channel ${c}\n${number(low[c])} to ${number(high[c])}, RMS ${number(rms[c])}${before ? `\nRMS of the error ${number(error[c])}` : ""}`}),
        el("div", {class: "columns narrow"},
            map(known(after), `${name} after decoding: ${counted(cells.length, "cell")} (rows), blue above 0, red below, full colour ${number(127 * scale)}`, `${side}-after`),
            before ? map(known(before), `${name} before, as written`, `${side}-before`) : null,
            before ? map(difference, `${name}: after less before, colours 8 times as strong`, `${side}-difference`, 8) : null),
        before ? null : el("p", {class: "note"}, "What the rows were before encoding is not known here: record with --keep-originals, or give the trace of an F16 run with --against."));
}
