"""Splits, windows and the published protocol."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries import baselines
from mambakit.domains.timeseries.data import load_data, split_series
from mambakit.domains.timeseries.evaluation import evaluate
from mambakit.domains.timeseries.tables.table import Series, series_of
from mambakit.domains.timeseries.training import fit_tokenizer, make_values
from mambakit.domains.timeseries.window_data import Windows, require_windows

COUNTS = {
    "ETTh1": (17420, (8640, 11520, 14400), (2785, 2689, 2545, 2161)),
    "ETTm1": (69680, (34560, 46080, 57600), (11425, 11329, 11185, 10801)),
    "Exchange": (7588, (5311, 6071, 7588), (1422, 1326, 1182, 798)),
    "Weather": (52696, (36887, 42157, 52696), (10444, 10348, 10204, 9820)),
}
HORIZONS = (96, 192, 336, 720)
real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")


@pytest.mark.parametrize("name", COUNTS)
def test_window_counts_are_the_published_ones(name: str):
    n_rows, bounds, counts = COUNTS[name]
    stamps = pd.RangeIndex(n_rows)
    data = split_series(name, [Series("a", stamps, np.zeros(n_rows), "1")], bounds=[bounds])
    for horizon, count in zip(HORIZONS, counts, strict=True):
        windows = Windows(data, "test", lookback=96, horizon=horizon)
        assert len(windows) == count
        starts = torch.cat(windows.batches(1000))
        assert len(starts) == count  # no batch is dropped
        assert (int(starts[0]), int(starts[-1])) == (bounds[1], bounds[2] - horizon)


@real
@pytest.mark.parametrize("name", COUNTS)
def test_cards_have_the_published_splits(name: str):
    data = load_data(name)
    n_rows, bounds, counts = COUNTS[name]
    assert data.groups[0].bounds == bounds
    assert len(data.groups[0].values) == n_rows
    assert tuple(len(Windows(data, "test", lookback=96, horizon=h)) for h in HORIZONS) == counts


@real
@pytest.mark.parametrize(
    ("name", "season", "linear", "seasonal", "last"),
    [
        ("ETTh1", 24, (0.3832, 0.3915), (0.5122, 0.4333), (1.2944, 0.7132)),
        ("Exchange", 7, (0.0816, 0.1969), (0.0862, 0.2048), (0.0811, 0.1964)),
    ],
)
def test_baselines_reproduce_the_reference_table(name, season, linear, seasonal, last):
    data = load_data(name, season_length=season)
    values = make_values(data, fit_tokenizer(data, 1))
    found = evaluate(None, data, "test", values=values, lookback=96, horizon=96)
    rows = {row["forecaster"]: (row["mse"], row["mae"]) for row in found.rows}
    assert rows["linear"] == pytest.approx(linear, abs=1e-4)
    assert rows["seasonal naive"] == pytest.approx(seasonal, abs=1e-4)
    assert rows["naive"] == pytest.approx(last, abs=1e-4)


def test_windows_cut_what_the_split_allows(wide_table):
    table = wide_table(200)
    data = split_series("t", series_of(table), season_length=24)
    values = make_values(data, fit_tokenizer(data, 8))
    mean, deviation = table[["s0", "s1"]][:140].mean(), table[["s0", "s1"]][:140].std(ddof=0)
    scaled = ((table[["s0", "s1"]] - mean) / deviation).to_numpy()
    windows = Windows(data, "validation", lookback=48, horizon=10)
    assert len(windows) == 160 - 140 - 10 + 1
    batch = values.cut(next(iter(windows.loader(4))), 48, 10)
    np.testing.assert_allclose(batch.history[1], scaled[140 + 1 - 48 : 141], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.future[1], scaled[141:151], rtol=1e-4, atol=1e-5)
    assert batch.phase.tolist() == [(140 + i) % 24 for i in range(4)]


def test_ragged_series_are_windowed_one_by_one():
    long = pd.concat(
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": pd.date_range("2024", periods=n, freq="D"),
                "y": np.arange(n) + 1000.0 * i,
            }
        )
        for i, (name, n) in enumerate([("long", 100), ("short", 12), ("middle", 60)])
    )
    data = split_series("t", series_of(long), season_length=7)
    assert [len(group.ids) for group in data.groups] == [1, 1, 1]
    assert require_windows(data, lookback=16, horizon=4) == ["short"]
    windows = Windows(data, "train", lookback=16, horizon=4)
    assert windows.counts.tolist() == [70 - 16 - 4 + 1, 0, 42 - 16 - 4 + 1]
    values = make_values(data, fit_tokenizer(data, 8))
    batch = values.cut(torch.cat(windows.batches(7)), 16, 4)
    assert batch.series[:, 0].tolist() == [0] * 51 + [2] * 23
    # every window is a stretch of one series: neighbours differ by one, scaled
    steps = torch.cat([batch.history, batch.future], 1).diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-4)


def test_too_short_a_table_says_how_many_rows_it_needs(wide_table):
    data = split_series("t", series_of(wide_table(60)), season_length=24)
    with pytest.raises(DataError, match=r"has 60 rows and about \d+ are needed"):
        require_windows(data, lookback=48, horizon=24)
    with pytest.raises(UsageError, match="horizon: expected at least 1, got 0"):
        require_windows(data, lookback=48, horizon=0)


def test_unknown_names_and_files():
    with pytest.raises(UsageError, match="did you mean ETTh1"):
        load_data("ETTh3")
    with pytest.raises(DataError, match="no such file"):
        load_data("nothing.csv")


def test_the_embedded_card_needs_no_download():
    data = load_data("co2")
    assert (len(data.groups[0].values), data.frequency, data.season_length) == (526, "MS", 12)
    assert np.isfinite(data.groups[0].values).all()


def test_least_squares_finds_an_exact_linear_rule():
    torch.manual_seed(0)
    x = torch.randn(300, 8, 2, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    weight = torch.randn(8, 3, dtype=torch.float64)
    y = torch.einsum("blc,lh->bhc", x, weight)
    found = baselines.least_squares([(x, y)], lookback=8, horizon=3, ridge=1e-12)
    torch.testing.assert_close(baselines.linear(found)(x + 5), y + 5, rtol=1e-4, atol=1e-4)


def test_naive_forecasts():
    history = torch.arange(10.0)[None, :, None]
    assert baselines.naive(3)(history).flatten().tolist() == [9, 9, 9]
    assert baselines.seasonal_naive(5, 4)(history).flatten().tolist() == [6, 7, 8, 9, 6]
    assert baselines.seasonal_naive(2, 40)(history).flatten().tolist() == [9, 9]
