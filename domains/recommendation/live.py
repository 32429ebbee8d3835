"""Recommendations that follow each event at once: a state moves by one event, however long the history.

state of a user = the network's state after START (+ the user's features) and all events, the hidden state
                  behind the last of them, and the items had (to leave them out, and for the repeat shift)

The state has a fixed size but for the items had, of which eight bytes each are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.adapters import TokenBatch
from mambakit.core.errors import DataError, UsageError
from mambakit.core.fingerprint import fingerprint
from mambakit.core.state import State
from mambakit.domains.recommendation.features import Features
from mambakit.domains.recommendation.model import Catalogue, Recommender, in_chunks
from mambakit.domains.recommendation.new_items import Added, add_items, lasting_numbers
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

    What it says equals what the whole history at once gives (``Recommender.scores``), up to rounding.

    Args:
        model: A trained recommender.
        new_items: Items that came after training; states outlive any change of them.

    Attributes:
        added: What came of the new items; None without any.
    """

    def __init__(self, model: Recommender, new_items: Features | None = None) -> None:
        self.fingerprint = fingerprint(model, model.tokenizer.state())
        n_trained = model.config.n_items
        self.added: Added | None = None if new_items is None else add_items(model, new_items)
        model = model if self.added is None else self.added.model
        self._numbers = lasting_numbers(model.tokenizer.items, n_trained).to(model.bias.device)
        self._sorted, self._places = self._numbers.sort()
        self.model = model.eval()
        with torch.no_grad():
            self.catalogue: Catalogue = model.catalogue()
        [self._nothing] = self.begun(None, 1)

    @torch.no_grad()
    def begun(self, features: pd.DataFrame | None, n: int) -> list[UserState]:
        """``n`` users without events.

        Args:
            features: A row each, as ``Interactions.user_features``; they are read here and never again.
            n: How many.
        """
        device = self.catalogue.bias.device
        start = torch.tensor([[self.model.tokenizer.start, 0]], device=device).expand(n, 2)
        words = torch.from_numpy(self.model.tokenizer.user_words.encode(features, n)).to(device)
        hidden, state = self.model.step(start, self.catalogue, self.model.init_state(n), words)
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return [UserState(_row(state, i), hidden[i : i + 1], nothing, math.nan) for i in range(n)]

    def begin(self) -> UserState:
        """A user without events, of whom nothing is known."""
        return self._nothing

    def moved(
        self, past: Record | None, item: str, time: float = math.nan, features: pd.DataFrame | None = None
    ) -> bytes:
        """A stored state after one more event: what ``Store.update`` wants of its function.

        Args:
            past: What is stored; None for a new user.
            item, time: As in ``after``; an item outside the catalogue is refused, as the store would never
                take its event again once the item is known.
            features: Of a new user, one row.

        Raises:
            UsageError: If the time is infinite.
            DataError: If the item is not in the catalogue, the event is before the last one, or the stored
                state is of another model.
        """
        if item not in self.model.tokenizer.index:
            raise DataError(f"item: {item!r} is not in the catalogue of {self.model.config.n_items:,} items")
        before = self.begun(features, 1)[0] if past is None else self.read(past.state)
        return self.write(self.after(before, item, time))

    def write(self, user: UserState) -> bytes:
        """A user's state for a store."""
        clock = torch.tensor([user.time], dtype=torch.float64)
        return encode_state(
            State.of(network=user.state, hidden=user.hidden, seen=user.seen[None], time=clock)
        )

    def read(self, encoded: bytes, what: str = "the stored state") -> UserState:
        """A user's state from what ``write`` gave.

        Raises:
            DataError: If it is none, or one of another model.
        """
        nothing = self._nothing
        clock = torch.tensor([math.nan], dtype=torch.float64)
        like = State.of(network=nothing.state, hidden=nothing.hidden, seen=nothing.seen[None], time=clock)
        found = decode_state(encoded, like, self.catalogue.bias.device, what)
        return UserState(found["network"], found["hidden"], found["seen"][0], float(found["time"]))

    def after(self, user: UserState | None, item: str, time: float = math.nan) -> UserState:
        """The user's state after one more event.

        Args:
            user: Before it; None for a new user.
            item: Its name; one that is not in the catalogue changes nothing, as ``recommend`` leaves it out;
                don't count its event as applied, so that it can come again when the item is known.
            time: Seconds of the event; NaN where not known.

        Raises:
            UsageError: If the time is infinite.
            DataError: If the event is before the last one.
        """
        user = user or self.begin()
        if math.isinf(time):
            raise UsageError(f"time: expected the seconds of the event of item {item!r}, or NaN, got {time}")
        if time < user.time:
            raise DataError(
                f"time: the event of item {item!r} at {time} s is before the user's last at {user.time} s; "
                "send events in the order of time"
            )
        index = self.model.tokenizer.index.get(item)
        if index is None:
            return user
        return self.after_all([user], [np.array([index])], [np.array([time])])[0]

    @torch.no_grad()
    def after_all(
        self,
        users: Sequence[UserState],
        items: Sequence[NDArray[np.int64]],
        times: Sequence[NDArray[np.float64]],
    ) -> list[UserState]:
        """The states of many users after some events each, in one pass through the network.

        Args:
            users: Before them.
            items: Of each user's events, one at least, in their order: places in the catalogue.
            times: Of the same events; no time is below one before it or the user's last.
        """
        lengths = [len(own) for own in items]
        values = np.zeros((len(users), max(lengths), 2), dtype=np.int64)
        for row, user, own, time in zip(values, users, items, times, strict=True):
            gaps = np.diff(time, prepend=user.time)
            if not len(user.seen):
                gaps[0] = math.nan if math.isnan(time[0]) else -1.0
            row[: len(own), 0], row[: len(own), 1] = own, gap_bins(gaps)
        events = TokenBatch(torch.from_numpy(values), torch.tensor(lengths)).to(self.catalogue.bias.device)
        state = State.cat([user.state for user in users])
        if events.length == 1:
            hidden, state = self.model.step(events.values[:, 0], self.catalogue, state)
        else:
            every, state = self.model(events, self.catalogue, state=state)
            hidden = every[torch.arange(len(users)), events.lengths - 1]
        return [
            UserState(
                _row(state, i),
                hidden[i : i + 1],
                _joined(user.seen, self._numbers[torch.from_numpy(own)]),
                float(time[-1]),
            )
            for i, (user, own, time) in enumerate(zip(users, items, times, strict=True))
        ]

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
        return self.tops([user], k, filter_seen=filter_seen, hidden_items=hidden_items)[0]

    @torch.no_grad()
    def tops(
        self,
        users: Sequence[UserState],
        k: int = 10,
        *,
        filter_seen: bool = True,
        hidden_items: Tensor | None = None,
    ) -> list[list[tuple[str, float]]]:
        """``top`` of many users."""
        found = []
        names: Sequence[str] = self.model.tokenizer.items
        for part in in_chunks(np.arange(len(users)), len(names)):
            some = [users[i] for i in part]
            number = torch.cat([user.seen for user in some])
            row = torch.repeat_interleave(torch.tensor([len(user.seen) for user in some])).to(number.device)
            place = torch.searchsorted(self._sorted, number).clamp(max=len(names) - 1)
            listed = self._sorted[place] == number  # newer items may be gone from the list
            row, item = row[listed], self._places[place[listed]]
            hidden = torch.cat([user.hidden for user in some])
            score = self.model.score(hidden, self.catalogue, (row.cpu().numpy(), item.cpu().numpy()))
            if filter_seen:
                score[row, item] = -torch.inf
            if hidden_items is not None:
                score[:, hidden_items] = -torch.inf
            best = score.topk(min(k, len(names)))
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                pairs = zip(places, values, strict=True)
                found.append([(names[i], value) for i, value in pairs if math.isfinite(value)])
        return found


def _row(state: State, i: int) -> State:
    return state.map(lambda tensor: tensor[i : i + 1])


def _joined(seen: Tensor, items: Tensor) -> Tensor:
    """The items had and further ones, each once."""
    new = torch.tensor(list(dict.fromkeys(items.tolist())), dtype=seen.dtype, device=seen.device)
    return torch.cat([seen, new[~torch.isin(new, seen)]])
