"""A stack of blocks as a linear function of its inputs: every coefficient held at what it is for them.

Hidden attention says what one block reads of each token. Here the layers are chained: norms, convolutions,
scans, gates and feed-forward layers are products of something linear in the input and a coefficient made of
it; with the coefficients held, the stack is linear, and a gradient goes back through the very matrices of
``hidden_attention``, without their being written out: time and memory grow as the length, not its square.

    norm x * scale           SiLU a * sigmoid(a)      scan M(dt, B, C) x
    gate y * silu(z)         attention weights(q, k) v       MLP (silu(gate) * up), activation(a) = a * slope

held: scale, sigmoid(a), M, silu(z), weights, silu(gate), slope.

Gradient times input is then a sum over tokens that leaves out nothing but biases: the rule of Jafari et al.
2024 (MambaLRP, arXiv:2406.07592, section 4) but for gates, half of whose share they give to the gate's input.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mambakit.core.attribution.mamba import gate_of, scanned
from mambakit.core.attribution.softmax import SOFTMAX_ATTENTION
from mambakit.core.backbone import Backbone
from mambakit.core.blocks import MLP, Attention, Bidirectional, Block, Mamba1, Mamba2, RMSNorm
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d

_FORWARD = inspect.signature(Block.forward)
_LINEAR = (Mamba1, Mamba2, Attention, MLP)


@contextmanager
def coefficients_held(backbone: Backbone) -> Iterator[None]:
    """While it lasts, gradients through ``backbone`` are those of its linear form; its outputs stay.

    Args:
        backbone: Of blocks ``Mamba1``, ``Mamba2``, ``Attention`` and ``MLP``, or ``Bidirectional`` over
            these, in eval mode. The weights of a gated merge of two directions are held, too.

    Raises:
        ValueError: If a block is of another kind; while it lasts, if one's linear form does not give its
            output (of a subclass, say, that does more).
    """
    inner = []
    gates = []
    for i, block in enumerate(backbone.blocks):
        parts = [block]
        if isinstance(block, Bidirectional):
            parts = [block.ahead] if block.back is None else [block.ahead, block.back]
            gates += [] if block.merge.gate_proj is None else [block.merge.gate_proj]
        for part in parts:
            if not isinstance(part, _LINEAR):
                raise ValueError(
                    f"layer {i} {type(part).__name__}: its coefficients cannot be held; those of "
                    f"{', '.join(kind.__name__ for kind in _LINEAR)} can"
                )
        inner += parts
    unique = {id(block): block for block in inner}.values()  # one may be in several places
    handles = [block.register_forward_hook(_held_block, with_kwargs=True) for block in unique]
    handles += [gate.register_forward_hook(_held_gate) for gate in {id(one): one for one in gates}.values()]
    norms = {id(one): one for one in [*backbone.norms, backbone.final_norm]}.values()
    handles += [one.register_forward_hook(_held_norm) for one in norms if isinstance(one, RMSNorm)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _held_gate(gate: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output.detach()


def _held_norm(norm: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    assert isinstance(norm, RMSNorm)
    (x,) = args
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = norm.weight * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return (wide * scale.detach()).to(output.dtype)


def _held_block(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, State]
) -> tuple[Tensor, State]:
    bound = _FORWARD.bind(block, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    lengths, length = given["lengths"], given["x"].shape[1]
    if lengths is not None and bool((lengths < length).any()):
        raise ValueError("lengths: coefficients are held for rows without padding; give one row at a time")
    x, state, seq_idx, context = (given[name] for name in ("x", "state", "seq_idx", "context"))
    if state is None and "initial" in block._modules:
        state = block.init_state(len(x), device=x.device, dtype=x.dtype)  # type: ignore[operator]
    elapsed = None if context is None else context.elapsed
    if isinstance(block, Attention):
        with _HeldWeights():
            y, _ = block.mix(x, state, seq_idx, None)
    elif isinstance(block, MLP):
        y = _mlp(block, x)
    else:
        assert isinstance(block, (Mamba1, Mamba2))
        y = _mamba(block, x, state, seq_idx, elapsed)
    expected = output[0].detach()
    gap = float((y.detach() - expected).abs().max()) if y.numel() else 0.0
    if gap > (0.1 if x.element_size() < 4 else 1e-3) * float(expected.abs().max()):
        raise ValueError(
            f"block: this {type(block).__name__} gives another output than its linear form (by {gap:.1g}): "
            "it does more than its kind"
        )
    return y, output[1]


def _mlp(block: MLP, x: Tensor) -> Tensor:
    hidden = block.in_proj(x)
    if block.gated:
        gate, up = hidden.chunk(2, dim=-1)
        return block.out_proj(block.activation(gate).detach() * up)
    slope = block.activation(hidden) / torch.where(hidden == 0, 1.0, hidden)  # all activations are 0 at 0
    return block.out_proj(slope.detach() * hidden)


def _mamba(
    block: Mamba1 | Mamba2, x: Tensor, state: State | None, seq_idx: Tensor | None, elapsed: Tensor | None
) -> Tensor:
    conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])
    with torch.no_grad():
        if isinstance(block, Mamba1):
            given, z = block.project_in(x)
            arguments, _ = block.scan_arguments(given, conv_state, seq_idx, None, elapsed)
        else:
            z, given, dt = block.project_in(x)
            arguments, _ = block.scan_arguments(given, dt, conv_state, seq_idx, None, elapsed)
        factor = gate_of(block, scanned(block, arguments, ssm_state, seq_idx).flatten(2), z)
    inputs = block.project_in(x)[isinstance(block, Mamba2)][..., : block.d_inner]
    taps = slice(block.d_inner)
    a = causal_conv1d(
        inputs,
        block.conv_weight[taps],
        None if block.conv_bias is None else block.conv_bias[taps],
        activation=None,
        initial_state=None if conv_state is None else conv_state[:, taps],
        seq_idx=seq_idx,
    )
    assert isinstance(a, Tensor)
    u = (a * torch.sigmoid(a).detach()).view_as(arguments["x"])
    y = scanned(block, {**arguments, "x": u}, ssm_state, seq_idx)
    return block.out_proj(y.flatten(2) * factor)


class _HeldWeights(TorchFunctionMode):
    """Softmax attention whose weights no gradient flows through."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        bound = SOFTMAX_ATTENTION.bind(*args, **(kwargs or {}))
        for name in ("query", "key"):
            bound.arguments[name] = bound.arguments[name].detach()
        return func(*bound.args, **bound.kwargs)
