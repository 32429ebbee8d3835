"""Normal and Student-t outputs: all that takes quantiles takes theirs, and they hold what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.errors import UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.anomalies.scoring import anomaly_scores
from mambakit.domains.timeseries.calibration import calibrate_stream
from mambakit.domains.timeseries.config import (
    PRESET_STREAM_TRAIN,
    LossConfig,
    ModelConfig,
    StreamLossConfig,
    StreamModelConfig,
)
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.forecasting import forecast, with_intervals
from mambakit.domains.timeseries.model import load_forecaster
from mambakit.domains.timeseries.stream.data import forecasts, make_store
from mambakit.domains.timeseries.stream.evaluation import evaluate_stream
from mambakit.domains.timeseries.stream.forecasting import sample_paths
from mambakit.domains.timeseries.stream.live import LiveSeries
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.training import train_stream
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.training import train_forecaster

N = 600


def noisy(n_rows: int, seed: int, name: str = "a") -> Series:
    """A wave and noise of heavy tails; a tenth is missing."""
    rng = np.random.default_rng(seed)
    values = 50 + 5 * np.sin(np.arange(n_rows) * 2 * np.pi / 12) + rng.standard_t(2.5, n_rows)
    values[rng.random(n_rows) < 0.1] = np.nan
    return Series(name, pd.date_range("2024-01-01", periods=n_rows, freq="h"), values, "h")


def train_on(series: Series, folder: Path, output: Any, steps: int = 16) -> StreamForecaster:
    small = StreamModelConfig(
        members=1, context=6, d_model=16, n_layers=1, d_state=8, head_dim=8, d_ahead=8, output=output
    )
    bounds = [(N - 120, N, len(series.values))]
    train = dataclasses.replace(PRESET_STREAM_TRAIN, max_steps=steps, device="cpu", ema_decay=0.9, lr=3e-3)
    model, _ = train_stream(
        [series], bounds, RunFolder(folder), lookback=24, horizon=6, season_length=12, mixed=False,
        model_config=small, loss_config=StreamLossConfig(window=96), train_config=train,
    )  # fmt: skip
    calibrate_stream(model, make_store(model.tokenizer, [series], bounds))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("output", ["normal", "student-t"])
def test_a_stream_of_distributions(output: str, tmp_path: Path) -> None:
    series = noisy(N + 200, 0)
    model = train_on(series, tmp_path / "run", output)
    known = dataclasses.replace(series, stamps=series.stamps[:N], values=series.values[:N])
    made = forecast(model, [known], 9)[0]
    assert (np.diff(made.quantiles) > 0).all()
    middle = made.levels.index(0.5)
    np.testing.assert_allclose(made.point, made.quantiles[:, middle], atol=1e-4)  # both are symmetric
    # the levels are spread as those of the family are
    spread = (made.quantiles[0] - made.point[0]) / (made.quantiles[0, middle + 1] - made.point[0])
    normal = torch.special.ndtri(torch.tensor(made.levels)).numpy()
    assert (spread[-1] > 1.02 * normal[-1] / normal[middle + 1]) == (output == "student-t")
    low, high = with_intervals(model, [made], [80])[0].intervals[80]
    assert (low < made.point).all()
    assert (made.point < high).all()
    saved = load_forecaster(tmp_path / "run")
    np.testing.assert_allclose(forecast(saved, [known], 9)[0].quantiles, made.quantiles, rtol=1e-5)
    live = LiveSeries(model)
    live.update(pd.DataFrame({"unique_id": "a", "ds": known.stamps, "y": known.values}))
    np.testing.assert_allclose(live.forecast(9)[0].quantiles, made.quantiles, rtol=1e-4)
    store = make_store(model.tokenizer, [series], [(N - 120, N, len(series.values))])
    row = evaluate_stream(model, store, "test").rows[0]
    found = list(forecasts(model, store, 2))
    quantiles, target = (
        torch.cat([getattr(one, part)[0] for one in found]).double().numpy()
        for part in ("quantiles", "target")
    )
    level = 100 * (model.levels[-1] - model.levels[0])
    wanted = conformal.coverages(quantiles, target, [level], model.calibrators[conformal.KEY])[level]
    assert row["coverage-calibrated"] == pytest.approx(wanted)
    assert row["coverage-calibrated"] != row["coverage"]
    paths = sample_paths(model, [known], 6, 300)["a"]
    assert np.median(paths[:, 0]) == pytest.approx(made.point[0], abs=0.5)
    scored = anomaly_scores(model, [series])
    assert scored.loc[scored["y"].notna(), "score"].iloc[48:].notna().all()


@pytest.mark.slow
def test_quantiles_of_heavy_tails_are_honest(tmp_path: Path) -> None:
    series = noisy(N + 1200, 1)
    model = train_on(series, tmp_path / "run", "student-t", steps=400)
    found = list(
        forecasts(model, make_store(model.tokenizer, [series], [(N - 120, N, len(series.values))]), 2)
    )
    target = torch.cat([one.target for one in found], 1)
    below = target[..., None] < torch.cat([one.quantiles for one in found], 1)
    shares = below[target.isfinite()].double().mean(0)
    np.testing.assert_allclose(shares, model.levels, atol=0.1)  # of one short series learned


def test_a_window_of_distributions(data: SeriesData, tmp_path: Path) -> None:
    small = ModelConfig(
        members=2, patch_length=8, d_time=16, d_series=16, d_state=8, head_dim=8, output="student-t"
    )
    train = dataclasses.replace(PRESET_STREAM_TRAIN, max_steps=16, device="cpu", ema_decay=0.9, lr=3e-3)
    model, result = train_forecaster(
        data, RunFolder(tmp_path), lookback=48, horizon=24, model_config=small, loss_config=LossConfig(),
        train_config=train,
    )  # fmt: skip
    assert result.best_score < 0.15
    made = forecast(model, data.series, 30)
    assert all((np.diff(one.quantiles) > 0).all() for one in made)
    model.save_pretrained(tmp_path / "model")
    again = forecast(load_forecaster(tmp_path / "model"), data.series, 30)
    for a, b in zip(made, again, strict=True):
        np.testing.assert_allclose(a.quantiles, b.quantiles, rtol=1e-5)


def test_refuses_another_output() -> None:
    for config in (ModelConfig, StreamModelConfig):
        with pytest.raises(UsageError, match="output: expected one of quantiles, normal, student-t"):
            config(output="gamma")  # type: ignore[arg-type]
