"""A step of a small model on the CPU as one compiled call: linear map, Mamba backbone, linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block, Mamba2, Mamba3
from mambakit.core.state import State
from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.token_step import dt_bounds

# beyond so many weights of a projection torch's threads are worth their overhead, as in kernels.token_step
_MOST_WEIGHTS = 1 << 20


class _Kind(NamedTuple):
    """What the compiled stack of a kind of block is told."""

    name: str
    weights: Callable[[Any], tuple[Tensor | None, ...]]
    """Between in_proj's and out_proj's."""
    sizes: Callable[[Any], tuple[Any, ...]]
    """Behind d_model; blocks of one stack have the same."""
    room: Callable[[Any], int]
    """Numbers to work in."""


def _mamba3_room(block: Mamba3) -> int:
    from mambakit.kernels.mamba3_scan.cpu_step import work_room

    return block.in_proj.out_features + block.d_inner + work_room(*_mamba3_sizes(block)[:6])


def _mamba3_sizes(block: Mamba3) -> tuple[Any, ...]:
    shape = (block.n_heads, block.head_dim, block.d_state, block.mimo_rank, block.n_groups, block.n_angles)
    return (*shape, block.decay == "heavy_tail", block.A_floor, block.norm_eps)


_KINDS: dict[type[Block], _Kind] = {
    Mamba2: _Kind(
        "mamba2",
        weights=lambda block: (
            block.conv_weight, block.conv_bias, block.dt_bias, block.A_log, block.D, block.norm_weight,
        ),
        sizes=lambda block: (
            block.n_heads, block.head_dim, block.d_state, block.n_groups, block.d_conv,
            block.D.shape[1] if block.D.dim() == 2 else 1, block.norm_before_gate, block.norm_eps,
        ),
        room=lambda block: 3 * block.d_inner + 2 * len(block.conv_weight) + 3 * block.n_heads,
    ),
    Mamba3: _Kind(
        "mamba3",
        weights=lambda block: (
            block.dt_bias, block.A_bias, block.B_norm.weight, block.C_norm.weight, block.B_bias, block.C_bias,
            block.mimo_x, block.mimo_z, block.mimo_o, block.D,
            None if block.norm is None else block.norm.weight,
        ),
        sizes=_mamba3_sizes,
        room=_mamba3_room,
    ),
}  # fmt: skip


class WholeStep:
    """``last(backbone.step(first(x) + added))`` for one row in float32, a control loop's step.

    Weights are read where they lie: change them in place, or make another one of these. Make it by ``of``,
    which says whether a model is as it must be.

    Args:
        first: ``(n_in)`` to ``(d_model)``.
        backbone: Of Mamba-2 or of Mamba-3 blocks alone, all of one shape.
        last: ``(d_model)`` to ``(n_out)``.
    """

    def __init__(self, first: nn.Linear, backbone: Backbone, last: nn.Linear) -> None:
        from mambakit.kernels import cpu_stack

        self._kept = (first, backbone, last)
        self.n_in = first.in_features
        blocks: list[Any] = list(backbone.blocks)
        kind = _KINDS[type(blocks[0])]
        self._stack = getattr(cpu_stack, f"{kind.name}_stack")
        self._layers = np.zeros((len(blocks), cpu_stack.N_ADDRESSES[kind.name]), dtype=np.int64)
        for i, (norm, block) in enumerate(zip(backbone.norms, blocks, strict=True)):
            projections = (block.in_proj, block.out_proj)
            (*into, out_weight, out_bias) = (one for p in projections for one in (p.weight, p.bias))
            weights = (norm.weight, *into, *kind.weights(block), out_weight, out_bias)
            self._layers[i, : len(weights)] = [_address(weight) for weight in weights]
        self._names = [str(i) for i in range(len(blocks))]
        self._states = list(blocks[0].state_shapes())
        d_model = blocks[0].d_model
        self._work = torch.empty(3 * d_model + kind.room(blocks[0]), dtype=torch.float32)
        self._y = np.empty(last.out_features, dtype=np.float32)
        self._ends = [_address(first.weight), _address(first.bias)]
        self._rest: list[Any] = [
            _address(backbone.final_norm.weight), _address(last.weight), _address(last.bias),
            self._y.ctypes.data, self._work.data_ptr(),
            len(blocks), first.in_features, last.out_features, backbone.config.norm_eps, d_model,
            *kind.sizes(blocks[0]), *dt_bounds(blocks[0].dt_limit),
        ]  # fmt: skip
        self._state: State | None = None

    @classmethod
    def of(cls, first: nn.Module, backbone: Backbone, last: nn.Module) -> WholeStep | None:
        """The step, or None where a model or this machine is out of the usual."""
        blocks: list[Any] = list(backbone.blocks)
        if not HAS_NUMBA or not all(isinstance(end, nn.Linear) for end in (first, last)):
            return None
        kind = _KINDS.get(type(blocks[0]))
        if kind is None or not all(type(block) is type(blocks[0]) for block in blocks):
            return None
        every: list[nn.Module] = [first, backbone, last]
        tensors = [parameter for module in every for parameter in module.parameters()]
        plain = all(
            one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() and one.numel() <= _MOST_WEIGHTS
            for one in tensors
        )
        alike = len({(kind.sizes(block), block.dt_limit) for block in blocks}) == 1
        config = backbone.config
        unscaled = all(config.scale_of(layer) == 1.0 for layer in config.layers)
        if not (plain and alike and unscaled) or config.learn_initial_state:
            return None
        if choose_backend("ssd", None, torch.device("cpu")) != "portable":
            return None
        return cls(first, backbone, last)  # type: ignore[arg-type]

    def run(self, x: NDArray[np.float32], added: Tensor | None, state: State) -> NDArray[np.float32]:
        """The last map's output, ``(n_out,)``, which the next call overwrites.

        Args:
            x: ``(n_in,)`` contiguous float32.
            added: ``(1, d_model)`` contiguous float32, added to what ``first`` makes of ``x``.
            state: Of one row, contiguous; overwritten by the next state.
        """
        if state is not self._state:
            for i, name in enumerate(self._names):
                of_layer = state[name]
                self._layers[i, -len(self._states) :] = [of_layer[one].data_ptr() for one in self._states]
            self._state = state
        told = 0 if added is None else added.data_ptr()
        self._stack(self._layers, x.ctypes.data, *self._ends, told, *self._rest)
        return self._y


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
