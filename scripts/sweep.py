#!/usr/bin/env python3
"""Runs tandem over every combination of settings and writes the figures to CSV and JSON.

    sweep.sh generate --out FILE.csv [--config BASE.json] [--repeat N] KEY=V1,V2 .. [-- ARGS]
    sweep.sh bench    --out FILE.csv [--repeat N] FLAG=V1,V2 .. [-- ARGS]

    sweep.sh generate --out temps.csv --config configs/tales.json --repeat 3 \\
        draft.max=2,4,8 sampling.temp=0,0.7 -- --draft-device host:1
    sweep.sh bench --out kv.csv model=a.gguf,b.gguf kv-k=f16,q8_0 depth=0,4096 -- --device host:2

generate: KEY is a key of a configuration file (section.key), taken over those of --config. bench:
FLAG is an option without its dashes. A value that reads as JSON is that, else text; for values with
commas write the list in JSON: target.devices:='["host:1", ["host:1", "host:1"]]'. ARGS go to every
run. Repeats are the outer loop, so that what else the machine does falls on all settings alike.

Each finished run is a line of FILE.csv.runs. A sweep that is started again keeps them and goes on
with what is missing, what failed, and what has other settings now; a torn last line is cut off.
FILE.csv and FILE.json (the same rows) are written from it at the end, or when it is interrupted.
A run is known by its settings, ARGS and the base configuration, not by what their files hold.

Exit code 0; 1 when a run failed; 2 usage; 65 when FILE.csv.runs is none of ours; 75 when another
sweep uses it; 130 interrupted. Standard library only."""
import argparse
import csv
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile

FIGURES = ("ok", "errors", "tokens", "prompt_tokens", "seconds", "tokens_per_second", "rounds",
           "drafted", "accepted", "acceptance", "tokens_per_verification", "ttft_ms_mean")
COMBINATIONS_MAX = 100000


def stop(code, text):
    print("sweep: " + text, file=sys.stderr)
    sys.exit(code)


def read_value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_settings(words, is_bench):
    """[(key, [values])] of KEY=V1,V2 and KEY:=JSON-LIST."""
    settings = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip(":"):
            stop(2, "%r is no KEY=V1,V2" % word)
        if key.endswith(":"):
            key, values = key[:-1], read_value(text)
            if not isinstance(values, list) or not values:
                stop(2, "%s: %r is no JSON list" % (key, text))
        else:
            values = [v if is_bench else read_value(v) for v in text.split(",")]
        if not is_bench and key.count(".") != 1:
            stop(2, "%s: a key of a configuration is section.key, as in draft.max" % key)
        if key in ("run.out", "run.stats", "format", "json") or key in dict(settings):
            stop(2, "%s: given twice, or set by the sweep itself" % key)
        settings.append((key, values))
    return settings


def merge(base, settings):
    """The configuration with section.key set over it."""
    merged = {section: dict(keys) for section, keys in base.items()}
    for name, value in settings.items():
        section, key = name.split(".")
        merged.setdefault(section, {})[key] = value
    return merged


def run(command):
    r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                       stdin=subprocess.DEVNULL)
    if r.returncode in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    lines = r.stderr.strip().splitlines()
    return r, None if r.returncode == 0 else "exit code %d: %s" % (r.returncode,
                                                                   lines[-1] if lines else "")


def run_generate(a, settings):
    with tempfile.TemporaryDirectory() as directory:
        config, stats = os.path.join(directory, "config.json"), os.path.join(directory, "stats.json")
        with open(config, "w") as f:
            json.dump(merge(a.base, settings), f)
        r, error = run([a.tandem, "generate", "--config", config, "--out",
                        os.path.join(directory, "out.jsonl"), "--stats", stats, "--quiet",
                        *a.args])
        if error:
            return [], error
        with open(stats) as f:
            s = json.load(f)
        figures = {k: s["totals"].get(k) for k in FIGURES}
        joules = [e["joules_per_token"] for e in s.get("energy") or []]
        figures["joules_per_token"] = sum(joules) if joules and None not in joules else None
        return [figures], None


def run_bench(a, settings):
    flags = []
    for key, value in settings.items():
        flags += ["--" + key, value if isinstance(value, str) else json.dumps(value)]
    r, error = run([a.tandem, "bench", *flags, *a.args, "--format", "jsonl"])
    if error:
        return [], error
    return [{k: v for k, v in json.loads(line).items() if not isinstance(v, (list, dict))}
            for line in r.stdout.splitlines()], None


