#!/usr/bin/env python3
"""Times tandem and llama.cpp in turns on the same models and prints the ratio with its spread.

    bench_peer.sh --model M.gguf --device host:2 --llama-bench PATH/llama-bench
    bench_peer.sh --model M.gguf --device vulkan:0 --peer "python3 driver.py"

One program runs at a time, each turn runs both, and the one that begins changes from turn to turn.
A ratio is formed within a turn (above 1: tandem is faster); what is printed is the median over the
turns with the lowest and the highest. A turn's own figures are medians of --repeat runs. Threads
that wait by spinning suffer from other programs: the last line says how busy the machine was.

The reference is yours to bring, in one of two ways (the environment variables of the same names in
capitals, LLAMA_BENCH and TANDEM_PEER, serve too):
  --llama-bench PATH   llama.cpp's own tool: https://github.com/ggml-org/llama.cpp, built with
                       `cmake -B build -DGGML_VULKAN=ON && cmake --build build --target llama-bench`
  --peer COMMAND       called as COMMAND MODEL --device cpu|vulkan --threads N --pp N --tg N
                       --widths 1,2 --reps N --kv TYPE --json; prints what `tandem bench --json` does
                       (ppN, tgN, verify); inherits the environment
Without one this exits with 77. Standard library only."""
import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time


HZ = os.sysconf("SC_CLK_TCK")
builds = set()  # what the reference says of itself
others = {"busy": 0.0, "all": 0.0}  # CPU seconds of other programs while ours ran; and all there were


