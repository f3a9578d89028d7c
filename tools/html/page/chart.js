// Drawings: maps of coloured cells on canvas, bars and lines as SVG.

function mix(a, b, share) {
    const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const from = parse(a), to = parse(b);
    return `rgb(${from.map((x, i) => Math.round(x + (to[i] - x) * share)).join(",")})`;
}

// Colours of quantities from nothing to all. Darker (in the dark: brighter) is more.
function ramp(share) {
    return mix(colour("paper"), colour("chart"), 0.1 + 0.9 * Math.min(1, Math.max(0, share)));
}

// Signed values: red below, blue above.
function signed(share) {
    const size = Math.min(1, Math.abs(share));
    return mix(colour("paper"), colour(share < 0 ? "chart-2" : "chart"), size);
}

// A map of columns x rows cells on one canvas. cell(c, r): {colour, cross} or null; label(c, r): text; pick(c, r).
// Arrow keys move, Enter picks. Returns the figure.
function cellMap({columns, rows, cell, label, pick, title, width = 1180, maxCell = 40, rowHeight, rowLabel, columnLabel, id}) {
    const left = rowLabel ? 64 : 4, bottom = columnLabel ? 20 : 2;
    const cellWidth = Math.max(1, Math.min(maxCell, (width - left) / columns));
    const cellHeight = rowHeight ?? Math.max(4, Math.min(maxCell, 28, 420 / rows));
    const w = Math.ceil(left + cellWidth * columns + 2), h = Math.ceil(cellHeight * rows + bottom + 2);
    const canvas = el("canvas", {
        tabindex: pick ? "0" : null, role: pick ? "application" : "img", "aria-label": title, "data-map": id,
        "data-cell-width": cellWidth, "data-cell-height": cellHeight, "data-left": left
    });
    const live = el("div", {class: "live", "aria-live": "polite"});
    let at = null;
    const draw = () => {
        const scale = devicePixelRatio || 1;
        canvas.width = w * scale;
        canvas.height = h * scale;
        canvas.style.width = `${w}px`;
        const ink = canvas.getContext("2d");
        ink.scale(scale, scale);
        const gap = cellWidth >= 5 ? 1 : 0;
        for (let r = 0; r < rows; ++r) {
            for (let c = 0; c < columns; ++c) {
                const what = cell(c, r);
                if (!what) continue;
                const x = left + c * cellWidth, y = r * cellHeight;
                ink.fillStyle = what.colour;
                ink.fillRect(x, y, Math.max(0.6, cellWidth - gap), cellHeight - (cellHeight >= 5 ? 1 : 0));
                if (what.cross && cellWidth >= 9 && cellHeight >= 9) {
                    ink.strokeStyle = "#ffffff";
                    ink.lineWidth = 1.6;
                    ink.beginPath();
                    ink.moveTo(x + 3, y + 3); ink.lineTo(x + cellWidth - 4, y + cellHeight - 4);
                    ink.moveTo(x + cellWidth - 4, y + 3); ink.lineTo(x + 3, y + cellHeight - 4);
                    ink.stroke();
                }
            }
        }
        ink.fillStyle = colour("soft");
        ink.font = "12px system-ui, sans-serif";
        if (rowLabel) {
            const every = Math.ceil(13 / cellHeight);
            for (let r = 0; r < rows; r += every) ink.fillText(rowLabel(r), 2, (r + 0.5) * cellHeight + 4);
        }
        if (columnLabel) {
            const every = Math.ceil(44 / cellWidth);
            for (let c = 0; c < columns; c += every) ink.fillText(columnLabel(c), left + c * cellWidth, cellHeight * rows + 15);
        }
        if (at) {
            ink.strokeStyle = colour("mark");
            ink.lineWidth = 2.5;
            ink.strokeRect(left + at[0] * cellWidth - 1, at[1] * cellHeight - 1, cellWidth + 1, cellHeight + 1);
        }
    };
    const find = (event) => {
        const box = canvas.getBoundingClientRect(), shrink = w / box.width;
        const c = Math.floor(((event.clientX - box.left) * shrink - left) / cellWidth);
        const r = Math.floor((event.clientY - box.top) * shrink / cellHeight);
        return c >= 0 && c < columns && r >= 0 && r < rows && cell(c, r) ? [c, r] : null;
    };
    canvas.addEventListener("mousemove", (event) => {
        const place = find(event);
        canvas.style.cursor = place && pick ? "pointer" : "default";
        if (place) showTip(event, label(...place)); else hideTip();
    });
    canvas.addEventListener("mouseleave", hideTip);
    if (pick) {
        canvas.addEventListener("click", (event) => {
            const place = find(event);
            if (place) pick(...place);
        });
        canvas.addEventListener("keydown", (event) => {
            const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
            if (move) {
                const [c, r] = at ?? [0, 0];
                at = at ? [Math.max(0, Math.min(columns - 1, c + move[0])), Math.max(0, Math.min(rows - 1, r + move[1]))] : [0, 0];
                live.textContent = cell(...at) ? label(...at) : "nothing here";
                draw();
            } else if (event.key === "Enter" && at && cell(...at)) {
                pick(...at);
            } else {
                return;
            }
            event.preventDefault();
            event.stopPropagation();
        });
    }
    redraws.push(draw);
    draw();
    return el("figure", {}, title ? el("figcaption", {}, title) : null, el("div", {class: "wide"}, canvas), live);
}

// Canvases are drawn anew when the colours change.
let redraws = [];

