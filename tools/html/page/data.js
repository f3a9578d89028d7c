// The packed pieces of the page (tools/html/bundle.h).

const ARRAYS = {u8: Uint8Array, i8: Int8Array, f32: Float32Array};

class Bundle {
    constructor(bytes) {
        const length = new DataView(bytes.buffer).getUint32(0, true);
        this.json = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
        this.data = bytes.slice(4 + length).buffer;  // begins at a multiple of four again
    }
    has(name) {
        return Object.hasOwn(this.json.arrays, name);
    }
    // {values, shape, at(i, j, k)}, slowest index first
    array(name) {
        const {type, at, shape} = this.json.arrays[name];
        const values = new ARRAYS[type](this.data, at, shape.reduce((a, b) => a * b, 1));
        return {values, shape, at: (...index) => values[index.reduce((sum, i, d) => sum * shape[d] + i, 0)]};
    }
}

const pieces = new Map();
for (const script of document.querySelectorAll("script[data-piece]")) pieces.set(script.dataset.piece, script);

async function openPiece(name) {
    const script = pieces.get(name);
    if (!script) return null;
    const packed = Uint8Array.from(atob(script.textContent.trim()), (c) => c.charCodeAt(0));
    if (script.dataset.packing === "stored") return new Bundle(packed);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Bundle(new Uint8Array(await new Response(stream).arrayBuffer()));
}

// Offers a file for saving.
function save(name, text) {
    const url = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    el("a", {href: url, download: name}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
}
