"""The frozen preset on the long-term forecasting sets, beside its baselines, in one run.

    python benchmarks/timeseries_ltsf.py --seeds 0 1 2 --jobs 5

Trains a model for every set, horizon and seed with the app's own code (lookback 96; weights chosen by
validation error), measures every test window once, and writes rows into results/timeseries.json
and results/timeseries-horizons.json.
``--set model.d_series=256`` changes the preset for a trial; such runs, and those with ``--validation-only``,
measure no test window and write no rows. ``--gpus 0 1 --jobs 10`` spreads ten processes over two GPUs.

    python benchmarks/timeseries_ltsf.py --lookbacks 96 192 336 720 --horizons 96 --seeds 0 1 --jobs 8

asks what a longer lookback brings, and writes results/timeseries-lookback.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOOKBACK = 96
# Best published forecasters at lookback 96 with a full test set: mean of four horizons, MSE/MAE.
PUBLISHED = {
    "ETTh1": {"CMamba": (0.433, 0.425), "S-Mamba": (0.455, 0.450), "PatchTST": (0.469, 0.454)},
    "ETTm1": {"CMamba": (0.376, 0.379), "S-Mamba": (0.398, 0.405), "PatchTST": (0.387, 0.400)},
    "Weather": {"CMamba": (0.237, 0.259), "S-Mamba": (0.251, 0.276), "PatchTST": (0.259, 0.281)},
    "Exchange": {"S-Mamba": (0.367, 0.408), "PatchTST": (0.367, 0.404)},
}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures one set, horizon and seed."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries.config import PRESET_TRAIN, LossConfig, ModelConfig
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.evaluation import evaluate
    from mambakit.domains.timeseries.training import make_values, train_forecaster

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    configs: dict[str, Any] = {"model": ModelConfig(), "loss": LossConfig(), "train": PRESET_TRAIN}
    for name, value in job["changes"].items():
        part, _, field = name.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    train_config = dataclasses.replace(configs["train"], seed=job["seed"], device=device)
    data = load_data(job["set"])
    horizon = job["horizon"]
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_forecaster(
            data,
            RunFolder(Path(folder) / "run"),
            lookback=job["lookback"],
            horizon=horizon,
            model_config=configs["model"],
            loss_config=configs["loss"],
            train_config=train_config,
        )
    trained = time.monotonic() - began
    found: dict[str, Any] = {**job, "validation": result.best_score, "epochs": result.epochs}
    found["trust"] = float(model.trust)
    split = "test" if job["test"] else "validation"
    values = make_values(data, model.tokenizer)
    sizes = {"lookback": job["lookback"], "horizon": horizon}
    whole = evaluate(model, data, split, values=values, device=device, **sizes)
    found["errors"] = {str(row["forecaster"]): row for row in whole.rows}
    found["n_windows"] = whole.n_windows
    found["seconds"] = [round(trained, 1), round(time.monotonic() - began, 1)]
    return found


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line on stderr of a run that ended."""
    said = one.get("error") or f"validation {one['validation']:.4f} trust {one['trust']:.2f} {one['seconds']}"
    print(
        f"{seconds:6.1f} s  {one['set']:<8} L={one['lookback']:<3} H={one['horizon']:<3} "
        f"seed {one['seed']} {one['changes'] or ''} {said}",
        file=sys.stderr,
        flush=True,
    )


