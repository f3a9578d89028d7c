// One record: where each cell's row of K and V lies, page by page.

const kPagesAtOnce = 128;

const partColours = {hot: "hot", kept: "kept", overlay: "overlay"};
function partColour([kind, format]) {
    const name = partColours[kind] ?? (["q8", "q6", "q5", "q4", "q3", "q2"].includes(format) ? format : "block");
    return colour(name);
}
function partText([kind, format, cells, bytes]) {
    return `${cells} ${kind === "block" ? "cold" : kind} ${format}, ${bytesText(bytes)}`;
}

// Cells before a stream's first cold one, if it has any: kept exact for good.
function sinkCells(pages, parts, stream, nKv) {
    let exact = 0;
    for (const [first, n, list] of pages) {
        if (Math.floor(first / nKv) !== stream) continue;
        for (let i = 0; i < n; ++i) {
            const part = list[parts.values[first + i] - 1];
            if (part && part[0] === "block") return exact;
            if (part) ++exact;
        }
    }
    return 0;
}

recordView("pages", "Pages", (record, detail, place) => {
    const d = detail.json, stream = Math.min(d.n_stream - 1, Math.max(0, Number(place.rest[2]) || 0));
    const sum = (side) => d[side].pages.reduce((all, [, , parts]) => parts.reduce((a, [, , , bytes]) => a + bytes, all), 0);
    const cells = (side) => d[side].pages.reduce((all, [, , parts]) => parts.reduce((a, [, , n]) => a + n, all), 0);
    const bits = (side) => 8 * sum(side) / (cells(side) * d.n_head_kv * d[`head_dim_${side}`]);
    const sides = d.v_is_view_of_k ? ["k"] : ["k", "v"];
    return el("div", {},
        el("div", {class: "cards"},
            card(number(record.limit_share), "error, of the limit", "limit_share", record.limit_share), card(number(record.max_error), "largest error", "record_max_error", record.max_error),
            card(record.n_hot, "exact cells of K", "n_hot"), card(record.n_cold, "cold cells of K", "n_cold"),
            sides.map((side) => card(`${number(bits(side))} bits`, `per value of ${side.toUpperCase()} (${bytesText(sum(side))})`, `bits_${side}`))),
        d.cells_shown < d.n_kv * d.n_stream ? el("p", {class: "note"}, `The first ${d.cells_shown} of ${d.n_kv * d.n_stream} cells are shown.`) : null,
        d.n_stream > 1 ? choice("stream", Array.from({length: Math.min(64, d.n_stream)}, (_, s) => [s, s]), stream, (s) => go("pages", record.layer, record.step, s)) : null,
        el("div", {class: "columns broad"}, sides.map((side) => sideOfPages(detail, side, stream))),
        el("div", {class: "legend"}, [["hot", "hot: exact, behind the cold pages"], ["kept", "kept: exact page before cold ones (pinned, or written again)"], ["overlay", "overlay: exact row in a cold page"],
            ["q8", "cold, from q8"], ["q4", "q4"], ["q2", "to q2"], ["empty", "nothing stored"]].map(([name, text]) => el("span", {}, swatch(`var(--${name})`), text)),
        el("span", {}, "line under cells: exact before the first cold one (sinks). Pale: no query sees it.")),
        d.v_is_view_of_k ? el("p", {class: "note"}, "V is a view of K (MLA): the same cells.") : null,
        el("p", {}, el("a", {href: `#heads/${record.layer}/${record.step}`}, "What the heads look at"), " · ",
            el("a", {href: `#layout/${record.layer}/${record.step}`, id: "to-layout"}, "How the tensors lie in memory")));
});

