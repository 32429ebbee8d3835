"""A few frames through pairs of blocks, over time and along a frame's rows, as one compiled call on the CPU.

Op by op, a frame of a stream costs several times its arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambakit.core.blocks import Mamba2, RMSNorm
from mambakit.core.blocks.bidirectional import Bidirectional
from mambakit.core.blocks.linear import plain_linear, plain_parameters
from mambakit.core.compiled_stack import KINDS, Remembered, address, copy_of, is_usual_call
from mambakit.core.state import State
from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.token_step import dt_bounds

# beyond, products of matrices make up for calls op by op, on several threads
_MOST_FRAMES = 8
_STATES_AT = 11  # of a layer's addresses, behind norm and block over time


class PairParts(NamedTuple):
    """A block over time and one along the rows, each behind its norm."""

    time_norm: nn.Module
    time: nn.Module
    row_norm: nn.Module
    rows: nn.Module


class ShortPairs:
    """A few frames of one stream through pairs whose weights may change, or be replaced, between calls."""

    def __init__(self) -> None:
        self._layers: Remembered[_Layers] = Remembered()

    def run(
        self, root: nn.Module, pairs: Iterable[PairParts], x: Tensor, states: Sequence[State] | None
    ) -> tuple[Tensor, list[State]] | None:
        """``x + time(time_norm(x))``, then ``x + rows(row_norm(x))``, pair after pair, and the states of the
        blocks over time; or None wherever anything is out of the usual.

        Args:
            root: What the pairs are parts of, and nothing else is; the same one at every call.
            pairs: All of them; looked at where they are not known yet.
            x: ``(1, n_frames, n_rows, d_model)``.
            states: Of the blocks over time, of ``n_rows`` rows each; they are left as they are.
        """
        if len(x) != 1 or not 0 < x.shape[1] <= _MOST_FRAMES or not is_usual_call(x):
            return None
        layers = self._layers.found(root, lambda: _Layers.of(list(pairs)))
        return None if layers is None else layers.run(x, states)


class _Layers:
    """What the compiled call is told of pairs."""

    def __init__(self, pairs: Sequence[PairParts]) -> None:
        from mambakit.kernels import cpu_stack

        self._compiled = cpu_stack.mamba2_pairs
        first: Any = pairs[0].time
        self.d_model, self._shapes = first.d_model, first.state_shapes()
        self._addresses = np.zeros((len(pairs), cpu_stack.N_PAIR), dtype=np.int64)
        for i, pair in enumerate(pairs):
            rows: Any = pair.rows
            told = [pair.time_norm.weight, *_weights(pair.time), None, None, pair.row_norm.weight]
            told += [*_weights(rows.ahead), *_weights(rows.back)]
            self._addresses[i] = [address(one) for one in told]  # type: ignore[arg-type]
        self._sizes = [
            pairs[0].time_norm.eps, self.d_model, *KINDS[Mamba2].sizes(first), *dt_bounds(first.dt_limit)
        ]  # fmt: skip
        width = first.in_proj.out_features + first.d_inner
        self._room_a_row = 3 * self.d_model + width
        self._room = KINDS[Mamba2].room(first, 0) + sum(
            int(np.prod(shape)) for shape in self._shapes.values()
        )

    @classmethod
    def of(cls, pairs: Sequence[PairParts]) -> _Layers | None:
        """Of pairs of Mamba-2 blocks of one shape, with nothing added to them; None of others."""
        norms = [norm for pair in pairs for norm in (pair.time_norm, pair.row_norm)]
        blocks: list[Any] = [pair.time for pair in pairs]
        for pair in pairs:
            rows = pair.rows
            if type(rows) is not Bidirectional or rows.back is None or rows.merge.merge != "sum":
                return None
            blocks += [rows.ahead, rows.back]
        if not HAS_NUMBA or not pairs or any(type(block) is not Mamba2 for block in blocks):
            return None
        named = {str(i): norm for i, norm in enumerate(norms)}
        plain = plain_parameters(named, RMSNorm, {"weight"}, *named) is not None and all(
            block.is_plain
            and "initial" not in block._modules
            and plain_linear(block._modules, "in_proj", "out_proj") is not None
            for block in blocks
        )
        kind = KINDS[Mamba2]
        alike = len({(kind.sizes(block), block.dt_limit, block.d_model) for block in blocks}) == 1
        alike = alike and len({getattr(norm, "eps", None) for norm in norms}) == 1
        tensors = [one for module in (*norms, *blocks) for one in module.parameters()]
        usual = all(one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() for one in tensors)
        return cls(pairs) if plain and alike and usual else None

    def run(self, x: Tensor, states: Sequence[State] | None) -> tuple[Tensor, list[State]] | None:
        n_frames, n_rows, d_model = x.shape[1:]
        if d_model != self.d_model:
            return None
        at, after = self._addresses.copy(), []  # another thread has states of its own
        shapes = {name: (n_rows, *shape) for name, shape in self._shapes.items()}
        for i in range(len(at)):
            copy = copy_of(None if states is None else states[i], shapes)
            if copy is None:
                return None
            at[i, _STATES_AT : _STATES_AT + len(shapes)] = [copy[name].data_ptr() for name in shapes]
            after.append(copy)
        y, work = x.clone(), torch.empty(n_rows * self._room_a_row + self._room)
        self._compiled(at, y.data_ptr(), work.data_ptr(), n_frames, len(at), n_rows, *self._sizes)
        return y, after


def _weights(block: Any) -> list[Tensor | None]:
    """From in_proj's to out_proj's."""
    into, out = block.in_proj, block.out_proj
    return [into.weight, into.bias, *KINDS[Mamba2].weights(block), out.weight, out.bias]
