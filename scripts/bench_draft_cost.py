#!/usr/bin/env python3
"""Times what naming a draft costs or brings: runs with `--draft` and nothing else against the same
runs without one, on this machine's CPUs, and prints the ratios of their speeds (above 1: the draft
helps). What is wanted: never below 0.97, and 1.3 where a useful draft has a core of its own.

    bench_draft_cost.py --tandem build/release/tandem [--prompts 4,16] [--turns 9] [--minutes 15]

A row is a place (target and draft share all cores, or have one each), a draft (useful: the bundled
one; useless: the same with its embeddings mixed up, so that it guesses at random), a sampling and a
number of prompts. A turn runs the pair, and the one that begins changes from turn to turn; the
ratio is formed within a turn. Printed are the median, the lowest and the highest, and what share of
the draft's tokens was accepted. Rows come as they are done, the quick ones first. Those that the
minutes do not suffice for are left out. On a machine that others use the figures mean little.
Standard library only."""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

TALES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "configs", "tales")
TARGET = os.path.join(TALES, "tales-target.q8_0.gguf")
DRAFT = os.path.join(TALES, "tales-draft.q8_0.gguf")
PLACES = {"shared": ("host", []), "each": ("host:1", ["--draft-device", "host:1"])}
TURNS = {4: 15, 16: 11, 64: 5, 256: 3}  # of so many prompts and fewer
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of GGUF values


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind):
        n = struct.calcsize("<" + kind)
        self.at += n
        return struct.unpack_from("<" + kind, self.data, self.at - n)[0]

    def text(self):
        n = self.number("Q")
        self.at += n
        return bytes(self.data[self.at - n:self.at]).decode()

    def skip_value(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            kind, n = self.number("I"), self.number("Q")
            for _ in range(n):
                self.skip_value(kind)
        else:
            self.at += SIZES[kind]


def write_useless(path):
    """The draft with the rows of its embeddings in falling order."""
    with open(DRAFT, "rb") as f:
        data = bytearray(f.read())
    r = Reader(data)
    r.at = 8
    n_tensors, n_values = r.number("Q"), r.number("Q")
    for _ in range(n_values):
        r.text()
        r.skip_value(r.number("I"))
    found = None
    for _ in range(n_tensors):
        name = r.text()
        shape = [r.number("Q") for _ in range(r.number("I"))]
        kind, offset = r.number("I"), r.number("Q")
        if name == "token_embd.weight":
            found = shape, kind, offset
    (n_columns, n_rows), kind, offset = found
    assert kind == 8, "the bundled draft is Q8_0"
    row, begin = n_columns // 32 * 34, (r.at + 31) // 32 * 32 + offset
    rows = [data[begin + i * row:begin + (i + 1) * row] for i in range(n_rows)]
    data[begin:begin + n_rows * row] = b"".join(reversed(rows))
    with open(path, "wb") as f:
        f.write(data)


class Bench:
    def __init__(self, a, folder):
        self.a, self.folder = a, folder
        self.useless = os.path.join(folder, "useless.gguf")
        write_useless(self.useless)
        with open(os.path.join(TALES, "prompts.jsonl")) as f:
            self.texts = [json.loads(line)["prompt"] for line in f]

    def prompts(self, n):
        path = os.path.join(self.folder, "prompts-%d.jsonl" % n)
        if not os.path.exists(path):
            with open(path, "w") as f:
                for i in range(n):
                    print(json.dumps({"id": "p%03d" % i,
                                      "prompt": self.texts[i % len(self.texts)]}), file=f)
        return path

    def run(self, n, device, temp, draft):
        stats = os.path.join(self.folder, "stats.json")
        r = subprocess.run(
            [self.a.tandem, "generate", "--target", TARGET, "--device", device, "--temp", str(temp),
             "-n", str(self.a.tokens), "--in", self.prompts(n), "--out", "-", "--stats", stats,
             *draft], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if r.returncode:
            sys.exit(r.stderr[-2000:])
        with open(stats) as f:
            figures = json.load(f)
        return figures, sorted(json.loads(line)["text"] for line in r.stdout.splitlines())

    def turn(self, i, n, place, is_useful, temp):
        device, options = PLACES[place]
        draft = ["--draft", DRAFT if is_useful else self.useless, *options]
        order = [("plain", []), ("draft", draft)]
        result = {}
        for name, more in order if i % 2 else reversed(order):
            result[name], texts = self.run(n, device, temp, more)
            if result.setdefault("texts", texts) != texts:
                sys.exit("the draft changed the text: this is a fault")
        totals = {k: result[k]["totals"] for k in ("plain", "draft")}
        return {"ratio": totals["draft"]["tokens_per_second"] /
                totals["plain"]["tokens_per_second"],
                "plain": totals["plain"]["tokens_per_second"],
                "acceptance": totals["draft"]["acceptance"] or 0,
                "drafted": totals["draft"]["drafted"] / totals["draft"]["tokens"]}


def n_turns(a, n):
    return a.turns or next((TURNS[most] for most in sorted(TURNS) if n <= most), 3)


def show(place, is_useful, temp, n, turns):
    ratios = [t["ratio"] for t in turns]
    median = statistics.median(ratios)
    print("| %s | %s | %s | %d | %.0f | %.3f | %.3f-%.3f | %.2f | %.2f | %s |" %
          (place, "useful" if is_useful else "useless", temp, n,
           statistics.median(t["plain"] for t in turns), median, min(ratios), max(ratios),
           statistics.median(t["drafted"] for t in turns),
           statistics.median(t["acceptance"] for t in turns),
           "yes" if median >= 0.97 else "no"), flush=True)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tandem", default="build/release/tandem")
    p.add_argument("--prompts", default="4,16,64,256", help="default: 4,16,64,256")
    p.add_argument("--places", default="shared,each", help="default: shared,each")
    p.add_argument("--drafts", default="useful,useless", help="default: useful,useless")
    p.add_argument("--temps", default="0,0.8", help="default: 0,0.8")
    p.add_argument("--tokens", type=int, default=96, help="of a text (default: 96)")
    p.add_argument("--turns", type=int, default=0, help="default: 15 of few prompts to 3 of many")
    p.add_argument("--minutes", type=float, default=15)
    return p.parse_args()


def main():
    a = parse_args()
    end = time.monotonic() + 60 * a.minutes
    folder = tempfile.mkdtemp(prefix="bench-draft-cost-")
    try:
        bench = Bench(a, folder)
        print("| cores | draft | temp | prompts | plain tokens/s | ratio | span | drafted a token | "
              "accepted | >= 0.97 |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for n in sorted(int(n) for n in a.prompts.split(",")):
            for place in a.places.split(","):
                for draft in a.drafts.split(","):
                    for temp in a.temps.split(","):
                        turns, longest = [], 0.0
                        while len(turns) < n_turns(a, n):
                            start = time.monotonic()
                            if start + longest > end:
                                break
                            turns.append(bench.turn(len(turns), n, place, draft == "useful", temp))
                            longest = max(longest, time.monotonic() - start)
                        if turns:
                            show(place, draft == "useful", temp, n, turns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
