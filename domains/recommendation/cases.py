"""The events that an evaluation foretells, and what kind of case each is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.recommendation.counting import item_counts
from mambakit.domains.recommendation.data import tied
from mambakit.domains.recommendation.interactions import Interactions, Split

GROUPINGS = ("gap", "target", "history")
_HISTORY_ENDS = (0, 5, 10, 20, 50, 100, 200, 1000)


@dataclass(frozen=True)
class Cases:
    """Events to be foretold, user by user.

    Attributes:
        event: ``(n,)`` int64 into the events, increasing.
        user: Whose each is, ``(n,)``.
        target: The item of each, ``(n,)``.
        gap: ``tied`` if the event before it was at the same time, ``untied``, or ``unknown`` without times.
        target_kind: ``warm`` if the target has a training event, else ``cold``.
        history: The number of events before it, in ranges such as ``10-19``.
        left_out: Events of the split that are none, and why.
    """

    event: NDArray[np.int64]
    user: NDArray[np.int64]
    target: NDArray[np.int64]
    gap: pd.Categorical
    target_kind: pd.Categorical
    history: pd.Categorical
    left_out: dict[str, int]

    def groups(self, by: str) -> pd.Categorical:
        """The group of each case, by one of ``GROUPINGS``."""
        return {"gap": self.gap, "target": self.target_kind, "history": self.history}[by]

    def frame(self) -> pd.DataFrame:
        """A row a case: event, user, item, gap, target, history."""
        numbers = {"event": self.event, "user": self.user, "item": self.target}
        return pd.DataFrame({**numbers, **{by: self.groups(by) for by in GROUPINGS}})


def cases_of(
    interactions: Interactions,
    split: Split,
    *,
    which: str = "test",
    most: int | None = None,
    catalogue: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> Cases:
    """The cases of a split; see ``evaluation.evaluate``.

    Raises:
        DataError: If none is left.
    """
    event = np.sort(split.validation if which == "validation" else split.test)
    n_events = len(event)
    left_out = {}
    if catalogue is not None:
        event = event[catalogue[interactions.item[event]]]
        if len(event) < n_events:
            left_out["the target is not in the catalogue"] = n_events - len(event)
    users = np.unique(interactions.user[event])
    if most is not None and most < len(users):
        drawn = np.random.default_rng(seed).choice(users, size=most, replace=False)
        n_before = len(event)
        event = event[np.isin(interactions.user[event], drawn)]
        left_out["the user was not drawn"] = n_before - len(event)
    if not len(event):
        why = f" of {n_events}: their targets are not in the catalogue" if n_events else ""
        raise DataError(f"there is no {which} event to be foretold{why}")
    user, target = interactions.user[event], interactions.item[event]
    history = event - interactions.offsets[user]
    timeless = np.isnan(interactions.time[event])
    gap_kind = np.where(timeless, "unknown", np.where(tied(interactions, event), "tied", "untied"))
    cold = item_counts(interactions, split)[target] == 0
    names = [_range(low, high) for low, high in zip(_HISTORY_ENDS, [*_HISTORY_ENDS[1:], None], strict=True)]
    place = np.searchsorted(_HISTORY_ENDS, history, side="right") - 1
    return Cases(
        event,
        user,
        target,
        pd.Categorical(gap_kind, categories=["tied", "untied", "unknown"]),
        pd.Categorical(np.where(cold, "cold", "warm"), categories=["warm", "cold"]),
        pd.Categorical.from_codes(place, categories=names, ordered=True),
        left_out,
    )


def _range(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else f"{low}-{high - 1}"
