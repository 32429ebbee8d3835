"""Filling values hidden at random, beside what fills them without learning, in one run.

    python benchmarks/timeseries_imputation.py --device cuda
    python benchmarks/timeseries_imputation.py --sets ETTh1 --max-time 10m --validation-only

The protocol of the Time-Series-Library (github.com/thuml/Time-Series-Library, scripts/imputation): windows
of 96 rows of the test part and the 96 rows before it, values scaled by the training rows, single points
hidden at random in each series, and the error of the hidden points alone. Here one network serves all shares
of hidden points; its weights are chosen by validation error. Windows begin every 4 rows (ETTm1: 16).

Beside it: the linear estimate that the network begins at; the straight line between the observed neighbours
of the same series; the last value; the value one season before or after (which a window of one season lacks:
then the line); and the conditional mean of a normal distribution with mean and covariance of all training
windows, all series and rows of a window at once.

Writes results/timeseries-imputation.json. Runs with ``--set`` or ``--validation-only`` write no rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LENGTH = 96
SHARES = (0.125, 0.25, 0.375, 0.5)
STRIDES = {"ETTh1": 4, "ETTm1": 16}
Fill = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def scaled_windows(name: str, part: int, stride: int) -> tuple[Any, NDArray[np.float64]]:
    """The data set, and windows ``(n, 96, n_series)`` of a split, scaled by the training rows."""
    from mambakit.domains.timeseries.data import load_data

    data = load_data(name)
    group = data.groups[0]
    train = group.values[: group.bounds[0]]
    values = (group.values - train.mean(0)) / train.std(0)
    begin, end = (0, *group.bounds)[part : part + 2]
    begin = max(0, begin - LENGTH)
    starts = np.arange(begin, end - LENGTH + 1, stride)
    return data, values[starts[:, None] + np.arange(LENGTH)]


def hide(windows: NDArray[np.float64], share: float, seed: int) -> NDArray[np.float64]:
    """The windows with NaN at a share of their points."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    return np.where(rng.random(windows.shape) < share, np.nan, windows)


