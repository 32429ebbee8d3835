"""Fewer tokens and as many again: the way down and the way up of a U-shaped stack.

``factor`` neighbours side by side are projected to one coarse token, and a coarse token to ``factor`` fine
ones, as SaShiMi pools (Goel et al. 2022, arXiv:2202.09729, section 3.2) and Swin merges patches (Liu et al.
2021, arXiv:2103.14030, section 3.1). In a causal stack coarse token j is made of the fine tokens up to
``j * factor`` (zeros before the first), and the fine tokens ``j * factor .. (j + 1) * factor - 1`` read it:
what SaShiMi has by shifting the way up by a coarse token holds here by where the windows end, and the first
token of a sequence has a coarse one already. A stream carries how many tokens its window has, so that pieces
may end anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import padding_mask
from mambakit.core.blocks.ragged import last_inputs
from mambakit.core.state import State
from mambakit.kernels.semantics import state_dtype


class Coarse(NamedTuple):
    """What came of the way down."""

    x: Tensor
    """``(batch, n_coarse, d_coarse)``."""
    lengths: Tensor | None
    """``(batch,)``: the coarse tokens that are real; None if all are."""
    elapsed: Tensor | None
    """``(batch, n_coarse)``: mean gap on the way from one coarse token to the next."""


class Resample(nn.Module):
    """Sequences: ``ceil(length / factor)`` coarse tokens for any length.

    Args:
        d_fine: Width of the fine tokens.
        d_coarse: Width of the coarse ones.
        factor: Fine tokens of a coarse one.
        causal: As above; otherwise coarse token j is made of the tokens that read it.
        gaps: Whether a state has the latest time gaps, for layers whose step size they drive.
    """

    def __init__(self, d_fine: int, d_coarse: int, factor: int, *, causal: bool, gaps: bool = False) -> None:
        super().__init__()
        self.d_fine, self.d_coarse, self.factor, self.causal = d_fine, d_coarse, factor, causal
        self.down_proj = nn.Linear(factor * d_fine, d_coarse)
        self.up_proj = nn.Linear(d_coarse, factor * d_fine)
        self.shapes = {"past": (d_fine, factor - 1), "held": (d_coarse,)}
        if gaps:
            self.shapes["gaps"] = (factor - 1,)

    def init_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """Before the first token: ``past`` inputs of the window, the coarse output that is ``held``, and
        ``phase``, tokens since the last window's end began ``(batch,)`` int64."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        made = {
            name: torch.full((batch, *shape), float(name == "gaps"), device=device, dtype=dtype)
            for name, shape in self.shapes.items()
        }
        return State.of(**made, phase=torch.zeros(batch, device=device, dtype=torch.int64))

    def down(self, x: Tensor, state: State | None, lengths: Tensor | None, elapsed: Tensor | None) -> Coarse:
        """The coarse tokens that end in ``x`` ``(batch, length, d_fine)``, which follows ``state``."""
        length, f = x.shape[1], self.factor
        n = -(-length // f)
        if state is None:
            if lengths is not None:
                x = x.masked_fill(padding_mask(lengths, length)[..., None], 0.0)
            ahead = f - 1 if self.causal else 0
            windows = F.pad(x, (0, 0, ahead, n * f - length)).narrow(1, 0, n * f).unflatten(1, (n, f))
            counts = None if lengths is None else (lengths + f - 1) // f
            if elapsed is not None:
                before = F.pad(elapsed, (f - 1, n * f - length), value=1.0)
                elapsed = before.narrow(1, 0, n * f).unflatten(1, (n, f)).mean(-1)
            return Coarse(self.down_proj(windows.flatten(2)), counts, elapsed)
        first = -state["phase"] % f
        sizes = torch.full_like(first, length) if lengths is None else lengths
        counts = ((sizes - first + f - 1) // f).clamp(min=0)
        if not (counts.is_cuda or torch.compiler.is_compiling()):
            known = counts.tolist()
            n = max(known, default=0)
            counts = None if all(one == n for one in known) else counts
        index = first[:, None, None] + f * torch.arange(n, device=x.device)[:, None]
        index = (index + torch.arange(f, device=x.device)).clamp(max=length + f - 2).flatten(1)  # [b, n * f]
        joined = torch.cat([state["past"].transpose(1, 2).to(x.dtype), x], 1)
        windows = joined.gather(1, index[..., None].expand(-1, -1, self.d_fine)).unflatten(1, (n, f))
        if "gaps" in state:
            told = torch.ones_like(x[..., 0]) if elapsed is None else elapsed
            elapsed = torch.cat([state["gaps"].to(told.dtype), told], 1).gather(1, index)
            elapsed = elapsed.unflatten(1, (n, f)).mean(-1)
        return Coarse(self.down_proj(windows.flatten(2)), counts, elapsed)

    def up(self, y: Tensor, length: int, state: State | None) -> Tensor:
        """``(batch, length, d_fine)`` of coarse outputs ``(batch, n_coarse, d_coarse)``."""
        f = self.factor
        if state is None:
            fine = self.up_proj(y).unflatten(2, (f, self.d_fine))
            if torch.compiler.is_compiling():  # whether all are wanted would be a graph of its own
                t = torch.arange(length, device=y.device)
                return fine[:, t // f, t % f]
            return fine.flatten(1, 2)[:, :length]
        joined = torch.cat([state["held"].to(y.dtype)[:, None], y], 1)
        fine = self.up_proj(joined).unflatten(2, (f, self.d_fine)).flatten(1, 2)
        # the held one comes first; where none of its tokens is left the next begins
        begin = torch.where(state["phase"] == 0, f, state["phase"])
        index = (begin[:, None] + torch.arange(length, device=y.device)).clamp(max=fine.shape[1] - 1)
        return fine.gather(1, index[..., None].expand(-1, -1, self.d_fine))

    def after(
        self,
        x: Tensor,
        y: Tensor,
        coarse: Coarse,
        state: State | None,
        lengths: Tensor | None,
        elapsed: Tensor | None,
    ) -> State:
        """The state after ``x``, whose coarse outputs are ``y``."""
        batch, length, _ = x.shape
        if state is None:
            state = self.init_state(batch, x.device, x.dtype)
        sizes = torch.full_like(state["phase"], length) if lengths is None else lengths
        held = torch.cat([state["held"].to(y.dtype)[:, None], y], 1)
        if coarse.lengths is None:
            held = held[:, -1]
        else:
            held = held.gather(1, coarse.lengths[:, None, None].expand(-1, -1, self.d_coarse)).squeeze(1)
        made = {
            "past": last_inputs(x, state["past"], sizes, self.factor),
            "held": held.to(state_dtype(y)),
        }
        if "gaps" in self.shapes:
            told = torch.ones_like(x[..., 0]) if elapsed is None else elapsed
            made["gaps"] = last_inputs(told[..., None], state["gaps"][:, None], sizes, self.factor)[:, 0]
        return State.of(**made, phase=(state["phase"] + sizes) % self.factor)

    def window(self, x: Tensor, state: State) -> Tensor:
        """The window that a token ``(batch, d_fine)`` ends, ``(batch, factor, d_fine)``."""
        return torch.cat([state["past"].transpose(1, 2).to(x.dtype), x[:, None]], 1)

    def up_step(self, held: Tensor, state: State) -> Tensor:
        """A token ``(batch, d_fine)`` of the coarse outputs that its row has now, ``(batch, d_coarse)``."""
        fine = self.up_proj(held).unflatten(1, (self.factor, self.d_fine))
        return fine.gather(1, state["phase"][:, None, None].expand(-1, 1, self.d_fine)).squeeze(1)


class GridResample(nn.Module):
    """Grids: ``ceil(size / factor)`` coarse cells along each axis, zeros beyond the grid's end.

    Args:
        d_fine, d_coarse: Widths.
        grid: Sizes of the fine grid.
        factors: Fine cells of a coarse one along each axis.
    """

    def __init__(self, d_fine: int, d_coarse: int, grid: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        self.d_fine, self.fine, self.factors = d_fine, tuple(grid), tuple(factors)
        self.coarse = tuple(-(-size // f) for size, f in zip(grid, factors, strict=True))
        n = math.prod(factors)
        self.down_proj = nn.Linear(n * d_fine, d_coarse)
        self.up_proj = nn.Linear(d_coarse, n * d_fine)
        axes = range(len(self.fine))
        self._inwards = (0, *(1 + 2 * a for a in axes), *(2 + 2 * a for a in axes), 1 + 2 * len(axes))
        self._outwards = (0, *(one for a in axes for one in (1 + a, 1 + len(axes) + a)), 1 + 2 * len(axes))

    def down(self, x: Tensor) -> Tensor:
        """``(batch, cells, d_fine)`` to ``(batch, coarse cells, d_coarse)``."""
        x = x.unflatten(1, self.fine)
        spare = [c * f - size for c, f, size in zip(self.coarse, self.factors, self.fine, strict=True)]
        x = F.pad(x, (0, 0, *(one for size in reversed(spare) for one in (0, size))))
        both = [one for pair in zip(self.coarse, self.factors, strict=True) for one in pair]
        x = x.reshape(len(x), *both, self.d_fine).permute(self._inwards)
        return self.down_proj(x.reshape(len(x), math.prod(self.coarse), -1))

    def up(self, y: Tensor) -> Tensor:
        """``(batch, coarse cells, d_coarse)`` to ``(batch, cells, d_fine)``."""
        y = self.up_proj(y).reshape(len(y), *self.coarse, *self.factors, self.d_fine).permute(self._outwards)
        y = y.reshape(len(y), *(c * f for c, f in zip(self.coarse, self.factors, strict=True)), self.d_fine)
        for axis, size in enumerate(self.fine):
            y = y.narrow(1 + axis, 0, size)
        return y.flatten(1, -2)