def rows_of(
    found: list[dict[str, Any]], horizons: list[int], command: str, lookback: int, file: str | None
) -> list[dict[str, Any]]:
    """Result rows of one lookback: each set and horizon, and the mean over the horizons.

    They are for ``file``; else the means are for the README's file and the others for one beside it.
    """
    from rows import row

    single, mean = (file, file) if file else ("timeseries-horizons", "timeseries")

    made = []
    for name in dict.fromkeys(one["set"] for one in found):
        done = {(one["horizon"], one["seed"]): one["errors"] for one in found if one["set"] == name}
        seeds = sorted({seed for _, seed in done})
        whole = [seed for seed in seeds if all((h, seed) in done for h in horizons)]
        for place, metric in enumerate(("mse", "mae")):

            def values(
                forecaster: str, seed: int, hs: list[int], metric: str = metric, done: Any = done
            ) -> float:
                return statistics.mean(done[h, seed][forecaster][metric] for h in hs)

            cells = [(f"L{lookback}-H{h}", [h], [s for s in seeds if (h, s) in done]) for h in horizons]
            if len(horizons) > 1:
                cells.append((f"L{lookback}-mean{len(horizons)}", horizons, whole))
            for label, hs, those in cells:
                if not those:
                    continue
                ours = [values("mambakit", seed, hs) for seed in those]
                peers: dict[str, float | None] = {
                    peer: round(values(peer, those[0], hs), 4)
                    for peer in ("linear", "seasonal naive", "naive")
                }
                if len(hs) == 4:
                    published = PUBLISHED.get(name, {})
                    peers |= {f"{peer} (published)": pair[place] for peer, pair in published.items()}
                made.append(
                    row(
                        f"{mean if len(hs) > 1 else single}/{name}/{metric}/{label}",
                        round(statistics.mean(ours), 4),
                        "on scaled values",
                        peers=peers,
                        spread=round(statistics.pstdev(ours), 4),
                        seeds=those,
                        command=command,
                    )
                )
    return made


def main() -> int:
    """The command line."""
    from processes import add_flags, run_all

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["Weather", "ETTm1", "ETTh1", "Exchange"])
    parser.add_argument("--horizons", nargs="+", type=int, default=[96, 192, 336, 720])
    parser.add_argument("--lookbacks", nargs="+", type=int, default=[LOOKBACK])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_flags(parser)
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="measure no test window")
    parser.add_argument("--raw", type=Path, help="also write every run's result here")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (c.partition("=") for c in arguments.changes)}
    test = not (arguments.validation_only or changes)

    from mambakit.core.data import fetch, load_card

    for name in arguments.sets:
        fetch(load_card(name))
    jobs = [
        {
            "set": name,
            "lookback": lookback,
            "horizon": horizon,
            "seed": seed,
            "changes": changes,
            "test": test,
        }
        for seed in arguments.seeds
        for name in arguments.sets
        for lookback in sorted(arguments.lookbacks, reverse=True)
        for horizon in sorted(arguments.horizons, reverse=True)
    ]
    limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
    found = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    failed = [one for one in found if "error" in one]
    n_done = len(found)
    found = [one for one in found if "error" not in one]
    if arguments.raw:
        arguments.raw.write_text(json.dumps(found, indent=1))
    for name in arguments.sets:
        scores = [one["validation"] for one in found if one["set"] == name]
        if scores:
            print(f"{name}: mean validation MSE of {len(scores)} runs {statistics.mean(scores):.4f}")
    if test and found:
        from rows import write_rows

        seeds = " ".join(str(seed) for seed in arguments.seeds)
        command = f"python benchmarks/timeseries_ltsf.py --seeds {seeds} --jobs {arguments.jobs}"
        command += f" --gpus {' '.join(arguments.gpus)}" if arguments.gpus else ""
        study = "timeseries-lookback" if arguments.lookbacks != [LOOKBACK] else None
        if study:
            lookbacks, horizons = (
                " ".join(map(str, one)) for one in (arguments.lookbacks, arguments.horizons)
            )
            command += f" --lookbacks {lookbacks} --horizons {horizons}"
        made = [
            one
            for lookback in arguments.lookbacks
            for one in rows_of(
                [run for run in found if run["lookback"] == lookback],
                arguments.horizons,
                command,
                lookback,
                study,
            )
        ]
        for name in (study,) if study else ("timeseries", "timeseries-horizons"):
            chosen = [one for one in made if one["what"].startswith(f"{name}/")]
            print(f"{len(chosen)} rows written to {write_rows(name, chosen)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    if n_done < len(jobs):
        print(f"out of time: {len(jobs) - n_done} runs are not done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
