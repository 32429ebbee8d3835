"""Tokens through a small stack of Mamba blocks on the CPU as one compiled call.

``WholeStep`` is a control loop's step, with linear maps before and behind; ``ShortPieces`` is what a
backbone takes for a stream's next few tokens, which op by op cost several times their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.blocks import Block, Mamba2, Mamba3, RMSNorm
from mambakit.core.blocks.linear import plain_linear, plain_parameters, watched
from mambakit.core.state import State
from mambakit.kernels.arrays import HAS_NUMBA, usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.token_step import dt_bounds

if TYPE_CHECKING:
    from mambakit.core.backbone import Backbone

Found = TypeVar("Found")

# beyond so many weights of a projection torch's threads are worth their overhead, as in kernels.token_step
_MOST_WEIGHTS = 1 << 20
# of a layer's weights and tokens: beyond, products of matrices make up for calls op by op
_MOST_PRODUCTS = 1 << 22
# where a token's row says what is added to it
_ADDED = 3


class _Kind(NamedTuple):
    """What the compiled stack of a kind of block is told."""

    name: str
    weights: Callable[[Any], tuple[Tensor | None, ...]]
    """Between in_proj's and out_proj's."""
    sizes: Callable[[Any], tuple[Any, ...]]
    """Behind d_model; blocks of one stack have the same."""
    room: Callable[[Any, int], int]
    """Numbers to work in, for so many tokens."""


def _mamba3_room(block: Mamba3, n_tokens: int) -> int:
    from mambakit.kernels.mamba3_scan.cpu_step import work_room

    return block.d_model + block.in_proj.out_features + block.d_inner + work_room(*_mamba3_sizes(block)[:6])


def _mamba3_sizes(block: Mamba3) -> tuple[Any, ...]:
    shape = (block.n_heads, block.head_dim, block.d_state, block.mimo_rank, block.n_groups, block.n_angles)
    return (*shape, block.decay == "heavy_tail", block.A_floor, block.norm_eps)


KINDS: dict[type[Block], _Kind] = {
    Mamba2: _Kind(
        "mamba2",
        weights=lambda block: (
            block.conv_weight, block.conv_bias, block.dt_bias, block.A_log, block.D, block.norm_weight,
        ),
        sizes=lambda block: (
            block.n_heads, block.head_dim, block.d_state, block.n_groups, block.d_conv,
            block.D.shape[1] if block.D.dim() == 2 else 1, block.norm_before_gate, block.norm_eps,
        ),
        room=lambda block, n_tokens: (
            n_tokens * (block.in_proj.out_features + block.d_inner)
            + len(block.conv_weight) + block.d_inner + 2 * block.n_heads
        ),
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


class _Stack:
    """What the compiled call is told of a stack: everything but tokens, states and room to work in.

    Args:
        backbone: Of Mamba-2 or of Mamba-3 blocks alone, all of one shape, as ``can_compile`` says.
        last: Linear map behind, if any.
    """

    def __init__(self, backbone: Backbone, last: nn.Linear | None = None) -> None:
        from mambakit.kernels import cpu_stack

        blocks: list[Any] = list(backbone.blocks)
        kind = KINDS[type(blocks[0])]
        self._compiled = getattr(cpu_stack, f"{kind.name}_stack")
        self._n_inputs = cpu_stack.N_INPUTS
        self.layers = np.zeros((len(blocks), cpu_stack.N_ADDRESSES[kind.name]), dtype=np.int64)
        for i, (norm, block) in enumerate(zip(backbone.norms, blocks, strict=True)):
            projections = (block.in_proj, block.out_proj)
            (*into, out_weight, out_bias) = (one for p in projections for one in (p.weight, p.bias))
            weights = (norm.weight, *into, *kind.weights(block), out_weight, out_bias)
            self.layers[i, : len(weights)] = [address(weight) for weight in weights]
        self.names = [str(i) for i in range(len(blocks))]
        self.states: list[str] = list(blocks[0].state_shapes())
        self.shapes = list(blocks[0].state_shapes().values())
        self.d_model = blocks[0].d_model
        self.weight = sum(p.weight.numel() for p in (blocks[0].in_proj, blocks[0].out_proj))
        self._room = lambda n_tokens: 2 * n_tokens * self.d_model + kind.room(blocks[0], n_tokens)
        end = [0, 0] if last is None else [address(last.weight), address(last.bias)]
        self._end = [address(backbone.final_norm.weight), *end]
        self._sizes: list[Any] = [
            len(blocks), last.out_features if last else self.d_model, backbone.config.norm_eps, self.d_model,
            *kind.sizes(blocks[0]), *dt_bounds(blocks[0].dt_limit),
        ]  # fmt: skip

    def work(self, n_tokens: int) -> Tensor:
        """Room to work in."""
        return torch.empty(self._room(n_tokens), dtype=torch.float32)

    def tokens(self, n_tokens: int) -> NDArray[np.int64]:
        """What the compiled call is told of each token, to be filled in (``cpu_stack.N_INPUTS``)."""
        return np.zeros((n_tokens, self._n_inputs), dtype=np.int64)

    def run(
        self, layers: NDArray[np.int64], tokens: NDArray[np.int64], y_at: int, work: Tensor, n_read: int
    ) -> None:
        """``tokens`` to outputs of the last ``n_read`` at ``y_at``; ``layers`` has the states' addresses."""
        self._compiled(layers, tokens, *self._end, y_at, work.data_ptr(), len(tokens), n_read, *self._sizes)


