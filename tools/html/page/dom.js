// Elements. Whatever comes from data becomes text or a number, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value === undefined || value === null || value === false) continue;
        if (typeof value === "function") node.addEventListener(name, value);
        else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
        if (child === undefined || child === null || child === false) continue;
        node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
}

// el("p", {class: "note"}, "text", el("b", {}, "more")); functions among the attributes listen to that event.
function el(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
}
function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
}

// A table; a heading that begins with "<" is of a column of text. rows: arrays, or {cells, bad, pick}.
function table(headings, rows, caption) {
    const isText = headings.map((h) => h.startsWith("<"));
    const cells = (tag, row) => row.map((c, i) => el(tag, {class: isText[i] ? "text" : null}, c));
    const line = (row) => {
        if (Array.isArray(row)) return el("tr", {}, cells("td", row));
        const kind = [row.bad ? "bad" : "", row.pick ? "pick" : ""].join(" ").trim();
        const tr = el("tr", {class: kind || null, click: row.pick}, cells("td", row.cells));
        for (const [name, value] of Object.entries(row.data ?? {})) tr.dataset[name] = value;
        return tr;
    };
    return el("table", {}, caption ? el("caption", {class: "live"}, caption) : null,
        el("thead", {}, el("tr", {}, headings.map((h, i) =>
            el("th", {scope: "col", class: isText[i] ? "text" : null}, h.replace(/^</, ""))))),
        el("tbody", {}, rows.map(line)));
}

// Buttons of which one is pressed.
function choice(label, options, chosen, onChoose) {
    return el("div", {class: "row controls", role: "group", "aria-label": label}, el("span", {class: "soft"}, label),
        options.map(([value, text]) => el("button", {
            type: "button", "aria-pressed": value === chosen ? "true" : "false", "data-choice": value,
            click: () => onChoose(value)
        }, text)));
}

// raw: the number itself, where the text is rounded.
function card(value, name, id, raw) {
    return el("div", {class: "card"}, el("div", {class: "value", "data-figure": id, "data-raw": raw === undefined ? null : JSON.stringify(raw)}, value), el("div", {class: "name"}, name));
}

const tip = el("div", {class: "tip", role: "presentation"});
function showTip(event, text) {
    tip.textContent = text;
    tip.style.display = "block";
    const {width, height} = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - height - 8))}px`;
}
function hideTip() {
    tip.style.display = "none";
}

function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
