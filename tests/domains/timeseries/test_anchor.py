"""Closed-form seasonal patterns and linear maps: what they recover, and for which series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.domains.timeseries.anchor import Anchor, seasonal_pattern
from mambakit.domains.timeseries.baselines import linear
from mambakit.domains.timeseries.config import ForecasterConfig, ModelConfig
from mambakit.domains.timeseries.data import SeriesData, split_series
from mambakit.domains.timeseries.tables.table import series_of
from mambakit.domains.timeseries.training import fit_tokenizer, least_squares_of, make_values
from mambakit.domains.timeseries.window_data import Values, Windows

LOOKBACK, HORIZON = 12, 8


def fitted(
    columns: dict[str, np.ndarray], *, season: int, mix: bool | None = None
) -> tuple[Anchor, SeriesData, Values]:
    stamps = pd.date_range("2024-01-01", periods=len(next(iter(columns.values()))), freq="h")
    table = pd.DataFrame({"date": stamps, **columns})
    data = split_series("made", series_of(table), season_length=season, mix=mix)
    values = make_values(data, fit_tokenizer(data, 4))
    config = ForecasterConfig(
        lookback=LOOKBACK,
        horizon=HORIZON,
        n_series=len(columns),
        season_length=season,
        mix_series=data.mixed,
        model=ModelConfig(patch_length=4),
    )
    anchor = Anchor(config)
    anchor.fit(data, values)
    return anchor, data, values


def errors(anchor: Anchor, data: SeriesData, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors by series on the test windows, of the anchor and of plain least squares."""
    windows = Windows(data, "test", lookback=LOOKBACK, horizon=HORIZON)
    batch = values.cut(windows.starts(np.arange(len(windows))), LOOKBACK, HORIZON)
    plain = linear(least_squares_of(data, values, lookback=LOOKBACK, horizon=HORIZON))(batch.history)
    ours = anchor(batch.history, batch.phase, batch.series)[0].transpose(1, 2)
    return tuple((one - batch.future).square().mean((0, 1)) for one in (ours, plain))  # type: ignore[return-value]


@pytest.mark.parametrize("mix", [True, False])
def test_a_season_longer_than_the_lookback_is_forecast_to_the_dot(mix):
    rng = np.random.default_rng(0)
    days = [np.tile(rng.standard_normal(24), 30) for _ in range(2)]
    anchor, data, values = fitted({"a": days[0] * 5 + 50, "b": days[1]}, season=24, mix=mix)
    ours, plain = errors(anchor, data, values)
    assert ours.max() < 1e-6
    assert plain.min() > 0.1


def test_each_series_gets_a_map_of_its_own():
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((1500, 2))
    walk, swing = noise[:, 0].cumsum(), np.zeros(1500)
    for i in range(1, 1500):
        swing[i] = -0.9 * swing[i - 1] + noise[i, 1]
    anchor, data, values = fitted({"walk": walk, "swing": swing}, season=1)
    ours, plain = errors(anchor, data, values)
    assert (ours < 0.98 * plain).any()
    assert (ours < 1.02 * plain).all()


def test_what_is_left_of_a_lookback_has_neither_pattern_nor_mean():
    day = np.sin(np.arange(480) * 2 * np.pi / 24)
    anchor, _, values = fitted({"a": day, "b": 3 * day + 7}, season=24)
    batch = values.cut(torch.tensor([400, 407]), LOOKBACK, HORIZON)
    _, left = anchor(batch.history + 11, batch.phase, batch.series)
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-4, rtol=0)


def test_an_unknown_series_has_no_pattern():
    rng = np.random.default_rng(2)
    day = np.tile(rng.standard_normal(24), 30)
    anchor, _, _ = fitted({"a": day, "b": -day}, season=24)
    assert anchor.pattern[:, -1].abs().max() == 0
    history, series = torch.randn(3, LOOKBACK, 1), torch.tensor([2])
    one, other = (anchor(history, torch.full((3,), phase), series)[0] for phase in (0, 5))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mix", [True, False])
def test_series_named_by_window_are_those_named_at_once(mix):
    rng = np.random.default_rng(3)
    columns = {name: rng.standard_normal(300).cumsum() for name in "abc"}
    anchor, _, _ = fitted(columns, season=24, mix=mix)
    history, phase = torch.randn(4, LOOKBACK, 1), torch.arange(4)
    which = torch.tensor([2, 3, 0, 1])
    together, left = anchor(history, phase, which[:, None])
    for i, series in enumerate(which):
        alone, alone_left = anchor(history[i : i + 1], phase[i : i + 1], series[None])
        torch.testing.assert_close(together[i : i + 1], alone)
        torch.testing.assert_close(left[i : i + 1], alone_left)


def test_a_pattern_is_the_mean_way_from_the_level():
    trend = 0.1 * np.arange(240)
    day = np.tile([0.0, 3.0, -1.0, -2.0], 60)
    _, data, values = fitted({"a": trend + day}, season=4)
    found = seasonal_pattern(data, values)
    scale = (trend + day)[: data.bounds[0][0]].std()
    by_phase = torch.zeros(4, dtype=torch.float64)
    by_phase[values.phase[:4]] = torch.tensor(day[:4])
    # an even season's mean is centred half a row early
    torch.testing.assert_close(found[:, 0] * scale, by_phase + 0.05, atol=1e-3, rtol=0)
    short = SeriesData("short", data.series, ((3, 20, 30),), data.frequency, 4)
    assert seasonal_pattern(short, values).abs().max() == 0
