"""Recommendations that follow each event at once: a state moves by one event, however long the history.

state of a user = the network's state after START and all events, the hidden state behind the last of them,
                  and the items had (to leave them out, and for the repeat shift)

The state has a fixed size but for the items had, of which four bytes each are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.fingerprint import fingerprint
from mambakit.core.state import State
from mambakit.domains.recommendation.features import Features
from mambakit.domains.recommendation.model import Catalogue, Recommender
from mambakit.domains.recommendation.new_items import add_items, lasting_numbers
from mambakit.domains.recommendation.store.records import Record
from mambakit.domains.recommendation.store.states import decode_state, encode_state
from mambakit.domains.recommendation.tokenizer import gap_bins


class UserState(NamedTuple):
    """What is known of a user after some events.

    Attributes:
        state: Of the network, a batch of one.
        hidden: Behind the last event, ``(1, d_model)``.
        seen: Items had, int64, each once: places in the trained catalogue, or hashes of newer items' names.
        time: Seconds of the last event; NaN where not known.
    """

    state: State
    hidden: Tensor
    seen: Tensor
    time: float


class LiveRecommender:
    """Moves users' states by events and recommends from them.

    What it says equals what the whole history at once gives (``Recommender.scores``), up to rounding, of
    users without features: those are not read here.

    Args:
        model: A trained recommender.
        new_items: Items that came after training; states outlive any change of them.
    """

    def __init__(self, model: Recommender, new_items: Features | None = None) -> None:
        self.fingerprint = fingerprint(model, model.tokenizer.state())
        n_trained = model.config.n_items
        if new_items is not None:
            model = add_items(model, new_items).model
        self._numbers = lasting_numbers(model.tokenizer.items, n_trained).to(model.bias.device)
        self.model = model.eval()
        with torch.no_grad():
            self.catalogue: Catalogue = model.catalogue()
            start = torch.tensor([[model.tokenizer.start, 0]], device=self.catalogue.bias.device)
            hidden, state = model.step(start, self.catalogue, model.init_state(1))
        no_items = torch.zeros(0, dtype=torch.int64, device=hidden.device)
        self._nothing = UserState(state, hidden, no_items, math.nan)

    def moved(self, past: Record | None, item: str, time: float = math.nan) -> bytes:
        """A stored state after one more event: what ``Store.update`` wants of its function.

        Raises:
            DataError: If the event is before the last one, or the stored state is of another model.
        """
        before = None if past is None else self.read(past.state)
        after = self.after(before, item, time)
        clock = torch.tensor([after.time], dtype=torch.float64)
        return encode_state(
            State.of(network=after.state, hidden=after.hidden, seen=after.seen[None], time=clock)
        )

    def read(self, encoded: bytes, what: str = "the stored state") -> UserState:
        """A user's state from what ``moved`` gave.

        Raises:
            DataError: If it is none, or one of another model.
        """
        nothing = self._nothing
        clock = torch.tensor([math.nan], dtype=torch.float64)
        like = State.of(network=nothing.state, hidden=nothing.hidden, seen=nothing.seen[None], time=clock)
        found = decode_state(encoded, like, self.catalogue.bias.device, what)
        return UserState(found["network"], found["hidden"], found["seen"][0], float(found["time"]))

    def begin(self) -> UserState:
        """A user without events."""
        return self._nothing

    @torch.no_grad()
    def after(self, user: UserState | None, item: str, time: float = math.nan) -> UserState:
        """The user's state after one more event.

        Args:
            user: Before it; None for a new user.
            item: Its name; one that is not in the catalogue changes nothing, as ``recommend`` leaves it out.
            time: Seconds of the event; NaN where not known.

        Raises:
            DataError: If the event is before the last one.
        """
        user = user or self.begin()
        if time < user.time:
            raise DataError(
                f"time: the event of item {item!r} at {time} s is before the user's last at {user.time} s; "
                "send events in the order of time"
            )
        index = self.model.tokenizer.index.get(item)
        if index is None:
            return user
        gap = time - user.time
        if not len(user.seen):
            gap = math.nan if math.isnan(time) else -1.0
        device = user.hidden.device
        event = torch.tensor([[index, int(gap_bins(np.array([gap]))[0])]], device=device)
        hidden, state = self.model.step(event, self.catalogue, user.state)
        seen = user.seen
        if not bool((seen == self._numbers[index]).any()):
            seen = torch.cat([seen, self._numbers[index, None]])
        return UserState(state, hidden, seen, time)

    @torch.no_grad()
    def top(
        self, user: UserState, k: int = 10, *, filter_seen: bool = True, hidden_items: Tensor | None = None
    ) -> list[tuple[str, float]]:
        """The best k items and their scores; fewer where fewer may be shown.

        Args:
            user: Whose.
            k: How many.
            filter_seen: Leave out what the user has had.
            hidden_items: ``(n_items,)`` bool, items that may not be shown.
        """
        had = torch.isin(self._numbers, user.seen)
        seen = had.nonzero()[:, 0].cpu().numpy()
        places = (np.zeros_like(seen), seen)
        score = self.model.score(user.hidden, self.catalogue, places)[0]
        if filter_seen:
            score[had] = -torch.inf
        if hidden_items is not None:
            score[hidden_items] = -torch.inf
        best = score.topk(min(k, len(score)))
        names: Sequence[str] = self.model.tokenizer.items
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(names[i], value) for i, value in pairs if math.isfinite(value)]
