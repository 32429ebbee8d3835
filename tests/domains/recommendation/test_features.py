"""What stands beside the events: it follows its items and users, whatever their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError
from mambakit.domains.recommendation.cards import load_interactions
from mambakit.domains.recommendation.reading import Columns, read_interactions

EVENTS = pd.DataFrame(
    {"user": ["u2", "u1", "u2"], "item": ["b", "a", "c"], "timestamp": [1, 2, 3]}
)  # items in order of appearance: b, a, c
ITEMS = pd.DataFrame(
    {
        "item": ["a", "b", "c", "new"],
        "movie_title": ["Ants", "Bees", None, "Nets"],
        "price": [1.5, 2.5, np.nan, 4.0],
        "genres": ["war|love", "love", "", "war"],
        "brand": ["one", "two", "one", None],
        "blank": [None] * 4,
    }
)


def test_each_row_is_its_items():
    found = read_interactions(EVENTS, item_features=ITEMS)
    features = found.item_features
    assert features is not None
    assert found.items.tolist() == ["b", "a", "c"]
    assert list(features) == ["title", "price", "genres=love", "genres=war", "brand"]
    assert features["title"].tolist() == ["Bees", "Ants", None]
    assert features["price"].tolist()[:2] == [2.5, 1.5]
    assert np.isnan(features["price"][2])
    assert features[["genres=love", "genres=war"]].to_numpy().tolist() == [[1, 0], [1, 1], [0, 0]]
    assert features["brand"].tolist() == ["two", "one", "one"]


def test_items_without_an_event_join_when_asked_to():
    cold = read_interactions(EVENTS, item_features=ITEMS, cold_items=True)
    assert cold.items.tolist() == ["b", "a", "c", "new"]
    assert cold.item_features is not None
    assert cold.item_features["title"].tolist()[-1] == "Nets"
    assert read_interactions(EVENTS, item_features=ITEMS).n_items == 3
    # one that was left out for its few events is not cold
    often = pd.concat([EVENTS, EVENTS.iloc[:1].assign(timestamp=9)])
    found = read_interactions(often, item_features=ITEMS, cold_items=True, min_item_events=2)
    assert found.items.tolist() == ["b", "new"]


def test_lacking_and_repeated_rows():
    found = read_interactions(EVENTS, item_features=ITEMS.iloc[:1])
    assert found.item_features is not None
    assert found.item_features["title"].tolist() == [None, "Ants", None]
    assert found.item_features["price"].isna().tolist() == [True, False, True]
    assert found.item_features["genres=love"].tolist() == [0, 1, 0]
    assert "lacks 2 of 3 items: b, c" in found.report()
    with pytest.raises(DataError, match="'a' has more than one row"):
        read_interactions(EVENTS, item_features=pd.concat([ITEMS, ITEMS.iloc[:1]]))
    with pytest.raises(DataError, match=r"has none of the events' items; it has A, B"):
        read_interactions(EVENTS, item_features=ITEMS.assign(item=["A", "B", "C", "D"]))
    with pytest.raises(DataError, match="no column is called item, itemid or the like"):
        read_interactions(EVENTS, item_features=ITEMS.rename(columns={"item": "thing"}))


def test_numbers_as_names_meet(tmp_path: Path):
    frame = EVENTS.assign(item=[2, 1, 3])
    side = pd.DataFrame({"sku": [1.0, 2.0, 3.0, np.nan], "price": [10.0, 20.0, 30.0, 40.0]})
    side.to_csv(tmp_path / "side.csv", index=False)
    for source in (side, tmp_path / "side.csv"):
        found = read_interactions(
            frame.rename(columns={"item": "sku"}), columns=Columns(item="sku"), item_features=source
        )
        assert found.item_features is not None
        assert found.item_features["price"].tolist() == [20.0, 10.0, 30.0]


def test_a_recbole_folder_brings_its_features(tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n1\t10\t5\n1\t11\t4\n2\t10\t7\n"
    )
    (folder / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\tyear:token\tplace:float_seq\n"
        '10\t"Oh" said\tWar Love\t1999\t0.5 1.5\n11\tAnts\tLove\t02139\t2 3\n'
    )
    (folder / "tiny.user").write_text("user_id:token\tage:token\theight:float\n2\t30\t1.8\n1\t40\t1.6\n")
    found = load_interactions(folder)
    assert found.items[found.item].tolist() == ["11", "10", "10"]
    assert found.item_features is not None
    assert found.user_features is not None
    assert found.item_features.to_dict("list") == {
        "title": ['"Oh" said', "Ants"],
        "class=Love": [1, 1],
        "class=War": [1, 0],
        "year": ["1999", "02139"],
        "place_0": [0.5, 2.0],
        "place_1": [1.5, 3.0],
    }
    assert found.user_features.to_dict("list") == {"age": ["40", "30"], "height": [1.6, 1.8]}


def test_many_tags_are_cut_to_the_most_frequent():
    n = 2500
    events = pd.DataFrame({"user": 0, "item": range(n), "timestamp": range(n)})
    tags = pd.DataFrame({"item": range(n), "tags": [f"all|own{i}" for i in range(n)]})
    found = read_interactions(events, item_features=tags)
    assert found.item_features is not None
    assert found.item_features.shape == (n, 2000)
    assert found.item_features["tags=all"].sum() == n
