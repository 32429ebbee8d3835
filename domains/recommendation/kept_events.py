"""What a user's scores would be had only some of the events happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Catalogue, Recommender

_ROWS_AT_ONCE, _TOKENS_AT_ONCE = 64, 1 << 15


@dataclass(frozen=True, eq=False)
class Events:
    """All events of one user.

    Attributes:
        source: What they are from.
        user: Whose, into ``source.users``.
        item: ``(n_events,)``, in the order of time.
        time: Seconds, ``(n_events,)``.
    """

    source: Interactions
    user: int
    item: NDArray[np.int64]
    time: NDArray[np.float64]

    @classmethod
    def of(cls, interactions: Interactions, user: str) -> Self:
        """The events of the user of this name.

        Raises:
            UsageError: If there is no such user.
            DataError: If the user has no event.
        """
        found = np.flatnonzero(interactions.users == user)
        if not len(found):
            raise UsageError(f"user: {user!r} is not among the {interactions.n_users:,} users of the input")
        at = int(found[0])
        own = slice(*interactions.offsets[at : at + 2].tolist())
        if own.start == own.stop:
            raise DataError(
                f"user {user!r} has no event with an item of the catalogue of {interactions.n_items:,} "
                "items: there is nothing to explain by"
            )
        return cls(interactions, at, interactions.item[own], interactions.time[own])

    def __len__(self) -> int:
        return len(self.item)

    def kept(self, keep: NDArray[np.bool_]) -> Interactions:
        """A user for each row of ``keep`` ``(rows, n_events)``, with the events it keeps."""
        counts, features = keep.sum(1), self.source.user_features
        return Interactions(
            users=np.repeat(self.source.users[self.user], len(keep)),
            items=self.source.items,
            user=np.repeat(np.arange(len(keep)), counts),
            item=np.broadcast_to(self.item, keep.shape)[keep],
            time=np.broadcast_to(self.time, keep.shape)[keep],
            user_features=None if features is None else features.iloc[[self.user] * len(keep)],
            clock=self.source.clock,
        )

    @torch.no_grad()
    def lifts(
        self, model: Recommender, items: NDArray[np.int64], keep: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """``(rows, len(items))``: scores above the catalogue's mean, behind the events that each row keeps.

        Without the repeat shift. The gap of an event that follows one left out is the time since the last
        one kept.

        Args:
            model: A recommender in eval mode, of this catalogue.
            items: Places in the catalogue.
            keep: ``(rows, n_events)``.
        """
        catalogue = model.catalogue()
        direction, offset = lift_weights(catalogue, items)
        at_once = max(1, min(_ROWS_AT_ONCE, _TOKENS_AT_ONCE // (len(self) + 1)))
        parts = []
        for rows in np.array_split(keep, -(-len(keep) // at_once)):
            copies = self.kept(rows)
            hidden = model.hidden(copies, np.arange(len(rows)), copies.offsets[1:], catalogue)
            parts.append((hidden @ direction.T + offset).double().cpu().numpy())
        return np.concatenate(parts)


def lift_weights(catalogue: Catalogue, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """What gives items' scores above the catalogue's mean: ``hidden @ direction.T + offset``.

    The mean is that of the items something is known of.

    Returns:
        ``(len(items), d_model)`` and ``(len(items),)``.
    """
    vectors, bias = catalogue
    index, known = torch.from_numpy(items).to(bias.device), bias.isfinite()
    return vectors[index] - vectors[known].mean(0), bias[index] - bias[known].mean()
