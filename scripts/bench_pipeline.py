#!/usr/bin/env python3
"""Times what several devices do together against what one does alone, and prints the ratios.

    bench_pipeline.sh --tandem build/tandem [--rows prefill,decode32] [--turns 7] [--json FILE]

Each row is a pair of runs A and B. A turn runs both, and the one that begins changes from turn to
turn; the ratio is formed within a turn (above 1: B, the pipeline, is faster). Printed are the median
over the turns with the lowest and the highest, and what is to be reached. Models are made by
make_model.py in a temporary folder (--keep DIR keeps them); the last row takes the bundled pair.

| row | A | B |
|---|---|---|
| prefill | a prompt of 2,048 tokens on one device | the same on two stages |
| decode8, decode32, decode64 | as many sequences on one device | on two stages, in two groups |
| single | one sequence without a draft on one device | on two stages |
| overlap | target and draft on two devices, taking turns | the same, overlapped |
| batch | 64 prompts one after another without a draft on one device | 8 at once with one on both |
| cpu-inproc, cpu-ipc | CPU time of coordinator and transport per round, in microseconds | |

Devices are two CPUs that nothing else should use: --first host:1:0 and --second host:1:1. The last
line says how busy other programs kept the machine; above a few percent the figures mean little. On
a machine that is not yours alone --quiet S waits up to S seconds before a run until others pause,
and repeats a run that they disturbed (up to three times).

--peer COMMAND runs the rows prefill, decode and single on a reference too: it is called as COMMAND
MODEL --stages 1|2 --prompt N --predict N --parallel N and prints {"tokens_per_second": X}, of the
prompt's tokens where --predict is 1. Exit code 0 also when a row misses. Standard library only."""
import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TALES = os.path.join(HERE, "..", "configs", "tales")
HZ = os.sysconf("SC_CLK_TCK")
LAYERS = 8
SHAPE = ["--n-embd", "1024", "--heads", "16", "--kv-heads", "4", "--ffn", "2816", "--vocab", "1024"]
N_PREFILL = 2048
N_DECODE = 40  # rounds in which all sequences decode
QUIET = 0.04  # share of all CPUs that others may take
others = {"busy": 0.0, "all": 0.0}


def cpu_seconds():
    """(all programs' busy seconds, our finished children's)."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, soft, *_ = map(int, f.readline().split()[1:])
    t = os.times()
    return (user + nice + system + irq + soft) / HZ, t.children_user + t.children_system


def wait_for_quiet(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        busy, _ = cpu_seconds()
        time.sleep(0.3)
        if (cpu_seconds()[0] - busy) / 0.3 / os.cpu_count() < QUIET:
            return


def call(command, quiet_s=0):
    """The command's output; measured alone, as far as others let it."""
    for attempt in range(4 if quiet_s else 1):
        wait_for_quiet(quiet_s)
        busy, children, start = *cpu_seconds(), time.monotonic()
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        busy_now, children_now = cpu_seconds()
        by_others = max(busy_now - busy - (children_now - children), 0)
        whole = (time.monotonic() - start) * os.cpu_count()
        if r.returncode:
            sys.exit("failed (exit code %d): %s\n%s" %
                     (r.returncode, shlex.join(command), r.stderr[-2000:]))
        if by_others / whole < QUIET:
            break
    others["busy"] += by_others
    others["all"] += whole
    return r.stdout


def steady_rate(events):
    """Rows per second of the last stage while all sequences decode: after the last prompt, before
    the first text ends."""
    spans = [e for e in events if e["ph"] == "X"]
    begin = max(e["ts"] + e["dur"] for e in spans if e["name"] == "prefill")
    end = min(e["ts"] for e in events if e["name"] == "finish")
    last = max(e["tid"] for e in spans)
    steady = [e for e in spans if e["tid"] == last and e["ts"] >= begin and
              e["ts"] + e["dur"] <= end]
    # From the end of one to the end of another: the first one's rows are not in it.
    ends = [e["ts"] + e["dur"] for e in steady]
    return sum(e["args"]["rows"] for e in steady[1:]) / (ends[-1] - ends[0]) * 1e6


