"""Small synthetic series, and a model trained on them once a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.training import FitResult, RunFolder
from mambakit.domains.timeseries.config import PRESET_TRAIN, LossConfig, ModelConfig
from mambakit.domains.timeseries.data import SeriesData, split_series
from mambakit.domains.timeseries.tables.table import series_of
from mambakit.domains.timeseries.training import train_forecaster
from mambakit.domains.timeseries.window import WindowForecaster

SMALL = ModelConfig(patch_length=8, d_time=16, d_series=16, d_state=8, head_dim=8, dropout=0.0)
FAST = dataclasses.replace(PRESET_TRAIN, batch_size=32, max_epochs=4, lr=3e-3, device="cpu", ema_decay=0.9)


def make_wide_table(n_rows: int = 400, n_series: int = 2, seed: int = 0) -> pd.DataFrame:
    """Hourly series with a day's pattern, a trend and noise; the second follows the first."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_rows)
    columns: dict[str, object] = {"date": pd.date_range("2024-01-01", periods=n_rows, freq="h")}
    for i in range(n_series):
        wave = np.sin(2 * np.pi * (t + 3 * i) / 24) + 0.4 * np.sign(np.sin(2 * np.pi * t / 12))
        columns[f"s{i}"] = 50 + 10 * i + 5 * wave + 0.01 * t + 0.5 * rng.standard_normal(n_rows)
    return pd.DataFrame(columns)


@pytest.fixture(scope="session")
def wide_table() -> Callable[..., pd.DataFrame]:
    return make_wide_table


@pytest.fixture(scope="session")
def data() -> SeriesData:
    return split_series("waves", series_of(make_wide_table()), season_length=24)


def train_small(
    data: SeriesData, folder: Path, *, members: int = 1, max_steps: int = -1
) -> tuple[WindowForecaster, FitResult]:
    """Trains a small forecaster, 24 rows ahead from 48."""
    return train_forecaster(
        data,
        RunFolder(folder),
        lookback=48,
        horizon=24,
        model_config=dataclasses.replace(SMALL, members=members),
        loss_config=LossConfig(),
        train_config=dataclasses.replace(FAST, max_steps=max_steps),
    )


@pytest.fixture(scope="session")
def train() -> Callable[..., tuple[WindowForecaster, FitResult]]:
    return train_small


@pytest.fixture(scope="session")
def trained(data: SeriesData, tmp_path_factory: pytest.TempPathFactory) -> tuple[WindowForecaster, Path]:
    """A forecaster of two series, 24 rows ahead from 48, and the folder of its run."""
    folder = tmp_path_factory.mktemp("run") / "waves"
    model, _ = train_small(data, folder)
    return model, folder
