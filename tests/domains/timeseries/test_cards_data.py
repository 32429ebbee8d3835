"""The data sets of the cards: read as their pages promise."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mambakit.core.data import load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.data import load_data
from mambakit.domains.timeseries.tables.cards import load_labels
from mambakit.domains.timeseries.window_data import Windows

real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")


@real
def test_the_electricity_price_has_the_published_windows_and_knows_its_forecasts():
    data = load_data("NP")
    (one,) = data.series
    assert len(Windows(data, "test", lookback=168, horizon=24)) == 10460
    assert data.bounds == ((36691, 41933, 52416),)
    assert one.future is not None
    assert list(one.future) == ["Grid load forecast", "Wind power forecast"]
    assert one.future.iloc[0].tolist() == [42497, 2798]
    assert one.values[[0, -1]].tolist() == [31.05, 48.1]


@real
def test_the_m4_competition_ends_with_its_test_values():
    data = load_data("M4-Hourly")
    assert data.ids == [f"H{i}" for i in range(1, 415)]
    lengths = np.array([len(one.values) for one in data.series])
    assert (lengths.min(), lengths.max()) == (748, 1008)
    assert data.season_length == 24
    assert data.series[0].values[[0, 699, 700, 747]].tolist()[::2] == [605, 619]
    assert all(end == (n - 96, n - 48, n) for end, n in zip(data.bounds, lengths.tolist(), strict=True))
    # seasonal naive, as the competition's own table has it
    scaled = []
    for one in data.series:
        past, truth = one.values[:-48], one.values[-48:]
        error = np.abs(truth - np.tile(past[-24:], 2)).mean()
        scaled.append(error / np.abs(past[24:] - past[:-24]).mean())
    assert np.mean(scaled) == pytest.approx(1.193, abs=5e-4)


@real
def test_zones_know_a_day_ahead():
    data = load_data("EPF-long")
    assert data.ids == ["BE", "DE", "FR", "NP"]
    for one, end in zip(data.series, data.bounds, strict=True):
        assert one.future is not None
        assert (len(one.values), len(one.future), end) == (1680, 1704, (1632, 1656, 1680))
        assert one.future.notna().all().all()
    assert data.series[0].future["Exogenous1"].iloc[1680] == 70318.0  # type: ignore[index]


@real
def test_missing_targets_stay_missing_and_windows_refuse_them():
    data = load_data("PM25")
    (one,) = data.series
    assert (len(one.values), int(np.isnan(one.values).sum()), str(one.stamps[0])) == (
        43824,
        2067,
        "2010-01-01 00:00:00",
    )
    assert one.past is not None
    assert one.past["cbwd"].cat.categories.tolist() == ["NE", "NW", "SE", "cv"]
    with pytest.raises(DataError, match=r"'pm2\.5' has 2067 missing values, .*--missing interpolate"):
        _ = data.groups
    assert len(load_data("PM25", missing="interpolate").groups) == 1


@real
@pytest.mark.parametrize(("horizon", "count"), [(24, 170), (36, 158), (48, 146), (60, 134)])
def test_illness_has_the_published_windows(horizon: int, count: int):
    assert len(Windows(load_data("ILI"), "test", lookback=36, horizon=horizon)) == count


@real
def test_air_passengers():
    data = load_data("AirPassengers")
    assert (data.frequency, data.season_length, data.bounds) == ("MS", 12, ((120, 132, 144),))
    assert data.series[0].values[[0, -1]].tolist() == [112, 432]


@real
def test_anomalies_are_labelled_row_by_row():
    data, labels = load_data("NAB"), load_labels(load_card("NAB"))
    n_windows = {name: int((np.diff(marks.astype(int)) == 1).sum()) for name, marks in labels.items()}
    assert [n_windows[name] for name in data.ids] == [5, 2, 3]
    for one, end in zip(data.series, data.bounds, strict=True):
        marks = labels[one.unique_id]
        assert len(marks) == len(one.values)
        assert end[1] == int(0.15 * len(marks))
        assert not marks[: end[1]].any()  # the probation period is normal
        assert 0.08 < marks.mean() < 0.11
    with pytest.raises(DataError, match="one model reads one step"):
        _ = data.groups
    bleeding = load_labels(load_card("UCR-InternalBleeding"))["value"]
    assert np.flatnonzero(bleeding).tolist() == list(range(4187, 4199))
    with pytest.raises(UsageError, match="NP has no labels"):
        load_labels(load_card("NP"))
