#!/usr/bin/env python3
"""Estimates cycles of the AVX-512 and AMX kernels from their machine code, for machines without them.

    scripts/estimate-kernels.py loops OBJECT...
    scripts/estimate-kernels.py page PAGE_TRACE ISA K_FORMAT V_FORMAT HEAD_DIM N_ROWS

loops: every innermost loop with at least four dot products or FMAs, or that multiplies tiles, rounds rows to bytes
or converts integer sums. page: what PAGE_TRACE (tests/kernels/trace) executes for one page of K and V, by function.
Each line says what one pass through it holds, and gives estimates of its cycles, none a measurement:

  ports   the larger of (512-bit arithmetic / 2, loads / 2, stores of 512 bits, instructions / 6): on Ice Lake and
          Sapphire Rapids servers 512-bit arithmetic issues on ports 0 and 5, loads on two ports, six instructions
          a cycle; every load is assumed to hit L1
  mca     what llvm-mca says for many passes in a row, knowing latencies and how far the CPU looks ahead, but no
          tiles, jumps or caches; see for_mca()
  tiles   the larger of 16 per product of tiles, 8 per tile loaded and 16 per tile stored

Needs llvm-objdump and llvm-mca (Debian: llvm-19), 19 or later for Sapphire Rapids and Zen 4.
"""

import argparse
import re
import subprocess
import sys

BRANCH = re.compile(r"(?:j[a-z]+|call|ret)\b")
BACK = re.compile(r"j(?!mp)[a-z]+\s+0x([0-9a-f]+)")  # jmp: from an arm of an if that was laid out of line
WORK = re.compile(r"vpdpbusd|vfn?m(?:add|sub)|tdp")
COLUMNS = ("insns", "dp/fma", "arith", "loads", "stores", "spills", "moves", "ports", "mca", "tiles")


def output(command, **options):
    """What a command prints; where it fails, this program ends with its words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, **options)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    if done.returncode != 0:
        sys.exit(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def functions(args, path):
    """Name and [(address, instruction)] of every function of an object or program."""
    text = output([args.objdump, "-d", "--no-show-raw-insn", "--x86-asm-syntax=intel", "-C", path])
    name, body = None, []
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            if name:
                yield name, body
            short = re.sub(r"mixed_kv::(?:kernels::|attention::)?|\(anonymous namespace\)::", "", head.group(1))
            name, body = re.sub(r"^(?:void|float\*?|bool) |\(.*", "", short), []
        elif code := re.match(r"\s*([0-9a-f]+):\s+(.*)$", line):
            text = re.sub(r"\s*(<.*>|#.*)$", "", code.group(2))
            body.append((int(code.group(1), 16), text.replace("\t", " ")))
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
    """512-bit work for ports 0 and 5; loads, broadcasts from memory and stores are not."""
    if not re.search(r"zmm|\bk[0-7]\b", text) or is_register_move(text):
        return 0
    if re.match(r"(vmov|vpbroadcast|vbroadcast|kmov)\w*\s+([^,]+,\s*)?\w+ ptr", text):
        return 0
    return 2 if text.startswith("vcvtph2ps") else 1  # conversion and shuffle


def is_store(text):
    return bool(re.match(r"(v?mov|vpmov|vextract|kmov|vcvtps2ph)\w*\s+\w+ ptr", text))


def is_load(text):
    return " ptr " in text and not is_store(text) and not text.startswith(("lea", "prefetch", "nop"))


def for_mca(text, mcpu):
    """LLVM 19's model of Sapphire Rapids has one port for FMA and its like on 512 bits, where servers have two, and both
    it and that of Zen 4 start vpdpbusd at half its rate. Instructions of about the same latency stand for these."""
    if mcpu == "znver4":
        return re.sub("^vpdpbusd", "vfmadd231ps", text)
    accumulate = r"(?:vpdpbusd|vpdpwssd|vfn?m(?:add|sub)\d+ps) (zmm\d+), [^,]+,"
    text = re.sub("^" + accumulate, r"vaddps \1, \1,", text)
    text = re.sub(r"^(?:vmulps|vmaxps|vminps|vpmaddwd) zmm", "vaddps zmm", text)
    return re.sub(r"^vcvt(?:dq2ps|ps2dq) (zmm\d+), (zmm\d+)$", r"vaddps \1, \2, \2", text)


def mca(args, lines, passes=100):
    code = [".intel_syntax noprefix"]
    code += [for_mca(t, args.mcpu) for t in lines if not BRANCH.match(t) and not t.startswith("nop")]

    if len(code) == 1:
        return 0.0

    def cycles(n):
        text = output(
            [args.mca, f"-mcpu={args.mcpu}", f"-iterations={n}", "-instruction-info=0", "-resource-pressure=0"],
            input="\n".join(code) + "\n",
        )
        return float(re.search(r"Total Cycles:\s+(\d+)", text).group(1))

    return (cycles(passes) - cycles(1)) / (passes - 1)


def show(args, name, lines, passes=100):
    arithmetic, loads = sum(map(is_arithmetic, lines)), sum(map(is_load, lines))
    stores = sum(map(is_store, lines))
    wide_stores = sum(is_store(t) and "zmmword" in t for t in lines)
    spills = sum(bool(re.search(r"zmmword ptr \[(rsp|rbp -)", t)) for t in lines)
    tiles = max(16 * sum(t.startswith("tdp") for t in lines), 8 * sum("tileloadd" in t for t in lines),
                16 * sum("tilestored" in t for t in lines))
    ports = max(arithmetic / 2, loads / 2, wide_stores, len(lines) / 6)
    work, moves = sum(bool(WORK.match(t)) for t in lines), sum(map(is_register_move, lines))
    cycles = 0 if tiles else mca(args, lines, passes)
    print(f"{name:40.40} {len(lines):6} {work:6} {arithmetic:6} {loads:6} {stores:6} {spills:6} {moves:6} "
          f"{ports:7.1f} {cycles:7.1f} {tiles:6}")
    return ports


def loops(args):
    for path in args.arguments:
        for name, body in functions(args, path):
            for lines in inner_loops(body):
                show(args, name, lines)


def page(args):
    program, *what = args.arguments
    addresses = output([program, *what]).split()
    code = {a: (name, text) for name, body in functions(args, program) for a, text in body}
    by_function, everything = {}, []
    for address in addresses:
        name, text = code.get(int(address, 16), ("(libraries)", "nop"))
        by_function.setdefault(name, []).append(text)
        everything.append(text)
    ports = sum(show(args, name, lines, 4) for name, lines in by_function.items())
    show(args, "page", everything, 4)
    print(f"sum of ports: {ports:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mcpu", default="sapphirerapids")
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--objdump", default="llvm-objdump-19")
    parser.add_argument("mode", choices=("loops", "page"))
    parser.add_argument("arguments", nargs="+")
    args = parser.parse_args()
    print(" " * 40, *(f"{name:>{7 if name in ('ports', 'mca') else 6}}" for name in COLUMNS))
    {"loops": loops, "page": page}[args.mode](args)


if __name__ == "__main__":
    main()
