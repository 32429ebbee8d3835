"""Whom a recommender serves worse: accuracy and exposure by groups of users and of items, and the gaps.

Users who do little, and items that few have, are who a model trained on clicks tends to fail (Ekstrand et al.
2018, All The Cool Kids, How Do They Fit In?; Abdollahpouri et al. 2019, The Unfairness of Popularity Bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.cli import format_table
from mambakit.core.errors import UsageError
from mambakit.core.folders import some
from mambakit.domains.recommendation.counting import item_counts, training_events
from mambakit.domains.recommendation.evaluation import RANK_METRICS, Evaluation, shown
from mambakit.domains.recommendation.interactions import Interactions, Split

ACTIVITY, POPULARITY = "activity", "popularity"
DEFAULT = (ACTIVITY, POPULARITY)
_METRICS = ("hr", "ndcg")
_SHARE = 0.2  # of the training events: of the head, and of the long tail
_MOST_GROUPS, _FEW_VALUES = 24, 10
_UNKNOWN = "unknown"
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Slices:
    """What was measured by slice.

    Attributes:
        rows: A row a slice, group, scorer and filter: ``slice``, ``group``, ``users``, ``cases``, ``hr@10``
            and ``ndcg@10`` with their intervals' ends (``-lo``, ``-hi``), and ``long-tail@10``, the share of
            the places in the lists of these cases that the long tail has.
        gaps: A row a slice, scorer, filter and metric: ``best`` and ``worst`` group, and ``gap`` between
            them with its interval.
        long_tail: Share of the catalogue that the long tail is.
    """

    rows: pd.DataFrame
    gaps: pd.DataFrame
    long_tail: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "long_tail": self.long_tail,
            "groups": self.rows.to_dict(orient="records"),
            "gaps": self.gaps.to_dict(orient="records"),
        }

    def table(self, rows: pd.DataFrame, label: Sequence[str]) -> list[dict[str, object]]:
        """Rows with half of each interval beside its number, for people."""
        names = [name for name in rows if name not in label and not name.endswith(("-lo", "-hi"))]
        records = rows.to_dict(orient="records")
        return [
            {**{n: row[n] for n in label}, **{n: shown(row, n, row[n]) for n in names}} for row in records
        ]

    def text(self, scorer: str) -> str:
        """Aligned tables of one scorer's groups and gaps, among all items."""
        here = (self.rows.scorer == scorer) & (self.rows["filter"] == "unfiltered")
        there = (self.gaps.scorer == scorer) & (self.gaps["filter"] == "unfiltered")
        groups = self.rows[here].drop(columns=["scorer", "filter"])
        gaps = self.gaps[there].drop(columns=["scorer", "filter"])
        return "\n".join(
            [
                f"{scorer}, by slice (the long tail is {self.long_tail:.0%} of the catalogue)",
                format_table(self.table(groups, ("slice", "group", "users", "cases"))),
                format_table(self.table(gaps, ("slice", "metric", "best", "worst"))),
            ]
        )