def open_runs(path):
    """The file of runs, locked, without a torn last line; and what it holds, {id: run}."""
    f = open(path, "a+b")
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(75, "%s is in use by another sweep" % path)
    f.seek(0)
    known, good_bytes = {}, 0
    lines = f.read().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            one = json.loads(line)
            known[one["id"]] = {k: one[k] for k in ("settings", "repeat", "rows", "error")}
        except (ValueError, KeyError, TypeError):
            # A line cut short is the start of one of ours; anything else is somebody's file.
            if number < len(lines) or not b'{"id": '.startswith(line[:7]):
                stop(65, "%s, line %d is no run of a sweep" % (path, number))
            print("sweep: %s: a torn last line was cut off" % path, file=sys.stderr)
            break
        good_bytes += len(line)
    f.truncate(good_bytes)
    return f, known


def write_results(path, runs):
    rows = []
    for one in runs:
        status = "error" if one["error"] else "ok"
        for figures in one["rows"] or [{}]:
            row = dict(one["settings"], repeat=one["repeat"], status=status, error=one["error"])
            row.update((k if k not in row else "result." + k, v) for k, v in figures.items())
            rows.append(row)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    for name, write in ((path, lambda f: write_csv(f, columns, rows)),
                        (os.path.splitext(path)[0] + ".json", lambda f: json.dump(rows, f, indent=1))):
        with open(name + ".part", "w", newline="") as f:
            write(f)
        os.replace(name + ".part", name)


def write_csv(f, columns, rows):
    writer = csv.DictWriter(f, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict, bool)) else v
                         for k, v in row.items()})


def sweep(a, settings):
    keys = [key for key, _ in settings]
    combinations = [dict(zip(keys, values))
                    for values in itertools.product(*(values for _, values in settings))]
    f, known = open_runs(a.out + ".runs")
    plan = {}  # id: settings and repeat
    for repeat in range(a.repeat):
        for one in combinations:
            what = json.dumps([a.mode, one, a.base, a.args, repeat], sort_keys=True)
            plan[hashlib.sha256(what.encode()).hexdigest()[:16]] = (one, repeat)
    missing = [name for name in plan if name not in known or known[name]["error"]]
    n_done, code = 0, 0
    try:
        for name in missing:
            one, repeat = plan[name]
            rows, error = (run_generate if a.mode == "generate" else run_bench)(a, one)
            known[name] = {"settings": one, "repeat": repeat, "rows": rows, "error": error}
            f.write((json.dumps({"id": name, **known[name]}) + "\n").encode())
            f.flush()
            os.fsync(f.fileno())
            n_done += 1
            print("sweep: run %d of %d: %s%s" % (n_done, len(missing), json.dumps(one),
                                                 ": " + error if error else ""), file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    runs = [known[name] for name in plan if name in known]
    n_failed = sum(one["error"] is not None for one in runs)
    write_results(a.out, runs)
    print("sweep: %d runs: %d kept, %d failed%s" %
          (len(runs), len(plan) - len(missing), n_failed, "; interrupted" if code else ""),
          file=sys.stderr)
    return code or (1 if n_failed else 0)


def main(argv):
    p = argparse.ArgumentParser(prog="sweep.sh", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mode", choices=("generate", "bench"))
    p.add_argument("--out", required=True, metavar="FILE.csv")
    p.add_argument("--config", metavar="BASE.json")
    p.add_argument("--repeat", type=int, default=1)
    p.add_argument("--tandem", default=os.environ.get("TANDEM", "build/release/tandem"))
    p.add_argument("settings", nargs="+", metavar="KEY=V1,V2")
    at = argv.index("--") if "--" in argv else len(argv)
    a = p.parse_args(argv[:at])
    a.args = argv[at + 1:]
    a.base = {}
    if not 1 <= a.repeat <= 10000:
        p.error("--repeat is %d; 1..10000 are allowed" % a.repeat)
    if os.path.splitext(a.out)[1] == ".json":
        p.error("--out %s: the JSON goes beside it; name the CSV file" % a.out)
    if a.config:
        try:
            with open(a.config) as f:
                a.base = json.load(f)
            if not all(isinstance(keys, dict) for keys in a.base.values()):
                raise ValueError("a section is no object")
        except (OSError, ValueError, AttributeError) as e:
            stop(65, "%s: %s" % (a.config, e))
    settings = read_settings(a.settings, a.mode == "bench")
    n = 1
    for _, values in settings:
        n *= len(values)
    if n > COMBINATIONS_MAX:
        stop(2, "%d combinations; %d are allowed" % (n, COMBINATIONS_MAX))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(sweep(a, settings))


if __name__ == "__main__":
    main(sys.argv[1:])
