#!/usr/bin/env python3
"""Estimates cycles of the inner loops of the Arm kernels from their machine code: none is a measurement.

    scripts/estimate-arm-kernels.py [--match TEXT] [--cpu CPU,...] OBJECT...

Every innermost loop with at least eight products is one line: the function, its instructions, products (SDOT, USMMLA,
SMLAL, FMLA), loads, and for each CPU the cycles that llvm-mca gives for one of many passes in a row, beside the floor:
products divided by the pipes that take them. llvm-mca knows latencies and pipes, but no caches.

Needs llvm-objdump and llvm-mca 19 (Debian: llvm-19).
"""

import argparse
import re
import subprocess
import sys

BRANCH = re.compile(r"(?:b|b\.[a-z]+|cbn?z|tbn?z|bl|ret)\b")
PRODUCT = re.compile(r"(sdot|usmmla|smmla|smlal2?|fmla)\b")
# Pipes that take SDOT and USMMLA, SMLAL, FMLA.
PIPES = {
    "neoverse-n1": {"sdot": 2, "usmmla": 2, "smlal": 1, "fmla": 2},
    "neoverse-n2": {"sdot": 2, "usmmla": 2, "smlal": 1, "fmla": 2},
    "neoverse-v1": {"sdot": 4, "usmmla": 4, "smlal": 2, "fmla": 4},
    "neoverse-v2": {"sdot": 4, "usmmla": 4, "smlal": 2, "fmla": 4},
    "apple-m1": {"sdot": 4, "usmmla": 4, "smlal": 4, "fmla": 4},
    "cortex-a72": {"sdot": 1, "usmmla": 1, "smlal": 1, "fmla": 2},
}


def output(command, **options):
    """What a command prints; where it fails, this program ends with its words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, **options)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    if done.returncode != 0:
        sys.exit(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def functions(args, path):
    """Name and [(address, instruction)] of every function of an object or program."""
    flags = ["-d", "--no-show-raw-insn", "-C", "--mattr=+v8.6a,+dotprod,+i8mm"]
    name, body = None, []
    for line in output([args.objdump, *flags, path]).splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            if name:
                yield name, body
            name, body = short(head.group(1)), []
        elif code := re.match(r"\s*([0-9a-f]+):\s+(.*)$", line):
            body.append((int(code.group(1), 16), re.sub(r"\s*(<.*>|//.*)$", "", code.group(2)).replace("\t", " ")))
    if name:
        yield name, body


def short(name):
    name = re.sub(r"mixed_kv::(?:kernels::)?|\(anonymous namespace\)::|Set::", "", name)
    return re.sub(r"^(?:void|bool) |\(.*", "", name)


def inner_loops(body):
    index = {address: i for i, (address, _) in enumerate(body)}
    loops = []
    for i, (_, text) in enumerate(body):
        jump = re.match(r"(?:b\.[a-z]+|cbn?z [wx]\d+,|tbn?z \w+, #\w+,) ?(?:0x)([0-9a-f]+)", text)
        if jump and (start := index.get(int(jump.group(1), 16), i + 1)) <= i:
            lines = [t for _, t in body[start : i + 1]]
            if sum(bool(PRODUCT.match(t)) for t in lines) >= 8:
                loops.append((start, i, lines))
    for start, end, lines in loops:
        if not any(s >= start and e <= end and (s, e) != (start, end) for s, e, _ in loops):
            yield lines


def floor(lines, cpu):
    kinds = [m.group(1) for t in lines if (m := PRODUCT.match(t))]
    pipes = PIPES[cpu]
    return sum(1 / pipes.get(k.rstrip("2").replace("smmla", "usmmla").replace("uusmmla", "usmmla"), 1) for k in kinds)


def mca(args, lines, cpu, passes=100):
    code = "\n".join(t for t in lines if not BRANCH.match(t) and not t.startswith(("nop", "prfm"))) + "\n"

    def cycles(n):
        text = output([args.mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm", f"-iterations={n}",
                       "-instruction-info=0", "-resource-pressure=0"], input=code)
        return float(re.search(r"Total Cycles:\s+(\d+)", text).group(1))

    return (cycles(passes) - cycles(1)) / (passes - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only functions whose name holds this")
    parser.add_argument("--cpu", default="neoverse-n1,neoverse-n2,neoverse-v1,neoverse-v2,apple-m1")
    parser.add_argument("--objdump", default="/usr/lib/llvm-19/bin/llvm-objdump")
    parser.add_argument("--mca", default="/usr/lib/llvm-19/bin/llvm-mca")
    parser.add_argument("objects", nargs="+", metavar="OBJECT")
    args = parser.parse_args()
    cpus = args.cpu.split(",")
    if unknown := [c for c in cpus if c not in PIPES]:
        sys.exit(f"estimate-arm-kernels: unknown CPU {unknown[0]}; known: {', '.join(PIPES)}")
    print(f"{'function':44} {'insns':>5} {'prod':>5} {'loads':>5} " + " ".join(f"{c:>20}" for c in cpus))
    print(f"{'':62} " + " ".join(f"{'mca floor ratio':>20}" for _ in cpus))
    for path in args.objects:
        for name, body in functions(args, path):
            if args.match not in name:
                continue
            for lines in inner_loops(body):
                products = sum(bool(PRODUCT.match(t)) for t in lines)
                loads = sum(t.startswith(("ldr", "ldp", "ldur", "ld1", "ld4")) for t in lines)
                cells = []
                for cpu in cpus:
                    cycles, least = mca(args, lines, cpu), floor(lines, cpu)
                    cells.append(f"{cycles:7.1f} {least:6.1f} {cycles / least:5.2f}")
                print(f"{name[-44:]:44} {len(lines):5} {products:5} {loads:5} " + " ".join(cells))


if __name__ == "__main__":
    main()
