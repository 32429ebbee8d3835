"""The counting baselines on real sets, beside numbers that were measured with independent code."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.domains.recommendation.baselines import Bigram, ItemKNN, Popularity
from mambakit.domains.recommendation.evaluation import evaluate
from mambakit.domains.recommendation.interactions import Interactions, Split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR"),
]

# HR, NDCG and MRR at 10, of all items and without the seen ones
MEASURED = {
    "ml-100k": {
        "popularity": ((0.0498, 0.0224, 0.0142), (0.0870, 0.0445, 0.0318)),
        "bigram": ((0.1113, 0.0558, 0.0392), (0.1453, 0.0762, 0.0554)),
        "item-knn": ((0.0997, 0.0510, 0.0366), (0.1750, 0.0975, 0.0740)),
    },
    "ml-1m": {
        "popularity": ((0.0162, 0.0079, 0.0055), (0.0369, 0.0180, 0.0124)),
        "bigram": ((0.1887, 0.1073, 0.0823), (0.2144, 0.1259, 0.0988)),
        "item-knn": ((0.1151, 0.0609, 0.0445), (0.1669, 0.0921, 0.0695)),
    },
    "amazon-beauty": {
        "popularity": ((0.0120, 0.0055, 0.0035), (0.0120, 0.0056, 0.0036)),
        "bigram": ((0.0661, 0.0428, 0.0356), (0.0670, 0.0440, 0.0369)),
    },
}


def folder(name: str) -> Path:
    return Path(os.environ["MAMBAKIT_DATA_MIRROR"]) / "recommendation" / name


def movielens_100k() -> pd.DataFrame:
    table = pd.read_csv(folder("ml-100k") / "ml-100k.inter.gz", sep="\t")
    table.columns = ["user", "item", "rating", "time"]
    table = table.sort_values(["user", "time"], kind="stable")
    return table[table.groupby("item").item.transform("size") >= 5]


def movielens_1m() -> pd.DataFrame:
    path = folder("ml-1m") / "ml-1m.txt.gz"
    return pd.read_csv(path, sep=" ", names=["user", "item"]).assign(time=np.nan)


def beauty() -> pd.DataFrame:
    rows = []
    with gzip.open(folder("amazon-beauty") / "Beauty.txt.gz", "rt") as lines:
        for line in lines:
            items, gaps = line.split("\t")
            user, *items = map(int, items.split())
            times = np.cumsum([int(gap) for gap in gaps.split()])
            rows += [(user, item, time) for item, time in zip(items, times, strict=True)]
    return pd.DataFrame(rows, columns=["user", "item", "time"])


SCORERS = {"popularity": Popularity, "bigram": Bigram, "item-knn": ItemKNN}
READERS = {"ml-100k": movielens_100k, "ml-1m": movielens_1m, "amazon-beauty": beauty}


def leave_one_out(table: pd.DataFrame) -> tuple[Interactions, Split]:
    user, users = pd.factorize(table.user, sort=True)
    item, items = pd.factorize(table.item, sort=True)
    time = table.time.to_numpy(dtype=np.float64)
    found = Interactions(users.astype(str), items.astype(str), user, item, time)
    ends = found.offsets[1:]
    return found, Split(train_end=ends - 2, validation=ends - 2, test=ends - 1)


@pytest.mark.parametrize("name", MEASURED)
def test_counting_baselines_reproduce_what_was_measured(name: str) -> None:
    interactions, split = leave_one_out(READERS[name]())
    scorers = {scorer: SCORERS[scorer](interactions, split) for scorer in MEASURED[name]}
    found = evaluate(scorers, interactions, split)
    rows = {(row["scorer"], row["filter"]): row for row in found.rows}
    for scorer, expected in MEASURED[name].items():
        for column, numbers in zip(("unfiltered", "filtered"), expected, strict=True):
            measured = [rows[scorer, column][f"{metric}@10"] for metric in ("hr", "ndcg", "mrr")]
            assert measured == pytest.approx(numbers, abs=0.5e-4 + 1e-9), (scorer, column)
    if name == "amazon-beauty":
        groups = found.groups
        kept = (groups.scorer == "bigram") & (groups["filter"] == "filtered") & (groups.by == "gap")
        gaps = groups[kept].set_index("group")
        assert gaps.cases.to_dict() == {"tied": 9719, "untied": 12644}
        # reviews of one day follow each other as they do nowhere else
        assert gaps["hr@10"].to_dict() == pytest.approx({"tied": 0.1039, "untied": 0.0386}, abs=0.5e-4)
