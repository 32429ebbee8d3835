"""Covariates of the past, known ahead and static; future and static tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.tables.table import Columns, read_table

HOURS = pd.date_range("2024-01-01", periods=24, freq="h")
COLUMNS = Columns(past=("seen", "kind"), future=("load", "holiday"), static=("region", "size"))


def table_of(names: str = "ab") -> pd.DataFrame:
    t = np.arange(24)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": HOURS,
                    "y": t + 10.0 * i,
                    "seen": t * 0.5,
                    "kind": np.where(t % 2 == 0, "even", "odd"),
                    "load": t + 100,
                    "holiday": t >= 20,
                    "region": "north" if i == 0 else "south",
                    "size": 3 + i,
                }
            )
            for i, name in enumerate(names)
        ],
        ignore_index=True,
    )


def ahead_of(names: str = "ab", n: int = 6, after: int = 0) -> pd.DataFrame:
    ds = pd.date_range(HOURS[-1] + pd.Timedelta(hours=1 + after), periods=n, freq="h")
    return pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": ds, "load": np.arange(n) + 900.0, "holiday": False})
            for name in names
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_each_series_has_its_rows_of_each_kind(kind: str, tmp_path: Path):
    frame = table_of().sample(frac=1, random_state=0)
    source: pd.DataFrame | Path = frame
    if kind != "frame":
        source = tmp_path / f"t.{kind}"
        frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    a, b = sorted(read_table(source, columns=COLUMNS).series, key=lambda one: one.unique_id)
    assert a.past is not None
    assert a.future is not None
    np.testing.assert_array_equal(a.past["seen"], np.arange(24) * 0.5)
    assert a.past["kind"].astype(str).tolist() == ["even", "odd"] * 12
    np.testing.assert_array_equal(a.future["load"], np.arange(24) + 100)
    assert a.future["holiday"].astype(str).tolist() == ["False"] * 20 + ["True"] * 4
    assert (a.static, b.static) == ({"region": "north", "size": 3.0}, {"region": "south", "size": 4.0})
    assert len(a.future) == len(a.values) == 24
    np.testing.assert_array_equal(b.values, np.arange(24) + 10)


def test_trailing_rows_without_a_target_are_steps_known_ahead():
    frame = pd.concat([table_of(), ahead_of("a")]).drop(columns=["region", "size"])
    columns = Columns(past=("seen",), future=("load",))
    a, b = read_table(frame, columns=columns).series
    assert (len(a.values), len(a.past), len(a.future)) == (24, 24, 30)  # type: ignore[arg-type]
    np.testing.assert_array_equal(a.future["load"].iloc[24:], np.arange(6) + 900)  # type: ignore[index]
    assert a.stamps[-1] == HOURS[-1]
    assert len(b.future) == 24  # type: ignore[arg-type]
    without = read_table(frame, columns=Columns(past=("seen",))).series[0]
    assert np.isnan(without.values[24:]).all()  # no future columns: the targets are missing
    assert len(without.values) == 30
    blank = frame.assign(load=frame.load.where(frame.ds <= HOURS[-1]))
    assert len(read_table(blank, columns=columns).series[0].values) == 30  # nothing is known ahead


def test_a_future_table_follows_the_targets(tmp_path: Path):
    columns = Columns(future=("load", "holiday"))
    path, future = tmp_path / "t.csv", tmp_path / "f.csv"
    table_of().to_csv(path, index=False)
    ahead_of().to_csv(future, index=False)
    for source, more in ((table_of(), ahead_of()), (path, future)):
        table = read_table(source, columns=columns, future_table=more)
        for one in table.series:
            assert one.future is not None
            assert (len(one.values), len(one.future)) == (24, 30)
            np.testing.assert_array_equal(one.future["load"], [*(np.arange(24) + 100), *(np.arange(6) + 900)])
        assert all("columns that are not read" in note for note in table.notes)


def test_what_is_wrong_with_a_future_table_is_one_sentence():
    columns = Columns(future=("load", "holiday"))
    more = pd.concat([ahead_of("a", 6, after=-2).drop(index=4), ahead_of("x")])
    table = read_table(table_of(), columns=columns, future_table=more)
    (said,) = [note for note in table.notes if note.startswith("the future table")]
    assert "rows of 1 unknown series are ignored (x)" in said
    assert "2 rows are late" in said
    assert "the first: 'a', 2024-01-01 22:00:00" in said
    assert "1 steps ahead have no row and count as missing (the first: 'a', 2024-01-02 02:00:00)" in said
    assert "1 series have no row ahead (b)" in said
    a = table.series[0].future
    assert a is not None
    assert a["load"].iloc[23] == 123.0  # what came late changes nothing
    np.testing.assert_array_equal(a["load"].iloc[24:], [902, 903, np.nan, 905])
    with pytest.raises(DataError, match="1 steps ahead have no row"):
        read_table(table_of(), columns=columns, future_table=more, missing="error")
    with pytest.raises(DataError, match=r"column 'load' is missing; .*found: unique_id, ds, holiday"):
        read_table(table_of(), columns=columns, future_table=ahead_of().drop(columns="load"))
    with pytest.raises(UsageError, match="future_table: name its covariates"):
        read_table(table_of(), future_table=more)


def test_an_irregular_series_says_when_its_covariates_ahead_are():
    frame = pd.DataFrame({"ds": [0, 3, 4, 9, 17], "y": [1.0, 2.0, 3.0, None, None], "load": [5.0] * 5})
    one = read_table(frame, columns=Columns(future=("load",)), irregular=True).series[0]
    assert one.future is not None
    assert (one.stamps.tolist(), one.future.index.tolist()) == ([0, 3, 4], [0, 3, 4, 9, 17])


def test_a_static_table_has_a_row_a_series():
    static = pd.DataFrame(
        {"unique_id": ["b", "a", "z"], "region": ["south", None, "east"], "size": [4, 3, 9]}
    )
    table = read_table(table_of("abc"), static_table=static)
    assert [dict(one.static) for one in table.series] == [
        {"region": None, "size": 3.0},
        {"region": "south", "size": 4.0},
        {"region": None, "size": pytest.approx(np.nan, nan_ok=True)},
    ]
    assert "the static table lacks 1 series: c" in table.notes
    some = read_table(table_of(), static_table=static, columns=Columns(static=("size",)))
    assert dict(some.series[1].static) == {"size": 4.0}
    with pytest.raises(DataError, match="series 'b' has more than one row"):
        read_table(table_of(), static_table=pd.concat([static, static.iloc[:1]]))
    with pytest.raises(DataError, match="none of the table's series; it has z"):
        read_table(table_of(), static_table=static.iloc[2:])


def test_a_static_column_that_changes_is_named():
    frame = table_of()
    frame.loc[30, "region"] = "west"
    table = read_table(frame, columns=COLUMNS)
    assert [one.unique_id for one in table.series] == ["a"]
    assert "has south and then west (row 31) in column 'region'" in table.left_out[0].reason


def test_missing_covariates_stay_missing_and_empty_ones_are_refused():
    frame = table_of().astype({"load": float})
    frame.loc[3, ["seen", "kind", "load"]] = np.nan
    frame.loc[24:, "load"] = np.nan
    a, b = read_table(frame, columns=COLUMNS).series
    assert a.past is not None
    assert a.past.iloc[3].isna().all()
    assert b.future is not None
    assert b.future["load"].isna().all()  # one series may lack it
    with pytest.raises(DataError, match="covariate 'load' has no value in any row"):
        read_table(frame.assign(load=np.nan), columns=COLUMNS)


def test_columns_have_one_part():
    with pytest.raises(UsageError, match="'x' is named twice"):
        Columns(past=("x",), future=("x",))
    with pytest.raises(UsageError, match="past: expected a list of column names, got 'x'"):
        Columns(past="x")  # type: ignore[arg-type]


def test_a_table_of_one_series_with_covariates_needs_no_name():
    frame = table_of("a").rename(columns={"y": "Price", "ds": "Date"}).drop(columns="unique_id")
    table = read_table(frame, columns=Columns(target="price", future=("Load",)))
    (one,) = table.series
    assert (one.unique_id, one.frequency, len(one.values)) == ("Price", "h", 24)
    assert "columns that are not read: seen, kind, holiday" in table.report()
