"""How the anomaly score was designed: variants of it on known anomalies put into series that have none.

    python benchmarks/timeseries_anomaly_design.py --draws 3

Five series, none of those that ``timeseries_anomalies.py`` measures: the first 8,000 rows of ETTh1 HUFL and
OT, ETTm1 LUFL, Nord Pool prices and Weather temperature. A forecaster learns from the first 15 % of each, as
there. Then stretches of one kind are put into the rest at random, 8 % of its rows in all, and every row is
scored. Printed is the average precision, not point-adjusted, by kind (mean over series) and by series (mean
over kinds). The rule: of the fewest parts with equal weights, the highest geometric mean over kinds, for a
score that is blind to one kind is no use there however good it is elsewhere.

Of the four parts the forecasts' surprise is missed least (.27 with and without it), the steps most (.21). Of
shifts and moved stretches the score finds fewer than that surprise alone does.

Also tried here: a weight of a half to two for each part, or a level over three seasons besides, .25 to .27 in
geometric mean, within the noise of this measure; the highest part or the sum in place of the root mean
square, .26 and .25; running sums of signed surprises (Page 1954), which find a drift hardly better than
chance, for the forecasts soon follow it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from timeseries_anomalies import Labelled, trained, z_score

from mambakit.domains.timeseries.anomalies.metrics import average_precision
from mambakit.domains.timeseries.anomalies.parts import PARTS
from mambakit.domains.timeseries.anomalies.scoring import anomaly_scores
from mambakit.domains.timeseries.config import season_of
from mambakit.domains.timeseries.data import load_data

SERIES = (
    ("ETTh1", "HUFL"),
    ("ETTh1", "OT"),
    ("ETTm1", "LUFL"),
    ("NP", "Price"),
    ("Weather", "T (degC)"),
)
N_ROWS = 8000
SHORT = ("shift", "flat", "noise", "moved", "stretched")
LONG = ("long shift", "drift", "long noise", "long scale")
KINDS = ("spike", *SHORT, *LONG)


def load() -> list[Labelled]:
    """The series, without a label."""
    made = []
    for card, name in SERIES:
        one = next(one for one in load_data(card).series if one.unique_id == name)
        short = dataclasses.replace(
            one, stamps=one.stamps[:N_ROWS], values=one.values[:N_ROWS].copy(), past=None, future=None
        )
        day = season_of(one.frequency)
        made.append(Labelled(f"{card}-{name}", short, np.zeros(N_ROWS, bool), int(0.15 * N_ROWS), day))
    return made


def planted(one: Labelled, kind: str, rng: np.random.Generator) -> Labelled:
    """With stretches of a kind: spikes of 1 to 3 rows, others of half a day to two, long ones 3 to 10 days.

    They lie after the training rows, a day apart from each other.
    """
    values, label, day = one.series.values.copy(), one.label.copy(), max(one.day, 24)
    free, deviation = np.ones(len(values), bool), float(np.nanstd(values[: one.n_train]))
    free[: one.n_train + day] = False
    most = 40 if kind == "spike" else int(0.08 * (len(values) - one.n_train))
    for _ in range(200):
        if label.sum() >= most:
            break
        days = rng.uniform(0.5, 2) if kind in SHORT else rng.uniform(3, 10)
        length = min(int(rng.integers(1, 4)) if kind == "spike" else int(days * day), most)
        begin = int(rng.integers(one.n_train + day, len(values) - length))
        end = begin + length
        if free[begin:end].all():
            values[begin:end] = changed(one.series.values, begin, end, kind, deviation, day, rng)
            label[begin:end] = True
            free[begin - day : end + day] = False
    return one._replace(series=dataclasses.replace(one.series, values=values), label=label)


def changed(
    values: NDArray[np.float64],
    begin: int,
    end: int,
    kind: str,
    deviation: float,
    day: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The rows of a stretch as an anomaly; sizes are in deviations of the training rows."""
    own, place, sign = values[begin:end], np.arange(begin, end), rng.choice([-1, 1])
    size = rng.uniform(0.75, 2) * deviation * sign
    if kind == "spike":
        return own + rng.uniform(1.5, 4) * deviation * sign
    if kind.endswith("shift"):
        return own + size
    if kind == "flat":
        return np.full(len(own), own[0])
    if kind.endswith("noise"):
        return own + abs(size) / 2 * rng.standard_normal(len(own))
    if kind == "moved":
        back = int(rng.integers(day // 4, day - day // 4 + 1))
        return values[begin - back : end - back]
    if kind == "stretched":
        at = begin + (place - begin) * rng.choice([0.5, 2 / 3, 1.5, 2])
        return np.interp(at, np.arange(len(values)), values)
    if kind == "drift":  # up to 1.25 sizes by the middle, and back
        return own + 1.25 * size * np.minimum(place - begin, end - 1 - place) * 2 / len(own)
    mean = own.mean()
    return mean + (own - mean) * rng.choice([0.4, 1.8])  # long scale


def variants(table: pd.DataFrame, window: int = 100) -> dict[str, NDArray[np.float64]]:
    """Scores to compare: the parts alone, all of them, and all but one."""

    def norm(names: list[str]) -> NDArray[np.float64]:
        return np.sqrt(np.square(table[names]).mean(axis=1)).where(table["score"].notna()).to_numpy()

    made = {"moving z-score": z_score(table["y"].to_numpy(np.float64), window)}
    made |= {f"{part} alone": norm([part]) for part in PARTS}
    made |= {f"without {part}": norm([name for name in PARTS if name != part]) for part in PARTS}
    return made | {"score": table["score"].to_numpy(np.float64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for place, one in enumerate(load()):
        model = trained(one, args.seed)
        for number, kind in enumerate(KINDS):
            for draw in range(args.draws):
                odd = planted(one, kind, np.random.default_rng([draw, number, place]))
                table = anomaly_scores(model, [odd.series], normal=one.n_train)
                for name, score in variants(table).items():
                    rest = np.nan_to_num(score[one.n_train :])  # a part may lack where the score is there
                    precision = average_precision(rest, odd.label[one.n_train :])
                    found.append((one.name, kind, name, precision))
    frame = pd.DataFrame(found, columns=["series", "kind", "variant", "ap"])
    by_kind = frame.pivot_table(index="variant", columns="kind", values="ap", sort=False)
    by_series = frame.pivot_table(index="variant", columns="series", values="ap", sort=False)
    by_kind["mean"], by_kind["geometric"] = by_kind.mean(axis=1), np.exp(np.log(by_kind).mean(axis=1))
    print(by_kind.round(3).T.to_string(), by_series.round(3).T.to_string(), sep="\n\n")


if __name__ == "__main__":
    main()
