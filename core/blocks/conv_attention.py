"""Attention whose queries, keys and values pass a short causal convolution first.

The attention of Mamba-2's hybrids (Dao & Gu 2024, arXiv:2405.21060, section 9.2.3), as mamba_ssm's ``MHA``
computes it: projection, one convolution over all of its channels, rotation, attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.blocks.attention import Attention
from mambakit.core.blocks.ragged import last_inputs
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d

_CONV = "conv"


@register_block("conv_attention")
class ConvAttention(Attention):
    """Causal attention behind a convolution; its state is attention's and the convolution's latest inputs.

    Args:
        d_model: Width of input and output.
        d_conv: Taps of the convolution.
        n_heads, n_kv_heads, head_dim, rope, rope_theta, rope_fraction, scale, bias, out_bias: As in
            ``Attention``.

    Raises:
        ValueError: As ``Attention``, and on less than one tap.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_conv: int = 4,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope: bool = True,
        rope_theta: float = 10000.0,
        rope_fraction: float = 1.0,
        scale: float | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
    ) -> None:
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rope=rope,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction,
            scale=scale,
            bias=bias,
            out_bias=out_bias,
        )
        if d_conv < 1:
            raise ValueError(f"d_conv: expected at least 1, got {d_conv}")
        self.d_conv = d_conv
        channels = self.in_proj.out_features
        self.conv_weight = nn.Parameter(torch.empty(channels, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        init.convolution_(self.conv_weight, self.conv_bias)
        self._shapes = {**self._shapes, _CONV: (channels, d_conv - 1)}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """An empty cache, see ``Attention.init_state``, and zeros for ``conv``."""
        cache = super().init_state(batch, device, dtype)
        kept = torch.float64 if cache["key"].dtype == torch.float64 else torch.float32
        shape = (batch, self.in_proj.out_features, self.d_conv - 1)
        return State.of(**cache, **{_CONV: torch.zeros(shape, device=cache["key"].device, dtype=kept)})

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        past = cache = None
        if state is not None:
            past, cache = state[_CONV], State.of(**{name: state[name] for name in state if name != _CONV})
        inputs = self.in_proj(x)
        mixed, following = causal_conv1d(
            inputs,
            self.conv_weight,
            self.conv_bias,
            initial_state=past,
            seq_idx=seq_idx,
            return_final_state=True,
        )
        if lengths is not None:
            following = last_inputs(inputs, past, lengths, self.d_conv)
        y, cache = super().mix(mixed, cache, seq_idx, lengths)
        return y, State.of(**cache, **{_CONV: following})

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._heads(x, positions)  # projected and convolved already
