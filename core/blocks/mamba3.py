"""Mamba-3: trapezoidal rule, turning state, several inputs (Lahoti et al. 2026, arXiv:2603.15569)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core import init
from mambakit.core.blocks.base import Block, Context, count_heads
from mambakit.core.blocks.linear import plain_linear, plain_parameters
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.ragged import finished_dt
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels import Mamba3State, gated_rms_norm, mamba3_scan, mamba3_step
from mambakit.kernels.mamba3_scan.token import mamba3_mix, mamba3_token
from mambakit.kernels.semantics import state_dtype

_OF_A_STEP = ("dt_bias", "A_bias", "B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o", "D")


@register_block("mamba3")
class Mamba3(Block):
    """in_proj to z, x, B, C, dt, A, trap, angles -> norms of B and C -> scan -> gate -> out_proj.

    No convolution: the trapezoidal rule and the biases of B and C stand for it. The equations are in
    ``mambakit.kernels.mamba3_scan.reference``; parameters are named and shaped as in state-spaces/mamba.

    Args:
        d_model: Width of input and output.
        d_state: State size per head.
        expand: ``d_inner = expand * d_model``.
        head_dim: Channels per head; divides ``d_inner``.
        n_groups: Groups of heads that share B and C; divides the number of heads.
        mimo_rank: Inputs and outputs of the state at each token; published is 4. 1 is single input, single
            output (SISO).
        rope_fraction: Part of the state's channels that turn, in [0, 1]; published are 0.5 and 1. With 0 the
            state is real, and cannot follow parity.
        decay: How A comes of its projection: ``"heavy_tail"``, ``-(1 + a)`` or ``-1 / (1 - a)`` for a < 0,
            or ``"softplus"``; the released code has had both.
        A_floor: Least ``-A``.
        A_init_range: Each head's decay starts uniform in it, by a bias ``A_bias``; None for no bias, as
            published: every head then starts about -1.
        A_init: How the state starts as a complex diagonal one, for a token whose projection is nothing. A
            pair of channels that turns is a complex number and its conjugate, and every head has all
            frequencies: ``"s4d-lin"``, ``"s4d-inv"``, ``"s4d-legs"`` (Gu et al. 2022, arXiv:2206.11893) or
            ``"random"``, for ``2 * n_angles`` channels; all decay by 1/2, those that do not turn too. What
            they want beyond the pi that a state can turn in a unit of time is had by a shorter unit
            (``init.turning``): dt starts longer than asked, A and B smaller, with the same products. The
            frequencies and the decay are biases of ``in_proj``, which then has biases. ``"s4d-real"``: the
            heads' decays are 1 ... n_heads, and the frequencies as published. None: as published.
        dt_min, dt_max: Range of dt at the start.
        dt_floor: Least dt at the start.
        dt_limit: Clamp on dt after softplus.
        norm: RMSNorm of each head before the gate.
        norm_eps: Added to the mean squares of all norms.
        bias: Biases of in_proj and out_proj.
        chunk_size: Chunk of the scan; the kernel's choice if None.

    Raises:
        ValueError: On a size below 1, sizes that do not divide as above, another ``decay`` or ``A_init``, or
            starts that make no sense together.
    """

    uses_elapsed = True
    learnable_state = ("ssm",)
    projections = ("in_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int = 128,
        expand: float = 2,
        head_dim: int = 64,
        n_groups: int = 1,
        mimo_rank: int = 1,
        rope_fraction: float = 0.5,
        decay: str = "heavy_tail",
        A_floor: float = 1e-4,
        A_init_range: tuple[float, float] | None = None,
        A_init: str | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        norm: bool = False,
        norm_eps: float = 1e-5,
        bias: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_inner = int(expand * d_model)
        self.d_state = d_state
        self.head_dim = head_dim
        self.n_groups = n_groups
        self.mimo_rank = mimo_rank
        for name in ("d_model", "d_inner", "d_state", "head_dim", "n_groups", "mimo_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        self.n_heads = count_heads(self.d_inner, head_dim, n_groups)
        if not 0 <= rope_fraction <= 1:
            raise ValueError(f"rope_fraction: expected a number in [0, 1], got {rope_fraction}")
        if decay not in ("heavy_tail", "softplus"):
            raise ValueError(f"decay: expected 'heavy_tail' or 'softplus', got {decay!r}")
        self.n_angles = int(d_state * rope_fraction) // 2
        if A_init not in (None, "s4d-real", *init.COMPLEX_STARTS):
            known = ", ".join(("s4d-real", *init.COMPLEX_STARTS))
            raise ValueError(f"A_init: expected one of {known} or None, got {A_init!r}")
        if A_init is not None and A_init_range is not None:
            raise ValueError("A_init, A_init_range: both say where the decays start; give one")
        if A_init in init.COMPLEX_STARTS and not self.n_angles:
            raise ValueError(f"A_init: {A_init} turns, but rope_fraction={rope_fraction} leaves no pair to")
        self.decay = decay
        self.A_floor = A_floor
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self.norm_eps = norm_eps
        self.chunk_size = chunk_size
        d_bc = mimo_rank * n_groups * d_state
        n_heads = self.n_heads
        self._split_in = [self.d_inner, self.d_inner, d_bc, d_bc, n_heads, n_heads, n_heads, self.n_angles]
        self._heads = (n_heads, head_dim)
        self._groups = (mimo_rank, n_groups, d_state)
        self._shapes = {
            "ssm": (n_heads, head_dim, d_state),
            "angles": (n_heads, self.n_angles),
            "key": (mimo_rank, n_heads, d_state),
            "value": (n_heads, head_dim),
        }

        begins = A_init is not None
        self.in_proj = nn.Linear(d_model, sum(self._split_in), bias=bias or begins)
        self.dt_bias = nn.Parameter(init.dt_bias(n_heads, dt_min, dt_max, dt_floor))
        self.A_bias = None
        if A_init_range is not None:
            rates = -init.uniform_decay(n_heads, *A_init_range)
            self.A_bias = nn.Parameter(self._projected_decay(rates))
        self.B_norm = RMSNorm(d_state, norm_eps)
        self.C_norm = RMSNorm(d_state, norm_eps)
        self.B_bias = nn.Parameter(torch.ones(n_heads, mimo_rank, d_state))
        self.C_bias = nn.Parameter(torch.ones(n_heads, mimo_rank, d_state))
        for parameter in (self.B_bias, self.C_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        of_ranks = (n_heads, mimo_rank, head_dim)
        several = mimo_rank > 1
        self.mimo_x = nn.Parameter(torch.full(of_ranks, 1 / mimo_rank)) if several else None
        self.mimo_z = nn.Parameter(torch.ones(of_ranks)) if several else None
        self.mimo_o = nn.Parameter(torch.full(of_ranks, 1 / mimo_rank)) if several else None
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = RMSNorm(self.d_inner, norm_eps) if norm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        if A_init is not None:
            self._begin(A_init)
        # of a block whose parameters are parametrized some are missing, and others are there
        self._own = set(self._parameters)
        self._norms = ("B_norm", "C_norm", "norm") if norm else ("B_norm", "C_norm")

    @torch.no_grad()
    def _begin(self, A_init: str) -> None:
        """Start the state as ``A_init`` says."""
        self.in_proj.bias.zero_()
        *_, dd_A, _, angles = self.in_proj.bias.split(self._split_in)
        if A_init == "s4d-real":
            dd_A.copy_(self._projected_decay(-init.s4d_real(1, self.n_heads)[0]))
            return
        start = init.turning(A_init, self.n_angles)
        dd_A.copy_(self._projected_decay(torch.full_like(dd_A, start.decay)))
        angles.copy_(torch.atanh(start.turns))
        dt = F.softplus(self.dt_bias.double()) * start.unit
        self.dt_bias.copy_(init.inverse_softplus(dt))
        for parameter in (self.B_norm.weight, self.B_bias):
            parameter.div_(start.unit)

    def _projected_decay(self, rate: Tensor) -> Tensor:
        """What ``_decay_rate`` makes ``-rate`` of."""
        if self.decay == "softplus":
            return init.inverse_softplus(rate)
        return torch.where(rate >= 1, rate - 1, 1 - 1 / rate)

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
        z, arguments = self.scan_arguments(x, None if context is None else context.elapsed)
        y, after = mamba3_scan(
            **arguments,
            z=z if self.norm is None else None,
            initial_state=None if state is None else _of_kernel(state),
            seq_idx=seq_idx,
            lengths=lengths,
            chunk_size=self.chunk_size,
        )
        return self.project_out(y, z), State.of(**after._asdict())

    def mix_step(
        self, x: Tensor, state: State, inplace: bool = False, context: Context | None = None
    ) -> tuple[Tensor, State]:
        elapsed = None if context is None else context.elapsed
        past = _of_kernel(state)
        options = self._of_a_step(elapsed)
        projections = None if options is None else plain_linear(self._modules, "in_proj", "out_proj")
        if options is not None and projections is not None:
            in_proj, out_proj = projections
            result = mamba3_token(
                x,
                past,
                in_weight=in_proj["weight"],
                in_bias=in_proj["bias"],
                out_weight=out_proj["weight"],
                out_bias=out_proj["bias"],
                **options,
            )
            if result is not None:
                return result[0], State.of(**result[1]._asdict())
        projected = self.in_proj(x)
        if options is not None:
            result = mamba3_mix(projected, past, inplace=inplace, **options)
            if result is not None:
                return self.out_proj(result[0]), State.of(**result[1]._asdict())
        z, arguments = self._arguments_of(projected, elapsed)
        y, after = mamba3_step(past, **arguments, z=z if self.norm is None else None, inplace=inplace)
        return self.project_out(y, z), State.of(**after._asdict())

    def _of_a_step(self, elapsed: Tensor | None) -> dict[str, Any] | None:
        """What the compiled step takes beside the projections' weights; None of a block that was changed."""
        # a module's attributes are slow to find
        own: dict[str, Any] = self._parameters
        norms = plain_parameters(self._modules, RMSNorm, {"weight"}, *self._norms)
        if norms is None or own.keys() != self._own:
            return None
        return {name: own.get(name) for name in _OF_A_STEP} | {
            "B_weight": norms[0]["weight"],
            "C_weight": norms[1]["weight"],
            "norm_weight": norms[2]["weight"] if len(norms) > 2 else None,
            "elapsed": elapsed,
            "n_groups": self.n_groups,
            "heavy_tail": self.decay == "heavy_tail",
            "A_floor": self.A_floor,
            "norm_eps": self.norm_eps,
            "dt_limit": self.dt_limit,
        }

    def scan_arguments(self, x: Tensor, elapsed: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """Gate ``(batch, length, mimo_rank, n_heads, head_dim)``, and what ``mamba3_scan`` is called with.

        Args:
            x: ``(batch, length, d_model)``, or ``(batch, d_model)`` of one token; so is what comes out.
            elapsed: Multiplies dt.
        """
        return self._arguments_of(self.in_proj(x), elapsed)

    def _arguments_of(self, projected: Tensor, elapsed: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        z, u, B, C, dt, a, trap, angles = projected.split(self._split_in, dim=-1)
        dtype = state_dtype(u)
        dt = finished_dt(dt, self.dt_bias, self.dt_limit, None, elapsed)
        z = z.unflatten(-1, (1, *self._heads))
        if self.mimo_z is not None:
            z = z * self.mimo_z.transpose(0, 1).to(z.dtype)
        return z, {
            "x": u.unflatten(-1, self._heads),
            "dt": dt,
            "log_decay": dt * self._decay_rate(a.to(dtype)),
            "trap": torch.sigmoid(trap.to(dtype)),
            "B": self.B_norm(B.unflatten(-1, self._groups)),
            "C": self.C_norm(C.unflatten(-1, self._groups)),
            "turn": math.pi * torch.tanh(angles.to(dtype)) if self.n_angles else None,
            "B_bias": self.B_bias,
            "C_bias": self.C_bias,
            "up": self.mimo_x,
            "D": self.D,
        }

    def _decay_rate(self, a: Tensor) -> Tensor:
        """A, at most ``-A_floor``."""
        if self.A_bias is not None:
            a = a + self.A_bias.to(a.dtype)
        if self.decay == "softplus":
            rate = F.softplus(a)
        else:
            rate = torch.where(a >= 0, 1 + a, 1 / (1 - a.clamp(max=0.0)))
        return -rate.clamp(min=self.A_floor)

    def project_out(self, y: Tensor, z: Tensor) -> Tensor:
        """The block's output of the scan's: norm and gate (without a norm the scan gates), out_proj."""
        y = y.flatten(-2)  # [..., r, d]
        if self.norm is not None:
            y = gated_rms_norm(
                y,
                self.norm.weight,
                z=z.flatten(-2),
                eps=self.norm_eps,
                group_size=self.head_dim,
                norm_before_gate=True,
            )
        if self.mimo_o is None:
            return self.out_proj(y.squeeze(-2))
        return self.out_proj((y * self.mimo_o.transpose(0, 1).flatten(-2).to(y.dtype)).sum(-2))


def _of_kernel(state: State) -> Mamba3State:
    return Mamba3State(*(state[name] for name in Mamba3State._fields))
