"""Steps: every frequency is found, with gaps too; zones and changes of the clocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError
from mambakit.domains.timeseries.config import season_of
from mambakit.domains.timeseries.tables.regular import positions
from mambakit.domains.timeseries.tables.stamps import next_stamps, step_numbers
from mambakit.domains.timeseries.tables.table import read_table

STEPS = ["h", "15min", "10min", "s", "2h", "7h", "D", "3D", "B", "W-SUN", "W-WED", "2W-MON"]
STEPS += ["MS", "ME", "2MS", "QS-JAN", "QE-DEC", "YS-JAN", "YE-DEC"]
BERLIN = "Europe/Berlin"


def frame_of(stamps: pd.Index) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": "a", "ds": stamps, "y": np.arange(float(len(stamps)))})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("zone", [None, BERLIN])
def test_finds_the_step_and_fills_gaps(step: str, zone: str | None):
    stamps = pd.date_range("2023-02-05", periods=60, freq=step, tz=zone)
    whole = read_table(frame_of(stamps)).series[0]
    assert whole.frequency == step
    assert not np.isnan(whole.values).any()
    kept = np.ones(60, dtype=bool)
    kept[[20, 21, 40]] = False
    gappy = read_table(frame_of(stamps[kept])).series[0]
    assert gappy.frequency == step
    assert gappy.stamps.equals(whole.stamps)
    np.testing.assert_array_equal(gappy.values[kept], np.arange(60 - 3))
    assert np.isnan(gappy.values[~kept]).all()
    place, stray = positions(whole.stamps, np.array([0, 60]), step)
    np.testing.assert_array_equal(place, np.arange(60))
    assert not stray.any()
    np.testing.assert_array_equal(np.diff(step_numbers(whole.stamps, step)), 1)


@pytest.mark.parametrize(("day", "step"), [(15, "MS-15"), (30, "MS-30"), (15, "3MS-15"), (15, "12MS-15")])
@pytest.mark.parametrize("zone", [None, BERLIN])
def test_one_day_of_every_month_is_a_step(day: int, step: str, zone: str | None):
    n_months = int(step.partition("MS")[0] or 1)
    months = pd.period_range("2023-01", periods=60 * n_months, freq="M")[::n_months]
    days = np.minimum(day, months.days_in_month) - 1  # no 30th in February
    stamps = pd.DatetimeIndex(months.to_timestamp() + pd.to_timedelta(days, "D") + pd.Timedelta("9h"))
    stamps = stamps.tz_localize(zone)
    whole = read_table(frame_of(stamps)).series[0]
    assert whole.frequency == step
    kept = np.ones(60, dtype=bool)
    kept[[20, 21, 40]] = False
    gappy = read_table(frame_of(stamps[kept])).series[0]
    assert gappy.frequency == step
    assert gappy.stamps.equals(whole.stamps)
    np.testing.assert_array_equal(gappy.values[kept], np.arange(60 - 3))
    np.testing.assert_array_equal(np.diff(step_numbers(stamps, step)), 1)
    assert next_stamps(stamps[9], step, 5).tolist() == stamps[10:15].tolist()
    assert season_of(step) == (12 // n_months)
    moved = stamps[:30].append(stamps[30:31] + pd.Timedelta("1D")).append(stamps[31:])
    with pytest.raises(DataError, match="irregular"):
        read_table(frame_of(moved))


@settings(max_examples=15, deadline=None)
@given(
    step=st.sampled_from(["h", "30min", "D", "W-SUN", "MS", "B"]),
    lengths=st.lists(st.integers(12, 40), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_table_with_holes_comes_back_on_its_grid(step: str, lengths: list[int], seed: int):
    """What is there stays where it was, the rest is NaN, in whatever order the rows came."""
    rng = np.random.default_rng(seed)
    frames, grids = [], {}
    for i, length in enumerate(lengths):
        stamps = pd.date_range("2023-01-01", periods=length + i, freq=step)[i:]
        kept = rng.random(length) > 0.15
        kept[[0, 1, 2, 3, 4, 5, 6, 7, -1]] = True
        values = rng.normal(size=length)
        grids[f"s{i}"] = np.where(kept, values, np.nan)
        frames.append(pd.DataFrame({"unique_id": f"s{i}", "ds": stamps, "y": values})[kept])
    table = read_table(pd.concat(frames).sample(frac=1, random_state=seed))
    assert not table.left_out
    assert {one.unique_id for one in table.series} == set(grids)
    for one in table.series:
        assert one.frequency == step
        np.testing.assert_array_equal(one.values, grids[one.unique_id])
        assert one.stamps.is_unique
        assert one.stamps.is_monotonic_increasing


def test_an_hourly_series_with_a_zone_is_regular_over_a_change_of_the_clocks():
    for day in ("2024-03-31", "2024-10-27"):
        stamps = pd.date_range(day, periods=24, freq="h", tz=BERLIN)
        one = read_table(frame_of(stamps)).series[0]
        assert (one.frequency, len(one.values), str(one.stamps.tz)) == ("h", 24, BERLIN)  # type: ignore[attr-defined]
        assert next_stamps(one.stamps[-1], "h", 1)[0] == stamps[-1] + pd.Timedelta("1h")
        text = frame_of(stamps.map(str))  # offsets +01:00 and +02:00 become UTC
        assert (read_table(text).series[0].stamps == stamps).all()
        missing = read_table(frame_of(stamps.delete(2))).series[0]
        assert np.flatnonzero(np.isnan(missing.values)).tolist() == [2]
        assert (missing.stamps == stamps).all()


def test_a_daily_series_is_counted_on_the_calendar_of_its_zone():
    stamps = pd.date_range("2024-03-25", periods=14, freq="D", tz=BERLIN)
    one = read_table(frame_of(stamps.delete(5))).series[0]
    assert one.frequency == "D"
    assert one.stamps.equals(stamps)


def test_local_stamps_without_a_zone_are_recognised():
    autumn = pd.date_range("2024-10-26", periods=48, freq="h", tz=BERLIN).tz_localize(None)
    with pytest.raises(
        DataError, match=r"1 duplicate stamps.*02:00:00.*daylight saving time: write .*offset"
    ):
        read_table(frame_of(autumn))
    spring = pd.date_range("2024-03-30", periods=48, freq="h", tz=BERLIN).tz_localize(None)
    with pytest.raises(DataError, match=r"has a gap: 1 stamps .*daylight saving time"):
        read_table(frame_of(spring), missing="error")
    assert np.isnan(read_table(frame_of(spring)).series[0].values).sum() == 1
    plain = frame_of(pd.date_range("2024-10-22", periods=10, freq="h")).iloc[[0, 1, 1, 2, 3]]
    with pytest.raises(DataError, match=r"keep one row for each stamp$"):
        read_table(plain)
    daily = frame_of(pd.date_range("2024-10-20", periods=10, freq="D")).iloc[[0, 1, 2, 3, 4, 5, 6, 7, 7]]
    with pytest.raises(DataError, match=r"2024-10-27 00:00:00; keep one row for each stamp$"):
        read_table(daily)


def test_stamps_with_and_without_an_offset_do_not_mix():
    frame = frame_of(pd.date_range("2024-01-01", periods=10, freq="h", tz="UTC").map(str))
    frame.loc[4, "ds"] = "2024-01-01 04:00:00"
    with pytest.raises(DataError, match=r"row 5: '2024-01-01 04:00:00' in column 'ds'.*offset"):
        read_table(frame)


def test_weeks_may_begin_on_different_days():
    frames = [
        frame_of(pd.date_range("2024-01-01", periods=20, freq=step)).assign(unique_id=step)
        for step in ("W-SUN", "W-SUN", "W-MON")[1:]
    ]
    series = read_table(pd.concat(frames)).series
    assert [one.frequency for one in series] == ["W-SUN", "W-MON"]
