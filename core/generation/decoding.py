"""The rows that are being decoded: what every strategy's loop is made of."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.generation.constraints import Constraint
from mambakit.core.generation.decoder import Begun, Decoder
from mambakit.core.state import State

_NOT_A_NUMBER, _FORBIDDEN = 1, 2


class Decoding:
    """Rows with the model's state, the constraint's, and the logits of what comes next.

    Args:
        model: The decoder.
        begun: Its prompts, read.
        copies: Rows that start from each prompt, one after the other.
        constraint: What may come next.
        walk: The constraint's state of each prompt's row; by default what it starts with.
        keep: Leave the state of ``begun`` as it is.

    Attributes:
        state, logits, walk: The model's state, ``(rows, n_ids)``, and the constraint's state.
        n_ids: Size of the vocabulary.
    """

    def __init__(
        self,
        model: Decoder,
        begun: Begun,
        copies: int,
        constraint: Constraint | None,
        walk: State | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.model = model
        self.constraint = constraint
        self.state = begun.state.clone() if keep else begun.state
        self.logits = begun.logits
        self.n_ids = begun.logits.shape[-1]
        self.device = begun.logits.device
        self.walk = walk
        if constraint is not None and walk is None:
            self.walk = constraint.start(begun.ids, begun.lengths)
        if copies > 1:
            rows = torch.arange(len(begun.ids), device=self.device)
            self.select(rows.repeat_interleave(copies))

    def __len__(self) -> int:
        return self.logits.shape[0]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order, some perhaps twice; no wait for the GPU."""

        def take(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows)

        self.state = self.state.map(take)
        self.logits = take(self.logits)
        if self.walk is not None:
            self.walk = self.walk.map(take)

    def restart(self, rows: Tensor, state: State) -> None:
        """Put these ``(k,)`` at ``state``; in place, so that a recorded step goes on with the same memory.

        Their logits come with the next step, and then what the constraint knows of them.
        """
        _put(self.state, rows, state)

    def restart_walk(self, rows: Tensor, walk: State | None) -> None:
        """Put the constraint's state of these rows at ``walk``.

        Raises:
            ValueError: If the constraint's state has grown.
        """
        if self.walk is None or walk is None:
            return
        if any(
            mine.shape[1:] != theirs.shape[1:]
            for (_, mine), (_, theirs) in zip(self.walk.tensors(), walk.tensors(), strict=True)
        ):
            raise ValueError(
                "constraint: its state grows from id to id, so that rows can't be at different positions; "
                "call generate"
            )
        self.walk = self.walk.map(lambda tensor: tensor.contiguous().clone())  # it may be the caller's own
        _put(self.walk, rows, walk)

    def shrink(self, moved: Tensor, to: Tensor, size: int) -> None:
        """Go on with the first ``size`` rows, after rows ``moved`` ``(k,)`` have replaced rows ``to``."""

        def first(tensor: Tensor) -> Tensor:
            return tensor[:size]

        _put(self.state, to, self.state.map(lambda tensor: tensor.index_select(0, moved)))
        self.state, self.logits = self.state.map(first), first(self.logits)
        if self.walk is not None:
            self.restart_walk(to, self.walk.map(lambda tensor: tensor.index_select(0, moved)))
            self.walk = self.walk.map(first)

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """The model's log-probabilities of the next id, and the same with -inf where it may not come.

        Both ``(rows, n_ids)``, in float32 (float64 for a float64 model) whatever the logits are.

        Raises:
            TypeError, ValueError: If the constraint's mask is not bool ``(rows, n_ids)``.
        """
        dtype = torch.promote_types(self.logits.dtype, torch.float32)
        raw = F.log_softmax(self.logits, dim=-1, dtype=dtype)
        if self.constraint is None or self.walk is None:
            return raw, raw
        allowed = self.constraint.allowed(self.walk)
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
            got = getattr(allowed, "dtype", type(allowed).__name__)
            raise TypeError(f"constraint: expected a bool tensor from it, got {got}")
        if allowed.shape != raw.shape:
            raise ValueError(
                f"constraint: expected a mask of shape (rows={len(raw)}, n_ids={self.n_ids}) from it, "
                f"got {tuple(allowed.shape)}"
            )
        return raw, raw.masked_fill(~allowed.to(raw.device), -math.inf)

    def advance(self, ids: Tensor) -> None:
        """Read one more id ``(rows,)`` in every row.

        Raises:
            ValueError: If what was given as the next logits is for another vocabulary than the model's.
        """
        if self.constraint is not None and self.walk is not None:
            self.walk = self.constraint.advance(self.walk, ids)
        self.logits, self.state = self.model.step(ids, self.state, inplace=True)
        if self.logits.shape[-1] != self.n_ids:
            raise ValueError(
                f"next_logits: they are for {self.n_ids} ids, but the model gives {self.logits.shape[-1]}"
            )


class Faults:
    """The first fault of every row, kept on the device until there is a reason to wait for it."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.kind = torch.zeros(rows, dtype=torch.int64, device=device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)

    def note(self, position: int | Tensor, not_a_number: Tensor, forbidden: Tensor) -> None:
        """Where these bool ``(rows,)`` hold, at one position or each row's, unless it had a fault before."""
        kind = torch.where(not_a_number, _NOT_A_NUMBER, torch.where(forbidden, _FORBIDDEN, 0))
        new = (self.kind == 0) & (kind != 0)
        self.position = torch.where(new, position, self.position)
        self.kind = torch.where(new, kind, self.kind)

    def select(self, rows: Tensor) -> None:
        self.kind, self.position = self.kind[rows], self.position[rows]

    def report(self, origin: Tensor, copies: int) -> NoReturn:
        """Raise the first one.

        Args:
            origin: The number of each row as the caller counts them, ``(rows,)``.
            copies: How many of these numbers a prompt has.

        Raises:
            ValueError: Always.
        """
        at = int(self.kind.nonzero()[0])
        row, sample = divmod(int(origin[at]), copies)
        where = f"row {row}" + (f" (sample {sample})" if copies > 1 else "")
        where += f", generated position {int(self.position[at])}"
        if int(self.kind[at]) == _NOT_A_NUMBER:
            raise ValueError(
                f"logits: not a number at {where}; the model's weights or state hold NaN or infinity"
            )
        raise ValueError(f"constraint: it forbids every id at {where}; allow an id or an end id there")


def _put(state: State, rows: Tensor, other: State) -> None:
    for (_, mine), (_, theirs) in zip(state.tensors(), other.tensors(), strict=True):
        mine.index_copy_(0, rows, theirs.to(mine))
