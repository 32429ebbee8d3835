"""Documents of any length as parallel streams of pieces, for truncated back-propagation through time.

    streams = DocumentStreams(documents, n_streams=16, piece_length=256, seed=0)
    state = None
    for piece in streams:
        state = begin_rows(model, state, piece.fresh)
        logits, state = model(piece.values, state, seq_idx=piece.seq_idx)
        model.loss(logits, piece.targets, piece.mask).backward()
        state = state.detach()                      # gradients stay within the piece, the state goes on

Williams & Peng 1990 ("BPTT(h; h)": the state is carried, its gradient is cut).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

Document = Tensor | tuple[Tensor, Tensor]


class Piece(NamedTuple):
    """The next ``piece_length`` tokens of every stream."""

    values: Tensor
    """``(n_streams, piece_length, ...)`` in the documents' dtype; zero where a stream has ended."""
    targets: Tensor
    """What each token should give: the document's next one, or its own targets; zero where there is none."""
    mask: Tensor
    """``(n_streams, piece_length)`` bool: there is a target."""
    seq_idx: Tensor
    """``(n_streams, piece_length)`` int32: one number a document, from 0 in every piece."""
    fresh: Tensor
    """``(n_streams,)`` bool: the first token begins a document, and so the row's state begins anew."""


@dataclass
class _Cursor:
    """Where one stream stands: in ``document`` (-1: in none) before token ``offset``."""

    document: int = -1
    offset: int = 0


