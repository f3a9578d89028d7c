#!/usr/bin/env python3
"""Estimates cycles of the AVX-512 and AMX kernels' inner loops from their machine code, for machines without them.

    scripts/estimate-kernels.py [--mcpu icelake-server] OBJECT...

For every innermost loop with at least four dot products or FMAs, or that multiplies tiles, rounds rows to bytes or
converts integer sums, it prints what one pass through it holds, and estimates of its cycles, none a measurement:

  ports   the larger of (512-bit arithmetic / 2, loads / 2, instructions / 6): on Ice Lake and Sapphire Rapids
          servers 512-bit arithmetic issues on ports 0 and 5, loads on two ports, six instructions a cycle;
          every load is assumed to hit L1
  mca     what llvm-mca says for 100 passes; it knows no tiles
  tiles   the larger of 16 per product of tiles, 8 per tile loaded and 16 per tile stored

Needs objdump and llvm-mca.
"""

import argparse
import re
import subprocess

BRANCH = re.compile(r"j[a-z]+\s+([0-9a-f]+)")
BACK = re.compile(r"j(?!mp)[a-z]+\s+([0-9a-f]+)")  # jmp: from an arm of an if that was laid out of line
WORK = re.compile(r"vpdpbusd|vfn?m(?:add|sub)|tdp")


def functions(path):
    """Name and [(address, instruction)] of every function of an object."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-M", "intel", "-C", path], check=True, capture_output=True, text=True
    ).stdout
    name, body = None, []
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            if name:
                yield name, body
            short = re.sub(r"mixed_kv::kernels::(?:avx512|amx)::|\(anonymous namespace\)::", "", head.group(1))
            name, body = re.sub(r"^void |\(.*", "", short), []
        elif code := re.match(r"\s+([0-9a-f]+):\s+(.*)$", line):
            body.append((int(code.group(1), 16), re.sub(r"\s*(<.*>|#.*)$", "", code.group(2))))
    if name:
        yield name, body


def inner_loops(body):
    """Bodies of the innermost loops that do the work."""
    index = {address: i for i, (address, _) in enumerate(body)}
    loops = []
    for i, (_, text) in enumerate(body):
        if (branch := BACK.match(text)) and (start := index.get(int(branch.group(1), 16), i + 1)) <= i:
            lines = [t for _, t in body[start : i + 1]]
            other = ("vpshufb zmm", "vpackssdw zmm", "vcvtdq2ps zmm", "vcvtne2ps2bf16 zmm", "tdp")
            rounds = any(t.startswith(other) for t in lines)
            if rounds or sum(bool(WORK.match(t)) for t in lines) >= 4:
                loops.append((start, i, lines))
    for start, end, lines in loops:
        if not any(s >= start and e <= end and (s, e) != (start, end) for s, e, _ in loops):
            yield lines


def is_register_move(text):
    return bool(re.match(r"vmov\w+\s+zmm\d+,\s*zmm\d+$", text))


def is_arithmetic(text):
    """512-bit work for ports 0 and 5; loads and broadcasts from memory are not."""
    if not re.search(r"zmm|\bk[0-7]\b", text) or is_register_move(text):
        return 0
    if re.match(r"(vmov|vpbroadcast|vbroadcast|kmov)\w*\s+[^,]+,\s*\w+ PTR", text):
        return 0
    return 2 if text.startswith("vcvtph2ps") else 1  # conversion and shuffle


def mca(lines, mcpu):
    code = [".intel_syntax noprefix", *(t for t in lines if not BRANCH.match(t))]
    out = subprocess.run(
        ["llvm-mca", f"-mcpu={mcpu}", "-iterations=100", "-instruction-info=0", "-resource-pressure=0"],
        input="\n".join(code) + "\n", capture_output=True, text=True,
    )
    cycles = re.search(r"Total Cycles:\s+(\d+)", out.stdout)
    return float(cycles.group(1)) / 100 if cycles else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mcpu", default="icelake-server")
    parser.add_argument("objects", nargs="+")
    args = parser.parse_args()
    print(f"{'loop':36} {'insns':>5} {'dp/fma':>6} {'arith':>5} {'loads':>5} {'spills':>6} {'moves':>5} "
          f"{'ports':>6} {'mca':>6} {'tiles':>6}")
    for path in args.objects:
        for name, body in functions(path):
            for lines in inner_loops(body):
                work = sum(bool(WORK.match(t)) for t in lines)
                arithmetic = sum(is_arithmetic(t) for t in lines)
                loads = sum("PTR" in t for t in lines)
                spills = sum(bool(re.search(r"ZMMWORD PTR \[(rsp|rbp-)", t)) for t in lines)
                moves = sum(is_register_move(t) for t in lines)
                tiles = max(16 * sum(t.startswith("tdp") for t in lines), 8 * sum("tileloadd" in t for t in lines),
                            16 * sum("tilestored" in t for t in lines))
                ports = max(arithmetic / 2, loads / 2, len(lines) / 6)
                print(f"{name:36.36} {len(lines):5} {work:6} {arithmetic:5} {loads:5} {spills:6} {moves:5} "
                      f"{ports:6.1f} {0 if tiles else mca(lines, args.mcpu):6.1f} {tiles:6}")


if __name__ == "__main__":
    main()
