"""U-shaped stacks: layers at several rates, down and up again, with skips between what has the same rate.

The frame of U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with sequence mixers in it: over sequences as
in SaShiMi (Goel et al. 2022, arXiv:2202.09729), over grids as in VM-UNet (Ruan & Xiang 2024,
arXiv:2402.02491).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.grid_scan import check_whole_grids
from mambakit.core.blocks.layers import Layers
from mambakit.core.blocks.registry import block_options, register_block
from mambakit.core.blocks.resample import Coarse, GridResample, Resample
from mambakit.core.scans import check_grid
from mambakit.core.state import State

SKIPS = ("add", "concat")


@register_block("unet")
class UNet(Block):
    """Every level runs its layers on the way down and others of the same kinds on the way up.

    A line of config: ``block_options: {unet: {levels: [[mamba2], [mamba2, mlp], [attention]]}}`` is five
    groups of layers: at the full rate, at half, at a quarter, at half and at the full rate.

    - Causal (1-D): streams. Coarse layers run once every ``factor`` tokens; a row's phase is part of its
      state, and rows of one batch may be at different phases. Where values are not to be read back, on a GPU
      and in traced graphs, a step runs the coarse layers for every token and keeps what was due.
    - Not causal: both ways, the whole sequence, no state.
    - ``grid``: rows are whole grids, as ``grid_scan`` reads them: never causal.

    Any length, padded rows too. Packed rows are taken apart into sequences, as each has windows of its own;
    that reads ``seq_idx`` back from a GPU and breaks a compiled graph. Packed grids are not taken apart.
    As a program of ``core.export`` its ``forward`` is of one length, and its ``step`` of any stream.
    Time gaps drive the layers of every level, coarse ones by the mean gap on the way from one coarse token
    to the next; those of a grid are not passed on.

    Args:
        d_model: Width of input and output.
        levels: Kinds of block of each level, the fullest rate first; the last is the bottom of the U. A
            level may be empty, for sampling by more than one factor in a row.
        factor: Tokens that become one from a level to the next: one number, or one for each step down; for a
            grid each may be a list with a number for each axis.
        widths: Width of each level; ``d_model`` everywhere by default, which the first must be.
        skip: ``"add"``: what came down is added to what comes up; ``"concat"``: side by side, and projected.
        inner_options: Keyword arguments of the blocks, by kind. A kind with an option ``grid`` gets its
            level's.
        grid: ``(height, width)`` or ``(frames, height, width)`` for grids; None for sequences.
        causal: Whether a token sees only what came before; not of grids.
        dropout: Share of each inner block's output that is dropped while training.
        norm_eps: Added to the inner norms' mean squares.

    Raises:
        ValueError: On less than two levels, factors or widths that do not fit them, another skip, options
            for a kind that is in no level, a kind ``graph``, whose edges are of the full rate, an unknown
            kind or option, or a causal stack with a layer that is not.
    """

    def __init__(
        self,
        *,
        d_model: int,
        levels: Sequence[Sequence[str]] = (("mamba2",), ("mamba2",)),
        factor: int | Sequence[int | Sequence[int]] = 2,
        widths: Sequence[int] | None = None,
        skip: str = "add",
        inner_options: Mapping[str, Mapping[str, object]] | None = None,
        grid: Sequence[int] | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.grid = None if grid is None else check_grid(grid, 2, 3)
        self.causal = causal and grid is None
        options = {kind: dict(given) for kind, given in (inner_options or {}).items()}
        levels, widths = _checked(levels, widths, d_model, options)
        if skip not in SKIPS:
            raise ValueError(f"skip: expected one of {', '.join(SKIPS)}, got {skip!r}")
        factors = _factors(factor, len(levels) - 1, 1 if self.grid is None else len(self.grid))
        more = {"both_ways": not self.causal, "dropout": dropout, "norm_eps": norm_eps}
        self.level = _Level(levels, widths, factors, skip, options, self.grid, self.causal, more)
        inside = [block for part in self.modules() if isinstance(part, Layers) for block in part.members()]
        if self.causal:
            for block in inside:
                if not block.causal:
                    raise ValueError(
                        f"levels: {type(block).__name__} looks in both directions; "
                        "give causal: false, or layers that are causal"
                    )
        self.uses_context = any(block.uses_context for block in inside)
        self.uses_elapsed = self.grid is None and any(block.uses_elapsed for block in inside)
        self.projections = tuple(
            name
            for name, part in self.named_modules()
            if name.endswith(("sample.down_proj", "sample.up_proj", "fuse_proj"))
        )
        init.rescale_output_projections_(self, max(len(inside), 1))

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}  # those of its parts are theirs; see init_state

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Of a level: ``before`` and ``after`` of its layers, ``sample`` of its windows, and ``inner``."""
        self._refuse_unless_causal()
        return self.level.init_state(batch, *self._place(device, dtype))

    def check_state(self, state: State, batch: int) -> None:
        """As ``Block.check_state``; the layers check what is theirs."""
        if not isinstance(state, State):
            raise TypeError(f"state: expected a State (from init_state), got {type(state).__name__}")
        self.level.check_state(state, batch)

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        if self.grid is not None:
            return self._mix_grids(x, seq_idx, lengths, context)
        if seq_idx is not None:
            return self._mix_apart(x, state, seq_idx, context)
        y, after = self.level(x, state, lengths, _inner_context(context, self.uses_elapsed))
        return y, after if self.causal else State.of()

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        return self.level.step(x, state, inplace, _inner_context(context, self.uses_elapsed))

    def _mix_grids(
        self, x: Tensor, seq_idx: Tensor | None, lengths: Tensor | None, context: Context | None
    ) -> tuple[Tensor, State]:
        assert self.grid is not None
        batch, length, _ = x.shape
        check_whole_grids(self.grid, length, seq_idx, lengths)
        n_cells = math.prod(self.grid)
        used = n_cells if lengths is not None else length
        grids = x[:, :used].reshape(-1, n_cells, self.d_model)
        y, _ = self.level(grids, None, None, _inner_context(context, False))
        y = y.reshape(batch, used, self.d_model)
        return nn.functional.pad(y, (0, 0, 0, length - used)), State.of()