def cpu_seconds():
    """(all programs' busy seconds, our finished children's)."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, soft, *_ = map(int, f.readline().split()[1:])
    t = os.times()
    return (user + nice + system + irq + soft) / HZ, t.children_user + t.children_system


def call(command, what):
    """The standard output of a command that ran alone; its failure ends the comparison."""
    busy, children, start = *cpu_seconds(), time.monotonic()
    try:
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as e:
        print("%s: %s: %s" % (what, command[0], e.strerror), file=sys.stderr)
        sys.exit(1 if what == "tandem" else 77)
    busy_now, children_now = cpu_seconds()
    others["busy"] += max(busy_now - busy - (children_now - children), 0)
    others["all"] += (time.monotonic() - start) * os.cpu_count()
    if r.returncode:
        sys.exit("%s failed (exit code %d): %s\n%s" %
                 (what, r.returncode, shlex.join(command), r.stderr[-2000:]))
    return r.stdout


def figures(text, a, what):
    """{test: (tokens/s, c or None)} of an object as `tandem bench --json` prints it."""
    try:
        o = json.loads(text)
        found = {"%s%d" % (k, n): (float(o["%s%d" % (k, n)]), None)
                 for k, n in (("pp", a.pp), ("tg", a.tg)) if n}
        for n in a.widths:
            v = o["verify"][str(n)]
            found["verify%d" % n] = (n / float(v["ms"]) * 1e3, float(v["c"]))
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as e:
        sys.exit("%s printed no figures that can be read (%s: %s): %.200s" %
                 (what, type(e).__name__, e, text))
    return found


def run_tandem(a, model, device, kv, depth):
    command = [a.tandem, "bench", "--model", model, "--device", device, "--pp", str(a.pp), "--tg",
               str(a.tg), "--widths", ",".join(map(str, a.widths)), "--repeat", str(a.repeat),
               "--kv-k", kv, "--kv-v", kv, "--depth", str(depth), "--json"]
    return figures(call(command, "tandem"), a, "tandem")


def threads_of(device):
    n = device.partition(":")[2]
    return n if device.startswith("host") and n else str(os.cpu_count())


def run_peer(a, model, device, kv, depth):
    command = [*shlex.split(a.peer), model, "--device",
               "vulkan" if device.startswith("vulkan") else "cpu", "--threads", threads_of(device),
               "--pp", str(a.pp), "--tg", str(a.tg), "--widths", ",".join(map(str, a.widths)),
               "--reps", str(a.repeat), "--kv", kv, *(["--depth", str(depth)] if depth else []),
               "--json", *shlex.split(a.peer_args)]
    return figures(call(command, "the reference"), a, "the reference")


def run_llama_bench(a, model, device, kv, depth):
    """Its prompts of n tokens at a depth are verifications of n rows after a prompt."""
    base = [a.llama_bench, "-m", model, "-t", threads_of(device), "-ngl",
            "999" if device.startswith("vulkan") else "0", "-ctk", kv, "-ctv", kv, "-r",
            str(a.repeat), "-o", "json", *shlex.split(a.peer_args)]
    widths = ",".join(map(str, a.widths))
    found, tests = {}, []
    if a.pp:
        tests.append(["-p", str(a.pp), "-n", "0", "-d", str(depth)])
    tests.append(["-p", widths, "-n", str(a.tg), "-d", str(depth + a.pp)])
    for test in tests:
        text = call(base + test, "llama-bench")
        try:
            for t in json.loads(text):
                builds.add(a.peer_name or describe_build(a.llama_bench, t))
                rate = statistics.median(t["samples_ts"])
                name = ("tg%d" % t["n_gen"] if t["n_gen"] else
                        "verify%d" % t["n_prompt"] if len(found) or not a.pp else
                        "pp%d" % t["n_prompt"])
                found[name] = (rate, None)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            sys.exit("llama-bench printed what cannot be read (%s: %s): %.200s" %
                     (type(e).__name__, e, text))
    one = found.get("verify1", found.get("tg%d" % a.tg, (None,)))[0]
    for n in a.widths:
        rate = found["verify%d" % n][0]
        found["verify%d" % n] = (rate, one * n / rate if one else None)
    return found


def describe_build(path, test):
    """Which llama.cpp this is: its commit, and how it was compiled, which the cache of the CMake
    build it lies in knows. That decides its speed: a build for any CPU is no measure for this one."""
    told = "llama.cpp %s (%s), %s" % (test.get("build_number", "?"), test.get("build_commit", "?"),
                                      test.get("backends", "?"))
    folder = os.path.dirname(os.path.realpath(path))
    for cache in (os.path.join(folder, "CMakeCache.txt"),
                  os.path.join(os.path.dirname(folder), "CMakeCache.txt")):
        try:
            with open(cache, errors="replace") as f:
                entries = dict(line.rstrip("\n").split("=", 1) for line in f
                               if line[:1].isalpha() and "=" in line)
        except OSError:
            continue
        wanted = ("CMAKE_BUILD_TYPE:STRING", "CMAKE_C_FLAGS:STRING", "GGML_NATIVE:BOOL",
                  "GGML_CPU_ALL_VARIANTS:BOOL")
        return told + ", built with " + " ".join(
            "%s=%s" % (k.partition(":")[0], entries[k]) for k in wanted if entries.get(k))
    return told + ", built elsewhere"


def short(x):
    return "" if x is None else "%.*f" % (0 if x >= 1000 else 1 if x >= 100 else 2, x)


def compare(a, model, device, kv, depth, out):
    ours, theirs = [], []
    peer = run_llama_bench if a.llama_bench else run_peer
    for turn in range(a.turns):
        for is_ours in ((True, False) if turn % 2 == 0 else (False, True)):
            (ours if is_ours else theirs).append((run_tandem if is_ours else peer)(a, model, device, kv,
                                                                                depth))
        if out:
            print(json.dumps({"model": model, "device": device, "kv": kv, "depth": depth,
                              "turn": turn, "tandem": ours[-1], "reference": theirs[-1]}),
                  file=out, flush=True)
        print("%s on %s: turn %d of %d" % (model, device, turn + 1, a.turns), file=sys.stderr)
    for test in ours[0]:
        ratios = [o[test][0] / t[test][0] for o, t in zip(ours, theirs)]
        cells = [os.path.basename(model), device, test + (" " + kv if len(a.kv) > 1 else "") +
                 (" behind %d" % depth if depth else "")]
        cells += [short(statistics.median(s[test][0] for s in side)) for side in (ours, theirs)]
        cells += ["%.2f" % statistics.median(ratios), "%.2f..%.2f" % (min(ratios), max(ratios))]
        for side in (ours, theirs):
            c = [s[test][1] for s in side if s[test][1] is not None]
            cells.append("%.2f" % statistics.median(c) if c else "")
        print("| " + " | ".join(cells) + " |", flush=True)


def widths(text):
    values = [int(n) for n in text.split(",")]
    if not all(1 <= n <= 64 for n in values):
        raise ValueError
    return values


def parse_args(argv):
    p = argparse.ArgumentParser(prog="bench_peer.sh", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", action="append", required=True, help="may be given several times")
    p.add_argument("--device", action="append", help="host:N or vulkan:INDEX (default: host)")
    p.add_argument("--pp", type=int, default=128)
    p.add_argument("--tg", type=int, default=32)
    p.add_argument("--widths", type=widths, default=[1, 2, 4, 8, 16], help="1..64 each")
    p.add_argument("--kv", type=lambda text: text.split(","), default=["f16"],
                   help="types of the cache, each measured (default: f16)")
    p.add_argument("--depth", type=lambda text: [int(n) for n in text.split(",")], default=[0],
                   help="tokens in the cache before each test begins, each measured (default: 0)")
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--repeat", type=int, default=3, help="of each test within a turn")
    p.add_argument("--out", help="every turn's figures as JSON lines")
    p.add_argument("--tandem", default=os.environ.get("TANDEM", "build/release/tandem"))
    p.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
    p.add_argument("--peer", default=os.environ.get("TANDEM_PEER"))
    p.add_argument("--peer-name", help="what to call the reference (default: what llama-bench and "
                   "the CMake build it lies in tell)")
    p.add_argument("--peer-args", default="", help="more arguments for the reference")
    a = p.parse_args(argv)
    if not a.llama_bench and not a.peer:
        print("There is no reference to compare with. " + __doc__.split("\n\n")[3], file=sys.stderr)
        sys.exit(77)
    if min(a.depth) < 0:
        p.error("--depth is %d; at least 0 is allowed" % min(a.depth))
    for name, low in (("pp", 0), ("tg", 0), ("turns", 1), ("repeat", 1)):
        if getattr(a, name) < low:
            p.error("--%s is %d; at least %d is allowed" % (name, getattr(a, name), low))
    a.device = a.device or ["host"]
    for device in a.device:
        if not device.startswith(("host", "vulkan:")):
            p.error("--device %s: host, host:N or vulkan:INDEX are allowed" % device)
    return a


def main(argv):
    a = parse_args(argv)
    out = open(a.out, "a") if a.out else None
    print("| model | device | test | tandem, tokens/s | reference | ratio | spread | c(n) tandem |"
          " c(n) reference |\n|---|---|---|---:|---:|---:|---|---:|---:|")
    for model in a.model:
        for device, depth, kv in itertools.product(a.device, a.depth, a.kv):
            compare(a, model, device, kv, depth, out)
    print("\nThe reference: %s." % "; ".join(sorted(builds or {a.peer_name or a.peer})))
    print("%d turns of %d repeats. Other programs took %.0f %% of the CPU meanwhile." %
          (a.turns, a.repeat, 100 * others["busy"] / max(others["all"], 1e-9)))


if __name__ == "__main__":
    main(sys.argv[1:])
