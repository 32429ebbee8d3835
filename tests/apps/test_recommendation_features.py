"""Features of users and items in every verb of the recommendation app, and items that came after training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.recommendation import main

Events = Callable[..., pd.DataFrame]
SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]


def test_features_of_users_are_read_live_too(
    shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"user": [f"u{i}" for i in range(60)], "plan": ["free", "paid"] * 30}).to_csv(
        tmp_path / "users.csv", index=False
    )
    known = ["--user-features", str(tmp_path / "users.csv")]
    words = ["train", "--data", str(shop_table), "--output", str(tmp_path / "run"), "--device", "cpu", *SMALL]
    assert main([*words, *known, "--train.max_epochs", "2", "--train.lr", "1e-2"]) == 0
    scores = {}
    event = pd.DataFrame({"user": ["u0"], "item": ["i3"], "timestamp": [1_700_000_000]})
    event.to_csv(tmp_path / "event.csv", index=False)
    event.assign(plan="free").to_csv(tmp_path / "told.csv", index=False)
    single = ["--user", "u0", "--item", "i3", "--time", "1700000000"]
    for name, given in {
        "single": [*single, *known],
        "file": ["--input", str(tmp_path / "event.csv"), *known],
        "column": ["--input", str(tmp_path / "told.csv")],
        "nothing": single,
    }.items():
        capsys.readouterr()
        store = ["--store", str(tmp_path / f"{name}.db"), "--k", "14"]
        output = ["--output", str(tmp_path / "top.csv")] if "--input" in given else ["--json"]
        assert main(["update", "--model", str(tmp_path / "run"), *store, *given, *output]) == 0
        said = capsys.readouterr()
        top = (
            pd.read_csv(tmp_path / "top.csv")
            if "--input" in given
            else pd.DataFrame(json.loads(said.out)["items"])
        )
        scores[name] = top.set_index("item")["score"].sort_index().to_numpy()
        assert ("new ones begin without any" in said.err) == (name == "nothing")
    words = ["recommend", "--model", str(tmp_path / "run"), "--input", str(tmp_path / "event.csv"), *known]
    assert main([*words, "--k", "14", "--json", "--device", "cpu"]) == 0
    whole = (
        pd.DataFrame(json.loads(capsys.readouterr().out)["recommendations"])
        .set_index("item")["score"]
        .sort_index()
    )
    for name in ("single", "file", "column"):
        np.testing.assert_allclose(scores[name], whole, atol=1e-3, err_msg=name)
    assert np.abs(scores["nothing"] - whole).max() > 1e-3


def test_new_items_are_recommended_by_their_features(
    shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = pd.DataFrame({"item": [f"i{i}" for i in range(15)], "kind": [f"k{i % 3}" for i in range(15)]})
    kinds.to_csv(tmp_path / "items.csv", index=False)
    run, new = str(tmp_path / "run"), tmp_path / "new.csv"
    words = [
        "train",
        "--data",
        str(shop_table),
        "--item-features",
        str(tmp_path / "items.csv"),
        "--output",
        run,
    ]
    assert main([*words, "--device", "cpu", *SMALL, "--train.max_epochs", "1"]) == 0
    new.write_text("item,kind\nfresh,k1\nodd,of none\n", "utf-8")
    (tmp_path / "allow.txt").write_text("fresh\n", "utf-8")
    given = tmp_path / "given.csv"
    given.write_text("user,item,timestamp\nada,i3,100\nada,odd,200\nbob,i1,100\nbob,fresh,200\n", "utf-8")
    capsys.readouterr()
    words = ["recommend", "--model", run, "--input", str(given), "--item-features", str(new), "--k", "1"]
    assert main([*words, "--allow", str(tmp_path / "allow.txt"), "--json"]) == 0
    said = capsys.readouterr()
    assert [(row["user"], row["item"]) for row in json.loads(said.out)["recommendations"]] == [
        ("ada", "fresh")
    ]
    assert "1 items are new to the model" in said.err
    assert "1 items have no feature that the model was trained with, and are left out: odd" in said.err
    assert "1 events with items outside the catalogue are left out" in said.err
    words = [
        "update",
        "--model",
        run,
        "--store",
        str(tmp_path / "s.db"),
        "--user",
        "eve",
        "--k",
        "15",
        "--json",
    ]
    words += ["--time", "100", "--item", "fresh"]
    assert main([*words, "--item-features", str(new)]) == 0
    shown = [row["item"] for row in json.loads(capsys.readouterr().out)["items"]]
    assert len(shown) == 15
    assert "fresh" not in shown  # had, and so left out
    words = ["export", "--model", run, "--output", str(tmp_path / "served"), "--item-features", str(new)]
    assert main(words) == 0
    assert pd.read_parquet(tmp_path / "served" / "items.parquet")["item"].iloc[-1] == "fresh"


def test_grown_and_shuffled_data_are_measured_as_the_model_knows_them(
    shop_events: Events, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = pd.DataFrame({"item": [f"i{i}" for i in range(15)], "kind": [f"k{i % 3}" for i in range(15)]})
    items.to_csv(tmp_path / "items.csv", index=False)
    users = pd.DataFrame({"user": [f"u{i}" for i in range(60)], "plan": ["free", "paid"] * 30})
    users.to_csv(tmp_path / "users.csv", index=False)
    run = str(tmp_path / "run")
    about_items, about_users = (
        [f"--{kind}-features", str(tmp_path / f"{kind}s.csv")] for kind in ("item", "user")
    )
    words = ["train", "--data", str(shop_table), "--split", "time", "--output", run, *SMALL, *about_items]
    assert main([*words, *about_users, "--device", "cpu", "--train.max_epochs", "1", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)

    def evaluated(data: pd.DataFrame, *more: str) -> tuple[dict, str]:
        data.to_csv(tmp_path / "given.csv", index=False)
        given = ["evaluate", "--model", run, "--data", str(tmp_path / "given.csv"), "--device", "cpu"]
        assert main([*given, *more, "--json"]) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    # each user's own rows stay in order: two are at the same time
    shuffled = shop_events().sort_values("user", kind="stable", ascending=False)
    for more in ((), tuple(about_items)):
        found, said = evaluated(shuffled, *more, *about_users)
        assert "new items" not in said
        assert "note: the model was trained" not in said
        for own, theirs in zip(found["results"], trained["results"], strict=True):
            assert own["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-6), own["scorer"]

    _, said = evaluated(shuffled)
    missing = "trained with features of users, and none are given (--user-features)"
    assert missing in said
    for words in (["recommend", "--k", "2"], ["explain", "--user", "u3", "--k", "1"]):
        for more, is_said in (([], True), (about_users, False)):
            assert main([*words, "--model", run, "--input", str(shop_table), *more]) == 0
            assert (missing in capsys.readouterr().err) == is_said
    test_at = json.loads((tmp_path / "run" / "split.json").read_text("utf-8"))["test_at"]
    later = pd.DataFrame(
        [(f"u{u}", "fresh", 1_700_000_000 - 9 + i) for u in range(60) for i in range(8)]
        + [(f"u{u}", "fresh", 1_800_000_000 + u) for u in range(60)],
        columns=["user", "item", "timestamp"],
    )
    pd.concat([items, pd.DataFrame({"item": ["fresh"], "kind": ["k1"]})]).to_csv(
        tmp_path / "items.csv", index=False
    )
    grown = pd.concat([shop_events(), later], ignore_index=True)
    found, said = evaluated(grown, *about_items, *about_users)
    assert "1 items that came after training" in said
    assert "note: the model was trained" not in said  # what it learned from is as it was
    assert found["cases"] == (grown["timestamp"] >= test_at).sum() == trained["cases"] + 60
    groups = {(row["scorer"], row["group"]): row for row in found["groups"] if row["filter"] == "unfiltered"}
    assert groups["mambakit", "cold"]["cases"] == 60
    assert groups["popularity", "cold"]["hr@10"] == 0  # in 480 events, but in none that was learned from
    more_of_old = pd.concat([grown, later.assign(item="i1")[:9]], ignore_index=True)
    _, said = evaluated(more_of_old, *about_items, *about_users)
    assert "note: the model was trained on" in said
