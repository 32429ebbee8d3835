"""Initial values of state-space parameters, as published.

    S4D-Real     A_n = -(n + 1)
                 Gu et al. 2022, arXiv:2206.11893; in Mamba: Gu & Dao 2023, arXiv:2312.00752, section 3.6
    S4D-Lin      A_n = -1/2 + i pi n,  n = 0 ... d_state/2 - 1
    S4D-Inv      A_n = -1/2 + i (d_state/pi) (d_state/(2n+1) - 1)
    S4D-LegS     eigenvalues of the normal part of HiPPO-LegS, A + P P^T with P_n = sqrt(n + 1/2)
                 all three Gu et al. 2022, section 4; each stands for itself and its conjugate
    HiPPO-LegS   A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 for n < k;  B_n = sqrt(2n+1)
                 Gu et al. 2020, arXiv:2008.07669, theorem 2
    dt           softplus(bias) is log-uniform in [dt_min, dt_max]
                 Gu & Dao 2023, section 3.6
    Mamba-2      one A a head, uniform in [-16, -1]
                 Dao & Gu 2024, arXiv:2405.21060
    residual     output projections scaled by 1/sqrt(n_layers)
                 Radford et al. 2019 (GPT-2), section 2.3

The decays are kept as ``A_log = log(-A)``, which any gradient step leaves negative in ``A``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


def s4d_real(channels: int, d_state: int) -> Tensor:
    """``A`` of S4D-Real for every channel, ``(channels, d_state)`` float32: row ``-1, -2, ..., -d_state``."""
    row = -torch.arange(1, d_state + 1, dtype=torch.float32)
    return row.repeat(channels, 1)


def hippo_legs(d_state: int, *, diagonal: bool = False) -> tuple[Tensor, Tensor]:
    """``(A, B)`` of HiPPO-LegS, the memory that keeps Legendre coefficients of the whole past.

    Args:
        d_state: Number of coefficients.
        diagonal: Keep only A's diagonal, which is what S4D-Real is.

    Returns:
        ``A`` as ``(d_state, d_state)``, or ``(d_state,)`` if ``diagonal``; ``B`` as ``(d_state,)``; float64.
    """
    n = torch.arange(d_state, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    if diagonal:
        return -(n + 1), B
    A = -torch.tril(torch.outer(B, B), diagonal=-1) - torch.diag(n + 1)
    return A, B


def s4d_lin(d_state: int) -> Tensor:
    """``A`` of S4D-Lin, the Fourier frequencies: ``(d_state // 2,)`` complex128."""
    n = torch.arange(d_state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), math.pi * n)


def s4d_inv(d_state: int) -> Tensor:
    """``A`` of S4D-Inv, which follows the frequencies of S4D-LegS: ``(d_state // 2,)`` complex128."""
    n = torch.arange(d_state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), d_state / math.pi * (d_state / (2 * n + 1) - 1))


def s4d_legs(d_state: int) -> Tensor:
    """``A`` of S4D-LegS, ``(d_state // 2,)`` complex128, those of positive frequency, the fastest first.

    HiPPO-LegS is a normal matrix less ``P P^T``, and the normal one ``-1/2`` and a skew-symmetric one, so
    that every eigenvalue decays by 1/2. Those of HiPPO-LegS itself, which is triangular, are real: S4D-Real.
    """
    A, B = hippo_legs(d_state)
    P = B / math.sqrt(2)
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(d_state, dtype=torch.float64)
    # i times a skew-symmetric matrix is Hermitian: its eigenvalues are real and exact to rounding
    frequencies = torch.linalg.eigvalsh(1j * skew.to(torch.complex128)).flip(0)[: d_state // 2]
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies)


