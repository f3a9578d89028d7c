#!/usr/bin/env python3
"""Recomputes one recorded attention op of a trace with NumPy.

Needs docs/trace-format.md, docs/cold-formats.md and docs/data-layout.md to be understood, and nothing of this
project's code to run:

    recompute_step.py TRACE.gguf [--layer L] [--step S] [--save OUT.npy]

Prints the largest difference between the recorded kqv_out and the recomputed one. Exit status 0 if it is at most
--tol times the largest |V| that is visible, else 1.
"""

import argparse
import struct
import sys

import numpy as np

# --- GGUF ---------------------------------------------------------------------------------------------------------

# GGUF value types: number -> struct format. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# ggml tensor types that are plain numbers.
PLAIN = {0: np.float32, 1: np.float16, 24: np.int8, 26: np.int32, 27: np.int64}
# ggml block types of a standard cache: (bytes of a block of 32 values, has a minimum, has a fifth bit).
BLOCKS = {2: (18, False, False), 3: (20, True, False), 6: (22, False, True), 7: (24, True, True)}
Q8_0 = 8
BF16 = 30


class Gguf:
    """Keys and tensors of a GGUF file; tensors are read when they are asked for."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, n_tensors, n_keys = struct.unpack("<4sIQQ", self.file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3")
        self.keys = {}
        for _ in range(n_keys):
            name = self._string()
            self.keys[name] = self._value(self._number("I"))
        self.infos = {}
        for _ in range(n_tensors):
            name = self._string()
            ne = [self._number("Q") for _ in range(self._number("I"))]
            self.infos[name] = (self._number("I"), ne, self._number("Q"))
        alignment = self.keys.get("general.alignment", 32)
        self.data = -(-self.file.tell() // alignment) * alignment

    def _number(self, kind):
        return struct.unpack("<" + kind, self.file.read(struct.calcsize(kind)))[0]

    def _string(self):
        return self.file.read(self._number("Q")).decode("utf-8", "replace")

    def _value(self, kind):
        if kind == 8:
            return self._string()
        if kind == 9:
            kind, count = self._number("I"), self._number("Q")
            return [self._value(kind) for _ in range(count)]
        return self._number(SCALARS[kind])

    def __contains__(self, name):
        return name in self.infos

    def tensor(self, name, n_dims=1):
        """The tensor as numbers, NumPy shape (slowest dimension first); GGUF leaves out trailing ones of ne."""
        kind, ne, offset = self.infos[name]
        ne = ne + [1] * (n_dims - len(ne))
        shape, count = ne[::-1], int(np.prod(ne))
        if kind in PLAIN:
            dtype = np.dtype(PLAIN[kind])
            return np.frombuffer(self._bytes(offset, count * dtype.itemsize), dtype).reshape(shape)
        if kind == BF16:
            bits = np.frombuffer(self._bytes(offset, count * 2), np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)
        if kind == Q8_0:
            blocks = np.frombuffer(self._bytes(offset, count // 32 * 34), np.uint8).reshape(-1, 34)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
        if kind in BLOCKS:
            return self._blocks(kind, count, offset).reshape(shape)
        raise ValueError(f"tensor {name} has ggml type {kind}, which this example does not read")

    def _blocks(self, kind, count, offset):
        size, has_min, has_fifth = BLOCKS[kind]
        blocks = np.frombuffer(self._bytes(offset, count // 32 * size), np.uint8).reshape(-1, size)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32) if has_min else 0
        nibbles = blocks[:, -16:]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.int32)
        if has_fifth:
            bits = np.unpackbits(np.ascontiguousarray(blocks[:, -20:-16]), axis=1, bitorder="little")
            codes += bits.astype(np.int32) << 4
        centre = 0 if has_min else (16 if has_fifth else 8)
        return scale * (codes - centre) + minimum

    def _bytes(self, offset, count):
        self.file.seek(self.data + offset)
        return self.file.read(count)


# --- cold pages ---------------------------------------------------------------------------------------------------

PAGE = 64  # cells


def round_up(n, multiple):
    return -(-n // multiple) * multiple


def plane_places(width, is_key, dim):
    """Byte and shift of every code's bits in a plane of that width: two arrays [64 tokens][dim channels]."""
    t, c = np.meshgrid(np.arange(PAGE), np.arange(dim), indexing="ij")
    if is_key:  # groups of four channels
        g, i = c // 4, c % 4
        if width == 8:
            return 256 * g + 4 * t + i, 0 * t
        if width == 4:
            return 128 * g + 64 * (t // 32) + 4 * (t % 16) + i, 4 * (t % 32 // 16)
        if width == 2:
            return 64 * g + 4 * (t % 16) + i, 2 * (t // 16)
        bit = 4 * (t % 16) + i
        return 32 * g + 8 * (t // 16) + bit // 8, bit % 8
    g, i = t // 4, t % 4  # groups of four tokens
    if width == 8:
        return 4 * dim * g + 4 * c + i, 0 * t
    if width == 4:
        return 4 * dim * (g // 2) + 4 * c + i, 4 * (g % 2)
    if width == 2:
        return 4 * dim * (g // 4) + 4 * c + i, 2 * (g % 4)
    bit = 4 * (c % 16) + i
    return 8 * (dim // 16) * g + 8 * (c // 16) + bit // 8, bit % 8


def hadamard(size):
    """The normalised matrix: (-1)^popcount(i & j) / sqrt(size)."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def decode_uniform(block, bits, is_key, n_channels, byte_scales, alignment):
    """Codes of one width: the values as stored, float64 [64][n_channels], and the bytes of the block they take."""
    n_offsets = round_up(n_channels, 16)
    n_scales = n_offsets if is_key else PAGE
    dim = round_up(n_channels, 4 if is_key else 16)
    at = n_scales if byte_scales else 2 * n_scales
    if byte_scales:  # the upper 8 of a float16's 15 bits behind the sign
        scale = (block[:n_scales].astype(np.uint16) << 7).view(np.float16)
    else:
        scale = block[:at].view(np.float16)
    scale = scale.astype(np.float64)
    offset = block[at : at + 2 * n_offsets].copy().view(np.float16).astype(np.float64)
    code = np.zeros((PAGE, dim), np.int64)
    at, low_bits = round_up(at + 2 * n_offsets, alignment), 0
    for width in (8, 4, 2, 1):
        if bits & width:
            byte, shift = plane_places(width, is_key, dim)
            code += ((block[at + byte].astype(np.int64) >> shift) & (2**width - 1)) << low_bits
            at += round_up(PAGE * dim * width // 8, alignment)
            low_bits += width
    if is_key:  # a scale and zero point per channel
        values = code[:, :n_channels] * scale[:n_channels] + offset[:n_channels]
    else:  # a scale per token and a mean per channel; codes are symmetric about the mean
        values = ((code - (2**bits - 1) / 2) * scale[:, None] + offset)[:, :n_channels]
    return values, at


def decode_tiers(block, head_dim):
    """Keys in 3 or 2 bits: every slot of 16 channels has a width of its own."""
    n_quads, n_slots = head_dim // 4, head_dim // 16
    order, widths = block[:n_quads].astype(np.int64), block[n_quads : n_quads + n_slots]
    channels = (4 * order[:, None] + np.arange(4)).ravel()  # the channel at each place
    rows = np.zeros((PAGE, head_dim))
    at, first = round_up(n_quads + n_slots, 16), 0
    for width in (6, 4, 3, 2, 0):
        n = 16 * int(np.count_nonzero(widths == width))
        if n == 0:
            continue
        if width:
            values, used = decode_uniform(block[at:], width, True, n, True, 16)
        else:
            values, used = block[at : at + 2 * n].copy().view(np.float16).astype(np.float64), 2 * n
        rows[:, channels[first : first + n]] = values
        at, first = at + used, first + n
    return rows


def decode_block(block, bits, is_key, head_dim, rotation_block):
    """One KV head's page: uint8 [block_bytes] to float64 [64][head_dim]."""
    if is_key and bits <= 3 and head_dim % 16 == 0:
        return decode_tiers(block, head_dim)
    rows, _ = decode_uniform(block, bits, is_key, head_dim, bits <= 3, 64)
    if not is_key and rotation_block > 1:  # along head_dim
        rows = (rows.reshape(PAGE, -1, rotation_block) @ hadamard(rotation_block)).reshape(PAGE, head_dim)
    return rows


# --- a record -----------------------------------------------------------------------------------------------------


class Record:
    """One layer in one step, with dense K and V."""

    def __init__(self, gguf, layer, step):
        self.gguf, self.layer, self.step = gguf, layer, step
        self.compact = gguf.keys["mixed_kv.trace.form"] == "compact"
        meta = self.meta = gguf.tensor(self.name("meta"))
        if meta[0] != 2:
            raise ValueError(f"trace schema {meta[0]} is not known here")
        self.mixed, flags = meta[3] == 1, int(meta[5])
        if flags & 4:
            raise ValueError("recorded without sources")
        self.n_tokens, self.n_head, self.n_head_kv, self.n_kv, self.n_stream, dim_k, dim_v = map(int, meta[6:13])
        self.kq_scale, self.max_bias, self.softcap = map(float, gguf.tensor(self.name("scalars")))
        self.q = gguf.tensor(self.name("q"), 4).astype(np.float64)
        self.k = self.dense("k", dim_k, int(meta[24]), int(meta[27]))
        self.v = self.k[..., :dim_v] if flags & 1 else self.dense("v", dim_v, int(meta[32]), int(meta[35]))
        self.mask = self.shared("mask", 4)
        self.sinks = self.shared("sinks", 5)
        self.kqv_out = gguf.tensor(self.name("kqv_out"), 4)

    def name(self, kind):
        return f"{kind}-{self.layer}_step_{self.step}"

    def shared(self, kind, view):
        """A tensor that another record may hold (compact form)."""
        layer, step = map(int, self.meta[40 + 32 * view + 26 : 40 + 32 * view + 28])
        return None if layer < 0 else self.gguf.tensor(f"{kind}-{layer}_step_{step}", 4).astype(np.float64)

    def versions(self, kind):
        """Compact form: all versions of one layer's rows or pages up to this step, by id."""
        prefix, parts = f"{kind}-{self.layer}_step_", []
        for name in self.gguf.infos:  # in file order
            if name.startswith(prefix) and int(name[len(prefix) :]) <= self.step:
                parts.append(self.gguf.tensor(name, 3))
        return np.concatenate(parts) if parts else None

    def exact_rows(self, kind):
        """Cells and their rows [n_head_kv][head_dim]."""
        if not self.compact:
            return self.gguf.tensor(self.name(kind + "_rows"), 2)[:, 0], self.gguf.tensor(self.name(kind), 3)
        runs = self.gguf.tensor(self.name(kind + "_ids"), 2)
        cells = [np.arange(first, first + count) for first, count, _ in runs]
        ids = [np.arange(first, first + count) for _, count, first in runs]
        if not cells:
            return [], []
        return np.concatenate(cells), self.versions(kind)[np.concatenate(ids)]

    def cold_pages(self, kind):
        """(first cell, held, coding, blocks uint8 [n_head_kv][block_bytes]) of every page."""
        if not self.mixed:
            return
        if self.compact:
            pages = self.gguf.tensor(self.name(kind + "_page_ids"), 2)
            codes = self.versions(kind + "_quant")
        else:
            pages = self.gguf.tensor(self.name(kind + "_pages"), 2)
            codes = self.gguf.tensor(self.name(kind + "_quant"), 3)
        for index, page in enumerate(pages):
            yield (*map(int, page[:3]), codes[page[3] if self.compact else index].view(np.uint8))

    def dense(self, kind, head_dim, format_index, rotation_block):
        """K or V as float64 [n_stream * n_kv][n_head_kv][head_dim]."""
        dense = np.zeros((self.n_stream * self.n_kv, self.n_head_kv, head_dim))
        for first, held_bits, coding, blocks in self.cold_pages(kind):
            formats = self.gguf.keys["mixed_kv.trace.strings"][format_index].split()  # "q4", or "q8 q4 q3"
            bits = int(formats[coding // 64][1:])
            held = np.array([t for t in range(PAGE) if held_bits >> t & 1], int)
            for head, block in enumerate(blocks):
                rows = decode_block(np.ascontiguousarray(block), bits, kind == "k", head_dim, rotation_block)
                dense[first + held, head] = rows[(held - coding % 64) % PAGE]
        cells, rows = self.exact_rows(kind)
        if len(cells):
            dense[cells] = rows
        return dense

    def slope(self, head):
        """ALiBi's."""
        if self.max_bias == 0:
            return 1.0
        n = 2 ** int(np.floor(np.log2(self.n_head)))
        if head < n:
            return 2.0 ** (-self.max_bias / n * (head + 1))
        return 2.0 ** (-self.max_bias / 2 / n * (2 * (head - n) + 1))

    def recompute(self):
        """kqv_out as float64 [n_stream][n_tokens][n_head][head_dim_v], and the largest |V| that is visible."""
        out, largest = np.zeros(self.kqv_out.shape), 0.0
        for s in range(self.n_stream):
            cells = slice(s * self.n_kv, (s + 1) * self.n_kv)
            for h in range(self.n_head):
                g = h // (self.n_head // self.n_head_kv)
                k, v = self.k[cells, g], self.v[cells, g]
                x = self.kq_scale * (self.q[s, :, h] @ k.T)
                if self.softcap != 0:
                    x = self.softcap * np.tanh(x / self.softcap)
                if self.mask is not None:
                    mask = self.mask[s % len(self.mask), h % self.mask.shape[1], : self.n_tokens]
                    x = np.where(np.isneginf(mask), -np.inf, x + self.slope(h) * mask)
                top = x.max(axis=1, keepdims=True)
                if self.sinks is not None:
                    top = np.maximum(top, self.sinks.ravel()[h])
                top = np.where(np.isneginf(top), 0.0, top)  # a query that sees nothing gets 0
                p = np.exp(x - top)
                total = p.sum(axis=1, keepdims=True)
                if self.sinks is not None:
                    total += np.exp(self.sinks.ravel()[h] - top)
                out[s, :, h] = (p @ v) / np.where(total == 0, 1.0, total)
                seen = ~np.isneginf(x).all(axis=0)
                largest = max(largest, np.abs(v[seen]).max(initial=0.0))
        return out, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace")
    parser.add_argument("--layer", type=int, help="default: that of the file's first record")
    parser.add_argument("--step", type=int, help="default: that of the file's last record")
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--save", metavar="OUT.npy", help="write the recomputed output")
    args = parser.parse_args()

    gguf = Gguf(args.trace)
    records = [tuple(map(int, n[len("meta-") :].split("_step_"))) for n in gguf.infos if n.startswith("meta-")]
    layer = records[0][0] if args.layer is None else args.layer
    step = records[-1][1] if args.step is None else args.step
    record = Record(gguf, layer, step)
    out, largest = record.recompute()
    error = np.abs(out - record.kqv_out).max()
    if args.save:
        np.save(args.save, out)
    print(
        f"layer {layer}, step {step}: {record.n_tokens} tokens, {record.n_head} heads, {record.n_kv} cells; "
        f"largest error {error:.3e}, allowed {args.tol * largest:.3e}"
    )
    return 0 if error <= args.tol * largest else 1


if __name__ == "__main__":
    sys.exit(main())
