"""What is spoilt to probe a recommender: events of a history lost, of other items, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.trust.perturbations import intercepted, shuffled
from mambakit.core.trust.probe import Perturbation, Subject
from mambakit.domains.recommendation.evaluation import evaluate
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.model import Recommender

SHARES, WINDOWS = (0.1, 0.3, 0.6), (2.0, 5.0, 20.0)
_SCORER = "model"
# Spoilt interactions, and where each event is in them.
Spoilt = tuple[Interactions, NDArray[np.int64]]


def subject(
    model: Recommender, interactions: Interactions, split: Split, about: str, *, most: int | None = None
) -> Subject:
    """A recommender on the test events, ranked among all items. What is to be foretold stays as it was.

    Args:
        model: Trained.
        interactions: All events.
        split: Which are foretold.
        about: What is measured, in a few words.
        most: The cases of so many users; all by default.
    """
    movable = np.ones(len(interactions), dtype=bool)
    movable[split.test] = False

    def measure() -> Mapping[str, float]:
        found = evaluate({_SCORER: model}, interactions, split, most=most, ks=(10,))
        rows = {row["filter"]: row for row in found.rows}
        wanted = [("unfiltered", "ndcg@10"), ("unfiltered", "hr@10"), ("filtered", "ndcg@10")]
        names = ("ndcg@10", "hr@10", "ndcg@10-filtered")
        return {name: float(rows[which][key]) for name, (which, key) in zip(names, wanted, strict=True)}  # type: ignore[arg-type]

    def spoil(
        change: Callable[[float, torch.Generator], Spoilt],
    ) -> Callable[[float, torch.Generator], object]:
        @contextmanager
        def read(level: float, generator: torch.Generator) -> Iterator[None]:
            spoilt, place = change(level, generator)

            def asked(
                known: Interactions, events: NDArray[np.int64]
            ) -> tuple[Interactions, NDArray[np.int64]]:
                return spoilt, place[events]

            with intercepted(model, "scores", asked):
                yield

        return read

    def drawn(level: float, generator: torch.Generator) -> NDArray[np.bool_]:
        return (torch.rand(len(movable), generator=generator).numpy() < level) & movable

    def drop(level: float, generator: torch.Generator) -> Spoilt:
        kept = ~drawn(level, generator)
        named = ("user", "item", "time")
        fewer = replace(interactions, **{name: getattr(interactions, name)[kept] for name in named})
        return fewer, kept.cumsum() - 1

    def substitute(level: float, generator: torch.Generator) -> Spoilt:
        gone = drawn(level, generator)
        item = interactions.item.copy()
        item[gone] = torch.randint(interactions.n_items, (int(gone.sum()),), generator=generator).numpy()
        return replace(interactions, item=item), np.arange(len(item))

    def shuffle(level: float, generator: torch.Generator) -> Spoilt:
        item = interactions.item.copy()
        for first, last in zip(interactions.offsets[:-1], interactions.offsets[1:], strict=True):
            there: Tensor = torch.from_numpy(movable[first:last])[None]
            item[first:last] = item[first:last][shuffled(there, int(level), generator)[0].numpy()]
        return replace(interactions, item=item), np.arange(len(item))

    ways = {
        "drop": Perturbation(SHARES, "share of events", spoil(drop)),  # type: ignore[arg-type]
        "replace": Perturbation(SHARES, "share of events", spoil(substitute)),  # type: ignore[arg-type]
        "shuffle": Perturbation(WINDOWS, "events in a window", spoil(shuffle)),  # type: ignore[arg-type]
    }
    return Subject(model, measure, "ndcg@10", "max", ways, about)
