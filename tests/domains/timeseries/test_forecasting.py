"""The trained forecaster: better than naive, the same after reload, sane on odd series."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.config import ForecasterConfig, ModelConfig
from mambakit.domains.timeseries.data import series_in
from mambakit.domains.timeseries.evaluation import evaluate
from mambakit.domains.timeseries.forecasting import forecast, to_frame, until
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.training import make_values
from mambakit.domains.timeseries.window import WindowForecaster


def test_loss_falls_and_the_model_beats_naive(trained, data):
    model, folder = trained
    with (folder / "metrics.csv").open() as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]
    assert losses[-1] < 0.9 * losses[0]
    values = make_values(data, model.tokenizer)
    found = evaluate(model, data, "test", values=values, lookback=48, horizon=24)
    mse = {row["forecaster"]: row["mse"] for row in found.rows}
    assert mse["mambakit"] < 0.25 * mse["naive"]
    assert mse["mambakit"] < mse["seasonal naive"]
    assert found.n_windows == 80 - 24 + 1
    assert 0.4 < found.rows[0]["coverage"] <= 1


def test_the_mamba_path_is_alive(trained, data):
    model, _ = trained
    batch = make_values(data, model.tokenizer).cut(torch.tensor([340]), 48, 24)
    model.zero_grad()
    model(batch.history, batch.phase, batch.series).square().mean().backward()
    for stack in (model.members[0].over_time, model.members[0].across_series):
        grads = {n: p.grad for n, p in stack.named_parameters() if n.endswith(("A_log", "in_proj.weight"))}
        assert grads
        assert all(g is not None and g.abs().sum() > 0 for g in grads.values())
    # one series' past moves another's forecast
    changed = batch.history.clone()
    changed[:, -5:, 0] += torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0])[:, None].T
    with torch.no_grad():
        apart = model(changed, batch.phase, batch.series) - model(batch.history, batch.phase, batch.series)
    assert apart[:, :, 1].abs().max() > 1e-6
    model.zero_grad()


def test_same_forecast_after_reload(trained, data, tmp_path):
    model, _ = trained
    model.save_pretrained(tmp_path / "m")
    again = WindowForecaster.from_pretrained(tmp_path / "m")
    series = series_in(data)
    pd.testing.assert_frame_equal(
        to_frame(forecast(model, series, 24)), to_frame(forecast(again, series, 24))
    )
    assert again.config == model.config


@pytest.mark.parametrize("horizon", [1, 24, 60])
def test_any_horizon_continues_the_stamps_with_ordered_quantiles(trained, data, horizon):
    model, _ = trained
    series = series_in(data)
    frame = to_frame(forecast(model, series, horizon))
    assert len(frame) == 2 * horizon
    one = frame[frame.unique_id == "s1"]
    assert one.ds.iloc[0] == series[1].stamps[-1] + pd.Timedelta("1h")
    assert (one.ds.diff().dropna() == pd.Timedelta("1h")).all()
    levels = frame[[f"q{q}0" for q in range(1, 10)]].to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all()
    short = to_frame(forecast(model, series, 1))
    assert frame.y_hat.iloc[0] == pytest.approx(short.y_hat.iloc[0])  # a longer horizon begins alike


def test_intervals_grow_where_the_forecast_rolls_on(trained, data):
    model, _ = trained
    made = forecast(model, series_in(data), 72)[0]
    width = made.quantiles[:, -1] - made.quantiles[:, 0]
    assert width[24:48].min() > width[23]
    assert width[48:].min() > width[47]


def test_forecast_is_equivariant_to_the_units_of_an_unknown_series(trained, data):
    model, _ = trained
    one = series_in(data)[0]
    stranger = Series("new", one.stamps, one.values, "h")
    scaled = Series("new", one.stamps, 1000 * one.values - 7, "h")
    a, b = forecast(model, [stranger], 24)[0], forecast(model, [scaled], 24)[0]
    np.testing.assert_allclose(1000 * a.point - 7, b.point, rtol=1e-3)
    truth = 50 + 5 * np.sin(2 * np.pi * np.arange(400, 424) / 24)
    assert np.abs(a.point - truth).mean() < np.abs(one.values[-1] - truth).mean() + 3


def test_a_constant_series_is_forecast_constant(trained):
    model, _ = trained
    stamps = pd.date_range("2024-01-01", periods=60, freq="h")
    made = forecast(model, [Series("flat", stamps, np.full(60, 7.25), "h")], 30)[0]
    np.testing.assert_array_equal(made.point, 7.25)
    np.testing.assert_array_equal(made.quantiles, 7.25)


def test_refuses_what_it_cannot_forecast(trained, data):
    model, _ = trained
    series = series_in(data)
    with pytest.raises(DataError, match="'s0' has 47 rows, but the model reads 48"):
        forecast(model, [until(series[0], 47)], 3)
    with pytest.raises(UsageError, match="horizon: expected at least 1, got -2"):
        forecast(model, series, -2)
    with pytest.raises(UsageError, match="multiple of the patch length"):
        ForecasterConfig(lookback=50, horizon=3, n_series=1, model=ModelConfig())
