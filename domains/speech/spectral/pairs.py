"""Blocks over time and over frequency in turn: a straight stack of them, or a U of several resolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.blocks import RMSNorm, build_block
from mambakit.core.blocks.resample import Resample
from mambakit.core.compiled_pairs import PairParts, ShortPairs
from mambakit.core.state import State
from mambakit.domains.speech.spectral.config import SpectralConfig


class Pair(nn.Module):
    """A block over time and one over frequency, each ``x + block(norm(x))``."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        both = {"inner": config.block, "inner_options": config.block_options}
        self.time_norm, self.frequency_norm = RMSNorm(config.d_model), RMSNorm(config.d_model)
        self.time = (
            build_block(config.block, config.d_model, config.block_options)
            if config.causal
            else build_block("bidirectional", config.d_model, both)
        )
        self.frequency = build_block("bidirectional", config.d_model, both)

    @property
    def parts(self) -> PairParts:
        """As the compiled call takes them."""
        return PairParts(self.time_norm, self.time, self.frequency_norm, self.frequency)

    def forward(self, x: Tensor, state: State | None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """``(batch, n_frames, n_patches, d_model)`` to the same, and the state after the last frame.

        ``lengths`` ``(batch,)`` are the frames that count, if not all.
        """
        batch, n_frames, n_patches, width = x.shape
        along = x.transpose(1, 2).reshape(batch * n_patches, n_frames, width)
        of_rows = None if lengths is None else lengths.repeat_interleave(n_patches)
        y, state = self.time(self.time_norm(along), state, lengths=of_rows)
        x = (along + y).view(batch, n_patches, n_frames, width).transpose(1, 2)
        across = x.reshape(batch * n_frames, n_patches, width)
        y, _ = self.frequency(self.frequency_norm(across))
        return (across + y).view(batch, n_frames, n_patches, width), state


class Pairs(nn.ModuleList):
    """``n_layers`` pairs, one after the other."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__(Pair(config) for _ in range(config.n_layers))
        self._short = ShortPairs()

    def init_state(self, batch: int, n_patches: int) -> State:
        """Before the first frame; of a causal model."""
        states = (pair.time.init_state(batch * n_patches) for pair in self)  # type: ignore[union-attr,operator]
        return State.of(**{str(i): state for i, state in enumerate(states)})

    def forward(self, x: Tensor, state: State | None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """As ``Pair``'s."""
        if lengths is None and x.is_cpu and not torch.compiler.is_compiling():
            past = None if state is None else [state[str(i)] for i in range(len(self))]
            found = self._short.run(self, (pair.parts for pair in self), x, past)  # type: ignore[misc]
            if found is not None:
                return found[0], State.of(**{str(i): one for i, one in enumerate(found[1])})
        states = {}
        for i, pair in enumerate(self):
            x, states[str(i)] = pair(x, None if state is None else state[str(i)], lengths)
        return x, State.of(**states)


class Scales(nn.Module):
    """Pairs, then coarser ones below them, then pairs again, which see both.

    From one level to the next two neighbouring patches of bins become one, and ``config.time_factor`` frames
    where that is not 1; each way by ``core.blocks.resample``, so that a causal model streams.

    Args:
        config: The network's.
        levels: Resolutions, at least two.
    """

    def __init__(self, config: SpectralConfig, levels: int) -> None:
        super().__init__()
        width, factor = config.d_model, config.time_factor
        self.before, self.after = Pairs(config), Pairs(config)
        self.time = Resample(width, width, factor, causal=config.causal) if factor > 1 else None
        self.frequency = Resample(width, width, 2, causal=False)
        self.below: Pairs | Scales = Pairs(config) if levels == 2 else Scales(config, levels - 1)

    def init_state(self, batch: int, n_patches: int) -> State:
        """Before the first frame; of a causal model."""
        made: dict[str, Any] = {
            "before": self.before.init_state(batch, n_patches),
            "below": self.below.init_state(batch, -(-n_patches // 2)),
            "after": self.after.init_state(batch, n_patches),
        }
        if self.time is not None:
            weight = self.time.down_proj.weight
            made["time"] = self.time.init_state(batch * n_patches, weight.device, weight.dtype)
        return State.of(**made)

    def forward(self, x: Tensor, state: State | None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """As ``Pair``'s."""
        past: Any = state or {}
        states: dict[str, State] = {}
        x, states["before"] = self.before(x, past.get("before"), lengths)
        batch, n_frames, n_patches, width = x.shape
        y, fewer = x, lengths
        if self.time is not None:
            along = x.transpose(1, 2).reshape(batch * n_patches, n_frames, width)
            of_rows = None if lengths is None else lengths.repeat_interleave(n_patches)
            coarse = self.time.down(along, past.get("time"), of_rows, None)
            y = coarse.x.unflatten(0, (batch, n_patches)).transpose(1, 2)
            fewer = None if coarse.lengths is None else coarse.lengths.view(batch, n_patches)[:, 0]
        n_coarse = y.shape[1]
        y = self.frequency.down(y.reshape(batch * n_coarse, n_patches, width), None, None, None).x
        y = y.reshape(batch, n_coarse, y.shape[1], width)
        if n_coarse or state is None:
            y, states["below"] = self.below(y, past.get("below"), fewer)
        else:
            states["below"] = past["below"]  # no coarse frame ends in this piece
        y = self.frequency.up(y.flatten(0, 1), n_patches, None).unflatten(0, (batch, n_coarse))
        if self.time is not None:
            ended = y.transpose(1, 2).reshape(batch * n_patches, n_coarse, width)
            y = self.time.up(ended, n_frames, past.get("time"))
            y = y.unflatten(0, (batch, n_patches)).transpose(1, 2)
            if self.time.causal:
                states["time"] = self.time.after(along, ended, coarse, past.get("time"), of_rows, None)
        x, states["after"] = self.after(x + y, past.get("after"), lengths)
        return x, State.of(**states)