def line(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """On the straight line between the neighbours."""
    made, at = windows.copy(), np.arange(LENGTH)
    for window in made:
        for column in window.T:
            gap = np.isnan(column)
            column[gap] = np.interp(at[gap], at[~gap], column[~gap])
    return made


def last_value(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value before; at the beginning the one after."""
    there = np.isfinite(windows)
    at = np.arange(LENGTH)[None, :, None]
    before = np.maximum.accumulate(np.where(there, at, -1), axis=1)
    after = np.minimum.accumulate(np.where(there, at, LENGTH)[:, ::-1], axis=1)[:, ::-1]
    return np.take_along_axis(windows, np.where(before >= 0, before, after.clip(max=LENGTH - 1)), axis=1)


def seasonal(season: int) -> Fill:
    """The nearest observed value a whole number of seasons away; else the line."""

    def fill(windows: NDArray[np.float64]) -> NDArray[np.float64]:
        made = np.full_like(windows, np.nan)
        for k in range(1, (LENGTH - 1) // season + 1):
            for shift in (k * season, -k * season):
                moved = np.full_like(windows, np.nan)
                if shift > 0:
                    moved[:, shift:] = windows[:, :-shift]
                else:
                    moved[:, :shift] = windows[:, -shift:]
                made = np.where(np.isnan(made), moved, made)
        return np.where(np.isnan(made), line(windows), made)

    return fill


def normal(train: NDArray[np.float64]) -> Fill:
    """The conditional mean of a normal distribution fitted to windows; a little ridge."""
    flat = train.reshape(len(train), -1)
    mean = flat.mean(0)
    covariance = np.cov(flat.T) + 1e-3 * np.eye(flat.shape[1])

    def fill(windows: NDArray[np.float64]) -> NDArray[np.float64]:
        made = windows.reshape(len(windows), -1).copy()
        for window in made:
            gap = np.isnan(window)
            own = covariance[np.ix_(~gap, ~gap)]
            window[gap] = mean[gap] + covariance[np.ix_(gap, ~gap)] @ np.linalg.solve(
                own, window[~gap] - mean[~gap]
            )
        return made.reshape(windows.shape)

    return fill


def trained(name: str, data: Any, seed: int, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A network that reads all series together, trained with values hidden in every window."""
    from mambakit.core.training import RunFolder, resolve_device
    from mambakit.domains.timeseries.config import PRESET_TRAIN, StreamLossConfig, StreamModelConfig
    from mambakit.domains.timeseries.data import series_in
    from mambakit.domains.timeseries.stream.data import make_store
    from mambakit.domains.timeseries.stream.imputer import between, guessed, read_both_ways
    from mambakit.domains.timeseries.stream.parts import Read
    from mambakit.domains.timeseries.stream.training import train_stream

    configs: dict[str, Any] = {
        "model": StreamModelConfig(),
        # forecasts are of one row, and few: they cost next to nothing
        "loss": StreamLossConfig(
            window=LENGTH, origins=4, mask_share=1.0, impute_weight=10.0, validation_stride=97
        ),
        "train": dataclasses.replace(PRESET_TRAIN, max_epochs=30, max_steps=1500, batch_size=32, lr=2e-3),
    }
    for change, value in arguments.changes.items():
        part, _, field = change.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    train = dataclasses.replace(configs["train"], seed=seed, device=arguments.device)
    if arguments.max_time:
        train = dataclasses.replace(train, max_time=arguments.max_time)
    series, bounds = series_in(data), [data.groups[0].bounds] * len(data.ids)
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_stream(
            series,
            bounds,
            RunFolder(Path(folder) / "run"),
            lookback=LENGTH,
            horizon=1,
            season_length=data.season_length,
            mixed=True,
            model_config=configs["model"],
            loss_config=configs["loss"],
            train_config=train,
        )
    device = resolve_device(arguments.device)
    model = model.to(device).eval()
    store = make_store(model.tokenizer, series, bounds)
    n = len(series)

    @torch.no_grad()
    def fill(
        windows: NDArray[np.float64], starts: NDArray[np.int64], *, untrained: bool = False
    ) -> NDArray[np.float64]:
        made = []
        for part in np.array_split(np.arange(len(windows)), -(-len(windows) // 32)):
            place = torch.from_numpy(starts[part])[:, None] + torch.arange(LENGTH)
            place = place.repeat_interleave(n, 0)  # [b*c, l]
            which = torch.arange(n).repeat(len(part))
            values = torch.from_numpy(windows[part]).float().transpose(1, 2).flatten(0, 1)
            read = Read(
                values,
                store.past[store.first[which][:, None] + place],
                store.known(which, place),
                store.elapsed(which, place),
                store.static.repeat(len(part), 1),
                store.series.repeat(len(part)),
            )
            read = Read(*(x.to(device) for x in read))
            if untrained:  # where the network begins
                point = between(read.values, read.elapsed).base + guessed(model, read).shift
            else:
                point = model.point(torch.stack(read_both_ways(model, read)).mean(0))
            made.append(point.cpu().unflatten(0, (-1, n)).transpose(1, 2).double().numpy())
        return np.concatenate(made)

    return fill, {"validation": result.best_score, "steps": result.steps}


def errors(
    made: NDArray[np.float64], hidden: NDArray[np.float64], whole: NDArray[np.float64]
) -> tuple[float, float]:
    """Squared and absolute error of the hidden points."""
    off = (made - whole)[np.isnan(hidden)]
    return float(np.square(off).mean()), float(np.abs(off).mean())


def measure(name: str, arguments: argparse.Namespace) -> dict[float, dict[str, list[tuple[float, float]]]]:
    """Of each share and method the errors, one for each seed."""
    part, stride = (1 if arguments.validation_only else 2), STRIDES[name]
    data, windows = scaled_windows(name, part, stride)
    _, train = scaled_windows(name, 0, max(1, stride // 4))
    begin = max(0, (0, *data.groups[0].bounds)[part] - LENGTH)
    starts = begin + stride * np.arange(len(windows))
    fixed: dict[str, Fill] = {
        "linear interpolation": line,
        "last value": last_value,
        "seasonal": seasonal(data.season_length),
        "normal distribution": normal(train),
    }
    found: dict[float, dict[str, list[tuple[float, float]]]] = {share: {} for share in SHARES}
    for seed in arguments.seeds:
        began = time.monotonic()
        fill, facts = trained(name, data, seed, arguments)
        facts["seconds"] = round(time.monotonic() - began, 1)
        for share in SHARES:
            hidden = hide(windows, share, seed)
            made = {"mambakit": fill(hidden, starts), "its start": fill(hidden, starts, untrained=True)}
            made |= {key: f(hidden) for key, f in fixed.items()}
            for key, values in made.items():
                found[share].setdefault(key, []).append(errors(values, hidden, windows))
            shown = {key: [round(x, 4) for x in pairs[-1]] for key, pairs in found[share].items()}
            print(name, f"seed {seed}", share, shown, facts, flush=True)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm1"], choices=list(STRIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--max-time", help="of each training, such as 10m")
    parser.add_argument("--set", dest="given", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="measure no test window")
    arguments = parser.parse_args()
    pairs = (one.partition("=") for one in arguments.given)
    arguments.changes = {key: json.loads(value) for key, _, value in pairs}

    from rows import row, write_rows

    for name in arguments.sets:
        found, rows = measure(name, arguments), []
        for share, methods in found.items():
            for place, metric in enumerate(("mse", "mae")):
                mean = {key: statistics.mean(one[place] for one in many) for key, many in methods.items()}
                ours = [one[place] for one in methods["mambakit"]]
                rows.append(
                    row(
                        f"timeseries-imputation/{name}/{metric}/mask{100 * share:g}",
                        round(mean.pop("mambakit"), 4),
                        "of hidden points, on scaled values",
                        peers={key: round(value, 4) for key, value in mean.items()},
                        spread=round(statistics.pstdev(ours), 4),
                        seeds=arguments.seeds,
                    )
                )
        if not (arguments.changes or arguments.validation_only):
            print(write_rows("timeseries-imputation", rows))


if __name__ == "__main__":
    main()
