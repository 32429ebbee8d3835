"""Tables as users write them, good and bad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.data.frames import read_frame
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.config import season_of
from mambakit.domains.timeseries.tables.table import (
    infer_frequency,
    next_stamps,
    read_table,
    series_of,
    step_numbers,
)


def hourly(n: int = 30, name: str = "a") -> pd.DataFrame:
    ds = pd.date_range("2024-01-01", periods=n, freq="h")
    return pd.DataFrame({"unique_id": name, "ds": ds, "y": np.arange(n, dtype=float)})


def test_long_and_wide_tables_hold_the_same_series():
    both = pd.concat([hourly(name="b"), hourly(name="a").assign(y=lambda f: -f.y)])
    wide = both.pivot(index="ds", columns="unique_id", values="y")[["b", "a"]].reset_index()
    wide = wide.rename(columns={"ds": "Date"})
    for one, other in zip(series_of(both), series_of(wide), strict=True):
        assert one.unique_id == other.unique_id
        assert one.frequency == other.frequency == "h"
        np.testing.assert_array_equal(one.values, other.values)


def test_rows_come_in_any_order():
    shuffled = series_of(hourly().sample(frac=1, random_state=0))[0]
    np.testing.assert_array_equal(shuffled.values, np.arange(30))
    assert shuffled.stamps.is_monotonic_increasing


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_reads_files(tmp_path: Path, suffix: str):
    path = tmp_path / f"t{suffix}"
    hourly().to_parquet(path) if suffix == ".parquet" else hourly().to_csv(path, index=False)
    np.testing.assert_array_equal(read_table(path).series[0].values, np.arange(30))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_reads_a_file_as_it_stands(tmp_path: Path, suffix: str):
    path, frame = tmp_path / f"t{suffix}", hourly().assign(kind="x")
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    found = read_frame(path)
    assert list(found) == list(frame)
    assert found.kind.tolist() == ["x"] * 30
    assert (found.ds == frame.ds).all()


def test_integer_stamps_are_steps():
    series = series_of(pd.DataFrame({"ds": range(0, 60, 2), "y": 1.0}))[0]
    assert (series.unique_id, series.frequency) == ("y", "2")
    assert list(next_stamps(series.stamps[-1], "2", 2)) == [60, 62]


def broken(name: str) -> pd.DataFrame:
    frame = hourly()
    if name == "missing column":
        return frame.drop(columns="y")
    if name == "no time column":
        return frame.drop(columns=["ds", "unique_id", "y"]).assign(p=1.0, q=2.0)
    if name == "date":
        frame["ds"] = frame["ds"].astype(str)
        frame.loc[3, "ds"] = "2024-13-45"
    if name == "duplicate":
        frame.loc[5, "ds"] = frame.loc[4, "ds"]
    if name == "gap":
        frame = frame.drop(index=[7, 8])
    if name == "irregular":
        frame.loc[7, "ds"] += pd.Timedelta("7min")
    if name == "nan":
        frame.loc[[9, 11], "y"] = np.nan
    if name == "string":
        frame["y"] = frame["y"].astype(object)
        frame.loc[2, "y"] = "many"
    if name == "infinity":
        frame.loc[2, "y"] = np.inf
    if name == "empty":
        frame = frame.iloc[:0]
    if name == "one row":
        frame = frame.iloc[:1]
    if name == "two frequencies":
        daily = hourly(name="b").assign(ds=pd.date_range("2024-01-01", periods=30, freq="D"))
        frame = pd.concat([frame, daily])
    return frame


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing column", "column 'y' is missing"),
        ("no time column", "expected the columns unique_id, ds, y"),
        ("date", "row 4: '2024-13-45' in column 'ds' is not a date"),
        ("duplicate", "series 'a' has 1 duplicate stamps, the first is 2024-01-01 04:00:00"),
        ("gap", "series 'a' has a gap: 2 stamps .* the first is 2024-01-01 07:00:00.*--missing interpolate"),
        ("irregular", "series 'a' is irregular: 2024-01-01 07:07:00"),
        ("nan", "series 'a' has 2 missing values .* first at 2024-01-01 09:00:00.*--missing interpolate"),
        ("string", "row 3: 'many' in column 'y' is not a number"),
        ("infinity", "row 3: infinity"),
        ("empty", "has no rows"),
        ("one row", "series 'a' has 1 row"),
        ("two frequencies", "'a' has the step 'h', but 'b' has 'D'"),
    ],
)
def test_says_what_is_wrong(name: str, said: str):
    with pytest.raises(DataError, match=said):
        series_of(broken(name))


@pytest.mark.parametrize("name", ["gap", "nan"])
def test_interpolates_on_a_straight_line(name: str):
    np.testing.assert_allclose(series_of(broken(name), missing="interpolate")[0].values, np.arange(30))


def test_bad_files(tmp_path: Path):
    (tmp_path / "t.xlsx").write_text("x")
    (tmp_path / "e.csv").write_text("")
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(DataError, match=r"expected a \.csv or \.parquet file, got '\.xlsx'"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="is empty"):
        read_table(tmp_path / "e.csv")
    with pytest.raises(DataError, match="can't be read as parquet"):
        read_table(tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="expected 'mask', 'error' or 'interpolate'"):
        series_of(hourly(), missing="zero")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        ("h", 24),
        ("15min", 96),
        ("10min", 144),
        ("D", 7),
        ("MS", 12),
        ("W-SUN", 52),
        ("2h", 12),
        ("7h", 1),
        ("3", 1),
    ],
)
def test_seasons_and_phases(frequency: str, season: int):
    assert season_of(frequency) == season
    if frequency.isdigit():
        return
    stamps = pd.date_range("2023-02-05", periods=40, freq=frequency)
    assert infer_frequency(stamps) == frequency
    steps = step_numbers(stamps, frequency)
    np.testing.assert_array_equal(np.diff(steps), 1)  # wherever a table begins, a stamp has one number
    np.testing.assert_array_equal(step_numbers(stamps[10:], frequency), steps[10:])
    assert next_stamps(stamps[8], frequency, 3).equals(stamps[9:12])


@pytest.mark.slow
def test_ten_million_rows_in_ten_thousand_series(tmp_path: Path):
    """In a process of its own, so that its peak of memory is known."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    n_series, n_rows = 10_000, 1_000
    ids = pa.DictionaryArray.from_arrays(
        np.repeat(np.arange(n_series, dtype=np.int32), n_rows), [f"s{i}" for i in range(n_series)]
    )
    ds = np.tile(np.datetime64("2024-01-01", "s") + np.arange(n_rows) * np.timedelta64(3600, "s"), n_series)
    table = pa.table({"unique_id": ids, "ds": ds, "y": np.arange(n_series * n_rows, dtype=np.float64)})
    pq.write_table(table, tmp_path / "big.parquet")
    script = (
        "import resource, sys, time\n"
        "from mambakit.domains.timeseries.tables.table import read_table\n"
        "before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()\n"
        "series = read_table(sys.argv[1]).series\n"
        "assert len(series) == 10_000 and series[7].values[3] == 7003, len(series)\n"
        "print(time.perf_counter() - begin)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "big.parquet")]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < 60
    assert gibibytes < 1.25  # a quarter of it is what the series hold
