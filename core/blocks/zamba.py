"""Zamba's layer: a Mamba block that also reads a transformer shared by several depths.

Glorioso et al. 2024, arXiv:2405.16712, section 2 and figure 2; with x_0 the stack's own input:

    u = transformer(x, x_0) = mlp(norm(attention(norm(concat(x, x_0)))))   one set of weights for all places
    y = mamba(norm(x + W u))                                               W and mamba of the place's own

and the backbone adds y to x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mambakit.core.blocks.attention import Attention
from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.mlp import MLP
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.registry import build_block, register_block
from mambakit.core.state import State

_ATTENTION = "attention_"


@register_block("zamba")
class Zamba(Block):
    """A recurrent block with a transformer beside it; places called ``zamba@label`` share the transformer.

    Attention looks at ``2 * d_model`` channels: the hidden state, and the stack's own input once more. As a
    block of its own, outside a backbone, it takes its input for that of the stack.

    Args:
        d_model: Width of input and output.
        inner: Kind of the recurrent block.
        inner_options: Its keyword arguments.
        n_heads: Heads of the attention, of ``2 * d_model / n_heads`` channels; one per 64 by default.
        n_kv_heads: Key and value heads; ``n_heads`` by default.
        d_hidden: Inner width of the MLP; ``4 * d_model`` by default.
        activation: Of the MLP.
        rope: Rotate queries and keys; the paper does not.
        causal: As in ``attention``; the recurrent block is doubled if not.
        norm_eps: Added to the norms' mean squares.

    Raises:
        ValueError: On sizes that do not divide, or an unknown kind or option.
    """

    uses_context = True
    prenorm = False
    shared_parts = ("transformer",)
    projections = ("link",)

    def __init__(
        self,
        *,
        d_model: int,
        inner: str = "mamba1",
        inner_options: Mapping[str, object] | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        d_hidden: int | None = None,
        activation: str = "gelu",
        rope: bool = False,
        causal: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.causal = causal
        attention = Attention(
            d_model=2 * d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, rope=rope, causal=causal
        )
        # the doubled input is not one head's to be scaled for (the paper's appendix): half the channels count
        attention.scale = (attention.head_dim / 2) ** -0.5
        attention.out_proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "attention_norm": RMSNorm(2 * d_model, norm_eps),
                "attention": attention,
                "mlp_norm": RMSNorm(d_model, norm_eps),
                "mlp": MLP(d_model=d_model, d_hidden=d_hidden or 4 * d_model, activation=activation),
            }
        )
        self.link = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model, norm_eps)
        if causal:
            self.inner = build_block(inner, d_model, inner_options)
        else:
            options = {"inner": inner, "inner_options": dict(inner_options or {})}
            self.inner = build_block("bidirectional", d_model, options)
        if causal and not self.inner.causal:
            raise ValueError(f"inner: {inner!r} looks in both directions; wrap a causal block")
        self.uses_elapsed = self.inner.uses_elapsed
        self._shapes = {f"{_ATTENTION}{name}": shape for name, shape in attention.state_shapes().items()}
        self._shapes |= self.inner.state_shapes()

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The attention's empty cache, its names led by ``attention_``, and the inner block's state."""
        self._refuse_unless_causal()
        return _joined(
            self.transformer["attention"].init_state(batch, device, dtype),  # type: ignore[operator]
            self.inner.init_state(batch, device, dtype),
        )

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        past, inner_state = (None, None) if state is None else _parted(state)
        attended, past = self.transformer["attention"](self._doubled(x, context), past, seq_idx, lengths)
        y, inner_state = self.inner(self._linked(x, attended), inner_state, seq_idx, lengths, context)
        return y, _joined(past, inner_state)

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        past, inner_state = _parted(state)
        attention: Attention = self.transformer["attention"]  # type: ignore[assignment]
        attended, past = attention.step(self._doubled(x, context), past, inplace=inplace)
        linked = self._linked(x, attended)
        y, inner_state = self.inner.step(linked, inner_state, inplace=inplace, context=context)
        return y, _joined(past, inner_state)

    def _doubled(self, x: Tensor, context: Context | None) -> Tensor:
        first = x if context is None or context.inputs is None else context.inputs
        return self.transformer["attention_norm"](torch.cat([x, first], dim=-1))

    def _linked(self, x: Tensor, attended: Tensor) -> Tensor:
        """What the recurrent block reads: x and the shared transformer's word on it."""
        mlp: MLP = self.transformer["mlp"]  # type: ignore[assignment]
        hidden = self.transformer["mlp_norm"](attended)
        return self.norm(x + self.link(mlp.mix(hidden, None, None, None)[0]))


def _parted(state: State) -> tuple[State, State]:
    past = {name.removeprefix(_ATTENTION): state[name] for name in state if name.startswith(_ATTENTION)}
    return State.of(**past), State.of(
        **{name: state[name] for name in state if not name.startswith(_ATTENTION)}
    )


def _joined(past: State, inner: State) -> State:
    return State.of(**{f"{_ATTENTION}{name}": past[name] for name in past}, **inner)
