"""Closed-form forecasts that the network begins at: a seasonal pattern and a linear map for each series.

A series' own map is drawn towards the one that all share, by a ridge as large as the mean square of its own
lookbacks: it differs where they say much. The pattern is CycleNet's (Lin et al. 2024), in closed form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.domains.timeseries.config import ForecasterConfig
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.window_data import Values, Windows

# The ridge, as a share of the mean square of a series' lookbacks. From a tenth to three it changes these
# forecasts' validation error on ETTh1, ETTm1 and Weather by 2 % or less.
_SHRINKAGE = 1.0
_RIDGE = 1e-2
# Windows times series that are read at most; beyond, every so many windows are left out.
_MOST_ROWS = 2_000_000

Anchored = tuple[Tensor, Tensor]
"""Forecasts ``(batch, n_series, horizon)``, and what they leave of the lookback."""


class Anchor(nn.Module):
    """Forecasts by seasonal patterns and linear maps of what is left, the window's mean put aside.

    Series that are read together have a map each, others share one; an unknown series has no pattern, and
    the map that was fitted to rows with their seasons in.

    Args:
        config: The network and the data it is for.
    """

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        names = config.n_series + 1
        self.each = config.mix_series  # whether every series has a map
        maps = names if self.each else 2
        self.pattern: Tensor
        self.maps: Tensor
        self.register_buffer("pattern", torch.zeros(config.season_length, names))
        self.register_buffer("maps", torch.zeros(maps, config.lookback, config.horizon))

    def forward(self, history: Tensor, phase: Tensor, series: Tensor) -> Anchored:
        """Forecasts, and what the lookback is without pattern and mean.

        Args:
            history: Scaled values, ``(batch, lookback, n_series)``.
            phase: Season's phase of the first forecast step, ``(batch,)`` int64.
            series: Index of each series, ``(n_series,)`` or ``(batch, n_series)`` int64.

        Returns:
            ``(batch, n_series, horizon)`` and ``(batch, n_series, lookback)``.
        """
        x = history.transpose(1, 2)
        lookback = self.config.lookback
        season = self._season(phase, series)
        x = x - season[..., :lookback]
        mean = x.mean(-1, keepdim=True)
        x = x - mean
        y = self._map(x, series)
        return y + mean + season[..., lookback:], x

    def _map(self, x: Tensor, series: Tensor) -> Tensor:
        if not self.each:  # one map for the known, one for the unknown
            unknown = (series == self.config.n_series)[..., None]
            return torch.where(unknown, x @ self.maps[1], x @ self.maps[0])
        if series.dim() == 1:
            return torch.einsum("bnl,nlh->bnh", x, self.maps[series])
        y = x.new_empty(*x.shape[:2], self.config.horizon)
        for one in series.unique():
            y[series == one] = x[series == one] @ self.maps[one]
        return y

    def _season(self, phase: Tensor, series: Tensor) -> Tensor:
        offsets = torch.arange(-self.config.lookback, self.config.horizon, device=phase.device)
        steps = (phase[:, None] + offsets) % self.config.season_length  # [b, l + h]
        if series.dim() == 1:
            return F.embedding(steps, self.pattern[:, series]).transpose(1, 2)
        index = steps[:, None, :] * self.pattern.shape[1] + series[..., None]
        return F.embedding(index, self.pattern.view(-1, 1))[..., 0]

    @torch.no_grad()
    def fit(self, data: SeriesData, values: Values) -> None:
        """Learns from the training windows; moves to the device of the rows.

        Args:
            data: The series.
            values: Their scaled rows.
        """
        lookback, horizon = self.config.lookback, self.config.horizon
        device = values.rows.device
        self.to(device)
        self.pattern.copy_(seasonal_pattern(data, values))
        n_windows = len(Windows(data, "train", lookback=lookback, horizon=horizon))
        n_series = values.rows.shape[1]
        stride = max(1, math.ceil(n_windows * n_series / _MOST_ROWS))
        windows = Windows(data, "train", lookback=lookback, horizon=horizon, stride=stride)
        sums = n_series if self.each else 1
        gram = torch.zeros(2, sums, lookback, lookback, dtype=torch.float64, device=device)
        cross = torch.zeros(2, sums, lookback, horizon, dtype=torch.float64, device=device)
        for starts in windows.batches(max(1, 8192 // n_series)):
            batch = values.cut(starts.to(device), lookback, horizon)
            window = torch.cat([batch.history, batch.future], 1).transpose(1, 2)
            for i, whole in enumerate((window - self._season(batch.phase, batch.series), window)):
                whole = (whole - whole[..., :lookback].mean(-1, keepdim=True)).transpose(0, 1).double()
                x, y = whole[..., :lookback], whole[..., lookback:]
                if not self.each:
                    x, y = x.flatten(0, 1)[None], y.flatten(0, 1)[None]
                gram[i] += x.transpose(1, 2) @ x
                cross[i] += x.transpose(1, 2) @ y
        one = torch.eye(lookback, dtype=torch.float64, device=device)

        def solve(gram: Tensor, cross: Tensor, ridge: float, centre: Tensor | None = None) -> Tensor:
            size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-12) * ridge
            return torch.linalg.solve(gram + size * one, cross + (0 if centre is None else size * centre))

        shared, unknown = solve(gram.sum(1), cross.sum(1), _RIDGE)
        own = solve(gram[0], cross[0], _SHRINKAGE, shared) if self.each else shared[None]
        self.maps.copy_(torch.cat([own, unknown[None]]))


def seasonal_pattern(data: SeriesData, values: Values) -> Tensor:
    """Each series' mean way from a moving mean over a season, by phase, ``(season_length, n_series + 1)``.

    Of the training rows; zero for the unknown series, which comes last, and for one shorter than a season.
    """
    length, n_series = data.season_length, len(data.ids)
    found = torch.zeros(length, n_series + 1, dtype=torch.float64)
    if length < 2:
        return found
    offset = first = 0
    for group in data.groups:
        n, width = group.bounds[0], len(group.ids)
        rows = values.rows[offset : offset + n].double().cpu()
        phase = values.phase[offset : offset + n].cpu()
        if n >= length:
            level = F.avg_pool1d(rows.T[None], length, stride=1)[0].T
            begin = length // 2
            inside = phase[begin : begin + len(level)]
            total = torch.zeros(length, width, dtype=torch.float64)
            total.index_add_(0, inside, rows[begin : begin + len(level)] - level)
            count = torch.bincount(inside, minlength=length).clamp(min=1)
            found[:, first : first + width] = total / count[:, None]
        offset, first = offset + len(group.values), first + width
    return found
