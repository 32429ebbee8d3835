"""Forecasts that any model must beat: the last value, the last season, and closed-form least squares.

Each is a function from history ``(batch, lookback, n_series)`` to forecasts ``(batch, horizon, n_series)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Baseline = Callable[[Tensor], Tensor]


def naive(horizon: int) -> Baseline:
    """Repeats the last value."""
    return lambda history: history[:, -1:].expand(-1, horizon, -1)


def seasonal_naive(horizon: int, season_length: int) -> Baseline:
    """Repeats the last season, or the last value where the history is shorter than a season."""

    def forecast(history: Tensor) -> Tensor:
        season = season_length if season_length <= history.shape[1] else 1
        index = torch.arange(horizon, device=history.device) % season
        return history[:, -season:][:, index]

    return forecast


def linear(weight: Tensor) -> Baseline:
    """One linear map for all series, on windows with their mean removed.

    Args:
        weight: ``(lookback, horizon)``, from ``least_squares``.
    """

    def forecast(history: Tensor) -> Tensor:
        mean = history.mean(1, keepdim=True)
        return torch.einsum("blc,lh->bhc", history - mean, weight.to(history)) + mean

    return forecast


def least_squares(
    windows: Iterable[tuple[Tensor, Tensor]], *, lookback: int, horizon: int, ridge: float = 1e-6
) -> Tensor:
    """The ``(lookback, horizon)`` float64 map of least squared error over all windows and series.

    Toner & Darlow 2024 (arXiv:2403.14587): linear forecasters with instance normalisation all approach
    this one. The window's mean is removed from both sides.

    Args:
        windows: Pairs of history ``(batch, lookback, n_series)`` and future ``(batch, horizon, n_series)``.
        lookback, horizon: Their lengths.
        ridge: Added to the diagonal, times the mean of the diagonal.
    """
    gram: Tensor | None = None
    cross = torch.zeros(lookback, horizon, dtype=torch.float64)
    for history, future in windows:
        if gram is None:
            gram = torch.zeros(lookback, lookback, dtype=torch.float64, device=history.device)
            cross = cross.to(history.device)
        mean = history.mean(1, keepdim=True)
        x = (history - mean).transpose(1, 2).flatten(0, 1).double()
        y = (future - mean).transpose(1, 2).flatten(0, 1).double()
        gram += x.T @ x
        cross += x.T @ y
    if gram is None:
        return cross
    diagonal = (ridge * gram.trace() / lookback).clamp(min=1e-12)
    return torch.linalg.solve(
        gram + diagonal * torch.eye(lookback, dtype=gram.dtype, device=gram.device), cross
    )