class Bench:
    def __init__(self, a, folder):
        self.a = a
        self.folder = folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def model(self, name, *options):
        """A model's file, made when it is first asked for."""
        path = self.path(name)
        if not os.path.exists(path):
            call([sys.executable, os.path.join(HERE, "make_model.py"), *SHAPE, *options, "--out",
                  path + ".part"])
            os.rename(path + ".part", path)
        return path

    def target(self):
        return self.model("target-%s.gguf" % self.a.type, "--layers", str(LAYERS), "--type",
                          self.a.type)

    def prompts(self, name, texts):
        path = self.path(name + ".jsonl")
        with open(path, "w") as f:
            for i, text in enumerate(texts):
                print(json.dumps({"id": "p%03d" % i, "prompt": text}), file=f)
        return path

    def generate(self, prompts, n, *options):
        """The run's figures, and its result lines."""
        stats = self.path("stats.json")
        lines = call([self.a.tandem, "generate", "--in", prompts, "--out", "-", "--stats", stats,
                      "-n", str(n), "--ignore-eos", *options], self.a.quiet)
        with open(stats) as f:
            figures = json.load(f)
        return figures, [json.loads(line) for line in lines.splitlines()]

    def text_of(self, n_tokens):
        """A text of so many tokens of the made model, its first token included."""
        rng = random.Random(n_tokens)
        words = ["".join(rng.choice("bcdfghjklm") for _ in range(5)) for _ in range(n_tokens)]
        low, high = 0, n_tokens  # words that are not, and are, too many
        while high - low > 1:
            middle = (low + high) // 2
            ids = json.loads(call([self.a.tandem, "tokenize", "--model", self.target(), "--text",
                                   " ".join(words[:middle]), "--add-special"]))
            if len(ids) <= n_tokens:
                low = middle
            else:
                high = middle
        return " ".join(words[:low])

    def stages(self, n):
        a = self.a
        if n == 1:
            return ["--device", a.first]
        half = LAYERS // 2  # said, for else one of them may be found to be enough
        return ["--device", "%s@0-%d" % (a.first, half - 1), "--device",
                "%s@%d-%d" % (a.second, half, LAYERS - 1)]

    def peer(self, stages, prompt, predict, parallel):
        out = call(shlex.split(self.a.peer) + [
            self.target(), "--stages", str(stages), "--prompt", str(prompt), "--predict",
            str(predict), "--parallel", str(parallel)], self.a.quiet)
        return json.loads(out)["tokens_per_second"]

    # -- rows: {"a": figure, "b": figure, "ratio": B's speed by A's, other figures} ---------------

    def in_turns(self, turn, a, b):
        if turn % 2:
            second = b()
            return a(), second
        first = a()
        return first, b()

    def with_peer(self, row, turn, prompt, predict, parallel):
        if self.a.peer:
            one, two = self.in_turns(turn, lambda: self.peer(1, prompt, predict, parallel),
                                     lambda: self.peer(2, prompt, predict, parallel))
            row["peer"] = two / one
        return row

    def prefill(self, turn):
        prompts = self.prompts("long", [self.text_of(N_PREFILL)])

        def run(n):
            stats, _ = self.generate(prompts, 1, "--target", self.target(), "--ctx",
                                     str(N_PREFILL + 64), *self.stages(n))
            totals = stats["totals"]
            return totals["prompt_tokens"] / (totals["ttft_ms_mean"] * 1e-3)

        one, two = self.in_turns(turn, lambda: run(1), lambda: run(2))
        return self.with_peer({"a": one, "b": two, "ratio": two / one, "want": 1.75,
                               "unit": "tokens/s"}, turn, N_PREFILL, 1, 1)

    def step_time(self, width):
        out = call([self.a.tandem, "bench", "--model", self.target(), "--device", self.a.first,
                    "--pp", "0", "--tg", "0", "--widths", "%d,%d" % (width // 2, width), "--depth",
                    str(N_DECODE // 2), "--json"], self.a.quiet)
        verify = json.loads(out)["verify"]
        return verify[str(width)]["ms"] / verify[str(width // 2)]["ms"]

    def decode(self, turn, n):
        # One text for all: it is read once, so that they decode side by side almost at once.
        prompts = self.prompts("decode", [self.text_of(65)] * n)

        def run(stages):
            trace = self.path("trace.json")
            # They begin one after another, a round apart.
            self.generate(prompts, n + N_DECODE, "--target", self.target(), "--parallel", str(n),
                          "--ctx", "256", "--temp", "0", "--trace", trace, *self.stages(stages))
            with open(trace) as f:
                return steady_rate(json.load(f))

        one, two = self.in_turns(turn, lambda: run(1), lambda: run(2))
        row = {"a": one, "b": two, "ratio": two / one, "want": 0.97, "unit": "tokens/s"}
        if n > 1:
            row["c"] = self.step_time(n)
            row["want"] = 0.9 * row["c"]
        return self.with_peer(row, turn, 4, N_DECODE, n)

    def overlap(self, turn):
        a = self.a
        target = self.model("pair-target.gguf", "--layers", "12", "--type", "Q8_0", "--faint-from",
                            str(a.draft_layers), "--faint", "0.03")
        draft = self.model("pair-draft.gguf", "--layers", str(a.draft_layers), "--type", "Q8_0")
        prompts = self.prompts("overlap", ["the first of the words"])

        def run(*options):
            stats, _ = self.generate(prompts, 256, "--target", target, "--draft", draft, "--device",
                                     a.first, "--draft-device", a.second, "--temp", "0", "--ctx",
                                     "512", "--draft-fixed", str(a.draft_fixed), *options)
            return stats

        turns, overlapped = self.in_turns(turn, lambda: run("--draft-turns"), run)
        verify_ms = sum(s["verify_ms"] for s in turns["stages"])
        one, two = (s["totals"]["tokens_per_second"] for s in (turns, overlapped))
        return {"a": one, "b": two, "ratio": two / one, "want": 1.15, "unit": "tokens/s",
                "acceptance": overlapped["totals"]["acceptance"],
                "k td / tv": turns["draft"]["busy_ms"] / verify_ms,
                "idle target": overlapped["stages"][0]["idle"],
                "idle draft": overlapped["draft"]["idle"]}

    def batch(self, turn):
        with open(os.path.join(TALES, "prompts.jsonl")) as f:
            texts = [json.loads(line)["prompt"] for line in f]
        prompts = self.prompts("tales", (texts * 64)[:64])
        a = self.a

        def run(*options):
            stats, _ = self.generate(prompts, 128, "--target",
                                     os.path.join(TALES, "tales-target.q8_0.gguf"), "--temp",
                                     str(a.temp), "--ctx", "512", *options)
            return stats

        plain, full = self.in_turns(
            turn, lambda: run("--device", a.both, "--draft", "none"),
            lambda: run("--parallel", "8", *shlex.split(a.batch_options), "--draft",
                        os.path.join(TALES, "tales-draft.q8_0.gguf")))
        one, two = (s["totals"]["tokens_per_second"] for s in (plain, full))
        return {"a": one, "b": two, "ratio": two / one, "want": 3.0, "unit": "tokens/s",
                "acceptance": full["totals"]["acceptance"],
                "idle target": full["stages"][0]["idle"]}

    def cpu(self, is_ipc):
        """CPU time per round of a run of the bundled pair, the draft in a thread or a process."""
        with open(os.path.join(TALES, "prompts.jsonl")) as f:
            texts = [json.loads(line)["prompt"] for line in f][:8]
        prompts = self.prompts("cpu", texts)
        draft = os.path.join(TALES, "tales-draft.q8_0.gguf")
        options = ["--draft", draft, "--draft-device", self.a.second]
        worker = None
        if is_ipc:
            endpoint = "ipc://" + self.path("draft.ipc")
            worker = subprocess.Popen(
                [self.a.tandem, "draft", "--model", draft, "--device", self.a.second, "--bind",
                 endpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            options = ["--draft-endpoint", endpoint]
        try:
            stats, _ = self.generate(prompts, 200, "--target",
                                     os.path.join(TALES, "tales-target.q8_0.gguf"), "--device",
                                     self.a.first, "--temp", "0", "--ctx", "512", "--draft-fixed",
                                     "4", *options)
        finally:
            if worker:
                worker.terminate()
                worker.wait()
        us = stats["coordinator"]["loop_cpu_us_per_round"]
        return {"a": us, "b": us, "ratio": us, "want": 150 if is_ipc else 50, "unit": "us",
                "is_less_better": True}

    def rows(self):
        return {"prefill": self.prefill,
                "decode8": lambda turn: self.decode(turn, 8),
                "decode32": lambda turn: self.decode(turn, 32),
                "decode64": lambda turn: self.decode(turn, 64),
                "single": lambda turn: self.decode(turn, 1),
                "overlap": self.overlap,
                "batch": self.batch,
                "cpu-inproc": lambda turn: self.cpu(False),
                "cpu-ipc": lambda turn: self.cpu(True)}


def spread(values, digits):
    return "%.*f (%.*f-%.*f)" % (digits, statistics.median(values), digits, min(values), digits,
                                 max(values))


def show(name, turns):
    """One row of the table from its turns."""
    first = turns[0]
    want = statistics.median(t["want"] for t in turns)
    ratio = statistics.median(t["ratio"] for t in turns)
    is_less_better = first.get("is_less_better")
    is_met = ratio <= want if is_less_better else ratio >= want
    more = ["%s %.2f" % (key, statistics.median(t[key] for t in turns)) for key in first
            if key not in ("a", "b", "ratio", "want", "unit", "is_less_better")]
    if is_less_better:
        cells = ["", "", spread([t["ratio"] for t in turns], 0) + " us", "< %.0f" % want]
    else:
        cells = [*("%.1f %s" % (statistics.median(t[k] for t in turns), first["unit"])
                   for k in "ab"), spread([t["ratio"] for t in turns], 2), ">= %.2f" % want]
    print("| %s | %s | %s | %s |" % (name, " | ".join(cells), "yes" if is_met else "no",
                                     ", ".join(more)), flush=True)
    return {"row": name, "ratio": ratio, "want": want, "is_met": is_met, "turns": turns}


def parse_args():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tandem", default=os.path.join(HERE, "..", "build", "tandem"))
    p.add_argument("--rows", help="some of the rows, with commas (default: all)")
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--first", default="host:1:0")
    p.add_argument("--second", default="host:1:1")
    p.add_argument("--both", default="host:1:0", help="row batch, A (default: host:1:0)")
    p.add_argument("--batch-options", default="--device host:1:0@0-4 --device host:1:1@5-9 "
                   "--draft-device host:1", help="row batch, B: devices and drafts")
    p.add_argument("--temp", default="0.8", help="of row batch (default: 0.8)")
    p.add_argument("--type", default="Q4_K_M", help="of the made target (default: Q4_K_M)")
    p.add_argument("--draft-layers", type=int, default=3, help="row overlap; the target has 12")
    p.add_argument("--draft-fixed", type=int, default=3, help="row overlap")
    p.add_argument("--quiet", type=float, default=0, metavar="S", help="wait for others (default: 0)")
    p.add_argument("--keep", metavar="DIR")
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--peer", metavar="COMMAND")
    a = p.parse_args()
    if a.turns < 1:
        p.error("--turns is %d; allowed: 1 or more" % a.turns)
    return p, a


def main():
    p, a = parse_args()
    folder = a.keep or tempfile.mkdtemp(prefix="bench-pipeline-")
    os.makedirs(folder, exist_ok=True)
    bench = Bench(a, folder)
    rows = bench.rows()
    names = a.rows.split(",") if a.rows else list(rows)
    for name in names:
        if name not in rows:
            p.error("--rows %s; allowed: %s" % (name, ", ".join(rows)))
    results = []
    try:
        print("| row | A | B | B / A | wanted | met | |\n|---|---|---|---|---|---|---|")
        for name in names:
            results.append(show(name, [rows[name](turn) for turn in range(a.turns)]))
        share = others["busy"] / others["all"] if others["all"] else 0
        print("\nOther programs kept the machine %.0f %% busy." % (100 * share))
        if a.json:
            with open(a.json, "w") as f:
                json.dump({"rows": results, "others_busy": share}, f, indent=2)
    finally:
        if not a.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
