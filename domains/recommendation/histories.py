"""Histories as batches: pieces packed for training, where every position is a target, and contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mambakit.core.adapters import TokenBatch
from mambakit.core.adapters.packing import first_fit, number_samples
from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.counting import stretches
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.tokenizer import EventTokenizer, gap_bins, gaps_of

NO_TARGET = -1
_CONTEXT_ROW = 512


class Batch(NamedTuple):
    """Packed pieces of histories and what comes next at each position.

    Attributes:
        tokens: Item and gap of each event, ``(rows, length, 2)``, packed.
        target: The item of the next event, ``(rows, length)``, -1 in padding.
        user_words: ``(starts, most)`` int64, what describes the user of each START, row by row.
    """

    tokens: TokenBatch
    target: Tensor
    user_words: Tensor


class Histories(Dataset[Batch]):
    """Pieces of all users' training events.

    The history of a user is cut into as few pieces of ``max_length`` targets as hold it, at another place
    each time it is drawn. The first begins with START; another begins with the event before its first target.
    A piece is ``(user, first target, one past the last)``, in places of ``interactions``.

    Args:
        interactions: All events.
        train_end: Where each user's training events end.
        tokenizer: Of the catalogue.
        max_length: Targets of a piece at most.
        row_length: Positions of a packed row; at least ``max_length`` are taken.
    """

    def __init__(
        self,
        interactions: Interactions,
        train_end: NDArray[np.int64],
        tokenizer: EventTokenizer,
        *,
        max_length: int,
        row_length: int,
    ) -> None:
        self.begin, self.end = interactions.offsets[:-1], train_end
        self.item, self.bins = interactions.item, gap_bins(gaps_of(interactions))
        self.start = tokenizer.start
        self.max_length, self.row_length = max_length, max(row_length, max_length)
        self.n_pieces = -(-(self.end - self.begin) // max_length)
        self.words = tokenizer.user_words.encode(interactions.user_features, interactions.n_users)

    def __len__(self) -> int:
        return int(self.n_pieces.sum())

    def draw(self) -> NDArray[np.int64]:
        """All pieces in random order, ``(len(self), 3)``, by torch's random numbers."""
        user = np.repeat(np.arange(len(self.begin)), self.n_pieces)
        ahead = np.arange(len(user)) - np.repeat(np.cumsum(self.n_pieces) - self.n_pieces, self.n_pieces)
        slack = self.n_pieces * self.max_length - (self.end - self.begin)
        moved = (torch.rand(len(self.begin)).numpy() * (slack + 1)).astype(np.int64).clip(max=slack)
        # the first piece is shorter by what the cuts move
        first = self.begin[user] + ahead * self.max_length - moved[user]
        last = np.minimum(first + self.max_length, self.end[user])
        pieces = np.stack([user, np.maximum(first, self.begin[user]), last], 1)
        order: NDArray[np.int64] = pieces[torch.randperm(len(pieces)).numpy()]
        return order

    def __getitems__(self, pieces: Sequence[NDArray[np.int64]]) -> Batch:
        given = np.stack(pieces)
        user, first, last = given.T
        whole = first == self.begin[user]
        # what is read is one event behind what is foretold
        read = pack_events(
            self.item,
            self.bins,
            np.where(whole, first, first - 1),
            last - 1,
            whole,
            self.start,
            self.row_length,
        )
        target = np.full(read.values.shape[:2], NO_TARGET, dtype=np.int64)
        for (row, start, length), a in zip(read.spans.tolist(), first, strict=True):
            target[row, start : start + length] = self.item[a : a + length]
        order = np.lexsort((read.spans[:, 1].numpy(), read.spans[:, 0].numpy()))
        words = self.words[user[order][whole[order]]]
        return Batch(read, torch.from_numpy(target), torch.from_numpy(words))

    def loader(self, batch_size: int) -> DataLoader[Batch]:
        """Batches of so many pieces, cut and shuffled anew each epoch."""
        sampler = _Pieces(self, batch_size)
        return DataLoader(self, batch_sampler=sampler, collate_fn=_as_it_is)  # type: ignore[arg-type]


class _Pieces(Sampler[list[NDArray[np.int64]]]):
    def __init__(self, histories: Histories, batch_size: int) -> None:
        self.histories, self.batch_size = histories, batch_size

    def __len__(self) -> int:
        return -(-len(self.histories) // self.batch_size)

    def __iter__(self) -> Iterator[list[NDArray[np.int64]]]:
        for part in np.array_split(self.histories.draw(), len(self)):
            yield list(part)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def context_batch(
    interactions: Interactions,
    users: NDArray[np.int64],
    ends: NDArray[np.int64],
    tokenizer: EventTokenizer,
    history: int | None,
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Histories of some users up to some place, packed, and the users of each START, row by row.

    Args:
        interactions: All events.
        users: ``(n,)``.
        ends: One past the last event of each history, ``(n,)`` into the events.
        tokenizer: Of the catalogue.
        history: Events of each at most, the last ones; None for all. A cut history has no START.

    Raises:
        UsageError: If ``history`` is below 1.
    """
    if history is not None and history < 1:
        raise UsageError(f"history: expected at least 1 event, or None for all, got {history}")
    first = interactions.offsets[users]
    begin = first if history is None else np.maximum(first, ends - history)
    whole = begin == first
    longest = int((ends - begin + whole).max(initial=1))
    events = stretches(begin, ends)
    own = np.cumsum(ends - begin)
    batch = pack_events(
        interactions.item[events],
        gap_bins(gaps_of(interactions, events)),
        own - (ends - begin),
        own,
        whole,
        tokenizer.start,
        max(_CONTEXT_ROW, longest),
    )
    order = np.lexsort((batch.spans[:, 1].numpy(), batch.spans[:, 0].numpy()))
    return batch, users[order][whole[order]]


def pack_events(
    item: NDArray[np.int64],
    bins: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    whole: NDArray[np.bool_],
    start: int,
    width: int,
) -> TokenBatch:
    """Stretches of events as packed rows of item and gap, each in the first row that has room.

    Args:
        item, bins: Of all events.
        begin, end: The stretches, ``(n,)`` each.
        whole: Which of them begin with START.
        start: The index of START.
        width: Positions of a row.
    """
    spans, used = first_fit((end - begin + whole).tolist(), width)
    used = used or [0]
    values = np.zeros((len(used), width, 2), dtype=np.int64)
    for (row, at, n), a, b, w in zip(spans, begin, end, whole, strict=True):
        if w:
            values[row, at] = start, 0
        values[row, at + int(w) : at + n, 0] = item[a:b]
        values[row, at + int(w) : at + n, 1] = bins[a:b]
    return TokenBatch.trusted(
        values=torch.from_numpy(values),
        lengths=torch.tensor(used),
        time=None,
        modality=None,
        seq_idx=number_samples(spans, used, width),
        padding="right",
        _spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 3),
    )
