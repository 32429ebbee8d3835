"""Training the network that reads row by row: its rows in memory, and thousands of series at once."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.training import RunFolder
from mambakit.domains.timeseries.config import PRESET_STREAM_TRAIN, StreamLossConfig, StreamModelConfig
from mambakit.domains.timeseries.data import default_bounds
from mambakit.domains.timeseries.forecasting import forecast, until
from mambakit.domains.timeseries.stream.data import make_store
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.stream.training import lay_out, train_stream
from mambakit.domains.timeseries.tables.table import Series, read_table

TINY = StreamModelConfig(
    members=1, context=3, d_model=16, head_dim=8, d_state=8, n_layers=1, d_ahead=8, dropout=0.0
)


def series_at(name: str, stamps: pd.DatetimeIndex, frequency: str) -> Series:
    values = np.random.default_rng(len(name)).normal(size=len(stamps))
    return Series(name, stamps, values, frequency)


def test_a_row_in_memory_is_its_value():
    lengths = [200, 1500, 300]
    series = [
        series_at(f"s{i}", pd.date_range("2024-01-01", periods=n, freq="h"), "h")
        for i, n in enumerate(lengths)
    ]
    laid_out = lay_out(series, [default_bounds(n) for n in lengths], 24)
    assert laid_out.tokenizer.cycles == ["day", "week", "year"]
    held = sum(part.nbytes for part in vars(laid_out.store).values())
    assert held <= 4 * sum(lengths) + 128 * len(lengths)
    assert copy.deepcopy(laid_out).store.values.data_ptr() == laid_out.store.values.data_ptr()


@pytest.mark.parametrize(
    ("stamps", "frequency"),
    [
        (pd.date_range("2024-02-28 05:00", periods=60, freq="7h"), "7h"),
        (pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin"), "h"),  # a clock that jumps
        (pd.date_range("1500-01-31", periods=60, freq="ME", unit="us"), "ME"),
        (pd.date_range("2024-01-01", periods=60, freq="h") + pd.to_timedelta(np.arange(60) ** 2, "s"), ""),
    ],
    ids=["7h", "zone", "ME", "irregular"],
)
def test_what_is_known_of_a_row_is_what_the_tokenizer_says(stamps: pd.DatetimeIndex, frequency: str):
    series = [series_at("all", stamps, frequency), series_at("some", stamps[11:40], frequency)]
    tokenizer = RowTokenizer(frequency, 4).fit(series)
    store = make_store(tokenizer, series, [(30, 40, 50), (10, 20, 29)])
    which, place = torch.tensor([1, 0]), torch.tensor([[3, 28, 0], [59, 7, 7]])
    rows = [tokenizer.rows(series[i]) for i in which]
    known = [one.known[own] for one, own in zip(rows, place.numpy(), strict=True)]
    gaps = [one.elapsed[own] for one, own in zip(rows, place.numpy(), strict=True)]
    assert tokenizer.cycles
    np.testing.assert_allclose(store.known(which, place), known, atol=1e-6)
    np.testing.assert_array_equal(store.elapsed(which, place), gaps)


def test_five_thousand_short_series_are_learned_as_one(tmp_path: Path):
    n_series, n_rows, horizon = 5000, 21, 7
    rng = np.random.default_rng(0)
    week = rng.normal(size=(7, n_series))[np.arange(n_rows + horizon) % 7]
    y = 10 + 3 * week + 0.3 * rng.normal(size=week.shape)
    frame = pd.DataFrame(y, columns=[f"s{i}" for i in range(n_series)])
    frame.insert(0, "ds", pd.date_range("2024-01-01", periods=len(frame), freq="D"))
    histories = [until(one, n_rows) for one in read_table(frame).series]
    model, _ = train_stream(
        histories,
        [(14, n_rows, n_rows)] * n_series,
        RunFolder(tmp_path / "run"),
        lookback=7,
        horizon=horizon,
        season_length=7,
        mixed=False,
        model_config=TINY,
        loss_config=StreamLossConfig(window=32, origins=4, validation_stride=7, validation_series=64),
        train_config=dataclasses.replace(PRESET_STREAM_TRAIN, max_steps=8, device="cpu"),
    )
    made = forecast(model, histories[::50], horizon)
    errors = [np.abs(one.point - came).mean() for one, came in zip(made, y[n_rows:, ::50].T, strict=True)]
    naive = np.abs(y[n_rows - 1] - y[n_rows:])[:, ::50]
    assert np.mean(errors) < 0.5 * naive.mean()
