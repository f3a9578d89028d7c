// Numbers as people read them. JSON has no NaN: it comes as null.

function number(x, digits = 3) {
    if (x === null || x === undefined || Number.isNaN(x)) return "no number";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "-∞";
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1e6 || size < 1e-3) return x.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
    return String(Number(x.toPrecision(digits)));
}

function percent(x, digits = 3) {
    return Number.isFinite(x) ? `${number(100 * x, digits)} %` : number(x);
}

function bytesText(x) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; x >= 1024 && unit < 4; ++unit) x /= 1024;
    return `${unit === 0 ? x : x.toFixed(1)} ${units[unit]}`;
}

function counted(n, what) {
    return `${n} ${what}${n === 1 ? "" : "s"}`;
}

// Round places for an axis from low to high.
function ticks(low, high, wanted = 5) {
    if (!(high > low)) return [low];
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const all = [];
    for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) all.push(Math.abs(x) < step * 1e-9 ? 0 : x);
    return all;
}
