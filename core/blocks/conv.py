"""The convolution module of the Conformer (Gulati et al. 2020, arXiv:2005.08100, figure 2).

Pointwise projection and GLU -> depthwise convolution -> norm -> SiLU -> pointwise projection. The paper's
norm is BatchNorm. Here it is RMSNorm or LayerNorm over the channels of each token: statistics of a batch
would make a row's output depend on the other rows and on padding, and a stream's on what is not known yet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.blocks.base import Block, padding_mask
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.ragged import last_inputs, reversal_index, take
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d, causal_conv1d_step


@register_block("conv")
class ConvModule(Block):
    """Local mixing by a wide depthwise convolution; its state is the last ``width - 1`` inputs of it.

    Args:
        d_model: Width of input and output.
        width: Taps of the convolution; odd if not ``causal``.
        expand: The convolution has ``expand * d_model`` channels.
        causal: A token sees itself and the ``width - 1`` before it; otherwise ``width // 2`` on either side.
        norm: ``"rms"`` or ``"layer"``.
        bias: Biases of the projections and the convolution.

    Raises:
        ValueError: On a size below 1, an even width that is not causal, or another norm.
    """

    learnable_state = ("conv",)
    projections = ("in_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        width: int = 31,
        expand: float = 1,
        causal: bool = True,
        norm: str = "rms",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.d_inner = int(expand * d_model)
        if min(d_model, self.d_inner, width) < 1:
            raise ValueError(
                f"d_model, d_inner, width: expected at least 1, got {d_model}, {self.d_inner} and {width}"
            )
        if not causal and width % 2 == 0:
            raise ValueError(f"width: a convolution that looks both ways needs an odd width, got {width}")
        norms = {"rms": RMSNorm, "layer": nn.LayerNorm}
        if norm not in norms:
            raise ValueError(f"norm: expected one of {', '.join(norms)}, got {norm!r}")
        self.d_model = d_model
        self.width = width
        self.causal = causal
        self._shapes = {"conv": (self.d_inner, width - 1)} if causal else {}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, width))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner)) if bias else None
        self.norm = norms[norm](self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        init.convolution_(self.conv_weight, self.conv_bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes  # type: ignore[return-value]

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        u = F.glu(self.in_proj(x), dim=-1)
        if lengths is not None:  # the projection's bias would leave padding other than zero
            u = u.masked_fill(padding_mask(lengths, x.shape[1])[..., None], 0.0)
        if not self.causal:
            return self._project(self._convolve_both_ways(u, seq_idx, lengths)), State.of()
        past = None if state is None else state["conv"]
        mixed, following = causal_conv1d(
            u, self.conv_weight, self.conv_bias, initial_state=past, seq_idx=seq_idx, return_final_state=True
        )
        if lengths is not None:
            following = last_inputs(u, past, lengths, self.width)
        return self._project(mixed), State.of(conv=following)

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        u = F.glu(self.in_proj(x), dim=-1)
        mixed, following = causal_conv1d_step(
            state["conv"], u, self.conv_weight, self.conv_bias, inplace=inplace
        )
        return self._project(mixed), State.of(conv=following)

    def _convolve_both_ways(self, u: Tensor, seq_idx: Tensor | None, lengths: Tensor | None) -> Tensor:
        """The taps up to a token's own forward in time, those after it on each sequence's reversal."""
        half = self.width // 2
        ahead, after = self.conv_weight.split([half + 1, half], dim=1)
        y = causal_conv1d(u, ahead.contiguous(), self.conv_bias, seq_idx=seq_idx)
        assert isinstance(y, Tensor)
        if half == 0:
            return y
        index = reversal_index(u, seq_idx, lengths)
        # the token itself, met by the last tap, has been counted
        back = causal_conv1d(take(u, index), F.pad(after.flip(1), (0, 1)), seq_idx=seq_idx)
        assert isinstance(back, Tensor)
        return y + take(back, index)

    def _project(self, mixed: Tensor) -> Tensor:
        return self.out_proj(F.silu(self.norm(mixed)))
