"""Recommenders beside each other on the same events: full ranking, with seen items and without, always both.

Published figures of one model differ by a fifth between the two, and between events that share their moment
with the one before and those that don't; so every evaluation says all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.cli import format_table
from mambakit.core.errors import UsageError
from mambakit.domains.recommendation import list_metrics, metrics
from mambakit.domains.recommendation.cases import GROUPINGS, Cases, cases_of
from mambakit.domains.recommendation.counting import item_counts, users_by_items
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.intervals import Interval, mean_over_users
from mambakit.domains.recommendation.ranking import FILTERS, Sampled, ranked
from mambakit.domains.recommendation.scoring import Scorer

RANK_METRICS = {"hr": metrics.hits, "ndcg": metrics.ndcg, "mrr": metrics.reciprocal_ranks}


@dataclass(frozen=True)
class Evaluation:
    """How well each scorer foretold the same events.

    Attributes:
        rows: One mapping a scorer and filter: ``scorer``, ``filter``, then ``hr@10``, ``ndcg@10``, ``mrr@10``
            and so on, each with its interval's ends, as in ``hr@10-lo`` and ``hr@10-hi``; and what the lists
            of the first ``k`` are like: coverage, gini, novelty, popularity, popularity-ratio, diversity.
        groups: The same accuracies of parts of the cases: ``scorer``, ``filter``, ``by`` (gap, target,
            history), ``group``, ``cases``.
        cases: A row a case: ``event``, ``user``, ``item`` (indices), and its groups by gap, target, history.
        ranks: The ranks of the cases' targets by scorer and filter, ``(n_cases,)`` each.
        lists: The first items by scorer and filter, ``(n_cases, list_length)`` each, -1 behind shorter lists.
        left_out: Events that were not ranked: why, and how many.
        which: ``validation`` or ``test``.
        ks: The lengths of lists that accuracies are of.
        n_items: Items ranked among.
        settings: The level and kind of interval.
    """

    rows: list[dict[str, object]]
    groups: pd.DataFrame
    cases: pd.DataFrame
    ranks: dict[tuple[str, str], NDArray[np.float64]]
    lists: dict[tuple[str, str], NDArray[np.int64]]
    left_out: dict[str, int]
    which: str
    ks: tuple[int, ...]
    n_items: int
    settings: dict[str, Any]

    @property
    def scorers(self) -> list[str]:
        """Their names, in the order given."""
        return list(dict.fromkeys(str(row["scorer"]) for row in self.rows))

    def frame(self) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows)

    def to_dict(self) -> dict[str, object]:
        """For JSON: the rows, the groups, and what was evaluated."""
        return {
            "which": self.which,
            "cases": len(self.cases),
            "users": int(self.cases.user.nunique()),
            "items": self.n_items,
            "left_out": self.left_out,
            **self.settings,
            "results": self.rows,
            "groups": self.groups.to_dict(orient="records"),
        }

    def text(self, k: int | None = None) -> str:
        """An aligned table of what is measured at ``k`` (10, or the last of ``ks``), with half intervals."""
        k = k or (10 if 10 in self.ks else self.ks[-1])
        lines = []
        for row in self.rows:
            line = {"scorer": row["scorer"], "filter": row["filter"]}
            for name, value in row.items():
                if name.endswith(f"@{k}") or (f"@{k}/" in name and not name.endswith(("-lo", "-hi"))):
                    line[name] = shown(row, name, value)
            lines.append(line)
        return format_table(lines)

    def difference(
        self, first: str, second: str, metric: str = "ndcg@10", filter: str = "unfiltered"
    ) -> dict[str, float]:
        """How much better the first scorer is than the second, case by case: closer than their intervals are.

        Args:
            first, second: Names of scorers.
            metric: ``hr``, ``ndcg`` or ``mrr`` at any k.
            filter: ``unfiltered`` or ``filtered``.

        Returns:
            ``value`` and the interval's ends ``low`` and ``high``; zero outside of it says that they differ.

        Raises:
            UsageError: On a name that isn't there.
        """
        name, _, k = metric.partition("@")
        if name not in RANK_METRICS or not k.isdigit():
            raise UsageError(f"metric: expected hr, ndcg or mrr at a number, such as ndcg@10, got {metric!r}")
        for scorer in (first, second):
            if (scorer, filter) not in self.ranks:
                known = ", ".join(f"{a} {b}" for a, b in self.ranks)
                raise UsageError(f"scorer and filter: expected one of {known}, got {scorer} {filter}")
        terms = [RANK_METRICS[name](self.ranks[scorer, filter], int(k)) for scorer in (first, second)]
        made = mean_over_users(terms[0] - terms[1], self.cases.user.to_numpy(), **self.settings)
        return {"value": made.value, "low": made.low, "high": made.high}


def evaluate(
    scorers: Mapping[str, Scorer],
    interactions: Interactions,
    split: Split,
    *,
    which: Literal["validation", "test"] = "test",
    ks: Sequence[int] = (5, 10, 20),
    list_length: int = 10,
    most: int | None = None,
    catalogue: NDArray[np.bool_] | None = None,
    sampled: Sequence[Sampled] = (),
    level: float = 0.95,
    interval: Interval = "normal",
    seed: int = 0,
) -> Evaluation:
    """Ranks the target of every case among all items, by every scorer.

    Scores are asked for in chunks of cases, so that memory is bounded whatever the number of users and items.

    Args:
        scorers: By name.
        interactions: All events.
        split: What is foretold, and what was learned from (for popularity, and for cold items).
        which: The split's validation or test events.
        ks: Lengths of lists that HR (recall), NDCG and MRR are of.
        list_length: Length of the lists whose coverage, novelty, popularity and diversity are measured.
        most: Evaluate the cases of so many users, drawn with ``seed``; all by default.
        catalogue: Items that can be recommended, ``(n_items,)``; all by default. Cases with another target
            are left out, and counted.
        sampled: Rank among so many ``uniform`` or ``popularity`` negatives as well; see ``metrics``.
        level: Of the confidence intervals, 0 to 1.
        interval: ``normal`` or ``bootstrap``, over users.
        seed: Of drawn users, negatives and bootstraps.

    Raises:
        UsageError: On an argument that can't be.
        DataError: If no case is left, or a scorer's scores are NaN or of another shape.
    """
    _check(scorers, ks, list_length, most, sampled, level)
    columns = np.arange(interactions.n_items) if catalogue is None else np.flatnonzero(catalogue)
    cases = cases_of(interactions, split, which=which, most=most, catalogue=catalogue, seed=seed)
    settings: dict[str, Any] = {"level": level, "interval": interval, "seed": seed}
    lists = _ListMeasures(interactions, split, cases, columns, list_length, settings)
    rows: list[dict[str, object]] = []
    groups: list[pd.DataFrame] = []
    ranks: dict[tuple[str, str], NDArray[np.float64]] = {}
    top: dict[tuple[str, str], NDArray[np.int64]] = {}
    for name, scorer in scorers.items():
        found = ranked(
            name,
            scorer,
            interactions,
            cases,
            columns=columns,
            list_length=list_length,
            sampled=sampled,
            counts=lists.counts,
            seed=seed,
        )
        for column in FILTERS:
            own = ranks[name, column] = found.ranks[column]
            top[name, column] = found.lists[column]
            label: dict[str, object] = {"scorer": name, "filter": column}
            row = {**label, **_accuracies(own, cases.user, ks, settings)}
            for (n, kind), sampled_ranks in found.sampled[column].items():
                accuracies = _accuracies(sampled_ranks, cases.user, ks, settings)
                row |= {_sampled_name(key, n, kind): value for key, value in accuracies.items()}
            rows.append(row | lists.of(found.lists[column]))
            groups.append(_by_group(own, cases, ks, settings).assign(**label))
    table = pd.concat(groups, ignore_index=True)
    first = ["scorer", "filter", "by", "group", "cases"]
    return Evaluation(
        rows=rows,
        groups=table[first + [name for name in table if name not in first]],
        cases=cases.frame(),
        ranks=ranks,
        lists=top,
        left_out=cases.left_out,
        which=which,
        ks=tuple(ks),
        n_items=len(columns),
        settings=settings,
    )


def shown(row: Mapping[str, object], name: str, value: Any) -> str:
    """A number with half of its interval, ``0.1887 ±0.0099``; small shares with four decimals."""
    if not isinstance(value, float) or np.isnan(value):
        return "–"
    digits = 4 if abs(value) < 1 else 2
    low, high = (row.get(f"{name}-{end}") for end in ("lo", "hi"))
    if not isinstance(low, float) or not isinstance(high, float) or np.isnan(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ±{(high - low) / 2:.{digits}f}"


class _ListMeasures:
    """Measures top lists; what it needs of the training events is counted once."""

    def __init__(
        self,
        interactions: Interactions,
        split: Split,
        cases: Cases,
        columns: NDArray[np.int64],
        k: int,
        settings: dict[str, Any],
    ) -> None:
        self.counts = item_counts(interactions, split)
        had = users_by_items(interactions, split)
        self.n_users_of = np.asarray(had.sum(0)).ravel().astype(np.int64)
        self.n_users = int((had.sum(1) > 0).sum())
        self.vectors = {"diversity": had.T.tocsr()}
        if interactions.item_features is not None:
            features = list_metrics.feature_vectors(interactions.item_features)
            if features.nnz:
                self.vectors["feature-diversity"] = features
        self.cases, self.columns, self.k, self.settings = cases, columns, k, settings

    def of(self, lists: NDArray[np.int64]) -> dict[str, object]:
        """Of one scorer's lists, ``(n_cases, k)``."""
        appearances = list_metrics.appearances(lists, len(self.counts))[self.columns]
        row: dict[str, object] = {
            f"coverage@{self.k}": list_metrics.coverage(appearances),
            f"gini@{self.k}": list_metrics.gini(appearances),
        }
        popularity = list_metrics.popularity(lists, self.counts)
        row |= self._mean("novelty", list_metrics.novelty(lists, self.n_users_of, self.n_users))
        row |= self._mean("popularity", popularity)
        of_targets = float(self.counts[self.cases.target].mean())
        if of_targets and np.isfinite(popularity).any():
            row[f"popularity-ratio@{self.k}"] = float(np.nanmean(popularity)) / of_targets
        for name, vectors in self.vectors.items():
            row |= self._mean(name, list_metrics.diversity(lists, vectors))
        return row

    def _mean(self, name: str, values: NDArray[np.float64]) -> dict[str, object]:
        return _with_interval(f"{name}@{self.k}", values, self.cases.user, self.settings)


