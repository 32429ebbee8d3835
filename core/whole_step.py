"""A step of a small model on the CPU as one compiled call: linear map, Mamba-2 backbone, linear map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Mamba2
from mambakit.core.state import State
from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import check_dt_limit

# beyond so many weights of a projection torch's threads are worth their overhead, as in kernels.token_step
_MOST_WEIGHTS = 1 << 20


class WholeStep:
    """``last(backbone.step(first(x) + added))`` for one row in float32, a control loop's step.

    Weights are read where they lie: change them in place, or make another one of these. Make it by ``of``,
    which says whether a model is as it must be.

    Args:
        first: ``(n_in)`` to ``(d_model)``.
        backbone: Of Mamba-2 blocks alone, all of one shape.
        last: ``(d_model)`` to ``(n_out)``.
    """

    def __init__(self, first: nn.Linear, backbone: Backbone, last: nn.Linear) -> None:
        from mambakit.kernels.cpu_stack import N_ADDRESSES, stack

        self._stack = stack
        self._kept = (first, backbone, last)
        self.n_in = first.in_features
        blocks: list[Mamba2] = list(backbone.blocks)  # type: ignore[arg-type]
        one = blocks[0]
        low, high = check_dt_limit(one.dt_limit)
        if low == 0.0 and high == float("inf"):
            low = -high
        self._layers = np.zeros((len(blocks), N_ADDRESSES), dtype=np.int64)
        for i, (norm, block) in enumerate(zip(backbone.norms, blocks, strict=True)):
            weights: tuple[Any, ...] = (
                norm.weight, block.in_proj.weight, block.in_proj.bias, block.conv_weight, block.conv_bias,
                block.dt_bias, block.A_log, block.D, block.norm_weight, block.out_proj.weight,
                block.out_proj.bias,
            )  # fmt: skip
            self._layers[i, : len(weights)] = [_address(weight) for weight in weights]
        self._names = [str(i) for i in range(len(blocks))]
        channels = one.d_inner + 2 * one.n_groups * one.d_state
        self._work = torch.empty(
            3 * one.d_model + 3 * one.d_inner + 2 * channels + 3 * one.n_heads, dtype=torch.float32
        )
        self._y = np.empty(last.out_features, dtype=np.float32)
        self._ends = [_address(first.weight), _address(first.bias)]
        self._rest: list[Any] = [
            _address(backbone.final_norm.weight), _address(last.weight), _address(last.bias),
            self._y.ctypes.data, self._work.data_ptr(),
            len(blocks), first.in_features, last.out_features, one.d_model, one.n_heads, one.head_dim,
            one.d_state, one.n_groups, one.d_conv, one.D.shape[1] if one.D.dim() == 2 else 1,
            one.norm_before_gate, one.norm_eps, backbone.config.norm_eps, low, high,
        ]  # fmt: skip
        self._state: State | None = None

    @classmethod
    def of(cls, first: nn.Module, backbone: Backbone, last: nn.Module) -> WholeStep | None:
        """The step, or None where a model or this machine is out of the usual."""
        blocks = list(backbone.blocks)
        if not HAS_NUMBA or not all(isinstance(end, nn.Linear) for end in (first, last)):
            return None
        if not blocks or not all(type(block) is Mamba2 and block.prenorm for block in blocks):
            return None
        every: list[nn.Module] = [first, backbone, last]
        tensors = [parameter for module in every for parameter in module.parameters()]
        plain = all(
            one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() and one.numel() <= _MOST_WEIGHTS
            for one in tensors
        )
        alike = len({tuple(block.state_shapes().items()) for block in blocks}) == 1  # type: ignore[operator]
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
                self._layers[i, -2:] = [of_layer["conv"].data_ptr(), of_layer["ssm"].data_ptr()]
            self._state = state
        told = 0 if added is None else added.data_ptr()
        self._stack(self._layers, x.ctypes.data, *self._ends, told, *self._rest)
        return self._y


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