// Bars or lines over a common x axis, as SVG. series: [{name, values, colour, kind: "bar" | "line" | "points", x}].
// log: logarithmic y axis. bands: [{from, to, colour}] behind. label(i): text of place i;
// xText(x): text of a place on the axis; lowX, highX: its range.
function chart({series, title, width = 1180, height = 200, log = false, bands = [], label, xLabel, yLabel, xTicks, xText, id, low, high, lowX, highX, points}) {
    const left = 66, right = 12, top = series.some((s) => s.labels) ? 22 : 8, bottom = 36;
    const all = series.flatMap((s) => Array.from(s.values)).filter((y) => Number.isFinite(y) && (!log || y > 0));
    let max = high ?? (all.length ? all.reduce((a, b) => Math.max(a, b), -Infinity) : 1);
    let min = low ?? (log ? all.reduce((a, b) => Math.min(a, b), Infinity) : Math.min(0, all.reduce((a, b) => Math.min(a, b), Infinity)));
    if (!Number.isFinite(min)) min = log ? 1e-3 : 0;
    if (log) { min = Math.max(min, max * 1e-12) * 0.8; max *= 1.25; }
    if (!(max > min)) max = min + (Math.abs(min) || 1);
    const xs = series.flatMap((s) => s.x ? Array.from(s.x) : [0, s.values.length]);
    let x0 = lowX ?? xs.reduce((a, b) => Math.min(a, b), Infinity), x1 = highX ?? xs.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!(x1 > x0)) x1 = x0 + 1;
    const toX = (x) => left + (width - left - right) * (x - x0) / (x1 - x0);
    const place = (y) => log ? Math.log(Math.max(y, min) / min) / Math.log(max / min) : (y - min) / (max - min);
    const toY = (y) => top + (height - top - bottom) * (1 - Math.min(1, Math.max(0, place(y))));
    const root = svg("svg", {viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": title, "data-chart": id});
    for (const band of bands) {
        root.append(svg("rect", {x: toX(band.from), y: top, width: Math.max(0.5, toX(band.to) - toX(band.from)), height: height - top - bottom, fill: band.colour, opacity: 0.22}));
    }
    const yTicks = log ? decades(min, max) : ticks(min, max, 4);
    for (const y of yTicks) {
        root.append(svg("line", {x1: left, x2: width - right, y1: toY(y), y2: toY(y), stroke: "var(--line)"}),
            svg("text", {x: left - 6, y: toY(y) + 4, "text-anchor": "end", class: "soft"}, number(y, 2)));
    }
    for (const x of xTicks ?? ticks(x0, x1, 10)) {
        root.append(svg("line", {x1: toX(x), x2: toX(x), y1: height - bottom, y2: height - bottom + 4, stroke: "var(--soft)"}),
            svg("text", {x: toX(x), y: height - bottom + 16, "text-anchor": "middle", class: "soft"}, xText ? xText(x) : x >= 1e6 ? number(x) : Number(x.toPrecision(12))));
    }
    if (xLabel) root.append(svg("text", {x: (left + width) / 2, y: height - 5, "text-anchor": "middle", class: "soft"}, xLabel));
    if (yLabel) root.append(svg("text", {x: 0, y: 0, transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "soft"}, yLabel));
    for (const s of series) {
        if (s.kind === "bar") {
            let path = "";
            for (let i = 0; i < s.values.length; ++i) {
                const y = s.values[i];
                if (!Number.isFinite(y) || (log && !(y > 0)) || y === 0) continue;
                const base = log ? height - bottom : toY(0);
                const a = toX(s.x ? s.x[i] : i), b = toX(s.x ? s.x[i + 1] ?? x1 : i + 1);
                path += `M${a.toFixed(2)} ${base.toFixed(2)}V${toY(y).toFixed(2)}H${Math.max(a + 0.7, b - (b - a > 4 ? 1 : 0)).toFixed(2)}V${base.toFixed(2)}Z`;
            }
            root.append(svg("path", {d: path, fill: s.colour}));
        } else {
            let path = "", drawing = false;
            for (let i = 0; i < s.values.length; ++i) {
                const y = s.values[i];
                const usable = Number.isFinite(y) && (!log || y > 0);
                const x = toX(s.x ? s.x[i] : i + 0.5);
                if (usable) path += `${drawing ? "L" : "M"}${x.toFixed(2)} ${toY(y).toFixed(2)}`;
                drawing = usable;
                if (usable && s.marks) root.append(svg("circle", {cx: x, cy: toY(y), r: 4, fill: s.colour}));
                if (usable && s.labels) root.append(svg("text", {x: x + 7, y: toY(y) - 6}, s.labels[i]));
            }
            if (s.kind !== "points") root.append(svg("path", {d: path, fill: "none", stroke: s.colour, "stroke-width": s.width ?? 1.8, "stroke-dasharray": s.dash}));
        }
    }
    if (label) {
        const n = points ?? series[0].values.length;
        root.addEventListener("mousemove", (event) => {
            const box = root.getBoundingClientRect();
            const share = ((event.clientX - box.left) * width / box.width - left) / (width - left - right);
            const i = Math.floor(share * n);
            if (i >= 0 && i < n) showTip(event, label(i)); else hideTip();
        });
        root.addEventListener("mouseleave", hideTip);
    }
    const named = series.filter((s) => s.name);
    return el("figure", {}, el("figcaption", {}, title), root,
        named.length > 1 ? el("div", {class: "legend"}, named.map((s) => el("span", {}, swatch(s.colour), s.name))) : null);
}

function decades(min, max) {
    const all = [];
    const first = Math.ceil(Math.log10(min)), last = Math.floor(Math.log10(max));
    const every = Math.max(1, Math.ceil((last - first) / 6));
    for (let p = first; p <= last; p += every) all.push(10 ** p);
    return all.length >= 2 ? all : [min, Math.sqrt(min * max), max];
}

function swatch(fillColour) {
    return el("span", {class: "swatch", style: `background:${fillColour}`});
}