def slices_of(
    evaluation: Evaluation,
    interactions: Interactions,
    split: Split,
    names: Sequence[str] = DEFAULT,
    *,
    k: int = 10,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Slices:
    """Accuracy of every scorer by slice, with intervals of a bootstrap over users (Efron 1979).

    A gap is between the groups that are best and worst in the data; its interval is of that difference over
    the same resampled users, so that it may hold zero.

    Args:
        evaluation: With ranks and lists.
        interactions: What was evaluated.
        split: Of the same.
        names: ``activity``: thirds of the users by their training events. ``popularity``: of the target, in
            the head (the most popular items that together have a fifth of the training events), the long
            tail (the least popular ones that have a fifth, and those without) or between. Else a column of
            user features; numbers of more than ten values in quarters.
        k: Length of lists.
        resamples: Of the bootstrap.
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        UsageError: On a slice that there is not, or one of too many groups.
    """
    parts = item_parts(item_counts(interactions, split))
    tail = parts == 2
    users = evaluation.cases.user.to_numpy()
    rows: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for name in names:
        labels = _labels(name, evaluation, interactions, split, parts)
        labels = labels.remove_unused_categories()
        groups, codes = list(labels.categories), labels.codes.astype(np.int64)
        counts = np.bincount(codes, minlength=len(groups))
        for (scorer, column), ranks in evaluation.ranks.items():
            label = {"scorer": scorer, "filter": column}
            own: list[dict[str, Any]] = [
                {
                    "slice": name,
                    "group": group,
                    "users": len(np.unique(users[codes == i])),
                    "cases": counts[i],
                }
                | label
                for i, group in enumerate(groups)
            ]
            for kind in _METRICS:
                means, low, high, gap = _bootstrap(
                    RANK_METRICS[kind](ranks, k), users, codes, resamples, level, seed
                )
                for i, row in enumerate(own):
                    row |= {f"{kind}@{k}": means[i], f"{kind}@{k}-lo": low[i], f"{kind}@{k}-hi": high[i]}
                if len(groups) > 1:
                    best, worst, value, ends = gap
                    gaps.append(
                        {"slice": name, **label, "metric": f"{kind}@{k}"}
                        | {"best": groups[best], "worst": groups[worst]}
                        | {"gap": value, "gap-lo": ends[0], "gap-hi": ends[1]}
                    )
            lists = evaluation.lists[scorer, column]
            for i, row in enumerate(own):
                row[f"long-tail@{lists.shape[1]}"] = exposure(lists[codes == i], tail)
            rows += own
    return Slices(pd.DataFrame(rows), pd.DataFrame(gaps), float(tail.mean()))


def exposure(lists: NDArray[np.int64], chosen: NDArray[np.bool_]) -> float:
    """The share of all places in lists that some items have; NaN if there is no place.

    Args:
        lists: ``(n, k)``, -1 where a list is shorter.
        chosen: ``(n_items,)``.
    """
    there = lists >= 0
    return float(chosen[lists[there]].mean()) if there.any() else float("nan")


def item_parts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 for the head, 1 between, 2 for the long tail, of each item, by its training events ``(n_items,)``.

    Items of the same count are in the same part.
    """
    values, which = np.unique(counts, return_inverse=True)
    up_to = np.cumsum(values * np.bincount(which)) / max(
        1, int(counts.sum())
    )  # of these and less popular ones
    above = up_to[-1] - up_to if len(up_to) else up_to
    part = np.where((up_to <= _SHARE) | (values == 0), 2, np.where(above < _SHARE, 0, 1))
    return part[which]


def _labels(
    name: str,
    evaluation: Evaluation,
    interactions: Interactions,
    split: Split,
    parts: NDArray[np.int64],
) -> pd.Categorical:
    users = evaluation.cases.user.to_numpy()
    if name == ACTIVITY:
        known = training_events(interactions, split)
        counts = np.bincount(interactions.user[known], minlength=interactions.n_users)
        return _ranges(counts.astype(np.float64), 3, np.unique(users), " events")[users]
    if name == POPULARITY:
        of_target = parts[evaluation.cases["item"].to_numpy()]
        return pd.Categorical.from_codes(of_target, categories=["head", "between", "long tail"])
    features = interactions.user_features
    if features is None or name not in features:
        columns = [] if features is None else [str(one) for one in features]
        known_names = some([ACTIVITY, POPULARITY, *columns], 20)
        raise UsageError(f"slices: there is no column {name!r} of users; slices: {known_names}")
    column = features[name]
    numeric = pd.api.types.is_numeric_dtype(column.dtype)
    if numeric and column.nunique() > _FEW_VALUES:
        return _ranges(column.to_numpy(dtype=np.float64, na_value=np.nan), 4, np.unique(users), "")[users]
    if numeric:
        named = column.map(lambda value: f"{value:g}", na_action="ignore")
        categories = [f"{value:g}" for value in sorted(column.dropna().unique())]
    else:
        named = column.astype("string")
        categories = sorted(str(one) for one in named.dropna().unique())
    if len(categories) > _MOST_GROUPS:
        raise UsageError(f"slices: {name} has {len(categories)} groups; at most {_MOST_GROUPS} are compared")
    known = named.astype(object).where(named.notna(), _UNKNOWN).to_numpy(dtype=object)
    return pd.Categorical(known[users], categories=[*dict.fromkeys([*categories, _UNKNOWN])])


def _ranges(values: NDArray[np.float64], n: int, users: NDArray[np.int64], unit: str) -> pd.Categorical:
    """Quantile groups by the values of these users, named by their least and greatest value."""
    asked = values[users]
    ends = np.unique(np.nanquantile(asked, np.arange(1, n) / n))
    codes = np.searchsorted(ends, values, side="left")
    codes = np.where(np.isnan(values), -1, codes)
    named = np.full(len(values), _UNKNOWN, dtype=object)
    names = []
    for i in range(len(ends) + 1):
        inside = asked[codes[users] == i]
        if len(inside):
            low, high = inside.min(), inside.max()
            names.append((f"{low:g}" if low == high else f"{low:g}-{high:g}") + unit)
            named[codes == i] = names[-1]
    return pd.Categorical(named, categories=[*dict.fromkeys(names), _UNKNOWN])


def _bootstrap(
    values: NDArray[np.float64],
    users: NDArray[np.int64],
    codes: NDArray[np.int64],
    resamples: int,
    level: float,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], Any]:
    """Means by group with their ends, ``(n_groups,)`` each; best and worst group, and their gap with ends."""
    _, who = np.unique(users, return_inverse=True)
    n_users, n_groups = int(who.max()) + 1, int(codes.max()) + 1
    place = codes * n_users + who
    shape = (n_groups, n_users)
    sums = np.bincount(place, weights=values, minlength=n_groups * n_users).reshape(shape)
    counts = np.bincount(place, minlength=n_groups * n_users).reshape(shape).astype(np.float64)
    means = sums.sum(1) / counts.sum(1)
    rng = np.random.default_rng(seed)
    found = np.empty((resamples, n_groups))
    at_once = max(1, _DRAWN_AT_ONCE // n_users)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        # how often each user is drawn: the same users for every group, whose cases they may share
        times = rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=size).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a small group may not be drawn at all
            found[start : start + size] = (times @ sums.T) / (times @ counts.T)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(found, ends, axis=0)
    best, worst = int(means.argmax()), int(means.argmin())
    gap = np.nanquantile(found[:, best] - found[:, worst], ends)
    return means, low, high, (best, worst, float(means[best] - means[worst]), (float(gap[0]), float(gap[1])))
