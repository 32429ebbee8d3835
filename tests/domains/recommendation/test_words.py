"""Features of items as words of a vocabulary."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.domains.recommendation.tokenizer import Words


def test_words_of_features() -> None:
    table = pd.DataFrame(
        {
            "title": ["A red lamp", "red Lamp", None],
            "maker": ["x", "x", "y"],
            "genre=new": np.array([1, 0, 1], dtype=np.int8),
            "price": [1.0, np.nan, 9.0],
        }
    )
    words = Words().fit(table)
    assert {"title:red", "title:lamp", "maker=x", "genre=new"} <= set(words.index)
    assert "title:a" not in words.index  # in one row alone, so that no other item is known by it
    encoded = words.encode(table, 3)
    assert set(encoded[1][encoded[1] > 0]) == {words.index[w] for w in ("title:red", "title:lamp", "maker=x")}
    new = table.assign(title="lamp?", maker="z")
    assert words.index["title:lamp"] in words.encode(new, 3)[0]


FEATURES = pd.DataFrame(
    {
        "title": pd.Series(["the old lamp", None, "Old, old boots", "lamp", ""], dtype=object),
        "maker": pd.Series(["x", "y", None, "x", "y"], dtype=object),
        "genre=new": np.array([1, 0, 1, 1, 0], dtype=np.int8),
        "price": [1.0, np.nan, 9.0, 4.0, 4.0],
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 40))
def test_words_of_a_row_follow_the_columns(rows: list[int], n_more: int) -> None:
    more = {f"more={i}": np.ones(5, dtype=np.int8) for i in range(n_more)}
    table = FEATURES.assign(**more).iloc[rows]
    words = Words().fit(FEATURES.assign(**more))
    names = {place: word for word, place in words.index.items()}
    for row, encoded in zip(rows, words.encode(table, len(rows)), strict=True):
        spelled = [f"title:{w}" for w in re.findall(r"\w+", (FEATURES["title"][row] or "").lower())]
        spelled += [f"maker={FEATURES['maker'][row]}"] + ["genre=new"] * int(FEATURES["genre=new"][row])
        known = [word for word in spelled if word in words.index]
        found = [names[place] for place in encoded.tolist() if place]
        assert found[: len(known)] == known
        rest = found[len(known) :]
        assert all(word.startswith(("price=", "more=")) for word in rest)
        assert len(found) == min(32, len(known) + sum(w.startswith("price=") for w in rest) + n_more)
