"""Tables as a user breaks them: a bad series is named and left out, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError
from mambakit.domains.timeseries.tables.table import Columns, next_stamps, read_table

HOURS = pd.date_range("2024-01-01", periods=30, freq="h")


def three() -> pd.DataFrame:
    """Three good hourly series, a, b and c."""
    return pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": HOURS, "y": np.arange(30.0) + i, "x": 1.0})
            for i, name in enumerate("abc")
        ],
        ignore_index=True,
    )


def put(column: str, value: object, row: int = 33) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Writes into a row of series b."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame

    return change


def only_b(rows: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame[(frame.unique_id != "b") | (frame.index < 30 + rows)]


BAD = {
    "text in y": (put("y", "many"), "row 34: 'many' in column 'y' is not a number"),
    "decimal comma": (put("y", "3,5"), "row 34: '3,5' in column 'y' is not a number"),
    "infinity in y": (put("y", np.inf), "row 34: infinity in column 'y'"),
    "infinity in x": (put("x", -np.inf), "row 34: infinity in covariate 'x'"),
    "no date": (put("ds", "2024-13-45"), "row 34: '2024-13-45' in column 'ds' is not a date"),
    "empty date": (put("ds", None), "row 34: column 'ds' has no date"),
    "duplicate": (
        put("ds", HOURS[4]),
        "series 'b' has 1 duplicate stamps, the first is 2024-01-01 04:00:00; keep",
    ),
    "stray": (
        put("ds", HOURS[3] + pd.Timedelta("7min")),
        "'b' is irregular: 2024-01-01 03:07:00 .*--irregular",
    ),
    "far away": (put("ds", pd.Timestamp("2204-01-01")), "30 rows on 15.* look for a wrong stamp"),
    "all missing": (
        lambda f: f.assign(y=f.y.where(f.unique_id != "b")),
        "'b' has no value: column 'y' is empty",
    ),
    "daily": (
        lambda f: f.assign(ds=f.ds.where(f.unique_id != "b", HOURS[0] + (f.ds - HOURS[0]) * 24)),
        "'b' has the step 'D', but most series have 'h'; put it into a table of its own",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_file", [False, True], ids=["frame", "csv"])
def test_a_bad_series_is_left_out_and_the_rest_goes_on(name: str, as_file: bool, tmp_path: Path):
    change, said = BAD[name]
    frame = change(three())
    source: pd.DataFrame | Path = frame
    if as_file:
        source = tmp_path / "t.csv"
        frame.to_csv(source, index=False)
    columns = Columns(past=("x",))
    table = read_table(source, columns=columns)
    assert [one.unique_id for one in table.series] == ["a", "c"]
    np.testing.assert_array_equal(table.series[1].values, np.arange(30.0) + 2)
    assert [(one.unique_id, one.n_rows) for one in table.left_out] == [("b", 30)]
    assert pd.Series([table.left_out[0].reason]).str.contains(said).all(), table.left_out[0].reason
    assert "left out 1 of 3 series (30 rows): b; the first because " in table.report()
    table.write_left_out(tmp_path / "out" / "left.csv")
    assert pd.read_csv(tmp_path / "out" / "left.csv").unique_id.tolist() == ["b"]
    if name == "daily":
        return
    with pytest.raises(DataError, match=said.replace("row 34", "row 4")):  # alone it is an error at once
        read_table(frame[frame.unique_id == "b"], columns=columns)


def test_when_nothing_is_left_the_first_reason_is_said():
    frame = three().assign(y="many")
    with pytest.raises(DataError, match=r"row 1: 'many' .* \(and 2 more can't be used\)"):
        read_table(frame)


@pytest.mark.parametrize("rows", [1, 2])
def test_series_of_few_rows_take_the_step_of_the_others(rows: int):
    series = read_table(only_b(rows)(three())).series
    assert [len(one.values) for one in series] == [30, rows, 30]
    assert series[1].frequency == "h"
    two = three().drop(index=range(32, 60)).drop(index=31)
    two.loc[31] = ["b", HOURS[6], 6.0, 1.0]  # two rows six hours apart are hourly with a gap
    b = read_table(two.sort_index()).series[1]
    assert (b.frequency, len(b.values), np.isnan(b.values).sum()) == ("h", 7, 5)


def test_a_constant_series_is_kept():
    assert len(read_table(three().assign(y=5.0)).series) == 3


def test_no_majority_of_steps_is_an_error():
    frame = three()[lambda f: f.unique_id != "c"]
    frame.loc[frame.unique_id == "b", "ds"] = pd.date_range("2024-01-01", periods=30, freq="MS")
    with pytest.raises(DataError, match="'a' has the step 'h', but 'b' has 'MS', and no step"):
        read_table(frame)


def test_rows_without_a_name_are_left_out(tmp_path: Path):
    frame = three()
    frame.loc[[5, 40], "unique_id"] = None
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    for source in (frame, path):
        table = read_table(source)
        assert table.left_out[0].reason == "2 rows have no unique_id"
        assert [np.isnan(one.values).sum() for one in table.series] == [1, 1, 0]


@pytest.mark.parametrize(
    "ids", [[1, 2, 3], [1.0, 2.0, 3.0], ["001", "NA", "null"]], ids=["int", "float", "text"]
)
def test_identifiers_of_any_kind(ids: list[object], tmp_path: Path):
    frame = three().assign(unique_id=np.repeat(np.array(ids, dtype=object), 30)).infer_objects()
    names = [str(int(one)) if isinstance(one, float) else str(one) for one in ids]
    assert [one.unique_id for one in read_table(frame).series] == names
    frame.to_parquet(tmp_path / "t.parquet")
    assert [one.unique_id for one in read_table(tmp_path / "t.parquet").series] == names
    if not isinstance(ids[0], float):
        frame.to_csv(tmp_path / "t.csv", index=False)
        assert [one.unique_id for one in read_table(tmp_path / "t.csv").series] == names


def test_names_with_blanks_marks_and_capitals_and_windows_line_ends(tmp_path: Path):
    path = tmp_path / "t.csv"
    body = "".join(f"a,{stamp},{i}\r\n" for i, stamp in enumerate(HOURS))
    path.write_bytes(("\ufeffUnique_ID, DS, Y\r\n" + body).encode())
    series = read_table(path).series
    assert (series[0].unique_id, series[0].frequency) == ("a", "h")
    np.testing.assert_array_equal(series[0].values, np.arange(30))
    path.write_text("ds;y\n" + "".join(f"{stamp};{i}\n" for i, stamp in enumerate(HOURS)))
    assert len(read_table(path).series[0].values) == 30


def test_columns_that_come_twice_or_not_at_all(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("ds,y,y\n2024-01-01,1,2\n")
    with pytest.raises(DataError, match="column 'y' comes twice"):
        read_table(path)
    with pytest.raises(DataError, match="covariate 'price' is missing; did you mean 'Price_1'"):
        read_table(three().rename(columns={"x": "Price_1"}), columns=Columns(past=("price",)))
    with pytest.raises(DataError, match=r"column 'target' is missing; .*found: unique_id, ds, y, x"):
        read_table(three(), columns=Columns(target="target"))


def test_numbers_that_turn_up_late_in_a_file(tmp_path: Path):
    """The first block of a file need not tell what a column holds."""
    n = 200_000
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"ds": np.arange(n), "y": 1.0, "x": 7}).astype(object)
    frame.loc[n - 1, "x"] = "2.5"
    frame["pad"] = "some text that fills the first block, " * 4
    frame.to_csv(path, index=False)
    one = read_table(path, columns=Columns(past=("x",))).series[0]
    assert one.past is not None
    assert one.past.x.iloc[[0, -1]].tolist() == [7.0, 2.5]


def test_ragged_lines_are_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("ds,y\n2024-01-01,1\n2024-01-02,1,2\n")
    with pytest.raises(DataError, match=r"t\.csv: can't be read as csv .*Expected 2 columns, got 3"):
        read_table(path)


def test_five_thousand_columns(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(12, 5000)).round(3)
    frame = pd.DataFrame(values, columns=[f"s{i}" for i in range(5000)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=12, freq="D"))
    frame["s7"] = frame["s7"].astype(object)
    frame.loc[3, "s7"] = "broken"
    frame["s8"] = np.nan
    path = tmp_path / "wide.csv"
    frame.to_csv(path, index=False)
    table = read_table(path)
    assert len(table.series) == 4998
    assert [one.unique_id for one in table.left_out] == ["s7", "s8"]
    assert "row 4: 'broken' in column 's7' is not a number" in table.left_out[0].reason
    np.testing.assert_array_equal(table.series[-1].values, values[:, -1])
    assert table.series[0].stamps is table.series[-1].stamps


def test_wide_tables_keep_gaps_and_refuse_bad_stamps():
    frame = pd.DataFrame({"date": HOURS, "p": np.arange(30.0), "q": 1.0})
    p, _ = read_table(frame.drop(index=[3, 4])).series
    assert np.flatnonzero(np.isnan(p.values)).tolist() == [3, 4]
    assert len(p.stamps) == 30
    with pytest.raises(DataError, match="the table has 1 duplicate stamps"):
        read_table(pd.concat([frame, frame.iloc[:1]]))
    table = read_table(
        frame.drop(index=[3]).assign(q=lambda f: f.q.where(f.index > 2)), missing="interpolate"
    )
    np.testing.assert_array_equal(table.series[0].values, np.arange(30))
    np.testing.assert_array_equal(table.series[1].values, 1.0)


def test_masking_inserts_rows_and_leaves_the_users_frame_alone():
    frame = three().drop(index=[33, 34])
    frame.loc[40, "y"] = np.nan
    before = frame.copy()
    masked = read_table(frame, columns=Columns(past=("x",))).series[1]
    assert np.flatnonzero(np.isnan(masked.values)).tolist() == [3, 4, 10]
    assert masked.past is not None
    assert np.flatnonzero(masked.past.x.isna()).tolist() == [3, 4]
    filled = read_table(frame, columns=Columns(past=("x",)), missing="interpolate").series[1]
    np.testing.assert_allclose(filled.values, np.arange(30.0) + 1)
    assert filled.past is not None
    assert filled.past.x.notna().all()
    table = read_table(frame, missing="error")
    assert "series 'b' has a gap: 2 stamps of its step 'h' are missing" in table.left_out[0].reason
    pd.testing.assert_frame_equal(frame, before)


def test_irregular_stamps_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    ds = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.cumsum(rng.integers(1, 10_000, 50)), unit="s")
    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0}).sample(frac=1, random_state=0)
    one = read_table(frame, irregular=True).series[0]
    assert one.frequency == ""
    assert list(one.stamps) == list(ds)
    fractions = pd.DataFrame({"ds": [0.5, 1.25, 7.0], "y": [1.0, 2.0, 3.0]})
    assert read_table(fractions, irregular=True).series[0].stamps.tolist() == [0.5, 1.25, 7.0]
    with pytest.raises(DataError, match=r"no whole numbers.*--irregular"):
        read_table(fractions)


def test_numbers_that_look_like_dates():
    ds = pd.date_range("2024-01-20", periods=30, freq="D").strftime("%Y%m%d").astype(int)
    with pytest.raises(DataError, match="write dates as 2024-01-31, not as 20240131"):
        read_table(pd.DataFrame({"ds": ds[::3], "y": 1.0}))


def test_dates_that_nanoseconds_cannot_hold(tmp_path: Path):
    ds = pd.date_range("2300-01-01", periods=20, freq="h", unit="s")
    frame = pd.DataFrame({"ds": ds, "y": 1.0})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, frame.assign(ds=ds.astype(str)), tmp_path / "t.csv"):
        one = read_table(source).series[0]
        assert (one.frequency, str(one.stamps[-1])) == ("h", "2300-01-01 19:00:00")
        assert str(next_stamps(one.stamps[-1], "h", 1)[0]) == "2300-01-01 20:00:00"
