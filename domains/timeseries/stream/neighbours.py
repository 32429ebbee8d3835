"""The linear estimate of a missing value from the observed ones about it, of all series read together.

Rows are taken in blocks, each with ``reach`` rows on both sides of it. With S the covariance of the values of
these rows (of all series), o those observed and t one sought:

    estimate = S_to S_oo^-1 values_o,    variance v = S_tt - S_to S_oo^-1 S_ot

S is the covariance about each window's own level in the training rows, plus a great variance that the values
of a series have in common: its level is not known but found from what is observed (ordinary kriging: Cressie,
Statistics for Spatial Data, 1993, section 3.2), so that a level never seen does no harm. What is said lies
between this estimate and the straight line between the neighbours, 1 - v / S_tt of the way to the estimate:
where nothing near is observed that knows nothing. Until S is fitted it is the line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.domains.timeseries.config import StreamConfig

# Values of a block and the rows beside it at most, and so the size of the systems that are solved.
_MOST_VALUES = 336
_MOST_ROWS = 96
_LEAST_ROWS = 12
_AT_ONCE = 128
# Noise of each value beside its variance of about 1, chosen by validation error on ETTh1 and ETTm1.
# Less would trust relations between series further than they hold after the training rows.
_RIDGE = 1e-2
# Of the level of a series: great beside the variance about it of about 1. Ten times more changes nothing.
_LEVEL_VARIANCE = 10.0
_LEAST_VARIANCE = 1e-6


class Guess(NamedTuple):
    """The linear estimate of each row, ``(rows, length)``.

    Attributes:
        shift: What it adds to the straight line.
        spread: Its standard deviation; zero where nothing was fitted, or nothing is missing.
    """

    shift: Tensor
    spread: Tensor


class Scale(NamedTuple):
    """What is taken from the values of each series, and what they are divided by, ``(rows,)``."""

    mean: Tensor
    unit: Tensor


class Neighbours(nn.Module):
    """Linear estimates of every row from those about it.

    Series that are read together explain each other, unless they are so many that a system would hold too few
    rows of them; then each is estimated from itself. Where gaps differ it says the line.

    Args:
        config: The network and the data it is for.
    """

    covariance: Tensor

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.n_mixed = config.n_mixed if config.n_mixed * _LEAST_ROWS <= _MOST_VALUES else 1
        self.size = 0 if config.irregular else min(_MOST_ROWS, _MOST_VALUES // self.n_mixed)
        self.reach = self.size // 4
        n = self.size * self.n_mixed
        self.register_buffer("covariance", torch.zeros(n, n))

    @torch.no_grad()
    def forward(self, values: Tensor, base: Tensor, scale: Scale) -> Guess:
        """Estimates of every row's value; of blocks in which nothing is missing their values.

        Args:
            values: ``(rows, length)``, NaN where missing.
            base: The straight line, the same.
            scale: Of each series.
        """
        (rows, length), block = values.shape, self.size - 2 * self.reach
        if not self.size:
            return Guess(torch.zeros_like(base), torch.zeros_like(base))
        x = ((values - scale.mean[:, None]) / scale.unit[:, None]).unflatten(0, (-1, self.n_mixed))
        x = F.pad(x, (self.reach, self.reach + -length % block), value=torch.nan)
        x = x.unfold(2, self.size, block).transpose(1, 2)  # [b, blocks, c, size]
        series = torch.arange(self.n_mixed, device=x.device)[:, None] * self.size
        places = (series + self.reach + torch.arange(block, device=x.device)).flatten()
        beside, prior = self.covariance[:, places], self.covariance.diagonal()[places]
        x = x.flatten(0, 1).flatten(1)
        estimate, variance = x[:, places].nan_to_num(0.0), x.new_zeros(len(x), len(places))
        wanted = x[:, places].isnan().any(1).nonzero()[:, 0]
        for which in wanted.split(_AT_ONCE):
            part = x[which]
            there = part.isfinite()
            system = self.covariance * (there[:, :, None] & there[:, None, :])
            diagonal = system.diagonal(dim1=1, dim2=2)
            diagonal.copy_(torch.where(there & (diagonal > 0), diagonal, 1.0))
            factor, _ = torch.linalg.cholesky_ex(system)
            known = torch.cat([torch.where(there, part, 0.0)[..., None], beside * there[..., None]], -1)
            known = torch.linalg.solve_triangular(factor, known, upper=False)  # [n, c*size, 1 + c*block]
            estimate[which] = (known[..., :1] * known[..., 1:]).sum(1)
            variance[which] = (prior - known[..., 1:].square().sum(1)).clamp(min=0)
        share = torch.where(prior > 0, 1 - variance / prior.clamp(min=_LEAST_VARIANCE), 0.0)
        both = torch.stack([estimate, variance.sqrt(), share])
        both = both.view(3, rows // self.n_mixed, -1, self.n_mixed, block).transpose(2, 3)
        estimate, spread, share = both.reshape(3, rows, -1)[..., :length]
        unit = scale.unit[:, None]
        return Guess(share * (estimate * unit + scale.mean[:, None] - base), spread * unit)

    @torch.no_grad()
    def fit(self, windows: Iterable[Tensor]) -> None:
        """Set the covariance from windows of training rows, ``(n, n_mixed * size)`` each, NaN if missing.

        Every pair of places counts where both are observed, and those equally far apart count together.
        """
        n = len(self.covariance)  # no window, as where series are short, leaves the line
        sums = torch.zeros(n, n, dtype=torch.float64)
        counts = torch.zeros(n, n, dtype=torch.float64)
        for part in windows:
            x = part.double().cpu().unflatten(1, (self.n_mixed, -1))
            x = (x - x.nanmean(-1, keepdim=True)).flatten(1)
            there = x.isfinite().double()
            x = x.nan_to_num(0.0)
            sums += x.T @ x
            counts += there.T @ there
        if not counts.any():
            return
        found = self._by_distance(sums) / self._by_distance(counts).clamp(min=1)
        # pairs counted apart need not make a covariance: its negative directions are taken out
        values, vectors = torch.linalg.eigh((found + found.T) / 2)
        found = (vectors * values.clamp(min=_LEAST_VARIANCE)) @ vectors.T
        found.diagonal().add_(_RIDGE)
        levels = torch.eye(self.n_mixed, dtype=torch.float64).repeat_interleave(self.size, 0)
        self.covariance.copy_(found + _LEVEL_VARIANCE * (levels @ levels.T))

    def _by_distance(self, pairs: Tensor) -> Tensor:
        """The sum over the pairs of two series that are equally many rows apart, at each of them."""
        at = torch.arange(self.size)
        distance = (at[:, None] - at + self.size - 1).flatten()
        both = pairs.unflatten(0, (self.n_mixed, -1)).unflatten(-1, (self.n_mixed, -1)).transpose(1, 2)
        sums = pairs.new_zeros(*both.shape[:2], 2 * self.size - 1).index_add(2, distance, both.flatten(2))
        return sums[..., distance].view(both.shape).transpose(1, 2).flatten(2).flatten(0, 1)


def scale_of(values: Tensor, series: Tensor, unknown: int) -> Scale:
    """0 and 1 for a series learned of; mean and standard deviation of its own values for another.

    Args:
        values: ``(rows, length)``, NaN where missing.
        series: ``(rows,)``.
        unknown: The number of an unknown series.
    """
    there = values.isfinite()
    n = there.sum(1).clamp(min=1)
    mean = torch.where(there, values, 0.0).sum(1) / n
    variance = torch.where(there, values - mean[:, None], 0.0).square().sum(1) / n
    new = series == unknown
    return Scale(torch.where(new, mean, 0.0), torch.where(new, variance.sqrt().clamp(min=1e-4), 1.0))