class _Level(nn.Module):
    """One rate, and through ``inner`` those below it."""

    def __init__(
        self,
        levels: Sequence[Sequence[str]],
        widths: Sequence[int],
        factors: Sequence[tuple[int, ...]],
        skip: str,
        options: dict[str, dict[str, object]],
        grid: tuple[int, ...] | None,
        causal: bool,
        more: dict[str, Any],
    ) -> None:
        super().__init__()
        width = widths[0]
        here = options
        if grid is not None:
            here = dict(options)
            for kind in set(levels[0]):
                if "grid" in block_options(kind):
                    here[kind] = {"grid": grid, **options.get(kind, {})}
        self.before = Layers(levels[0], width, here, **more)
        self.inner: _Level | None = None
        self.sample: Resample | GridResample | None = None
        self.after: Layers | None = None
        self.fuse_proj = None
        if len(levels) == 1:
            return
        self.after = Layers(levels[0], width, here, **more)
        rest = (levels[1:], widths[1:], factors[1:], skip, options)
        if grid is None:
            self.inner = _Level(*rest, None, causal, more)
            gaps = any(block.uses_elapsed for block in self.inner.blocks())
            self.sample = Resample(width, widths[1], factors[0][0], causal=causal, gaps=gaps)
        else:
            self.sample = GridResample(width, widths[1], grid, factors[0])
            self.inner = _Level(*rest, self.sample.coarse, causal, more)
        if skip == "concat":
            self.fuse_proj = nn.Linear(2 * width, width)

    def blocks(self) -> list[Block]:
        """Of this level and those below."""
        return [block for part in self.modules() if isinstance(part, Layers) for block in part.members()]

    def init_state(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> State:
        before = self.before.init_state(batch, device, dtype)
        if self.inner is None or self.after is None:
            return State.of(before=before)
        assert isinstance(self.sample, Resample)
        return State.of(
            before=before,
            sample=self.sample.init_state(batch, device, dtype),
            inner=self.inner.init_state(batch, device, dtype),
            after=self.after.init_state(batch, device, dtype),
        )

    def check_state(self, state: State, batch: int) -> None:
        names = ["before"] if self.inner is None else ["before", "sample", "inner", "after"]
        n_layers = len(self.before.blocks)
        nested = list(state) == names and all(isinstance(state[name], State) for name in names)
        if nested and all(len(state[name]) == n_layers for name in names if name in ("before", "after")):
            if self.inner is None:
                return
            assert isinstance(self.sample, Resample)
            wanted = {**self.sample.shapes, "phase": ()}
            sample = state["sample"]
            if list(sample) == list(wanted) and all(
                isinstance(sample[name], Tensor) and sample[name].shape[1:] == shape
                for name, shape in wanted.items()
            ):
                if sample["phase"].shape[0] != batch:
                    rows = sample["phase"].shape[0]
                    raise ValueError(f"state: it is for a batch of {rows} rows, but x has {batch}")
                self.inner.check_state(state["inner"], batch)
                return
        parts = state.get("sample")
        small = isinstance(parts, State) and any(isinstance(one, State) for one in parts.values())
        hint = "; decompress it first" if small else ""
        raise ValueError(
            f"state: it belongs to another block: UNet keeps {', '.join(names)} for a level, each a nested "
            f"state, got {state!r}{hint}"
        )

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, context: Context | None
    ) -> tuple[Tensor, State]:
        if x.shape[1] == 0 and state is not None:  # a piece that ends no window of this level
            return x, state
        past: Any = state or {}
        x, before = self.before(x, past.get("before"), lengths, context)
        if self.inner is None or self.after is None:
            return x, State.of(before=before)
        elapsed = None if context is None else context.elapsed
        if isinstance(self.sample, GridResample):
            coarse = Coarse(self.sample.down(x), None, None)
        else:
            assert self.sample is not None
            coarse = self.sample.down(x, past.get("sample"), lengths, elapsed)
        told = context and Context(elapsed=coarse.elapsed, losses=context.losses)
        y, inner = self.inner(coarse.x, past.get("inner"), coarse.lengths, told)
        if isinstance(self.sample, GridResample):
            joined = self.fused(x, self.sample.up(y))
        else:
            joined = self.fused(x, self.sample.up(y, x.shape[1], past.get("sample")))
        joined, after = self.after(joined, past.get("after"), lengths, context)
        if isinstance(self.sample, GridResample) or not self.sample.causal:
            return joined, State.of()
        sample = self.sample.after(x, y, coarse, past.get("sample"), lengths, elapsed)
        return joined, State.of(before=before, sample=sample, inner=inner, after=after)

    def fused(self, x: Tensor, up: Tensor) -> Tensor:
        """What came down, and what comes up."""
        return x + up if self.fuse_proj is None else self.fuse_proj(torch.cat([x, up], -1))

    def step(self, x: Tensor, state: State, inplace: bool, context: Context | None) -> tuple[Tensor, State]:
        x, before = self.before.step(x, state["before"], inplace, context)
        if self.inner is None or self.after is None:
            return x, State.of(before=before)
        assert isinstance(self.sample, Resample)
        past = state["sample"]
        window, gaps = self.sample.window(x, past), None
        if "gaps" in past:
            now = torch.ones_like(x[:, :1]) if context is None or context.elapsed is None else None
            now = context.elapsed[:, None] if now is None else now  # type: ignore[union-attr,index]
            gaps = torch.cat([past["gaps"].to(now.dtype), now], 1)
        held, inner = self._step_inner(window, gaps, past, state["inner"], inplace, context)
        joined = self.fused(x, self.sample.up_step(held.to(x.dtype), past))
        joined, after = self.after.step(joined, state["after"], inplace, context)
        made = {"past": window[:, 1:].transpose(1, 2).to(past["past"].dtype).contiguous(), "held": held}
        if gaps is not None:
            made["gaps"] = gaps[:, 1:].to(past["gaps"].dtype).contiguous()
        sample = State.of(**made, phase=(past["phase"] + 1) % self.sample.factor)
        return joined, State.of(before=before, sample=sample, inner=inner, after=after)

    def _step_inner(
        self,
        window: Tensor,
        gaps: Tensor | None,
        past: State,
        inner: State,
        inplace: bool,
        context: Context | None,
    ) -> tuple[Tensor, State]:
        """The coarse outputs that rows hold now, and the state below: stepped where a window ends."""
        assert self.inner is not None
        assert isinstance(self.sample, Resample)
        due, held = past["phase"] == 0, past["held"]

        def step(rows: Tensor | None, state: State, inplace: bool) -> tuple[Tensor, State]:
            of_rows, mean = window, None if gaps is None else gaps.mean(1)
            if rows is not None:
                of_rows, mean = window[rows], None if mean is None else mean[rows]
            told = context and Context(elapsed=mean, losses=context.losses)
            coarse = self.sample.down_proj(of_rows.flatten(1))  # type: ignore[union-attr]
            y, state = self.inner.step(coarse, state, inplace, told)  # type: ignore[union-attr]
            return y.to(held.dtype), state

        if due.is_cuda or torch.compiler.is_compiling():
            y, after = step(None, inner, False)
            return torch.where(due[:, None], y, held), inner.where_rows(due, after)
        known = due.tolist()
        if all(known):
            return step(None, inner, inplace)
        if not any(known):
            return held, inner
        rows = due.nonzero().squeeze(1)
        y, after = step(rows, inner.index_select(rows), True)
        return held.index_copy(0, rows, y), inner.put_rows(rows, after)


