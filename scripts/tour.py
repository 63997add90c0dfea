#!/usr/bin/env python3
"""Generates text with the bundled pair and shows what the draft model did; see run.sh.

Two devices verify, a worker process drafts. Each prompt is shown once as it is generated, accepted
draft tokens in green on a terminal and in [brackets] elsewhere. Then the prompts are run as a batch
with the draft and without, in turns, and every token is compared. Exit code 1: something differs,
or the draft never helped.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PAIR = "configs/tales"
SEED = 7
REPEATS = 3  # of each batch; the figures are medians
GREEN, OFF = "\x1b[32m", "\x1b[0m"


def fail(message):
    sys.exit(f"tour: {message}")


def run_json(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def choose_devices(tandem):
    """Two SPECs for the target: GPUs first, discrete before integrated; else two halves of the host."""
    devices = run_json([tandem, "devices", "--json"])
    kinds = ["discrete GPU", "integrated GPU", "virtual GPU"]
    gpus = sorted((d for d in devices if d["usable"] and d["kind"] in kinds),
                  key=lambda d: kinds.index(d["kind"]))
    n_cpus = len(os.sched_getaffinity(0))
    host = f"host:{max(1, n_cpus // 2)}"
    specs = ([g["device"] for g in gpus] + [host, host])[:2]
    names = {d["device"]: d["name"] for d in devices}
    for spec in specs:
        print(f"target on {spec}: {names.get(spec.split(':')[0] if spec.startswith('host') else spec)}")
    return specs


class Worker:
    """`tandem draft` in a process of its own, gone when the block ends."""

    def __init__(self, tandem, folder):
        self.endpoint = f"ipc://{folder}/draft.sock"
        self.command = [tandem, "draft", "--model", f"{PAIR}/tales-draft.q8_0.gguf",
                        "--device", "host:1", "--bind", self.endpoint]
        self.socket = f"{folder}/draft.sock"
        self.log = f"{folder}/draft.log"

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                fail("the draft worker did not start:\n" + open(self.log, errors="replace").read())
            time.sleep(0.02)
        print(f"draft on host:1, process {self.process.pid}, at {self.endpoint}")
        return self

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def show(command):
    """Runs it and passes its text on as it comes; returns the text without marks."""
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    shown = b""
    green, off = GREEN.encode(), OFF.encode()
    pending = b""
    while True:
        part = os.read(process.stdout.fileno(), 65536)
        shown += part
        pending += part
        # An escape that has only half arrived waits for its rest.
        cut = pending.rfind(b"\x1b")
        is_whole = cut < 0 or b"m" in pending[cut:] or not part
        ready, pending = (pending, b"") if is_whole else (pending[:cut], pending[cut:])
        if not is_coloured:
            ready = ready.replace(green, b"[").replace(off, b"]")
        sys.stdout.buffer.write(ready)
        sys.stdout.buffer.flush()
        if not part:
            break
    if process.wait():
        fail(f"exit code {process.returncode} of: {' '.join(command)}")
    return shown.replace(green, b"").replace(off, b"")


def batch(command, folder, name):
    """One batch run; returns its result lines by id and the totals of its --stats."""
    out, stats = f"{folder}/{name}.jsonl", f"{folder}/{name}.json"
    code = subprocess.run(command + ["--out", out, "--stats", stats, "--quiet"],
                          stderr=subprocess.PIPE)
    if code.returncode:
        fail(f"exit code {code.returncode} of: {' '.join(command)}\n"
             + code.stderr.decode(errors="replace"))
    with open(out, encoding="utf-8") as lines:
        results = {r["id"]: r for r in map(json.loads, lines)}
    with open(stats, encoding="utf-8") as file:
        return results, json.load(file)["totals"]


def differences(prompts, a, b):
    """What differs between two runs, one line each."""
    found = []
    for p in prompts:
        x, y = a[p["id"]], b[p["id"]]
        for key in ("status", "reason", "text"):
            if x[key] != y[key]:
                found.append(f"{p['id']}: {key} {x[key]!r} with the draft, {y[key]!r} without")
        if x["tokens"] != y["tokens"]:
            n = next((i for i, (s, t) in enumerate(zip(x["tokens"], y["tokens"])) if s != t),
                     min(len(x["tokens"]), len(y["tokens"])))
            found.append(f"{p['id']}: tokens differ from {n} on")
    return found


def print_summary(always, chosen, without, specs, k):
    """Each of the three: totals of some runs."""
    rows = [("tokens/s", "tokens_per_second", "{:.1f}"),
            ("time to first token, ms", "ttft_ms_mean", "{:.1f}"),
            ("accepted / drafted", "acceptance", "{:.2f}"),
            ("tokens per verification", "tokens_per_verification", "{:.2f}")]
    columns = [(f"drafts of {k}", always), ("as it pays", chosen), ("no draft", without)]

    def median(runs, key):
        return statistics.median(r[key] for r in runs)

    def figure(runs, key, form):
        is_drafting = key != "acceptance" or median(runs, "drafted") > 0
        return form.format(median(runs, key)) if is_drafting else "-"

    print(" " * 28 + "".join(f"{name:>14}" for name, _ in columns))
    for label, key, form in rows:
        print(f"  {label:26}" + "".join(f"{figure(runs, key, form):>14}" for _, runs in columns))
    plain = median(without, "tokens_per_second")
    print(f"  {'speed with / without':26}"
          + "".join(f"{median(runs, 'tokens_per_second') / plain:>14.2f}" for _, runs in columns[:2]))
    if all(spec.startswith("host") for spec in specs):
        print("  (draft and target share the host's cores, and the models are tiny: docs/performance.md)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tandem", required=True, help="the program")
    parser.add_argument("--prompts", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--tokens", type=int, default=96, help="of each text (default: 96)")
    parser.add_argument("--draft", type=int, default=3, help="tokens of a draft at most (default: 3)")
    args = parser.parse_args()

    with open(f"{PAIR}/prompts.jsonl", encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    if not 1 <= args.prompts <= len(prompts):
        fail(f"--prompts {args.prompts}; allowed: 1..{len(prompts)}")
    prompts = [{**p, "seed": SEED} for p in prompts[:args.prompts]]

    specs = choose_devices(args.tandem)
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder, Worker(args.tandem, folder) as worker:
        base = [args.tandem, "generate", "--target", f"{PAIR}/tales-target.q8_0.gguf",
                "-n", str(args.tokens), "--temp", "0.7"]
        for spec in specs:
            base += ["--device", spec]
        base.append("--no-measure")  # both shall have layers
        draft = ["--draft-endpoint", worker.endpoint, "--draft-max", str(args.draft)]
        # So that there is something to see: by itself a draft that does not pay is not asked.
        always = ["--draft-endpoint", worker.endpoint, "--draft-fixed", str(args.draft)]

        print("\naccepted draft tokens are", "green" if sys.stdout.isatty() else "in [brackets]")
        shown = []
        for p in prompts:
            print(f"\n-- {p['id']}", flush=True)
            shown.append(show(base + always + ["--prompt", p["prompt"], "--seed", str(SEED), "--mark",
                                              "--quiet"]))

        prompt_file = f"{folder}/prompts.jsonl"
        with open(prompt_file, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(p) + "\n" for p in prompts)
        base += ["--in", prompt_file]
        runs, found = ([], [], []), []
        for i in range(REPEATS):
            results = []
            for j, options in enumerate((always, draft, [])):
                result, totals = batch(base + options, folder, f"run{i}-{j}")
                results.append(result)
                runs[j].append(totals)
            plain = results[2]
            found += differences(prompts, results[0], plain) + differences(prompts, results[1], plain)
        for p, text in zip(prompts, shown):
            if text != (p["prompt"] + plain[p["id"]]["text"] + "\n").encode():
                found.append(f"{p['id']}: the text shown is not the text without the draft")

    print(f"\n-- summary: {len(prompts)} prompts, medians of {REPEATS} runs")
    print_summary(*runs, specs, args.draft)
    if found:
        fail("the draft changed the output, which must not be:\n  " + "\n  ".join(found))
    n_tokens = sum(len(r["tokens"]) for r in plain.values())
    print(f"  identical without the draft: yes, all {n_tokens} tokens of {len(prompts)} prompts")
    if not runs[0][0]["accepted"]:
        fail("no drafted token was accepted: the draft did not take part")


if __name__ == "__main__":
    main()
