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
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.tokenizer import EventTokenizer, gap_bins, gaps_of

NO_TARGET = -1


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
        # the first piece is shorter by what the cuts move; it keeps at least one target
        moved = np.minimum(moved, self.max_length - 1)
        first = self.begin[user] + ahead * self.max_length - moved[user]
        last = np.minimum(first + self.max_length, self.end[user])
        pieces = np.stack([user, np.maximum(first, self.begin[user]), last], 1)
        pieces = pieces[pieces[:, 1] < pieces[:, 2]]
        order: NDArray[np.int64] = pieces[torch.randperm(len(pieces)).numpy()]
        return order

    def __getitems__(self, pieces: Sequence[NDArray[np.int64]]) -> Batch:
        given = np.stack(pieces)
        length = given[:, 2] - given[:, 1]
        row, start, n_rows = _packed(length, self.row_length)
        shape = (n_rows, self.row_length)
        values = np.zeros((*shape, 2), dtype=np.int64)
        target = np.full(shape, NO_TARGET, dtype=np.int64)
        number = np.zeros(shape, dtype=np.int32)
        used = np.zeros(n_rows, dtype=np.int64)
        count = np.zeros(n_rows, dtype=np.int32)
        for (user, begin, end), r, s in zip(given, row, start, strict=True):
            place = slice(s, s + end - begin)
            target[r, place] = self.item[begin:end]
            values[r, s + 1 : place.stop, 0] = self.item[begin : end - 1]
            values[r, s + 1 : place.stop, 1] = self.bins[begin : end - 1]
            whole = begin == self.begin[user]
            values[r, s] = (self.start, 0) if whole else (self.item[begin - 1], self.bins[begin - 1])
            number[r, s:] = count[r]
            count[r] += 1
            used[r] = place.stop
            number[r, place.stop :] = count[r]
        whole = given[:, 1] == self.begin[given[:, 0]]
        order = np.lexsort((start, row))
        words = self.words[given[order][whole[order], 0]]
        tokens = TokenBatch.trusted(
            values=torch.from_numpy(values),
            lengths=torch.from_numpy(used),
            time=None,
            modality=None,
            seq_idx=torch.from_numpy(number),
            padding="right",
            _spans=torch.from_numpy(np.stack([row, start, length], 1)),
        )
        return Batch(tokens, torch.from_numpy(target), torch.from_numpy(words))

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


def _packed(length: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Row and start of each sequence, first fit, and the number of rows."""
    used: list[int] = []
    row, start = np.zeros(len(length), dtype=np.int64), np.zeros(len(length), dtype=np.int64)
    for i, n in enumerate(length.tolist()):
        place = next((r for r, taken in enumerate(used) if taken + n <= width), len(used))
        if place == len(used):
            used.append(0)
        row[i], start[i] = place, used[place]
        used[place] += n
    return row, start, len(used)


def context_batch(
    interactions: Interactions,
    users: NDArray[np.int64],
    ends: NDArray[np.int64],
    tokenizer: EventTokenizer,
    history: int | None,
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Histories of some users up to some place, padded on the right, and the users whose START is in it.

    Args:
        interactions: All events.
        users: ``(n,)``.
        ends: One past the last event of each history, ``(n,)`` into the events.
        tokenizer: Of the catalogue.
        history: Events of each at most, the last ones; None for all. A cut history has no START.
    """
    first = interactions.offsets[users]
    begin = first if history is None else np.maximum(first, ends - history)
    whole = begin == first
    length = ends - begin + whole
    bins = gap_bins(gaps_of(interactions))
    values = np.zeros((len(ends), max(1, int(length.max(initial=1))), 2), dtype=np.int64)
    for i, (a, b, w) in enumerate(zip(begin, ends, whole, strict=True)):
        if w:
            values[i, 0] = tokenizer.start, 0
        values[i, int(w) : length[i], 0] = interactions.item[a:b]
        values[i, int(w) : length[i], 1] = bins[a:b]
    return TokenBatch(torch.from_numpy(values), torch.from_numpy(length)), users[whole]