def _inner_context(context: Context | None, with_elapsed: bool) -> Context | None:
    """For layers inside: the stack's own input is of another width and rate, and edges are outside."""
    if context is None:
        return None
    return Context(elapsed=context.elapsed if with_elapsed else None, losses=context.losses)


def _checked(
    levels: Sequence[Sequence[str]],
    widths: Sequence[int] | None,
    d_model: int,
    options: Mapping[str, object],
) -> tuple[list[list[str]], list[int]]:
    if isinstance(levels, str) or any(isinstance(level, str) for level in levels):
        raise ValueError(f"levels: expected a list of lists of kinds, got {levels!r}")
    made = [list(level) for level in levels]
    if len(made) < 2:
        raise ValueError(f"levels: expected at least two, got {made}")
    kinds = {kind for level in made for kind in level}
    if "graph" in kinds:
        raise ValueError("levels: edges are of the full rate; put graph layers beside the unet, not inside")
    for kind in options:
        if kind not in kinds:
            raise ValueError(f"inner_options: {kind!r} is in no level; kinds are {', '.join(sorted(kinds))}")
    wide = [d_model] * len(made) if widths is None else list(widths)
    if len(wide) != len(made) or wide[0] != d_model or min(wide) < 1:
        raise ValueError(
            f"widths: expected one for each of {len(made)} levels, the first d_model={d_model}, got {wide}"
        )
    return made, wide


def _factors(factor: int | Sequence[int | Sequence[int]], n: int, n_axes: int) -> list[tuple[int, ...]]:
    steps = [factor] * n if isinstance(factor, int) else list(factor)
    made = [(one,) * n_axes if isinstance(one, int) else tuple(one) for one in steps]
    if len(made) != n or any(len(one) != n_axes or min(one) < 1 for one in made):
        raise ValueError(
            f"factor: expected a number, or one (for a grid perhaps of {n_axes} axes) for each of {n} steps "
            f"down, at least 1, got {factor!r}"
        )
    return made
