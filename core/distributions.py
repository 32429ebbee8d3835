"""Parametric distributions as an output: a normal or Student's t for each number, fitted by likelihood.

A heavy tail is what Student's t is for: it takes outliers for what they are (Lange, Little & Taylor 1989).
A normal would give all its attention to them; beyond some deviations its loss goes on in a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, StudentT

from mambakit.core.heads import QuantileHead, checked_levels, fill_missing, masked_mean

FAMILIES = ("normal", "student-t")
# The least scale: a target that never changes would else have a likelihood without bound.
_LEAST_SCALE = 1e-3
# The reciprocal of the degrees of freedom, from as good as normal to where the variance ends.
_LIGHTEST, _HEAVIEST, _FIRST_TAIL = 0.01, 0.5, 0.1
_DEGREE = 12
# Deviations from where on the normal's loss is linear: Huber's (1964) rho, far enough out for normal data
# never to notice.
_REACH = 5.0


class DistributionHead(nn.Module):
    """A distribution of each number, and from it the quantiles that a ``QuantileHead`` would say.

    Its output holds location and scale, of Student's t the degrees of freedom too, which lie between 2 (the
    variance is finite) and 100 (as good as normal).

    Args:
        d_model: Width of the input.
        family: ``"normal"`` or ``"student-t"``.
        quantiles: Levels of ``to_quantiles``, increasing, inside (0, 1).
        d_output: Numbers per token.

    Raises:
        ValueError: On another family, and levels outside (0, 1) or not increasing.
    """

    levels: Tensor
    _standard: Tensor
    _growth: Tensor

    def __init__(
        self,
        *,
        d_model: int,
        family: str = "student-t",
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        d_output: int = 1,
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
        self.family = family
        self.quantiles, self.anchor = checked_levels(quantiles)
        self.d_output = d_output
        levels = torch.tensor(self.quantiles, dtype=torch.float64)
        self.register_buffer("levels", levels.float(), persistent=False)
        self.register_buffer("_standard", torch.special.ndtri(levels).float(), persistent=False)
        self.n_parameters = 2 if family == "normal" else 3
        if family == "student-t":
            growth = torch.from_numpy(_growth_of(levels.numpy())).float()
            self.register_buffer("_growth", growth, persistent=False)  # [degree + 1, q]
        self.proj = nn.Linear(d_model, d_output * self.n_parameters)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., d_output, n_parameters)``, float32 at least."""
        raw = self.proj(x).unflatten(-1, (self.d_output, self.n_parameters))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        parts = [raw[..., 0], F.softplus(raw[..., 1]) + _LEAST_SCALE]
        if self.family == "student-t":
            parts.append(1 / (_LIGHTEST + (_HEAVIEST - _LIGHTEST) * raw[..., 2].sigmoid()))
        return torch.stack(parts, -1)

    def distribution(self, output: Tensor) -> Distribution:
        """Of ``(..., n_parameters)``, a distribution of ``(...)``."""
        if self.family == "normal":
            return Normal(output[..., 0], output[..., 1], validate_args=False)
        return StudentT(output[..., 2], output[..., 0], output[..., 1], validate_args=False)

    def to_quantiles(self, output: Tensor) -> Tensor:
        """``(..., n_parameters)`` to ``(..., n_quantiles)``, increasing along the last dimension."""
        standard = self._standard.to(output)
        if self.family == "student-t":
            middle, half = (_HEAVIEST + _LIGHTEST) / 2, (_HEAVIEST - _LIGHTEST) / 2
            tail = (1 / output[..., 2, None] - middle) / half
            powers = tail ** torch.arange(_DEGREE + 1, device=output.device)
            with torch.autocast(output.device.type, enabled=False):  # a product of bfloat16 has three digits
                standard = standard * (powers @ self._growth.to(output)).exp()
        return output[..., 0, None] + output[..., 1, None] * standard

    def moved(self, output: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
        """The output for ``scale * y + shift`` where ``output`` is for ``y``; both ``(...)``, scale > 0."""
        location, spread, *tail = output.unbind(-1)
        if scale is not None:
            location, spread = location * scale, spread * scale
        return torch.stack([location + shift, spread, *tail], -1)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The negative log-likelihood of each target, ``(..., 1)``; a normal's is linear from 5 scales on."""
        if self.family == "normal":
            z = (target - output[..., 0]) / output[..., 1]
            square = F.huber_loss(z, torch.zeros_like(z), reduction="none", delta=_REACH)
            return (square + output[..., 1].log() + math.log(2 * math.pi) / 2)[..., None]
        return -self.distribution(output).log_prob(target)[..., None]

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood over what ``mask`` counts.

        Args:
            output: ``(..., d_output, n_parameters)``.
            target: ``(..., d_output)``.
            mask: Leading dimensions of ``target``.

        Raises:
            ValueError: If ``target`` has another shape.
        """
        if target.shape != output.shape[:-1]:
            raise ValueError(f"target: expected shape {tuple(output.shape[:-1])}, got {tuple(target.shape)}")
        return masked_mean(self.losses(output, fill_missing(target, mask)), mask)

    @torch.no_grad()
    def begin_at_normal(self, spread: float) -> None:
        """Set the biases to a distribution around zero of this scale, with 10 degrees of freedom."""
        bias = self.proj.bias.new_zeros(self.d_output, self.n_parameters)
        bias[:, 1] = math.log(math.expm1(spread - _LEAST_SCALE))  # softplus undone
        if self.family == "student-t":
            bias[:, 2] = math.log((_FIRST_TAIL - _LIGHTEST) / (_HEAVIEST - _FIRST_TAIL))
        self.proj.bias.copy_(bias.flatten())


def forecast_head(
    output: str, *, d_model: int, quantiles: Sequence[float], d_output: int = 1
) -> QuantileHead | DistributionHead:
    """The head by its name: ``"quantiles"``, or a family of distributions that says them."""
    if output == "quantiles":
        return QuantileHead(d_model=d_model, quantiles=quantiles, d_output=d_output)
    return DistributionHead(d_model=d_model, family=output, quantiles=quantiles, d_output=d_output)


def student_t_quantile(level: NDArray[np.float64], df: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value that Student's t is below with probability ``level``; the two broadcast, ``df`` at least 1.

    With ``t = sqrt(df) tan(a)`` the distribution function is ``1/2 + c * (integral of cos(u)^(df - 1) over u
    from 0 to a)``, ``c = gamma((df + 1) / 2) / (sqrt(pi) gamma(df / 2))``. It is concave for a > 0, so that
    Newton's steps from the normal's quantile, which lies nearer to 0, climb to the root and never pass it.

    Args:
        level: Inside (0, 1).
        df: Degrees of freedom, at least 2; of fewer the far tails come out too short.
    """
    level, df = np.broadcast_arrays(np.asarray(level, np.float64), np.asarray(df, np.float64))
    sign, above = np.sign(level - 0.5), np.abs(level - 0.5)
    half = torch.as_tensor(df / 2)
    c = (torch.lgamma(half + 0.5) - torch.lgamma(half)).exp().numpy() / math.sqrt(math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    angle = np.arctan(torch.special.ndtri(torch.as_tensor(above + 0.5)).numpy() / np.sqrt(df))
    for _ in range(50):
        within = np.cos(angle[..., None] * (nodes + 1) / 2) ** (df[..., None] - 1)
        missing = above - c * angle / 2 * (within @ weights)
        angle = np.minimum(angle + missing / (c * np.cos(angle) ** (df - 1)), math.pi / 2 - 1e-12)
    return sign * np.sqrt(df) * np.tan(angle)


def _growth_of(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of how much farther out the quantiles of Student's t are than the normal's.

    Coefficients ``(degree + 1, n_quantiles)`` of powers of ``1 / df``, drawn from its range to [-1, 1]; by
    Chebyshev's nodes it is within float32 rounding of the exact one, at the price of a matrix product.
    """
    chebyshev = np.polynomial.chebyshev
    tails = chebyshev.chebpts1(_DEGREE + 1)
    df = 2 / (_HEAVIEST + _LIGHTEST + (_HEAVIEST - _LIGHTEST) * tails[:, None])
    normal = torch.special.ndtri(torch.from_numpy(levels)).numpy()
    middle = normal == 0  # which stays there
    exact = student_t_quantile(np.where(middle, 0.75, levels), df)
    logarithm = np.where(middle, 0.0, np.log(exact / np.where(middle, exact, normal)))
    powers = np.zeros((_DEGREE + 1, len(levels)))
    for column, found in zip(powers.T, chebyshev.chebfit(tails, logarithm, _DEGREE).T, strict=True):
        made = chebyshev.cheb2poly(found)  # without the zeros at its end
        column[: len(made)] = made
    return powers
