"""Running level and spread of a series, from its past alone, so that a stream knows them at every row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.kernels import ssd_core

# Sums that are carried: weight and sum of the values; weight and sum of the squared surprises; last mean.
N_SUMS = 5
# Spread of a series that never changed, in its own units.
LEAST = 1e-4
_FARTHEST = 8.0
# Sums that are carried weigh this at least: beside one row they say nothing, but their ratios are not lost.
_LEAST_WEIGHT = 1e-20


class Level(NamedTuple):
    """What the network reads of the values, each ``(rows, length)`` float32.

    Attributes:
        mean: Weighted mean of the observed values up to the row, the row's own among them.
        deviation: Root of the weighted mean of squared surprises, each a value less the mean before it.
        z: ``asinh((value - mean) / deviation)``; zero where missing.
        shift: How far the mean has moved, in deviations.
        growth: Logarithm of how much the deviation has grown.
    """

    mean: Tensor
    deviation: Tensor
    z: Tensor
    shift: Tensor
    growth: Tensor


@torch.no_grad()
def running_level(
    values: Tensor, there: Tensor, elapsed: Tensor, sums: Tensor | None, *, memory: float
) -> tuple[Level, Tensor]:
    """Exponentially weighted mean and deviation; weights fall to 1/e over ``memory`` steps.

    Surprises instead of squares keep the small spread of a large value exact in float32 (West 1979). Where no
    value comes both stay as they were, however long that lasts.

    Args:
        values: ``(rows, length)`` float32, anything where not ``there``.
        there: ``(rows, length)`` bool: the value was observed.
        elapsed: ``(rows, length)`` float32, steps since the row before; 0 in padding.
        sums: ``(rows, 5)``, what came before; None at the beginning.
        memory: Steps.

    Returns:
        The level, and the sums after the last row.
    """
    observed = there.to(values.dtype)
    values = torch.where(there, values, 0.0)
    if sums is None:
        sums = values.new_zeros(len(values), N_SUMS)
    log_decay = -elapsed / memory
    weight, total = _decayed(torch.stack([observed, values], -1), log_decay, sums[:, :2]).unbind(-1)
    # what is weighed does not change where nothing is observed, but the weights would underflow in time
    row = torch.arange(1, values.shape[1] + 1, device=values.device)
    seen = torch.where(there, row, 0).cummax(1).values  # 0: none yet in this piece
    mean = torch.cat([sums[:, 4:], total / weight], 1).gather(1, seen)
    before = torch.cat([sums[:, 4:], mean[:, :-1]], 1)
    ever = (seen > 0) | (sums[:, :1] > 0)
    began = torch.cat([sums[:, :1] > 0, ever[:, :-1]], 1)
    counted = observed * began
    surprise = (values - before).square() * counted
    sure, spread = _decayed(torch.stack([counted, surprise], -1), log_decay, sums[:, 2:4]).unbind(-1)
    first = _variance(sums)[:, None]
    variance = torch.where(sure > 0, spread / sure, first)
    variance = torch.cat([first, variance], 1).gather(1, seen)
    deviation = (variance + LEAST**2).sqrt()
    before_deviation = torch.cat([level_of(sums)[1][:, None], deviation[:, :-1]], 1)
    z = torch.where(there, torch.asinh((values - mean) / deviation), 0.0)
    shift = ((mean - before) / deviation * began).clamp(-_FARTHEST, _FARTHEST)
    growth = (deviation / before_deviation).log().clamp(-_FARTHEST, _FARTHEST)
    after = torch.stack([weight[:, -1], total[:, -1], sure[:, -1], spread[:, -1], mean[:, -1]], -1)
    return Level(mean, deviation, z, shift, growth), _kept(after, ever[:, -1], variance[:, -1])


def _kept(sums: Tensor, ever: Tensor, variance: Tensor) -> Tensor:
    """The sums with weights that do not underflow, where there was anything to weigh."""
    least = torch.full_like(variance, _LEAST_WEIGHT)
    level = torch.stack([least, least * sums[:, 4]], -1)
    spread = torch.stack([least, least * variance], -1)
    light = (ever & (sums[:, 0] < _LEAST_WEIGHT))[:, None]
    sure = ((variance > 0) & (sums[:, 2] < _LEAST_WEIGHT))[:, None]
    parts = torch.where(light, level, sums[:, :2]), torch.where(sure, spread, sums[:, 2:4]), sums[:, 4:]
    return torch.cat(parts, -1)


def level_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation after the last row, each ``(rows,)``, from the sums ``(rows, 5)``."""
    return sums[:, 4], (_variance(sums) + LEAST**2).sqrt()


def _variance(sums: Tensor) -> Tensor:
    """``(rows,)``; zero before there was a surprise."""
    return torch.where(sums[:, 2] > 0, sums[:, 3] / sums[:, 2].clamp(min=1e-30), 0.0)


def _decayed(x: Tensor, log_decay: Tensor, initial: Tensor) -> Tensor:
    """``s_t = exp(log_decay_t) s_{t-1} + x_t`` of ``(rows, length, n)``, from ``(rows, n)``."""
    rows, length, n = x.shape
    if length == 1:
        return initial[:, None] * log_decay.exp()[..., None] + x
    if x.device.type == "cpu":
        return _doubled(x, log_decay.exp()[..., None], initial)
    one = x.new_ones(rows, length, 1, 1)
    decay = log_decay[..., None].expand(rows, length, n)
    y = ssd_core(
        x[..., None], decay, torch.ones_like(decay), one, one, initial_state=initial[..., None, None]
    )
    assert isinstance(y, Tensor)
    return y[..., 0]


def _doubled(x: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """As ``_decayed``, each sum taking in that of 1, 2, 4, ... rows before it (Hillis & Steele 1986).

    On a CPU eight times as fast as a kernel that is made for states of hundreds of numbers.
    """
    sums = torch.cat([x[:, :1] + decay[:, :1] * initial[:, None], x[:, 1:]], 1)
    reach, length = 1, x.shape[1]
    while reach < length:
        sums[:, reach:] += decay[:, reach:] * sums[:, :-reach]
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return sums
