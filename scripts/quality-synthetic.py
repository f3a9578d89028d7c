#!/usr/bin/python3
"""Attention over synthetic K and V with the structure that published models show, cold formats side by side.

No model and no compiled code: NumPy. Prints a Markdown table of the relative RMS error of attention's output and
the KL divergence of its weights, both against exact rows; means over heads and queries. The quantizers are those of
docs/cold-formats.md and of llama.cpp (blocks of 32 values along the row, rotated first), written again here.

Structure (rows of 128 channels, 2048 tokens, the last 64 exact):
  K   gaussian, plus fixed outlier channels 10 to 30 times larger, with a mean of their own (KVQuant, KIVI, Qwen2's
      biases); pairs of channels turn with RoPE, outliers mostly where it hardly turns
  V   gaussian with token sizes that vary (log-normal, sigma 0.3), a mean per channel of the given size, and 2 % of
      tokens that are ten times smaller and draw much attention, as delimiters do
"""
import argparse

import numpy as np

DIM, TOKENS, PAGE, EXACT = 128, 2048, 64, 64


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


ROTATION = hadamard(DIM)
KEY_FACTORS = {2: (1, 0.97, 0.94), 3: (1, 0.97, 0.94), 4: (1,), 5: (1,), 6: (1,), 8: (1,)}
VALUE_FACTORS = {2: (1, 0.92, 0.84, 0.76, 0.68, 0.6), 3: (1, 0.95, 0.9, 0.85, 0.8, 0.74),
                 4: (1, 0.97, 0.94, 0.91, 0.88, 0.84), 5: (1, 0.985, 0.97, 0.95, 0.93, 0.9), 6: (1, 0.985, 0.97), 8: (1,)}


def coarse(scale):
    """Rounded up to 4 bits behind the leading one."""
    bits = scale.view(np.uint16).astype(int)
    return np.where(bits >= 0x400, (bits + 63) & ~63, bits).astype(np.uint16).view(np.float16)


def search(x, bits, symmetric, factors):
    """Along the last axis: codes in the candidate range with the smallest squared error."""
    top = 2**bits - 1
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    best, best_error = None, None
    for factor in factors[bits]:
        reach = (high - low) / 2 * factor
        scale = np.float16(reach * 2 / top)
        scale = np.maximum((coarse(scale) if symmetric else scale).astype(float), 1e-12)
        zero = -scale * top / 2 if symmetric else np.float16((high + low) / 2 - reach).astype(float)
        y = np.clip(np.rint((x - zero) / scale), 0, top) * scale + zero
        error = ((y - x) ** 2).sum(-1, keepdims=True)
        best = y if best is None else np.where(error < best_error, y, best)
        best_error = error if best_error is None else np.minimum(error, best_error)
    return best


def per_channel(x, bits, factors=KEY_FACTORS):
    """Our keys."""
    pages = x.reshape(-1, PAGE, DIM).swapaxes(1, 2)
    return search(pages, bits, False, factors).swapaxes(1, 2).reshape(x.shape)


def about_means(x, bits):
    """Our values."""
    pages = (x @ ROTATION).reshape(-1, PAGE, DIM)
    means = pages.mean(1, keepdims=True)
    residuals = search(pages - np.float16(means).astype(float), bits, True, VALUE_FACTORS)
    offsets = np.float16(means - residuals.mean(1, keepdims=True)).astype(float)
    return (residuals + offsets).reshape(x.shape) @ ROTATION


def per_token(x, bits):
    return search(x @ ROTATION, bits, False, VALUE_FACTORS) @ ROTATION


def values_per_channel(x, bits):
    return per_channel(x @ ROTATION, bits, VALUE_FACTORS) @ ROTATION


def host(x, bits):
    """llama.cpp's q8_0, q5_0, q4_0 after rotation: one scale for 32 values, from the largest."""
    groups = (x @ ROTATION).reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)
    half = 2 ** (bits - 1)
    if bits == 8:
        scale = np.float16(np.abs(largest) / 127).astype(float)
        codes = np.rint(groups / scale)
    else:
        scale = np.float16(largest / -half).astype(float)
        codes = np.clip(np.rint(groups / scale), -half, half - 1)
    return (codes * scale).reshape(x.shape) @ ROTATION


def make_head(rng, outlier, mean):
    k = rng.normal(size=(TOKENS, DIM))
    slow = rng.permutation(np.arange(40, 64))[:3]
    for i, pair in enumerate([*slow, rng.integers(20, 40)]):
        size = outlier * (1 if i < 3 else 0.3)
        k[:, pair] += size * rng.choice([-1, 1])
        k[:, pair] += 0.05 * size * rng.normal(size=TOKENS)
    angle = np.arange(TOKENS)[:, None] * 1e6 ** (-np.arange(64) / 64)
    a, b = k[:, :64].copy(), k[:, 64:].copy()
    k[:, :64], k[:, 64:] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    v = rng.normal(size=(TOKENS, DIM)) * rng.lognormal(0, 0.3, size=(TOKENS, 1)) + mean * rng.normal(size=DIM)
    drains = rng.random(TOKENS) < 0.02
    v[drains] *= 0.1
    q = 1.5 * rng.normal(size=(64, DIM))
    return np.float16(q).astype(float), np.float16(k).astype(float), np.float16(v).astype(float), drains


def attention(q, k, v, drains):
    scores = q @ k.T / np.sqrt(DIM) + 3.0 * drains
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights, weights @ v


def cold(x, quantizer):
    y = quantizer(x)
    y[-EXACT:] = x[-EXACT:]
    y[:4] = x[:4]
    return y


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    def exact(x):
        return x.copy()

    schemes = [(f"llama.cpp q{b}_0, rotated", b + 0.5, lambda x, b=b: host(x, b), lambda x, b=b: host(x, b))
               for b in (8, 5, 4)]
    schemes += [("K and V q4", 4.4375, lambda x: per_channel(x, 4), lambda x: about_means(x, 4)),
                ("K q4 alone", 4.5, lambda x: per_channel(x, 4), exact)]
    for bits in (4, 3, 2):
        schemes += [(f"V q{bits} about means alone", bits + 0.375, exact, lambda x, b=bits: about_means(x, b)),
                    (f"V {bits} bits per token alone", bits + 0.25, exact, lambda x, b=bits: per_token(x, b)),
                    (f"V {bits} bits per channel alone", bits + 0.5, exact, lambda x, b=bits: values_per_channel(x, b))]
    print("| format | bits | " + " | ".join(f"K outliers {o}, V mean {m}: KLD of weights / output error"
                                            for o, m in ((0, 0), (10, 0.3), (30, 1.0))) + " |")
    print("| --- " * 5 + "|")
    for name, bits, fk, fv in schemes:
        row = []
        for outlier, mean in ((0, 0), (10, 0.3), (30, 1.0)):
            rng = np.random.default_rng(args.seed)
            klds, errors = [], []
            for _ in range(args.heads):
                q, k, v, drains = make_head(rng, outlier, mean)
                p, out = attention(q, k, v, drains)
                p2, out2 = attention(q, cold(k, fk), cold(v, fv), drains)
                klds.append((p * np.log(p / p2)).sum(-1).mean())
                errors.append(np.sqrt(((out2 - out) ** 2).sum() / (out**2).sum()))
            row.append(f"{max(0.0, np.mean(klds)):.1e} / {np.mean(errors):.4f}")
        print(f"| {name} | {bits:g} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
