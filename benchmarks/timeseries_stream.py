"""The network that reads row by row, on NP (known covariates) and M4 Hourly (414 series), beside baselines.

    python benchmarks/timeseries_stream.py --seeds 0 1 2 --jobs 6

One frozen preset, weights chosen on validation, the test part measured once, and rows written into
results/timeseries-stream.json. NP: 24 hours ahead, whose covariates are known, 10,460 test windows, errors of
values scaled by the training rows. M4 Hourly: one global model, the official test rows, MASE and sMAPE as
M4's averages over series, CRPS as GIFT-Eval's mean weighted quantile loss.
``--set stream.d_model=128`` tries something else: it measures the validation part alone and writes nothing.
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

SETS: dict[str, dict[str, Any]] = {
    "NP": {"lookback": 168, "horizon": 24, "stride": 5},
    "NP-alone": {"card": "NP", "lookback": 168, "horizon": 24, "stride": 5, "alone": True},
    "M4-Hourly": {"lookback": 168, "horizon": 48, "stride": 1},
}
PUBLISHED = {
    "NP/mse": {"TimeXer (published)": 0.236, "iTransformer (published)": 0.265, "DLinear (published)": 0.309},
    "NP/mae": {"TimeXer (published)": 0.268, "iTransformer (published)": 0.300, "DLinear (published)": 0.321},
    "M4-Hourly/mase": {
        "Chronos-2 (published)": 0.788,
        "AutoARIMA (published)": 1.030,
        "PatchTST (published)": 1.400,
        "ES-RNN (published)": 0.893,
    },
    "M4-Hourly/crps": {
        "Chronos-2 (published)": 0.023,
        "AutoARIMA (published)": 0.034,
        "PatchTST (published)": 0.039,
    },
    "M4-Hourly/smape": {"ES-RNN (published)": 9.328, "FFORMA (published)": 11.506},
    "M4-Hourly/msis95": {"ES-RNN (published)": 7.928, "Doornik (published)": 6.139},
}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures one set and seed."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries import config as presets
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.stream.data import make_store
    from mambakit.domains.timeseries.stream.training import train_stream

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    about = SETS[job["set"]]
    data = load_data(about.get("card", job["set"]))
    series = list(data.series)
    if about.get("alone"):
        series = [dataclasses.replace(one, future=None, past=None) for one in series]
    configs: dict[str, Any] = {
        "stream": presets.PRESET_STREAM,
        "loss": dataclasses.replace(presets.PRESET_STREAM_LOSS, validation_stride=about["stride"]),
        "train": dataclasses.replace(presets.PRESET_STREAM_TRAIN, seed=job["seed"], device=device),
    }
    if job["max_time"]:
        configs["train"] = dataclasses.replace(configs["train"], max_time=job["max_time"])
    for name, value in job["changes"].items():
        part, _, field = name.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_stream(
            series,
            data.bounds,
            RunFolder(Path(folder) / "run"),
            lookback=about["lookback"],
            horizon=about["horizon"],
            season_length=data.season_length,
            mixed=False,
            model_config=configs["stream"],
            loss_config=configs["loss"],
            train_config=configs["train"],
        )
    store = make_store(model.tokenizer, series, data.bounds)
    found: dict[str, Any] = {**job, "validation": result.best_score, "steps": result.steps}
    found |= {"trust": round(float(model.trust), 3), "stopped": result.stopped}
    split = "test" if job["test"] else "validation"
    if job["set"] == "M4-Hourly":
        found["errors"] = by_series(model, store, split, device)
    else:
        from mambakit.domains.timeseries.stream.evaluation import evaluate_stream

        whole = evaluate_stream(model, store, split, device=device)
        found["errors"] = {row["forecaster"]: row for row in whole.rows}
        found["n_windows"] = whole.n_windows
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def by_series(model: Any, store: Any, split: str, device: str) -> dict[str, dict[str, float]]:
    """M4's measures: each series' error over its own scale, averaged over the series; CRPS over all rows."""
    import torch

    from mambakit.core.scoring import pinball
    from mambakit.domains.timeseries.calibration import calibrate_stream
    from mambakit.domains.timeseries.conformal import coverages
    from mambakit.domains.timeseries.metrics import central_pairs, mase_scale, msis, smape
    from mambakit.domains.timeseries.stream.data import forecasts

    part = {"validation": 1, "test": 2}[split]
    season = model.config.season_length
    deciles = [i for i, level in enumerate(model.levels) if abs(10 * level - round(10 * level)) < 1e-6]
    levels = [model.levels[i] for i in deciles]
    sums: dict[str, list[float]] = {
        name: [] for name in ("mase", "smape", "msis95", "linear", "snaive", "snaive_smape")
    }
    loss = size = plain = naive_loss = inside80 = inside95 = 0.0
    model, store = model.to(device).eval(), store.to(device)
    calibrated = calibrate_stream(model, store)
    after: dict[float, list[float]] = {80.0: [], 95.0: []}
    pairs = central_pairs(model.levels)
    for found in forecasts(model, store, part):
        for row, which in enumerate(found.which.tolist()):
            whole = found.target[row].isfinite().all(-1)
            if not bool(whole.any()):
                continue
            offset, unit = float(store.offset[which]), float(store.unit[which])
            first, end = int(store.first[which]), int(store.bounds[which, part - 1])
            history = store.values[first : first + end].double().cpu() * unit + offset
            scale = mase_scale(history[:, None], season)[0]
            quantiles, linear, target = (
                one[row][whole].double().cpu() * unit + offset
                for one in (found.quantiles, found.linear, found.target)
            )
            # the absolute error asks for the median, the squared one for the mean
            median = quantiles[..., model.middle]
            again = history[-season:][torch.arange(target.shape[-1]) % season][None]
            sums["mase"].append(float((median - target).abs().mean() / scale))
            sums["linear"].append(float((linear - target).abs().mean() / scale))
            sums["snaive"].append(float((again - target).abs().mean() / scale))
            sums["smape"].append(float(smape(median, target)))
            sums["snaive_smape"].append(float(smape(again, target)))
            low, high = (quantiles[..., i] for i in pairs[95.0])
            sums["msis95"].append(float(msis(low, high, target, scale)))
            inside95 += float(((low <= target) & (target <= high)).double().mean())
            low, high = (quantiles[..., i] for i in pairs[80.0])
            inside80 += float(((low <= target) & (target <= high)).double().mean())
            bare = (one[row][whole].double().cpu().numpy() for one in (found.quantiles, found.target))
            for level, share in coverages(*bare, list(after), calibrated).items():
                after[level].append(share)
            loss += float(2 * pinball(quantiles[..., deciles], target, levels).mean(-1).sum())
            plain += float((linear - target).abs().sum())
            naive_loss += float((again - target).abs().sum())
            size += float(target.abs().sum())
    mean = {name: statistics.mean(values) for name, values in sums.items()}
    n = len(sums["mase"])
    return {
        "mambakit": {
            "mase": mean["mase"], "smape": mean["smape"], "msis95": mean["msis95"], "crps": loss / size,
            "coverage80": 100 * inside80 / n, "coverage95": 100 * inside95 / n,
            "coverage80-calibrated": 100 * statistics.mean(after[80.0]),
            "coverage95-calibrated": 100 * statistics.mean(after[95.0]), "series": n,
        },
        "linear": {"mase": mean["linear"], "crps": plain / size},
        "seasonal naive": {"mase": mean["snaive"], "smape": mean["snaive_smape"], "crps": naive_loss / size},
    }  # fmt: skip


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows: means over the seeds."""
    from rows import row

    made = []
    units = {
        "mse": "on scaled values",
        "mae": "on scaled values",
        "smape": "%",
        "coverage80": "%",
        "coverage95": "%",
        "coverage80-calibrated": "%",
        "coverage95-calibrated": "%",
    }
    names = {"NP": "168-24", "NP-alone": "168-24-no-covariates"}
    for name in dict.fromkeys(one["set"] for one in found):
        runs = [one for one in found if one["set"] == name]
        metrics = (
            ("mse", "mae")
            if name.startswith("NP")
            else tuple(key for key in runs[0]["errors"]["mambakit"] if key != "series")
        )
        for metric in metrics:
            ours = [float(one["errors"]["mambakit"][metric]) for one in runs]
            peers: dict[str, float | None] = {
                peer: round(float(row[metric]), 4)
                for peer, row in runs[0]["errors"].items()
                if peer != "mambakit" and metric in row
            }
            card = name.partition("-alone")[0]
            path = f"timeseries/{card}/{metric}" + (f"/{names[name]}" if name in names else "")
            if name != "NP-alone":
                peers |= PUBLISHED.get(f"{card}/{metric}", {})
            made.append(
                row(
                    path,
                    round(statistics.mean(ours), 4),
                    units.get(metric, "ratio"),
                    peers=peers,
                    spread=round(statistics.pstdev(ours), 4),
                    seeds=sorted(one["seed"] for one in runs),
                    command=command,
                )
            )
    return made


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line of a run that ended."""
    print(one.get("error") or json.dumps({**one, "changes": one["changes"] or None}), flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--max-time", default=None, help="stop each training after so long")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="measure no test window")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (c.partition("=") for c in arguments.changes)}
    test = not (arguments.validation_only or changes)
    jobs = [
        {"set": name, "seed": seed, "changes": changes, "test": test, "max_time": arguments.max_time}
        for name in sorted(arguments.sets)
        for seed in arguments.seeds
    ]
    from processes import run_all

    found = run_all(run_job, jobs, arguments.jobs, tell=tell)
    failed = [one for one in found if "error" in one] or len(found) < len(jobs)
    if test and found:
        from rows import write_rows

        seeds = " ".join(map(str, arguments.seeds))
        command = f"python benchmarks/timeseries_stream.py --seeds {seeds} --jobs {arguments.jobs}"
        made = rows_of([one for one in found if "error" not in one], command)
        print(f"{len(made)} rows written to {write_rows('timeseries-stream', made)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