def _accuracies(
    ranks: NDArray[np.float64], users: NDArray[np.int64], ks: Sequence[int], settings: dict[str, Any]
) -> dict[str, object]:
    row: dict[str, object] = {}
    for k in ks:
        for name, terms in RANK_METRICS.items():
            row |= _with_interval(f"{name}@{k}", terms(ranks, k), users, settings)
    return row


def _with_interval(
    name: str, values: NDArray[np.float64], users: NDArray[np.int64], settings: dict[str, Any]
) -> dict[str, object]:
    made = mean_over_users(values, users, **settings)
    return {name: made.value, f"{name}-lo": made.low, f"{name}-hi": made.high}


def _by_group(
    ranks: NDArray[np.float64], cases: Cases, ks: Sequence[int], settings: dict[str, Any]
) -> pd.DataFrame:
    found = []
    for by in GROUPINGS:
        labels = cases.groups(by)
        for group in labels.categories:
            inside = np.asarray(labels == group)
            if inside.any():
                accuracies = _accuracies(ranks[inside], cases.user[inside], ks, settings)
                found.append({"by": by, "group": group, "cases": int(inside.sum()), **accuracies})
    return pd.DataFrame(found)


def _check(
    scorers: Mapping[str, Scorer],
    ks: Sequence[int],
    list_length: int,
    most: int | None,
    sampled: Sequence[Sampled],
    level: float,
) -> None:
    if not scorers:
        raise UsageError("scorers: expected at least one, got none")
    if not ks:
        raise UsageError("ks: expected at least one length of lists, got none")
    given = [*(("ks", k) for k in ks), ("list_length", list_length), *(("sampled", n) for n, _ in sampled)]
    given += [] if most is None else [("most", most)]
    for name, value in given:
        if value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    for _, kind in sampled:
        if kind not in ("uniform", "popularity"):
            raise UsageError(f"sampled: expected uniform or popularity negatives, got {kind!r}")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a share between 0 and 1, such as 0.95, got {level}")


def _sampled_name(key: str, n: int, kind: metrics.Negatives) -> str:
    """The interval's end stays the last word of a name."""
    name, dash, end = key.partition("-")
    return metrics.sampled_name(name, n, kind) + dash + end
