"""Labelled series in: the ``.ts`` text of the archives, and long tables with a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.data import load_data
from mambakit.domains.timeseries.tables.labelled import (
    labelled_of,
    load_labelled,
    read_labelled,
    read_ts,
    require_labels,
)

HEAD = """# a comment
@problemName tiny
@timeStamps false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data
"""
LINES = "1,2,3:0.5,?,-1e3:up\n4,5:6:down\n"
LONG = pd.DataFrame(
    {
        "unique_id": ["b", "a", "a", "b"],
        "ds": ["2024-01-02", "2024-01-02", "2024-01-01", "2024-01-01"],
        "heat": [4.0, 2.0, 1.0, np.nan],
        "flow": [8, 6, 5, 7],
        "label": ["x", "y", "y", "x"],
    }
)


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.ts"
    path.write_text(text)
    return path


def test_reads_ragged_channels_and_missing_values(tmp_path: Path) -> None:
    data = read_ts(write(tmp_path, HEAD + LINES))
    assert data.classes == ("up", "down")
    assert [one.label for one in data.series] == ["up", "down"]
    np.testing.assert_array_equal(data.series[0].values, [[1, 0.5], [2, np.nan], [3, -1000]])
    np.testing.assert_array_equal(data.series[1].values, [[4, 6], [5, np.nan]])
    assert require_labels(data, ["down", "up"]).tolist() == [1, 0]


def test_without_labels_all_parts_are_channels(tmp_path: Path) -> None:
    text = HEAD.replace("true up down", "false") + "1,2:3,4\n"
    data = read_ts(write(tmp_path, text))
    assert data.series[0].label is None
    np.testing.assert_array_equal(data.series[0].values, [[1, 3], [2, 4]])
    with pytest.raises(DataError, match="series '0' has no label"):
        require_labels(data)


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(allow_nan=True, allow_infinity=False, width=64), min_size=1, max_size=5),
            st.sampled_from(["up", "down"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory, cases: list) -> None:
    head = HEAD.replace("@dimensions 2", "@dimensions 1")
    text = "".join(
        ",".join("?" if np.isnan(value) else repr(value) for value in values) + f":{label}\n"
        for values, label in cases
    )
    data = read_ts(write(tmp_path_factory.mktemp("ts"), head + text))
    assert [one.label for one in data.series] == [label for _, label in cases]
    for one, (values, _) in zip(data.series, cases, strict=True):
        np.testing.assert_array_equal(one.values[:, 0], values)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("@data\n", "", "no line '@data'"),
        (LINES, "", "no series behind @data"),
        ("4,5:6:down", "4,5:down", "line 10: it has 1 channels instead of 2"),
        ("4,5:6:down", "4,5:6:left", "line 10: 'left' is no class of the header, up, down"),
        ("0.5,?,", "0.5,much,", "line 9, channel 2: value 2 is 'much' and no number; write [?] for"),
        ("4,5:6", "4,inf:6", "line 10, channel 1: value 2 is infinite"),
        ("@timeStamps false", "@timeStamps true", "line 3: series with time stamps are not read"),
        ("true up down", "true", "line 7: expected 'true' and then each class once"),
        ("@dimensions 2", "@dimensions two", "line 5: expected a number of channels, got 'two'"),
        ("@equalLength false", "equalLength", "line 6: expected a header"),
        ("@equalLength false", "@targetLabel true", "line 6: its targets are numbers"),
    ],
)
def test_bad_text_is_named_by_its_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    text = HEAD + LINES
    assert old in text
    with pytest.raises(DataError, match=reason):
        read_ts(write(tmp_path, text.replace(old, new)))


def test_long_table_is_sorted_and_keeps_missing_values(tmp_path: Path) -> None:
    LONG.to_csv(tmp_path / "long.csv", index=False)
    LONG.to_parquet(tmp_path / "long.parquet")
    for data in (labelled_of(LONG), *(read_labelled(tmp_path / f"long.{end}") for end in ("csv", "parquet"))):
        assert data.channels == ("heat", "flow")
        assert data.classes == ("x", "y")
        assert [(one.unique_id, one.label) for one in data.series] == [("b", "x"), ("a", "y")]
        np.testing.assert_array_equal(data.series[0].values, [[np.nan, 7], [4, 8]])
        np.testing.assert_array_equal(data.series[1].values, [[1, 5], [2, 6]])


@pytest.mark.parametrize(
    ("column", "row", "value", "reason"),
    [
        ("heat", 2, "warm", "row 3: 'warm' in 'heat' is no finite number"),
        ("flow", 1, np.inf, "row 2: 'inf' in 'flow' is no finite number"),
        ("ds", 3, "soon", "row 4: 'soon' in column 'ds' is no date or number"),
        ("ds", 3, "2024-01-02", "row 4: series 'b' has a row for 2024-01-02 already"),
        ("label", 3, "y", "series 'b' has two labels, 'x' and in row 4 'y'"),
        ("unique_id", 0, None, "row 1 has no unique_id"),
    ],
)
def test_bad_table_is_named_by_its_row(column: str, row: int, value: object, reason: str) -> None:
    frame = LONG.astype({column: object})
    frame.loc[row, column] = value
    with pytest.raises(DataError, match=reason):
        labelled_of(frame)


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the columns unique_id, ds, one or more of values"):
        labelled_of(LONG.drop(columns="ds"))
    with pytest.raises(DataError, match="no such file"):
        load_labelled(str(tmp_path / "none.ts"))
    with pytest.raises(DataError, match=r"expected a .ts, .csv or .parquet file"):
        load_labelled(str(write(tmp_path, HEAD).rename(tmp_path / "tiny.arff")))
    with pytest.raises(UsageError, match="ETTh1 has no labelled series"):
        load_labelled("ETTh1", "train")
    with pytest.raises(UsageError, match="JapaneseVowels holds labelled series"):
        load_data("JapaneseVowels")
    with pytest.raises(UsageError, match="JapaneseVowels has train and test, got 'validation'"):
        load_labelled("JapaneseVowels", "validation")
