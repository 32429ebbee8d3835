"""The best linear estimate of a value from the observed ones about it, of all series that are read together.

With S the covariance of the values of some rows (of all series), o those observed and t the one sought:

    estimate = S_to S_oo^-1 values_o,    variance v = S_tt - S_to S_oo^-1 S_ot

(simple kriging: Cressie, Statistics for Spatial Data, 1993, section 3.2), of values less the series' mean.
S is that of the training rows, so that which values are missing may differ from row to row. What is said lies
between this estimate and the straight line between the neighbours, 1 - v / S_tt of the way to the estimate:
where nothing near is observed that knows no more than the mean. Until S is fitted it is the line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mambakit.domains.timeseries.config import StreamConfig

# Values that an estimate is made of at most, and so the size of the systems that are solved: one a row.
_MOST_VALUES = 128
_AT_ONCE = 1024
# Noise of each value beside its variance of about 1, chosen by absolute validation error on ETTh1 and ETTm1.
# Less would trust relations between series further than they hold after the training rows.
_RIDGE = 1e-2
_LEAST_VARIANCE = 1e-6


class Guess(NamedTuple):
    """The linear estimate of each row, ``(rows, length)``.

    Attributes:
        shift: What it adds to the straight line.
        spread: Its standard deviation; zero where nothing was fitted.
    """

    shift: Tensor
    spread: Tensor


class Scale(NamedTuple):
    """What is taken from the values of each series, and what they are divided by, ``(rows,)``."""

    mean: Tensor
    unit: Tensor


class Neighbours(nn.Module):
    """Linear estimates from the rows about each row.

    Where gaps differ, or more series are read together than a system may have values, it says the line.

    Args:
        config: The network and the data it is for.
    """

    covariance: Tensor

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.n_mixed = config.n_mixed
        self.reach = min(config.model.context // 2, max(0, (_MOST_VALUES // config.n_mixed - 1) // 2))
        fits = config.n_mixed <= _MOST_VALUES and not config.irregular
        self.size = 2 * self.reach + 1 if fits else 0
        n = self.size * config.n_mixed
        self.register_buffer("covariance", torch.zeros(n, n))

    @torch.no_grad()
    def forward(self, near: Tensor, base: Tensor, scale: Scale) -> Guess:
        """Estimates of every row's value, itself used where it is observed; nothing waits for the device.

        Args:
            near: Values about each row, ``(rows, length, 2 * wider + 1)``, NaN where missing.
            base: The straight line, ``(rows, length)``.
            scale: Of each series.
        """
        rows, length, width = near.shape
        if not self.size:
            return Guess(torch.zeros_like(base), torch.zeros_like(base))
        cut = width // 2 - self.reach
        around = (near[..., cut : width - cut] - scale.mean[:, None, None]) / scale.unit[:, None, None]
        x = around.unflatten(0, (-1, self.n_mixed)).transpose(1, 2).flatten(0, 1).flatten(1)  # [b*l, c*k]
        targets = torch.arange(self.n_mixed, device=x.device) * self.size + self.reach
        shift, variance = [], []
        for part in x.split(_AT_ONCE):
            there = part.isfinite()
            system = self.covariance * (there[:, :, None] & there[:, None, :])
            diagonal = system.diagonal(dim1=1, dim2=2)
            diagonal.copy_(torch.where(there & (diagonal > 0), diagonal, 1.0))
            beside = self.covariance[:, targets] * there[..., None]  # [n, c*k, c]
            factor, _ = torch.linalg.cholesky_ex(system)
            weights = torch.cholesky_solve(beside, factor)
            shift.append((torch.where(there, part, 0.0)[..., None] * weights).sum(1))
            variance.append(self.covariance.diagonal()[targets] - (beside * weights).sum(1))
        both = torch.stack([torch.cat(shift), torch.cat(variance).clamp(min=0).sqrt()])
        both = both.view(2, -1, length, self.n_mixed).transpose(2, 3).reshape(2, rows, length)
        estimate, spread = both * scale.unit[:, None]
        prior = self.covariance.diagonal()[targets].repeat(rows // self.n_mixed)[:, None]
        share = torch.where(prior > 0, 1 - (both[1].square() / prior).clamp(max=1), 0.0)
        return Guess(share * (estimate + scale.mean[:, None] - base), spread)

    @torch.no_grad()
    def fit(self, near: Iterable[Tensor]) -> None:
        """Set the covariance from values about training rows, ``(n, n_mixed * size)`` each, NaN if missing.

        Every pair of places counts where both are observed.
        """
        n = len(self.covariance)
        sums = torch.zeros(n, n, dtype=torch.float64)
        counts = torch.zeros(n, n, dtype=torch.float64)
        for part in near:
            there = part.isfinite().double().cpu()
            x = torch.where(part.isfinite(), part, 0.0).double().cpu()
            sums += x.T @ x
            counts += there.T @ there
        found = sums / counts.clamp(min=1)
        # pairs counted apart need not make a covariance: its negative directions are taken out
        values, vectors = torch.linalg.eigh((found + found.T) / 2)
        found = (vectors * values.clamp(min=_LEAST_VARIANCE)) @ vectors.T
        found.diagonal().add_(_RIDGE)
        self.covariance.copy_(found)


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
