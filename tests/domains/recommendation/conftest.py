"""Interactions made by hand, and recommenders whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.domains.recommendation.interactions import Interactions, Split


def make_interactions(
    histories: Sequence[Sequence[int]],
    n_items: int,
    *,
    times: Sequence[Sequence[float]] | None = None,
    features: pd.DataFrame | None = None,
) -> Interactions:
    """A history a user; unknown times by default."""
    lengths = [len(one) for one in histories]
    time = np.full(sum(lengths), np.nan) if times is None else np.concatenate(times).astype(np.float64)
    return Interactions(
        users=np.array([f"u{i}" for i in range(len(histories))]),
        items=np.array([f"i{i}" for i in range(n_items)]),
        user=np.repeat(np.arange(len(histories)), lengths),
        item=np.concatenate([np.array(one, dtype=np.int64) for one in histories]),
        time=time,
        item_features=features,
    )


def leave_one_out(interactions: Interactions) -> Split:
    """The last event of each user for test and the one before for validation; three events at least."""
    ends = interactions.offsets[1:]
    return Split(train_end=ends - 2, validation=ends - 2, test=ends - 1)


class Table:
    """Scores by user, whatever the event; counts how many were asked for at once."""

    def __init__(self, scores: np.ndarray) -> None:
        self.table = torch.tensor(scores, dtype=torch.float32)
        self.asked: list[int] = []

    def scores(self, interactions: Interactions, events: np.ndarray) -> torch.Tensor:
        self.asked.append(len(events))
        return self.table[torch.from_numpy(interactions.user[events])]


@pytest.fixture(scope="session")
def interactions_of() -> Callable[..., Interactions]:
    return make_interactions


@pytest.fixture(scope="session")
def last_out() -> Callable[[Interactions], Split]:
    return leave_one_out


@pytest.fixture(scope="session")
def table_scorer() -> type[Table]:
    return Table