class DocumentStreams(IterableDataset[Piece]):
    """An iterable of pieces. A stream that has read its document to the end takes the next one, mid-piece.

    Without ``one_pass`` documents come in a new random order again and again and rows are always full;
    an iteration is an epoch, as many pieces as hold every token once, and the next one goes on where it
    ended. So does one that was broken off, or a new object after ``load_state_dict``. Documents that
    share the end of one order and the start of the next can come twice in an epoch, or not.

    An attention's cache holds its whole document: split long ones (``Tensor.split``) for a hybrid.

    Hand it to a loop or to Lightning's trainer as it is: a piece costs next to nothing. A ``DataLoader``
    needs ``batch_size=None`` and one worker at most.

    Args:
        documents: Tensors ``(length, ...)`` of one dtype, whose targets are the next tokens; or pairs of
            values and targets of the same length. Any sequence that can be indexed: they may lie on disk.
        n_streams: Rows of a piece.
        piece_length: Tokens of a piece: how far gradients go back.
        seed: Of the order.
        one_pass: Every token once, documents in their own order, from the start at each iteration; streams
            that have ended are masked. For validation.
        lengths: Tokens of each document; found by reading them all if not given.

    Raises:
        ValueError: On no tokens at all, or a size below 1.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        n_streams: int,
        piece_length: int,
        seed: int = 0,
        one_pass: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n_streams", n_streams), ("piece_length", piece_length)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.documents = documents
        self.n_streams = n_streams
        self.piece_length = piece_length
        self.seed = seed
        self.one_pass = one_pass
        self._lengths = [int(n) for n in lengths] if lengths is not None else [_length(d) for d in documents]
        if len(self._lengths) != len(documents):
            raise ValueError(
                f"lengths: expected one for each of {len(documents)} documents, got {len(self._lengths)}"
            )
        self.n_tokens = sum(self._lengths)
        if self.n_tokens == 0:
            raise ValueError(f"documents: not one token in {len(documents)} documents")
        self._rewind()

    def _rewind(self) -> None:
        self._cursors = [_Cursor() for _ in range(self.n_streams)]
        self._taken = 0  # documents begun, over all orders
        self._pieces = 0  # in this epoch
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Pieces in an iteration from the start of an epoch."""
        if not self.one_pass:
            return max(1, round(self.n_tokens / (self.n_streams * self.piece_length)))
        ends = [0] * self.n_streams
        for n in self._lengths:  # the stream that has ended first takes it, the topmost of several
            ends[ends.index(min(ends))] += n
        return -(-max(ends) // self.piece_length)

    def __iter__(self) -> Iterator[Piece]:
        """Pieces to the end of the epoch.

        Raises:
            RuntimeError: In one of several workers, which would all give the same pieces.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RuntimeError(
                "num_workers: pieces of a stream follow each other, so expected 0 or 1, "
                f"got {worker.num_workers}"
            )
        if self.one_pass or self._pieces >= len(self):
            self._pieces = 0
        if self.one_pass:
            self._rewind()
        total = len(self)
        while self._pieces < total:
            self._pieces += 1
            yield self._next_piece()

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand, after the piece given last, in plain numbers."""
        return {
            "cursors": [list(dataclasses.astuple(cursor)) for cursor in self._cursors],
            "taken": self._taken,
            "pieces": self._pieces,
            "of": self._made_of(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the piece that was given last when ``state`` was taken.

        Raises:
            ValueError: If it is of other documents, sizes or seed.
        """
        if state["of"] != self._made_of():
            raise ValueError(
                f"state: it is of other streams: expected {self._made_of()}, got {state['of']}; "
                "resume with the same documents, sizes and seed"
            )
        self._cursors = [_Cursor(*cursor) for cursor in state["cursors"]]
        self._taken = state["taken"]
        self._pieces = state["pieces"]

    def _made_of(self) -> dict[str, Any]:
        return {
            "documents": len(self._lengths),
            "tokens": self.n_tokens,
            "n_streams": self.n_streams,
            "piece_length": self.piece_length,
            "seed": self.seed,
            "one_pass": self.one_pass,
        }

    def _next_document(self) -> int | None:
        """Number of the next document that has tokens; None after the last of one pass."""
        while True:
            turn, place = divmod(self._taken, len(self._lengths))
            if self.one_pass and turn:
                return None
            if self._order[0] != turn:
                self._order = (turn, self._shuffled(turn))
            self._taken += 1
            if self._lengths[self._order[1][place]]:
                return self._order[1][place]

    def _shuffled(self, turn: int) -> list[int]:
        if self.one_pass:
            return list(range(len(self._lengths)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return torch.randperm(len(self._lengths), generator=generator).tolist()

    def _next_piece(self) -> Piece:
        """Fill every row from its cursor on.

        Rows fill one token after another together, so that the one whose document ends first takes the next.
        """
        spans: list[list[tuple[int, int, int, int]]] = [[] for _ in self._cursors]  # at, document, offset, n
        filled = [0] * self.n_streams
        while min(filled) < self.piece_length:
            row = filled.index(min(filled))
            cursor = self._cursors[row]
            if cursor.document < 0 or cursor.offset == self._lengths[cursor.document]:
                following = self._next_document()
                if following is None:
                    cursor.document = -1
                    filled[row] = self.piece_length
                    continue
                cursor.document, cursor.offset = following, 0
            n = min(self._lengths[cursor.document] - cursor.offset, self.piece_length - filled[row])
            spans[row].append((filled[row], cursor.document, cursor.offset, n))
            cursor.offset += n
            filled[row] += n
        return self._gather(spans)

    def _gather(self, spans: list[list[tuple[int, int, int, int]]]) -> Piece:
        b, l = self.n_streams, self.piece_length  # noqa: E741
        values = targets = None
        mask = torch.zeros(b, l, dtype=torch.bool)
        seq_idx = torch.zeros(b, l, dtype=torch.int32)
        fresh = torch.ones(b, dtype=torch.bool)
        for row, row_spans in enumerate(spans):
            for number, (at, document, offset, n) in enumerate(row_spans):
                x, y = _values_and_targets(self.documents[document], document, offset, n)
                if values is None or targets is None:
                    values, targets = x.new_zeros(b, l, *x.shape[1:]), y.new_zeros(b, l, *y.shape[1:])
                for got, all_of in ((x, values), (y, targets)):
                    if got.shape[1:] != all_of.shape[2:] or got.dtype != all_of.dtype:
                        raise ValueError(
                            f"documents: number {document} holds {got.dtype} tokens of shape "
                            f"{tuple(got.shape[1:])}, others {all_of.dtype} of {tuple(all_of.shape[2:])}"
                        )
                values[row, at : at + n] = x
                targets[row, at : at + len(y)] = y
                mask[row, at : at + len(y)] = True
                seq_idx[row, at:] = number
                if at == 0:
                    fresh[row] = offset == 0
            end = sum(n for _, _, _, n in row_spans)
            seq_idx[row, end:] = len(row_spans)  # what is empty is no part of the last document
        assert values is not None
        assert targets is not None
        return Piece(values, targets, mask, seq_idx, fresh)


def _length(document: Document) -> int:
    return len(document) if isinstance(document, Tensor) else len(document[0])


def _values_and_targets(document: Document, number: int, offset: int, n: int) -> tuple[Tensor, Tensor]:
    """``n`` tokens from ``offset`` and their targets, which are one fewer at a document's own end."""
    if isinstance(document, Tensor):
        return document[offset : offset + n], document[offset + 1 : offset + 1 + n]
    values, targets = document
    if len(values) != len(targets):
        raise ValueError(
            f"documents: number {number} has {len(values)} values and {len(targets)} targets, "
            "expected one for each"
        )
    return values[offset : offset + n], targets[offset : offset + n]
