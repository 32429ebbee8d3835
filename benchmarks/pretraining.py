"""Byte-level language models pretrained on a folder of text: Mamba-1, -2, -3, a hybrid and attention.

    python benchmarks/pretraining.py --text FOLDER --size small --gpus 0 1 2 3 --keep runs/pretraining
    python benchmarks/pretraining.py --size tiny --keep runs/tiny             # a CPU, installed packages

All networks have as many parameters, read the same windows in the same order with the same options, and are
validated on the same files, none of which is trained on. Without ``--text`` it is what documentation the
installed packages bring (.rst, .md, .txt). The folder of ``--keep`` gets curves.csv, curves.png (loss
against bytes and against seconds of training) and table.md; every run lies there with its config, and one
that was killed, or stopped by ``--seconds``, goes on with the next call. ``--set size.lr=2e-3`` changes the
size for a trial. Rows ``core/pretraining/SIZE/...`` go into results/pretraining.json: bits per byte at equal
bytes, bits per byte when the fastest network was done (equal seconds), and bytes a second; not of trials.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
import sysconfig
from pathlib import Path
from typing import Any

from pretraining_runs import NETWORKS, SIZES, run_job
from processes import run_all
from trials import changed, publish, read_changes

_COLORS = dict(zip(NETWORKS, ("#8ab4d8", "#1668b8", "#c2571a", "#8a4fb0", "#4a8f3c"), strict=True))
MEASURES = {
    "bits-per-byte": "bits per byte",
    "bits-per-byte-at-equal-seconds": "bits per byte",
    "bytes-per-second": "bytes/s",
}


def figures(found: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """By measure and network, a value for each seed that every network was run with."""
    networks = [name for name in NETWORKS if any(one["network"] == name for one in found)]
    by = {(one["network"], one["seed"]): one for one in found}
    made: dict[str, dict[str, list[float]]] = {name: {one: [] for one in networks} for name in MEASURES}
    for seed in whole_seeds(found):
        runs = {name: by[name, seed] for name in networks}
        shortest = min(one["curve"][-1]["seconds"] for one in runs.values())
        for name, one in runs.items():
            made["bits-per-byte"][name].append(one["curve"][-1]["bits_per_byte"])
            made["bits-per-byte-at-equal-seconds"][name].append(at_seconds(one["curve"], shortest))
            made["bytes-per-second"][name].append(one["bytes_per_second"])
    return made


def whole_seeds(found: list[dict[str, Any]]) -> list[int]:
    """Seeds that every network was run with."""
    networks = {one["network"] for one in found}
    seeds = sorted({one["seed"] for one in found})
    return [s for s in seeds if {one["network"] for one in found if one["seed"] == s} == networks]


def at_seconds(curve: list[dict[str, float]], seconds: float) -> float:
    """Bits per byte at the last validation within so many seconds; of the first, where none is."""
    within = [one for one in curve if one["seconds"] <= seconds] or curve[:1]
    return within[-1]["bits_per_byte"]


def rows_of(found: list[dict[str, Any]], size: str, command: str) -> list[dict[str, Any]]:
    """Result rows, one a measure and network, the other networks beside it."""
    from rows import row

    made, seeds = [], whole_seeds(found)
    for measure, by_network in figures(found).items():
        digits = 0 if measure == "bytes-per-second" else 4
        means = {name: round(statistics.mean(of), digits) for name, of in by_network.items() if of}
        for name, of in by_network.items():
            if not of:
                continue
            what, spread = f"core/pretraining/{size}/{measure}/{name}", None
            if len(of) > 1:
                spread = round(statistics.stdev(of), digits)
            one = row(what, means[name], MEASURES[measure], spread=spread, seeds=seeds, command=command)
            one["peers"] = {peer: value for peer, value in means.items() if peer != name}
            made.append({**one, "machine": found[0]["machine"], "date": found[0]["date"]})
    return made


def write_out(found: list[dict[str, Any]], folder: Path) -> None:
    """The curves as a table and a picture, and the figures as a table in Markdown."""
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["network", "seed", "tokens", "seconds", "bits_per_byte"])
        writer.writeheader()
        for one in found:
            writer.writerows({"network": one["network"], "seed": one["seed"], **at} for at in one["curve"])
    _draw(found, folder / "curves.png")
    made, corpus = figures(found), found[0]["corpus"]
    head = ["network", "parameters", *MEASURES]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for name in made["bits-per-byte"]:
        size = next(one["parameters"] for one in found if one["network"] == name)
        values = [made[one][name] for one in MEASURES]
        if values[0]:
            shown = [f"{statistics.mean(of):.4g}" for of in values]
            lines.append("| " + " | ".join([name, f"{size:,}", *shown]) + " |")
    sizes = f"{corpus['train']:,} bytes to train on, {corpus['validation']:,} to validate"
    said = f"{corpus['files']} files: {sizes}."
    (folder / "table.md").write_text("\n".join([*lines, "", said, ""]), encoding="utf-8")
    print("\n".join([*lines, "", said]))


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    from mambakit.core.training.curves import tidy

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, over, label in zip(
        axes, ("tokens", "seconds"), ("bytes read", "seconds of training"), strict=True
    ):
        for name, color in _COLORS.items():
            for i, one in enumerate(run for run in found if run["network"] == name):
                xs, ys = zip(*((at[over], at["bits_per_byte"]) for at in one["curve"]), strict=True)
                axis.plot(xs, ys, color=color, linewidth=1.2, alpha=0.85, label=None if i else name)
        axis.set_xlabel(label, fontsize=9)
        tidy(axis)
    axes[0].set_ylabel("bits per byte in validation", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line on stderr of a run that ended."""
    said = one.get("error") or f"{one['curve'][-1]} {one['bytes_per_second']:.0f} bytes/s"
    print(f"{seconds:6.1f} s  {one['network']} seed {one['seed']} {said}", file=sys.stderr, flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, help="a folder; by default that of the installed packages")
    parser.add_argument("--most", type=float, help="bytes of text that are read at most")
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--points", type=int, default=20, help="validations, evenly spread")
    parser.add_argument("--keep", type=Path, default=Path("runs/pretraining"), help="a folder for the runs")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="size.FIELD=JSON")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--gpus", nargs="+", default=[], help="numbers of the GPUs that they take in turn")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="stop after so long; the next call goes on"
    )
    arguments = parser.parse_args()
    size = changed({"size": SIZES[arguments.size]}, read_changes(arguments.changes))["size"]
    size = dataclasses.replace(size, tokens=int(size.tokens))
    text = arguments.text or Path(sysconfig.get_paths()["purelib"])
    jobs = [
        {
            "network": network,
            "seed": seed,
            "size": dataclasses.asdict(size),
            "text": str(text.absolute()),
            "most": None if arguments.most is None else int(arguments.most),
            "points": arguments.points,
            "keep": str(arguments.keep),
        }
        for seed in arguments.seeds
        for network in arguments.networks
    ]
    n = max(arguments.jobs, len(arguments.gpus))
    limits = {"seconds": arguments.seconds, "stop_after": arguments.seconds}
    found = run_all(run_job, jobs, n, tell=tell, gpus=arguments.gpus, **limits)
    done = [one for one in found if "error" not in one]
    if done:
        (arguments.keep / "runs.json").write_text(json.dumps(done, indent=1))
        write_out(done, arguments.keep)
        if not arguments.changes and len(done) == len(jobs):
            from rows import command_line

            publish("pretraining", rows_of(done, arguments.size, command_line()))
    if len(done) < len(jobs):
        print(f"{len(jobs) - len(done)} of {len(jobs)} runs failed or are not done", file=sys.stderr)
    return 0 if len(done) == len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