def can_compile(backbone: Backbone, *ends: nn.Module) -> bool:
    """Whether a backbone, and linear maps before or behind it, are as the compiled stack wants them."""
    blocks: list[Any] = list(backbone.blocks)
    kind = KINDS.get(type(blocks[0])) if blocks else None
    if not HAS_NUMBA or kind is None or any(type(block) is not type(blocks[0]) for block in blocks):
        return False
    named = {str(i): end for i, end in enumerate(ends)}
    unchanged = plain_linear(named, *named) is not None and all(
        plain_linear(block._modules, "in_proj", "out_proj") is not None for block in blocks
    )
    norms = {"final": backbone.final_norm, **dict(backbone.norms.named_children())}
    unchanged = unchanged and plain_parameters(norms, RMSNorm, {"weight"}, *norms) is not None
    tensors = [parameter for module in (backbone, *ends) for parameter in module.parameters()]
    plain = all(
        one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() and one.numel() <= _MOST_WEIGHTS
        for one in tensors
    )
    alike = len({(kind.sizes(block), block.dt_limit) for block in blocks}) == 1
    config = backbone.config
    unscaled = all(config.scale_of(layer) == 1.0 for layer in config.layers)
    if not (unchanged and plain and alike and unscaled) or backbone.learns_initial_state or config.dense:
        return False
    return choose_backend("ssd", None, torch.device("cpu")) == "portable"


