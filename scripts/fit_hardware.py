#!/usr/bin/env python3
"""Fits the efficiencies of configs/hardware to the single-device rows of published.json (standard library only).

    fit_hardware.py [FOLDER]

For each hardware file: the share of the memory's bandwidth, of the arithmetic, and the microseconds of a
layer of each kind that come closest (least squares of relative errors) to the rows with "fit": true. A
time is bytes / (bandwidth * share) + 2 * parameters * (rows - 1) / (arithmetic * share) + layers *
overhead (one row's arithmetic hides behind the reading of its weights): what docs/planning.md describes and `tandem plan --hardware` computes. Rows without "fit" are not looked
at. Prints what goes into the files.
"""
import json
import os
import sys

CHUNK = 512  # rows of a prefill pass of the programs that were measured


def read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def touched(m, n):
    """Experts that n rows ask together, where each asks its own."""
    return m["experts"] * (1 - (1 - m["experts_used"] / m["experts"]) ** n) if m["experts"] else 0


def us_of(m, device, test, n, x):
    """Microseconds of a pass: x = (bandwidth share, compute share, overhead of a layer)."""
    rows = CHUNK if test == "prefill" else n
    gb = m["other_gb"] + (0 if test == "prefill" else m["output_gb"])
    if m["experts"]:
        gb += m["experts_gb"] * touched(m, rows) / m["experts"]
    return (gb / (device["bandwidth_gb_s"] * x[0]) * 1e6 +
            2e-3 * m["active_gparams"] * (rows - 1) / (device["tflops"] * x[1]) * 1e6 +
            m["layers"] * x[2])


def value_of(m, device, row, x):
    rows = CHUNK if row["test"] == "prefill" else row["sequences"]
    return rows / us_of(m, device, row["test"], rows, x) * 1e6


def error_of(rows, models, device, shares):
    total = 0
    for row in rows:
        m = models[row["model"]]
        x = (shares["bandwidth_share"], shares["compute_share"], shares["layer_us"][m["kind"]])
        total += (value_of(m, device, row, x) / row["value"] - 1) ** 2
    return total


def fit(rows, models, device, shares):
    """Coordinate descent with steps that shrink; few numbers, a smooth sum."""
    kinds = sorted({models[r["model"]]["kind"] for r in rows if r["test"] == "decode"})
    keys = ["bandwidth_share"] + (["compute_share"] if any(r["test"] == "prefill" for r in rows) else [])
    places = [(shares, key) for key in keys] + [(shares["layer_us"], kind) for kind in kinds]
    n_decode = sum(r["test"] == "decode" for r in rows)
    if n_decode < 1 + len(kinds):  # one row cannot tell bandwidth from overhead: keep the former
        places = [p for p in places if p[1] != "bandwidth_share"]
        if device["name"].startswith("RTX"):  # ... or the latter, where little is left to it
            places = [(shares, "bandwidth_share")]
    step = 0.5
    while step > 1e-5:
        is_better = False
        for where, key in places:
            for factor in (1 + step, 1 / (1 + step)):
                before, old = error_of(rows, models, device, shares), where[key]
                where[key] = old * factor
                if key.endswith("share"):
                    where[key] = min(where[key], 1.0)
                if error_of(rows, models, device, shares) < before:
                    is_better = True
                else:
                    where[key] = old
        step = step if is_better else step / 2
    return shares


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "configs/hardware")
    models = {m["name"]: m for m in read(folder, "models.json")["models"]}
    by_file = {}
    for row in read(folder, "published.json")["rows"]:
        if row["fit"]:
            by_file.setdefault(row["hardware"], []).append(row)
    for name, rows in by_file.items():
        hardware = read(folder, name + ".json")
        used = [i for i, n in enumerate(rows[0]["layers"]) if n] or [0]
        device = hardware["devices"][used[0]]
        shares = {"bandwidth_share": device["bandwidth_share"], "compute_share": device["compute_share"],
                  "layer_us": dict(device["layer_us"])}
        shares = fit(rows, models, device, shares)
        print("%s, %s: bandwidth_share %.3f, compute_share %.3f, layer_us %s" %
              (name, device["name"], shares["bandwidth_share"], shares["compute_share"],
               {k: round(v, 1) for k, v in shares["layer_us"].items()}))
        for row in rows:
            m = models[row["model"]]
            x = (shares["bandwidth_share"], shares["compute_share"], shares["layer_us"][m["kind"]])
            value = value_of(m, device, row, x)
            print("    %-28s %-8s %8.2f  published %8.2f  %+5.1f %%" %
                  (row["model"], row["test"], value, row["value"], 100 * (value / row["value"] - 1)))


if __name__ == "__main__":
    main()