function sideOfPages(detail, side, stream) {
    const d = detail.json, parts = detail.array(`${side}_parts`), visible = detail.array("visible");
    const pages = d[side].pages.filter(([first]) => Math.floor(first / d.n_kv) === stream);
    const sinks = sinkCells(d[side].pages, parts, stream, d.n_kv);
    // Share of the first query's weight, all heads.
    const q = d.queries.findIndex((query) => query.stream === stream), weights = detail.array("page_weights");
    const share = (page) => {
        let sum = 0;
        for (let h = 0; h < weights.shape[1]; ++h) sum += weights.at(q, h, page);
        return sum / weights.shape[1];
    };
    const values = d.n_head_kv * d[`head_dim_${side}`];
    const errors = detail.has(`${side}_page_errors`) ? detail.array(`${side}_page_errors`) : null;
    const errorText = (page) => Number.isNaN(errors.at(stream, page)) ? "–" : percent(errors.at(stream, page), 2);
    const line = ([first, n, list], index) => {
        const page = Math.floor((first - stream * d.n_kv) / 64);
        const bytes = list.reduce((a, p) => a + p[3], 0), stored = list.reduce((a, p) => a + p[2], 0);
        return {
            data: {page}, cells: [page, strip(first, n, list, sinks),
                list.length ? list.map((p) => el("div", {class: "tight"}, partText(p))) : el("span", {class: "soft"}, "empty"),
                stored ? number(8 * bytes / (stored * values)) : "–", ...(errors ? [errorText(page)] : []), q >= 0 ? weightBar(share(page)) : "–"]
        };
    };
    const strip = (first, n, list, sinkCount) => {
        const w = 2.5, canvas = el("canvas", {width: 64 * w, height: 16, role: "img", "aria-label": list.map(partText).join("; ") || "empty"});
        const draw = () => {
            const ink = canvas.getContext("2d");
            ink.clearRect(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < n; ++i) {
                const part = list[parts.values[first + i] - 1], cell = first - stream * d.n_kv + i;
                ink.globalAlpha = visible.values[first + i] ? 1 : 0.35;
                ink.fillStyle = part ? partColour(part) : colour("empty");
                ink.fillRect(i * w, 1, w - 0.7, 11);
                ink.globalAlpha = 1;
                if (part && part[0] !== "block" && cell < sinkCount) {
                    ink.fillStyle = colour("ink");
                    ink.fillRect(i * w, 13, w - 0.7, 2);
                }
            }
        };
        canvas.addEventListener("mousemove", (event) => {
            const i = Math.floor((event.clientX - canvas.getBoundingClientRect().left) / w);
            if (i < 0 || i >= n) return;
            const part = list[parts.values[first + i] - 1];
            showTip(event, `cell ${first - stream * d.n_kv + i}: ${part ? partText(part) : "nothing stored"}${visible.values[first + i] ? "" : "\nno query sees it"}`);
        });
        canvas.addEventListener("mouseleave", hideTip);
        redraws.push(draw);
        draw();
        return canvas;
    };
    const shown = el("div", {});
    const show = (from) => {
        shown.replaceChildren(...[
            pages.length > kPagesAtOnce ? el("div", {class: "row controls"},
                el("button", {type: "button", disabled: from === 0, click: () => show(Math.max(0, from - kPagesAtOnce))}, "earlier"),
                el("span", {class: "soft"}, `pages ${from} to ${Math.min(pages.length, from + kPagesAtOnce) - 1} of ${pages.length}`),
                el("button", {type: "button", disabled: from + kPagesAtOnce >= pages.length, click: () => show(from + kPagesAtOnce)}, "later")) : null,
            el("div", {class: "scroll"}, table(["page", "<64 cells", "<stored as", "bits", ...(errors ? ["error"] : []), "<weight"], pages.slice(from, from + kPagesAtOnce).map(line)))
        ].filter(Boolean));
    };
    show(0);
    const name = side.toUpperCase();
    return el("section", {"data-side": side}, el("h3", {}, `${name}: ${d[side].format ? `cold format ${d[side].format}${d[side].rotation > 1 ? `, rotated in groups of ${d[side].rotation}` : ""}` : "never cold"}, exact rows ${d[side].row_type}`), shown);
}

function weightBar(share) {
    return el("span", {class: "tight", title: percent(share)}, el("span", {
        style: `display:inline-block;height:10px;width:${Math.max(1, Math.min(28, 56 * share)).toFixed(1)}px;background:var(--chart);margin-right:6px`
    }), percent(share, 2));
}
