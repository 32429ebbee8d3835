"""Interaction tables as users have them: found, put in order, and what can't be used is named."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.reading import Columns, read_interactions

ROWS = [("ann", "x", 30), ("bob", "y", 20), ("ann", "y", 10), ("ann", "z", 30), ("bob", "x", 25)]
ORDER = {"ann": ["y", "x", "z"], "bob": ["y", "x"]}  # x before z: they share a time, x stands first


def table(rows: list[tuple] | None = None, names: str = "user item timestamp") -> pd.DataFrame:
    return pd.DataFrame(ROWS if rows is None else rows, columns=names.split())


def histories(found: Interactions) -> dict[str, list[str]]:
    return {
        str(user): found.items[found.item[start:stop]].tolist()
        for user, start, stop in zip(found.users, found.offsets[:-1], found.offsets[1:], strict=True)
    }


@pytest.mark.parametrize(
    "names",
    [
        "user item timestamp",
        "user_id item_id ts",
        "userId movieId timestamp",
        "UserID ProductId Time",
        "reviewerID asin unixReviewTime",
        "user_id:token item_id:token timestamp:float",
        "session_id item_id date",
    ],
)
def test_columns_are_found_by_their_usual_names(names: str):
    found = read_interactions(table(names=names))
    assert histories(found) == ORDER
    assert found.time.tolist() == [10, 30, 30, 20, 25]


def test_files_of_every_kind_say_the_same(tmp_path: Path):
    frame = table().assign(rating=3)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    typed = dict(
        zip(frame, ["user_id:token", "item_id:token", "timestamp:float", "rating:float"], strict=True)
    )
    frame.rename(columns=typed).to_csv(tmp_path / "a.inter", sep="\t", index=False)
    for path in sorted(tmp_path.iterdir()):
        found = read_interactions(path)
        assert histories(found) == ORDER
        assert f"{path}: columns that are not read: rating" in found.report()


def test_columns_of_other_names_are_named():
    odd = table(names="who what when")
    assert histories(read_interactions(odd, columns=Columns("who", "What", "when"))) == ORDER
    with pytest.raises(DataError, match=r"no column is called user, userid or .*found: who, what, when"):
        read_interactions(odd)
    with pytest.raises(DataError, match=r"column 'whe' is missing; did you mean 'when'\?"):
        read_interactions(odd, columns=Columns("who", "what", "whe"))
    with pytest.raises(DataError, match=r"must be different columns"):
        read_interactions(odd, columns=Columns("who", "who", "when"))
    with pytest.raises(DataError, match=r"the user could be 'user_id' or 'userId'"):
        read_interactions(table(names="user_id item timestamp").assign(userId=1))


def test_without_times_rows_are_in_order():
    found = read_interactions(table()[["user", "item"]])
    assert histories(found) == {"ann": ["x", "y", "z"], "bob": ["y", "x"]}
    assert np.isnan(found.time).all()
    assert "no column of times" in found.report()
    twice = pd.concat([table(), table()])[["user", "item"]]
    assert len(read_interactions(twice)) == 2 * len(ROWS)  # a repeat is an event where time can't tell


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40))
def test_order_is_that_of_time_and_then_of_the_table(rows: list[tuple[int, int, int]]):
    found = read_interactions(table(rows))
    once = list(dict.fromkeys(rows))
    expected: dict[str, list[str]] = {}
    for user, item, _ in sorted(once, key=lambda row: row[2]):  # Python's sort is stable
        expected.setdefault(str(user), []).append(str(item))
    assert histories(found) == expected
    assert sum(one.n_rows for one in found.left_out) == len(rows) - len(once)
    assert (np.diff(found.user) >= 0).all()
    kept = read_interactions(table(rows), keep_duplicates=True)
    assert (len(kept), kept.left_out) == (len(rows), ())


@pytest.mark.parametrize(
    "times",
    [
        [1.7e9, 1.7e9 + 0.5, 1.7e9 + 86400],
        [1_700_000_000_000, 1_700_000_000_500, 1_700_086_400_000],
        [1_700_000_000_000_000, 1_700_000_000_500_000, 1_700_086_400_000_000],
        ["1700000000", "1700000000.5", "1700086400"],
        ["2023-11-14T22:13:20Z", "2023-11-14 22:13:20.5", "2023-11-16T00:13:20+02:00"],
        pd.to_datetime([1_700_000_000_000, 1_700_000_000_500, 1_700_086_400_000], unit="ms"),
        pd.to_datetime([1_700_000_000_000, 1_700_000_000_500, 1_700_086_400_000], unit="ms", utc=True),
    ],
    ids=["s", "ms", "us", "text", "iso", "dates", "zoned"],
)
def test_times_are_seconds_whatever_they_came_as(times: list):
    frame = pd.DataFrame({"user": "a", "item": list("xyz"), "time": times})
    assert read_interactions(frame).time.tolist() == [1.7e9, 1.7e9 + 0.5, 1.7e9 + 86400]


def test_small_numbers_are_seconds_unless_a_unit_says_otherwise():
    frame = table([("a", "x", 1000), ("a", "y", 3000)])
    assert read_interactions(frame).time.tolist() == [1000, 3000]
    assert read_interactions(frame, time_unit="ms").time.tolist() == [1, 3]
    with pytest.raises(UsageError, match=r"time_unit: expected one of s, ms, us, ns, got 'h'"):
        read_interactions(frame, time_unit="h")  # type: ignore[arg-type]


def test_numbers_too_large_for_any_unit_are_no_times():
    frame = table([("a", "x", 1.7e9), ("a", "y", 1e300), ("a", "z", 1.8e9)])
    found = read_interactions(frame)
    assert histories(found) == {"a": ["x", "z"]}
    assert found.time.tolist() == [1.7e9, 1.8e9]


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([1.7e9, 1.7e12, 1.7e9], r"mixes units of time: 1 of 3 numbers look like milli.*17.* in row 2"),
        ([1.7e15, 1.7e12, 1.7e12], r"1 of 3 numbers look like micro.* row 1\), the others like milliseconds"),
        (["2024-01-01", "1700000000", "1"], r"mixes dates \('2024-01-01' in row 1\) and numbers \(17.* 2\)"),
        (["soon", "later", "03/04/2024"], r"holds no time: 'soon' in row 1 is neither a number nor an ISO"),
        ([True, False, True], r"true and false"),
    ],
)  # fmt: skip
def test_times_that_cannot_be_read_together(times: list, sentence: str):
    with pytest.raises(DataError, match=sentence):
        read_interactions(pd.DataFrame({"user": "a", "item": list("xyz"), "time": times}))


def test_bad_rows_are_left_out_and_named(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,timestamp\n"
        "a,x,2024-01-01\n"
        ",x,2024-01-02\n"
        "a,,2024-01-02\n"
        "nan,x,2024-01-02\n"
        "a,y,someday\n"
        "a,z,\n"
        "a,x,2024-01-01\n"
        "a,x,2024-01-03\n"
        "b,x,\n"
        "b,y,\n"
    )
    found = read_interactions(path)
    assert histories(found) == {"a": ["x", "x"], "b": ["x", "y"]}
    assert [(one.n_rows, one.reason) for one in found.left_out] == [
        (2, "they have no user (the first: row 2)"),
        (1, "they have no item (the first: row 3)"),
        (1, "their time is neither a finite number nor an ISO date (the first: row 5)"),
        (1, "they have no time, and so no place among their user's other events (the first: row 6)"),
        (
            1,
            "they repeat an event of the same user, item and time (the first: user 'a', item 'x', row 7)",
        ),
    ]
    assert len(found) + sum(one.n_rows for one in found.left_out) == 10
    assert "note: left out 2 rows: they have no user (the first: row 2)" in found.report()
    assert "1 of 2 users have no times" in found.report()


def test_infinite_times_are_none():
    found = read_interactions(table([("a", "x", 1.0), ("a", "y", np.inf)]))
    assert (len(found), found.left_out[0].n_rows) == (1, 1)
    assert "1 of 1 users have a single event" in found.report()


def test_nothing_to_read(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_interactions(tmp_path / "no.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv is empty"):
        read_interactions(tmp_path / "empty.csv")
    (tmp_path / "head.csv").write_text("user,item,timestamp\n")
    with pytest.raises(DataError, match=r"head\.csv has no rows"):
        read_interactions(tmp_path / "head.csv")
    with pytest.raises(DataError, match=r"no event can be used: 5 rows because they have no user"):
        read_interactions(table().assign(user=np.nan))


def test_names_may_be_numbers():
    found = read_interactions(table([(7, 1.0, 1), (7, np.nan, 2), (8, 12.0, 3)]))
    assert (found.users.tolist(), found.items.tolist()) == (["7", "8"], ["1", "12"])
    text = read_interactions(table([("07", "1.0", 1), ("7", "2.0", 2)]))
    assert (text.users.tolist(), text.items.tolist()) == (["07", "7"], ["1", "2"])
    mixed = read_interactions(table([("a", "1.0", 1), ("a", "v1.0", 2)]))
    assert mixed.items.tolist() == ["1.0", "v1.0"]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["iterated", "once"]),
)
def test_minimum_counts(pairs: list[tuple[int, int]], items: int, users: int, filtering: str):
    rows = [(user, item, time) for time, (user, item) in enumerate(pairs)]
    expected = rows
    while True:
        n_user = collections.Counter(user for user, _, _ in expected)
        n_item = collections.Counter(item for _, item, _ in expected)
        left = [row for row in expected if n_user[row[0]] >= users and n_item[row[1]] >= items]
        done = filtering == "once" or len(left) == len(expected)
        expected = left
        if done:
            break
    options = {"min_item_events": items, "min_user_events": users, "filtering": filtering}
    if not expected:
        with pytest.raises(DataError, match=r"the catalogue is empty: none of .* after min_item_ev"):
            read_interactions(table(rows), **options)  # type: ignore[arg-type]
        return
    found = read_interactions(table(rows), **options)  # type: ignore[arg-type]
    assert len(found) + sum(one.n_rows for one in found.left_out) == len(rows)
    by_user: dict[str, list[str]] = {}
    for user, item, _ in expected:
        by_user.setdefault(str(user), []).append(str(item))
    assert histories(found) == by_user
    assert set(found.items) == {str(item) for _, item, _ in expected}


def test_options_that_cannot_be():
    with pytest.raises(UsageError, match="min_item_events: expected 0 or more, got -1"):
        read_interactions(table(), min_item_events=-1)
    with pytest.raises(UsageError, match="filtering: expected 'iterated' or 'once', got 'twice'"):
        read_interactions(table(), filtering="twice")  # type: ignore[arg-type]
