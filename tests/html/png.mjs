// Reads pictures in PNG, 8 bits a channel, as browsers write them.
import {inflateSync} from "node:zlib";

// Width, height, and how many pixels there are of each colour, by "rrggbb".
export function coloursOf(png) {
    const parts = [];
    let width = 0, height = 0, channels = 0;
    for (let at = 8; at < png.length;) {
        const length = png.readUInt32BE(at), kind = png.toString("latin1", at + 4, at + 8), data = png.subarray(at + 8, at + 8 + length);
        if (kind === "IHDR") {
            width = data.readUInt32BE(0);
            height = data.readUInt32BE(4);
            channels = {2: 3, 6: 4}[data[9]];
            if (data[8] !== 8 || !channels || data[12] !== 0) throw new Error(`no such PNG: ${data.toString("hex")}`);
        }
        if (kind === "IDAT") parts.push(data);
        at += length + 12;
    }
    const raw = inflateSync(Buffer.concat(parts)), stride = width * channels;
    let above = Buffer.alloc(stride);
    const colours = new Map();
    for (let y = 0; y < height; ++y) {
        const filter = raw[y * (stride + 1)], row = raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
        for (let x = 0; x < stride; ++x) {
            const left = x >= channels ? row[x - channels] : 0, up = above[x], corner = x >= channels ? above[x - channels] : 0;
            row[x] += [0, left, up, left + up >> 1, paeth(left, up, corner)][filter];
        }
        for (let x = 0; x < stride; x += channels) {
            const colour = (row[x] << 16 | row[x + 1] << 8 | row[x + 2]).toString(16).padStart(6, "0");
            colours.set(colour, (colours.get(colour) ?? 0) + 1);
        }
        above = row;
    }
    return {width, height, colours};
}

function paeth(left, up, corner) {
    const guess = left + up - corner, [a, b, c] = [left, up, corner].map((x) => Math.abs(guess - x));
    return a <= b && a <= c ? left : b <= c ? up : corner;
}
