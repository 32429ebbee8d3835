"""Mamba-1: a selective state-space model with a state for every channel (Gu & Dao 2023, arXiv:2312.00752)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.dense import Hidden, with_earlier
from mambakit.core.blocks.linear import plain_linear
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.ragged import finished_dt, last_inputs
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from mambakit.kernels.token_step import mamba1_token


@register_block("mamba1")
class Mamba1(Block):
    """in_proj -> causal convolution and SiLU -> selective scan with the gate z -> out_proj (figure 3, right).

    Args:
        d_model: Width of input and output.
        d_state: State size per channel.
        d_conv: Taps of the convolution.
        expand: ``d_inner = expand * d_model``.
        dt_rank: Rank of dt's projection; ``"auto"`` is ``ceil(d_model / 16)``.
        dt_min, dt_max: Range of dt at the start.
        dt_floor: Least dt at the start.
        dt_init: How dt's projection starts, ``"random"`` or ``"constant"``.
        dt_scale: Scales the start of dt's projection.
        A_init: How A starts: ``"s4d-real"``, ``-1 ... -d_state`` for every channel, as published, which are
            HiPPO-LegS's diagonal and its eigenvalues; ``"hippo-legs"``: so, and what makes B weighed by
            HiPPO-LegS's ``sqrt(2n+1)``; ``"random"``: ``-A`` log-uniform in ``[1, d_state]``. A is real, so
            S4D-Lin, S4D-Inv and S4D-LegS, whose decays are all alike, are starts of mamba3.
        dt_limit: Clamp on dt after softplus.
        inner_norm: RMSNorm of the low-rank dt, of B and of C, before they are used: ``"learned"`` (Jamba:
            Lieber et al. 2024, arXiv:2403.19887, section 6.4) or ``"plain"``, without weights (Falcon Mamba:
            Zuo et al. 2024, arXiv:2410.05355). It keeps deep stacks from loss spikes.
        inner_norm_eps: Added to their mean squares.
        conv_bias: Bias of the convolution.
        bias: Biases of in_proj and out_proj.

    Raises:
        ValueError: On a size below 1, another ``inner_norm`` or ``A_init``, or starts that make no
            sense.
    """

    uses_elapsed = True
    learnable_state = ("conv", "ssm")
    projections = ("in_proj", "x_proj", "dt_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        A_init: str = "s4d-real",
        dt_limit: tuple[float, float] = (0.0, math.inf),
        inner_norm: str | None = None,
        inner_norm_eps: float = 1e-6,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_inner = int(expand * d_model)
        self.d_state = d_state
        self.d_conv = d_conv
        if isinstance(dt_rank, str):
            if dt_rank != "auto":
                raise ValueError(f"dt_rank: expected a number or 'auto', got {dt_rank!r}")
            dt_rank = math.ceil(d_model / 16)
        self.dt_rank = dt_rank
        for name in ("d_model", "d_inner", "d_state", "d_conv", "dt_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if A_init not in ("s4d-real", "hippo-legs", "random"):
            hint = "; A is real here, and mamba3 holds complex ones" if A_init in init.COMPLEX_STARTS else ""
            raise ValueError(f"A_init: expected 's4d-real', 'hippo-legs' or 'random', got {A_init!r}{hint}")
        if inner_norm not in (None, "learned", "plain"):
            raise ValueError(f"inner_norm: expected 'learned', 'plain' or None, got {inner_norm!r}")
        self.inner_norm = inner_norm
        self.inner_norm_eps = inner_norm_eps
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self._split = [dt_rank, d_state, d_state]
        self._shapes = {"conv": (self.d_inner, d_conv - 1), "ssm": (self.d_inner, d_state)}

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner)) if conv_bias else None
        self.x_proj = nn.Linear(self.d_inner, dt_rank + 2 * d_state, bias=False)
        if inner_norm == "learned":
            self.dt_norm = RMSNorm(dt_rank, inner_norm_eps)
            self.B_norm = RMSNorm(d_state, inner_norm_eps)
            self.C_norm = RMSNorm(d_state, inner_norm_eps)
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        A = init.s4d_real(self.d_inner, d_state)
        if A_init == "random":
            A = init.log_uniform_decay(1.0, d_state, self.d_inner, d_state)
        self.A_log = nn.Parameter(torch.log(-A))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

        self._own = set(self._parameters)

        init.convolution_(self.conv_weight, self.conv_bias)
        if A_init == "hippo-legs":
            init.hippo_legs_inputs_(self.x_proj.weight[dt_rank : dt_rank + d_state])
        init.dt_projection_(self.dt_proj.weight, scale=dt_scale, mode=dt_init)
        with torch.no_grad():
            self.dt_proj.bias.copy_(init.dt_bias(self.d_inner, dt_min, dt_max, dt_floor))

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes  # type: ignore[return-value]

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])
        u, z = self.project_in(x)
        arguments, next_conv = self.scan_arguments(
            u, conv_state, seq_idx, lengths, None if context is None else context.elapsed
        )
        hidden = None if context is None else context.hidden
        y, next_ssm = selective_scan(
            **arguments,
            z=z if hidden is None else None,
            initial_state=ssm_state,
            seq_idx=seq_idx,
            return_final_state=True,
        )
        if hidden is not None:

            def read(C: Tensor) -> Tensor:
                told = {**arguments, "C": C, "D": None}
                return selective_scan(**told, initial_state=ssm_state, seq_idx=seq_idx)  # type: ignore[return-value]

            mine = Hidden(self.hidden_key(), read)
            y = with_earlier(self.dense_reads, hidden, mine, x, arguments["C"], y) * F.silu(z)
        return self.out_proj(y), State.of(conv=next_conv, ssm=next_ssm)

    def hidden_key(self) -> tuple[object, ...]:
        return ("mamba1", self.d_inner, self.d_state)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is convolved and the gate z, both ``(batch, length, d_inner)``."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        return u, z

    def scan_arguments(
        self,
        inputs: Tensor,
        conv_state: Tensor | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        elapsed: Tensor | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """What ``selective_scan`` is called with, beside gate and state; and the convolution's next state.

        Args:
            inputs: What is convolved, ``(batch, length, d_inner)``.
            conv_state: The convolution's state.
            seq_idx, lengths: As in ``forward``.
            elapsed: ``(batch, length)``, multiplies dt.
        """
        u, next_conv = causal_conv1d(
            inputs,
            self.conv_weight,
            self.conv_bias,
            activation="silu",
            initial_state=conv_state,
            seq_idx=seq_idx,
            return_final_state=True,
        )
        dt, B, C = self._normalize(*self.x_proj(u).split(self._split, dim=-1))
        dt = self._project_dt(dt)
        finished = lengths is not None or elapsed is not None
        if lengths is not None:
            next_conv = last_inputs(inputs, conv_state, lengths, self.d_conv)
        if finished:
            dt = finished_dt(dt, self.dt_proj.bias, self.dt_limit, lengths, elapsed)
        arguments = {
            "x": u,
            "dt": dt,
            "A": -torch.exp(self.A_log),
            "B": B.unsqueeze(2),
            "C": C.unsqueeze(2),
            "D": self.D,
            "dt_bias": None if finished else self.dt_proj.bias,
            "dt_softplus": not finished,
            "dt_limit": (0.0, math.inf) if finished else self.dt_limit,
        }
        return arguments, next_conv

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        # a module's attributes are slow to find
        own: dict[str, Any] = self._parameters
        elapsed = None if context is None else context.elapsed
        hidden = None if context is None else context.hidden
        projections = None
        if self.inner_norm is None and hidden is None:  # the compiled token knows of no norms
            projections = plain_linear(self._modules, "in_proj", "x_proj", "dt_proj", "out_proj")
        if projections is not None and own.keys() == self._own:
            in_proj, x_proj, dt_proj, out_proj = projections
            result = mamba1_token(
                x,
                state["conv"],
                state["ssm"],
                in_weight=in_proj["weight"],
                in_bias=in_proj["bias"],
                conv_weight=own["conv_weight"],
                conv_bias=own.get("conv_bias"),
                x_weight=x_proj["weight"],
                x_bias=x_proj["bias"],
                dt_weight=dt_proj["weight"],
                dt_bias=dt_proj["bias"],
                A_log=own["A_log"],
                D=own["D"],
                out_weight=out_proj["weight"],
                out_bias=out_proj["bias"],
                elapsed=elapsed,
                dt_limit=self.dt_limit,
            )
            if result is not None:
                return result[0], State.of(conv=result[1], ssm=result[2])
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [b, d]
        u, next_conv = causal_conv1d_step(
            state["conv"], u, self.conv_weight, self.conv_bias, activation="silu", inplace=inplace
        )
        dt, B, C = self._normalize(*self.x_proj(u).split_with_sizes(self._split, -1))
        dt = self._project_dt(dt)
        finished = elapsed is not None
        if finished:
            dt = finished_dt(dt, self.dt_proj.bias, self.dt_limit, None, elapsed)
        y, next_ssm = selective_scan_step(
            state["ssm"],
            u,
            dt,
            self.A_log,
            B.unsqueeze(1),
            C.unsqueeze(1),
            D=self.D,
            z=z if hidden is None else None,
            dt_bias=None if finished else self.dt_proj.bias,
            dt_softplus=not finished,
            dt_limit=(0.0, math.inf) if finished else self.dt_limit,
            A_is_log=True,
            inplace=inplace,
        )
        if hidden is not None:

            def read(C: Tensor) -> Tensor:
                return (next_ssm * C.to(next_ssm.dtype)).sum(-1)

            mine = Hidden(self.hidden_key(), read)
            y = with_earlier(self.dense_reads, hidden, mine, x, C.unsqueeze(1), y) * F.silu(z)
        return self.out_proj(y), State.of(conv=next_conv, ssm=next_ssm)

    def _project_dt(self, dt: Tensor) -> Tensor:
        """Without the bias, which goes where the softplus is."""
        if type(self.dt_proj) is nn.Linear:
            return F.linear(dt, self.dt_proj.weight)
        return self.dt_proj(dt) - self.dt_proj.bias  # adapted: its weight alone is not all it does

    def _normalize(self, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.inner_norm is None:
            return dt, B, C
        if self.inner_norm == "learned":
            return self.dt_norm(dt), self.B_norm(B), self.C_norm(C)
        dt, B, C = (F.rms_norm(x, x.shape[-1:], eps=self.inner_norm_eps) for x in (dt, B, C))
        return dt, B, C