def random_frequencies(d_state: int) -> Tensor:
    """``A`` that decays as S4D's and turns by chance as fast as S4D-Lin at most: ``(d_state // 2,)``."""
    turns = math.pi * (d_state // 2) * torch.rand(d_state // 2, dtype=torch.float64)
    return torch.complex(torch.full_like(turns, -0.5), turns)


def log_uniform_decay(low: float, high: float, *shape: int) -> Tensor:
    """``A`` by chance, ``-A`` log-uniform in ``[low, high]``, float32.

    Raises:
        ValueError: Unless ``0 < low <= high``.
    """
    if not 0 < low <= high:
        raise ValueError(f"A_init_range: expected 0 < low <= high, got ({low}, {high})")
    return -torch.empty(shape).uniform_(math.log(low), math.log(high)).exp()


@torch.no_grad()
def hippo_legs_inputs_(weight: Tensor) -> Tensor:
    """Weigh the rows ``(d_state, d_input)`` that make B as HiPPO-LegS has B, ``sqrt(2n+1)``, in proportion.

    The mean square of the factors is 1. Filled in place and returned.
    """
    _, B = hippo_legs(len(weight))
    return weight.mul_((B / B.square().mean().sqrt()).to(weight)[:, None])


COMPLEX_STARTS: dict[str, Callable[[int], Tensor]] = {
    "s4d-lin": s4d_lin,
    "s4d-inv": s4d_inv,
    "s4d-legs": s4d_legs,
    "random": random_frequencies,
}


class Turning(NamedTuple):
    """A complex diagonal ``A`` for a state whose frequencies are less than pi in its own unit of time."""

    decay: float
    """``-Re A`` in that unit."""
    turns: Tensor
    """``Im A / pi`` in that unit, within (-1, 1); ``(n,)`` float64."""
    unit: float
    """How many of that unit are one of A's: what dt is to be multiplied by, and B divided by."""


def turning(name: str, n_angles: int, fastest: float = 0.95) -> Turning:
    """The start called ``name`` for ``n_angles`` complex channels.

    ``exp(dt A)`` and ``dt B`` are the same in any unit of time, so frequencies beyond pi are had by a shorter
    one: dt is longer by ``unit``, A and B smaller.

    Args:
        name: One of ``COMPLEX_STARTS``.
        n_angles: Complex channels, each of two real ones; at least 1.
        fastest: Share of pi that the fastest frequency has at most.
    """
    A = COMPLEX_STARTS[name](2 * n_angles)
    unit = max(1.0, float(A.imag.abs().max()) / (fastest * math.pi))
    return Turning(float(-A.real[0]) / unit, A.imag / (unit * math.pi), unit)


def uniform_decay(n_heads: int, low: float = 1.0, high: float = 16.0) -> Tensor:
    """``A`` of Mamba-2, ``(n_heads,)`` float32 in ``[-high, -low]``.

    Raises:
        ValueError: Unless ``0 < low <= high``.
    """
    if not 0 < low <= high:
        raise ValueError(f"A_init_range: expected 0 < low <= high, got ({low}, {high})")
    return -torch.empty(n_heads).uniform_(low, high)


def inverse_softplus(y: Tensor) -> Tensor:
    """The ``x`` with ``softplus(x) = y``, without cancellation for small ``y > 0``."""
    return y + torch.log(-torch.expm1(-y))


def dt_bias(channels: int, dt_min: float = 0.001, dt_max: float = 0.1, dt_floor: float = 1e-4) -> Tensor:
    """Biases ``(channels,)`` whose softplus is log-uniform in ``[dt_min, dt_max]``, at least ``dt_floor``.

    Raises:
        ValueError: Unless ``0 < dt_min <= dt_max``.
    """
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"dt_min, dt_max: expected 0 < dt_min <= dt_max, got ({dt_min}, {dt_max})")
    dt = torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)).exp()
    return inverse_softplus(dt.clamp(min=dt_floor))


@torch.no_grad()
def dt_projection_(weight: Tensor, *, scale: float = 1.0, mode: str = "random") -> Tensor:
    """Fill Mamba-1's dt projection ``(d_inner, dt_rank)`` so that dt's variance is kept.

    Args:
        weight: Filled in place and returned.
        scale: Multiplies the standard size ``dt_rank ** -0.5``.
        mode: ``"random"`` (uniform within the size) or ``"constant"``.

    Raises:
        ValueError: On another mode.
    """
    size = weight.shape[1] ** -0.5 * scale
    if mode == "random":
        return weight.uniform_(-size, size)
    if mode == "constant":
        return weight.fill_(size)
    raise ValueError(f"dt_init: expected 'random' or 'constant', got {mode!r}")


@torch.no_grad()
def rescale_output_projections_(module: nn.Module, n_layers: int) -> None:
    """Scale every ``out_proj.weight`` inside ``module`` by ``1/sqrt(n_layers)``.

    The residual stream is a sum over ``n_layers`` branches; this keeps its variance independent of depth.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("out_proj.weight"):
            parameter.mul_(n_layers**-0.5)


@torch.no_grad()
def convolution_(weight: Tensor, bias: Tensor | None) -> None:
    """Fill a depthwise convolution ``(channels, width)`` as ``torch.nn.Conv1d``: uniform in 1/sqrt(width)."""
    bound = weight.shape[1] ** -0.5
    weight.uniform_(-bound, bound)
    if bias is not None:
        bias.uniform_(-bound, bound)