class WholeStep:
    """A control loop's step of one row in float32: its tokens, and what is read out at the last one.

    ``last(backbone.step(first(x) + added))`` with a ``first`` for each token of a step, and the state carried
    from one token to the next. Weights are read where they lie: change them in place, or make another one of
    these. Make it by ``of``, which says whether a model is as it must be.

    Args:
        firsts: For each token ``(n_in)`` to ``(d_model)``; None where its input is ``(d_model)`` already.
        backbone: Of Mamba-2 or of Mamba-3 blocks alone, all of one shape.
        last: ``(d_model)`` to ``(n_out)``.

    Attributes:
        features: Of all tokens, one after the other, float32 zeros: write there before ``run``.
        inputs: Each token's part of them, ``(n_in,)``.
    """

    def __init__(self, firsts: Sequence[nn.Linear | None], backbone: Backbone, last: nn.Linear) -> None:
        self._kept = (list(firsts), backbone, last)
        self._stack = stack = _Stack(backbone, last)
        widths = [stack.d_model if first is None else first.in_features for first in firsts]
        self.features = np.zeros(sum(widths), dtype=np.float32)
        self.inputs = np.split(self.features, np.cumsum(widths)[:-1])
        self._tokens = stack.tokens(len(firsts))
        for told, x, first in zip(self._tokens, self.inputs, firsts, strict=True):
            weights = (0, 0) if first is None else (address(first.weight), address(first.bias))
            told[:] = [x.ctypes.data, *weights, 0, len(x)]
        self._work = stack.work(len(firsts))
        self._y = np.empty(last.out_features, dtype=np.float32)
        self._y_at = self._y.ctypes.data
        self._state: State | None = None

    @classmethod
    def of(cls, firsts: Sequence[nn.Module | None], backbone: Backbone, last: nn.Module) -> WholeStep | None:
        """The step, or None where a model or this machine is out of the usual."""
        if not firsts or not can_compile(backbone, *(one for one in firsts if one is not None), last):
            return None
        return cls(firsts, backbone, last)  # type: ignore[arg-type]

    def run(
        self, state: State, added: Sequence[Tensor | None], there: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """The last map's output at the last token, ``(n_out,)``, which the next call overwrites.

        Args:
            state: Of one row, contiguous; overwritten by the next state.
            added: What is added to each token, ``(d_model)`` numbers of contiguous float32 or None.
            there: Which tokens there are, at least one; all by default.
        """
        stack, tokens = self._stack, self._tokens
        if state is not self._state:
            for i, name in enumerate(stack.names):
                of_layer = state[name]
                stack.layers[i, -len(stack.states) :] = [of_layer[one].data_ptr() for one in stack.states]
            self._state = state
        for i, one in enumerate(added):
            tokens[i, _ADDED] = address(one)
        if there is not None:
            tokens = tokens[list(there)]
        stack.run(stack.layers, tokens, self._y_at, self._work, 1)
        return self._y


class Remembered(Generic[Found]):
    """What was found out about a module, whose weights may change, or be replaced, between calls.

    It is kept as long as the modules and parameters, and their memory, are the same ones. A copy of this
    knows nothing.
    """

    def __init__(self) -> None:
        self._known: tuple[list[Part], Found | None] | None = None

    def __reduce__(self) -> tuple[type[Remembered[Found]], tuple[()]]:
        return type(self), ()

    def found(self, root: nn.Module, find: Callable[[], Found | None]) -> Found | None:
        """What ``find`` finds out about ``root``, the same module at every call; None where someone watches
        what is below it: who watches the root itself sees it called."""
        known = self._known
        if known is None or not all(part.unchanged() for part in known[0]):
            known = self._known = (parts_of(root), find())
        parts, found = known
        return None if found is None or watched(part.module for part in parts[1:]) else found


class ShortPieces:
    """A few tokens of one row through a backbone whose weights may change, or be replaced, between calls."""

    def __init__(self) -> None:
        self._stack: Remembered[_Stack] = Remembered()

    def run(self, backbone: Backbone, x: Tensor, state: State | None) -> tuple[Tensor, State] | None:
        """As ``backbone(x, state)`` gives it, or None wherever anything is out of the usual.

        Args:
            backbone: The same one at every call; in evaluation mode.
            x: ``(1, length, d_model)``.
            state: What came before; it is left as it is.
        """
        if x.shape != (1, x.shape[1], backbone.d_model) or not is_usual_call(x):
            return None
        stack = self._stack.found(backbone, lambda: _Stack(backbone) if can_compile(backbone) else None)
        if stack is None or x.shape[1] * stack.weight > _MOST_PRODUCTS:
            return None
        states = {}
        layers = stack.layers.copy()  # another thread has states of its own
        shapes = {one: (1, *shape) for one, shape in zip(stack.states, stack.shapes, strict=True)}
        for i, name in enumerate(stack.names):
            copy = copy_of(None if state is None else state[name], shapes)
            if copy is None:
                return None
            layers[i, -len(shapes) :] = [copy[one].data_ptr() for one in shapes]
            states[name] = copy
        y, n_tokens = torch.empty_like(x), x.shape[1]
        tokens = stack.tokens(n_tokens)
        tokens[:, 0] = x.data_ptr() + x.stride(1) * x.element_size() * np.arange(n_tokens)
        stack.run(layers, tokens, y.data_ptr(), stack.work(n_tokens), n_tokens)
        return y, State.of(**states)


def is_usual_call(x: Tensor) -> bool:
    """Whether a compiled call may take the place of what is done op by op to ``x``, contiguous float32."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or usual_addresses(torch.float32, (x, x.shape)) is None
        or choose_backend("ssd", None, x.device) != "portable"
    )


def copy_of(state: State | None, shapes: Mapping[str, tuple[int, ...]]) -> State | None:
    """A layer's state to be overwritten, zeros of None; None of another block's, or a compressed one."""
    if state is None:
        return State.of(**{name: torch.zeros(shape) for name, shape in shapes.items()})
    past: dict[str, Any] = dict(state.items())
    if list(past) != list(shapes):
        return None
    if usual_addresses(torch.float32, *zip(past.values(), shapes.values(), strict=True)) is None:
        return None
    return State.of(**{name: one.clone() for name, one in past.items()})


class Part(NamedTuple):
    """A module, and what it was when it was looked at."""

    module: nn.Module
    tensors: tuple[tuple[str, Tensor | None, int], ...]
    children: tuple[nn.Module | None, ...]

    def unchanged(self) -> bool:
        own = self.module._parameters
        for name, tensor, at in self.tensors:
            if own.get(name) is not tensor or (tensor is not None and tensor.data_ptr() != at):
                return False
        return tuple(self.module._modules.values()) == self.children


def parts_of(root: nn.Module) -> list[Part]:
    """Of a module, and of all below it."""
    return [
        Part(
            module,
            tuple((name, one, address(one)) for name, one in module._parameters.items()),
            tuple(module._modules.values()),
        )
        for module in root.modules()
    ]


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
