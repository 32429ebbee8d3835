"""The data sets of the cards: read as their pages promise; and what else ``load_interactions`` takes."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.data import fetch, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.cards import load_interactions, read_card, recommendation_cards
from mambakit.domains.recommendation.data import leave_one_out, tied, time_split
from mambakit.domains.recommendation.interactions import Interactions

real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")


@pytest.fixture(scope="module")
def ml_1m() -> Interactions:
    return load_interactions("ML-1M")


@real
def test_ml_1m_is_the_published_file_with_the_names_and_times_of_movielens(ml_1m: Interactions):
    found = ml_1m
    assert (found.n_users, found.n_items, len(found)) == (6040, 3416, 999611)
    path = fetch(load_card("ml-1m"))["ml-1m.txt"]
    pairs = pd.read_csv(path, sep=" ", header=None).to_numpy()
    order = np.lexsort((np.arange(len(pairs)), pairs[:, 0]))
    codes = {name: code for code, name in enumerate(dict.fromkeys(pairs[:, 1].tolist()))}
    # in the file's own order: sorting by time changes nothing
    assert np.array_equal(found.user, pairs[order, 0] - 1)
    ours = pd.factorize(found.item)[0]
    assert np.array_equal(ours, pd.factorize(np.array([codes[i] for i in pairs[order, 1].tolist()]))[0])
    timed = np.isfinite(found.time)
    users = np.unique(found.user[timed])
    assert set(found.users[users]) == {str(user) for user in range(1, 3000)}
    assert not timed[np.isin(found.user, users, invert=True)].any()
    split = leave_one_out(found)
    assert (len(split.test), int(tied(found, split.test).sum())) == (6040, 1268)
    items, people = found.item_features, found.user_features
    assert items is not None
    assert people is not None
    heat = items[items["title"] == "Heat"].iloc[0]
    assert (heat["year"], heat["genres=Crime"], heat["genres=Comedy"]) == (1995, 1, 0)
    assert items["title"].str.contains("é").sum() > 5  # latin-1
    assert people["gender"].isin(["F", "M"]).all()
    with pytest.raises(DataError, match=r"3,041 of 6,040 users have no times"):
        time_split(found)


@real
def test_ml_1m_times_are_those_of_the_ratings(ml_1m: Interactions):
    found = ml_1m
    user = found.users.tolist().index("1")
    start, stop = found.offsets[user : user + 2]
    item = found.items[found.item[start:stop]].tolist()
    times = dict(zip(item, found.time[start:stop].tolist(), strict=True))
    assert (times["1193"], times["661"], times["914"]) == (978300760, 978302109, 978301968)


@real
def test_ml_100k_counts_with_and_without_rare_items():
    found = load_interactions("ml-100k")
    assert (found.n_users, found.n_items, len(found)) == (943, 1682, 100000)
    common = load_interactions("ml-100k", min_item_events=5)
    assert (common.n_users, common.n_items, len(common)) == (943, 1349, 99287)
    assert found.item_features is not None
    assert found.user_features is not None
    assert found.items[found.item_features["year"].isna()].tolist() == ["267", "1412"]
    first = found.users.tolist().index("1")
    assert found.user_features.iloc[first].tolist() == ["24", "M", "technician", "85711"]
    toy = found.item_features.iloc[found.items.tolist().index("1")]
    assert (toy["title"], toy["year"], toy["class=Comedy"], toy["class=War"]) == ("Toy Story", 1995, 1, 0)
    assert common.report().count("left out 713 rows") == 1


@real
def test_ml_latest_small_and_a_split_in_time():
    found = load_interactions("ml-latest-small")
    assert (found.n_users, found.n_items, len(found)) == (610, 9724, 100836)
    assert load_interactions("ml-latest-small", cold_items=True).n_items == 9742
    assert found.item_features is not None
    assert found.item_features["year"].isna().sum() == 13
    split = time_split(found)
    assert (len(split.validation), len(split.test)) == (10084, 10084)
    assert found.time[split.validation].max() < found.time[split.test].min()
    assert int((split.train_end == found.offsets[:-1]).sum()) == 88  # users without history


@real
def test_amazon_beauty_is_the_file_of_s3_rec():
    found = load_interactions("amazon-beauty")
    assert (found.n_users, found.n_items, len(found), found.clock) == (22363, 12101, 198502, "own")
    start, stop = found.offsets[:2]
    assert found.items[found.item[start:stop]].tolist() == ["1", "2", "3", "4", "5"]
    assert found.time[start:stop].tolist() == [0, 0, 9244800, 72144000, 72144000]
    split = leave_one_out(found)
    assert int(tied(found, split.test).sum()) == 9719
    assert np.bincount(found.item).min() == 5
    assert np.diff(found.offsets).min() == 5
    features = found.item_features
    assert features is not None
    assert features.shape == (12101, 637)
    four = features.iloc[found.items.tolist().index("4")]
    assert four[four == 1].index.tolist() == ["attribute=1", "attribute=2", "attribute=3"]
    with pytest.raises(DataError, match="leave one out instead"):
        time_split(found)


@real
def test_a_card_that_promises_something_else():
    card = load_card("ml-latest-small")
    other = dataclasses.replace(card, counts={**card.counts, "users": 611})
    with pytest.raises(DataError, match="its card promises 611 users, its files hold 610"):
        read_card(other)


@real
def test_folders_as_grouplens_serves_them(tmp_path: Path, ml_1m: Interactions):
    mirror = Path(os.environ["MAMBAKIT_DATA_MIRROR"]) / "recommendation"
    with gzip.open(mirror / "ml-1m/ratings_users1-2999.dat.gz", "rt") as stream:
        (tmp_path / "ratings.dat").write_text("".join(itertools.islice(stream, 5000)))
    for name in ("movies", "users"):
        with gzip.open(mirror / f"ml-1m/{name}.dat.gz") as packed:
            (tmp_path / f"{name}.dat").write_bytes(packed.read())
    found, ours = load_interactions(tmp_path), ml_1m
    user, same = found.users.tolist().index("1"), ours.users.tolist().index("1")
    history = found.items[found.item[found.offsets[user] : found.offsets[user + 1]]].tolist()
    published = ours.items[ours.item[ours.offsets[same] : ours.offsets[same + 1]]].tolist()
    assert [one for one in history if one in set(published)] == published
    assert found.item_features is not None
    assert found.item_features["year"].notna().all()
    csv = tmp_path / "csv"
    csv.mkdir()
    for name in ("ratings", "movies"):
        shutil.copy(mirror / f"ml-latest-small/{name}.csv.gz", csv)
    small, card = load_interactions(csv), load_interactions("ml-latest-small")
    assert np.array_equal(small.item, card.item)
    assert small.item_features is not None
    assert card.item_features is not None
    pd.testing.assert_frame_equal(small.item_features, card.item_features)


def test_names_and_paths_that_are_neither(tmp_path: Path):
    assert "simulated-shop" in recommendation_cards()
    with pytest.raises(UsageError, match=r"no data card called 'ml-1n'; did you mean ml-1m"):
        load_interactions("ml-1n")
    with pytest.raises(UsageError, match="ETTh1 is a data set of timeseries, not of recommendation"):
        load_interactions("etth1")
    with pytest.raises(DataError, match=r"no such file or folder: clicks\.csv"):
        load_interactions("clicks.csv")
    with pytest.raises(UsageError, match="simulated-shop has a card, which says its columns"):
        load_interactions("simulated-shop", time_unit="ms")
    with pytest.raises(DataError, match=r"expected one table .* found nothing"):
        load_interactions(tmp_path)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("user,item\n1,2\n")
    with pytest.raises(DataError, match=r"found a\.csv, b\.csv; name the file itself"):
        load_interactions(tmp_path)
    (tmp_path / "b.csv").unlink()
    assert len(load_interactions(tmp_path)) == 1
