"""The recommendation app, as a person calls it: train, evaluate, recommend, update, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.recommendation import main

SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]


def events(n_users: int = 60, n_items: int = 15) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for u in range(n_users):
        x, now = int(rng.integers(n_items)), 1_700_000_000
        for _ in range(int(rng.integers(4, 15))):
            x = (x + 1) % n_items if rng.random() < 0.8 else int(rng.integers(n_items))
            now += int(rng.integers(0, 5000))
            rows.append((f"u{u}", f"i{x}", now))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "events.csv"
    events().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "shop"
    words = ["train", "--data", str(table), "--output", str(folder), "--device", "cpu", *SMALL]
    assert main([*words, "--train.max_epochs", "5", "--train.lr", "1e-2", "--train.ema_decay", "0.8"]) == 0
    return folder


def test_a_run_leaves_a_report_and_a_model(model: Path) -> None:
    report = (model / "report.html").read_text("utf-8")
    for word in ("bigram", "popularity", "item neighbours", "validation NDCG@10", "unfiltered", "filtered"):
        assert word in report
    for name in ("config.json", "model.safetensors", "tokenizer.json", "split.json", "metrics.csv"):
        assert (model / name).exists()


def test_evaluates_beside_the_baselines(model: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(model), "--data", str(table), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["scorer"], row["filter"]): row for row in found["results"]}
    assert rows["mambakit", "unfiltered"]["ndcg@10"] > rows["popularity", "unfiltered"]["ndcg@10"]
    assert {name for name, _ in rows} == {"mambakit", "bigram", "item neighbours", "popularity"}


def test_recommends_to_users_never_seen(model: Path, tmp_path: Path) -> None:
    given = pd.DataFrame(
        {"user": ["new", "new", "other"], "item": ["i3", "i4", "what"], "timestamp": [1e9, 2e9, 1e9]}
    )
    given.to_parquet(tmp_path / "given.parquet")
    words = ["recommend", "--model", str(model), "--input", str(tmp_path / "given.parquet"), "--k", "4"]
    assert main([*words, "--output", str(tmp_path / "top.parquet"), "--device", "cpu"]) == 0
    top = pd.read_parquet(tmp_path / "top.parquet")
    assert top.groupby("user").size().to_dict() == {"new": 4, "other": 4}
    assert not set(top[top["user"] == "new"]["item"]) & {"i3", "i4"}
    (tmp_path / "allow.txt").write_text("i1\ni2\n", "utf-8")
    assert (
        main([*words[:-1], "2", "--allow", str(tmp_path / "allow.txt"), "--output", str(tmp_path / "a.csv")])
        == 0
    )
    assert set(pd.read_csv(tmp_path / "a.csv")["item"]) == {"i1", "i2"}


def test_updates_say_what_the_whole_history_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [("i3", 1_700_000_000), ("i4", 1_700_000_900), ("i9", 1_700_090_000)]
    for item, time in [*history, history[1]]:  # the second one comes again, late
        words = [
            "update",
            "--model",
            str(model),
            "--store",
            str(tmp_path / "state.db"),
            "--user",
            "ada",
            "--json",
        ]
        assert main([*words, "--item", item, "--time", str(time), "--k", "5"]) == 0
    said = json.loads(capsys.readouterr().out.split("\n}\n")[-2] + "\n}")
    assert said["events"] == 3
    assert said["applied"] is False
    pd.DataFrame([("ada", *one) for one in history], columns=["user", "item", "timestamp"]).to_csv(
        tmp_path / "ada.csv", index=False
    )
    words = ["recommend", "--model", str(model), "--input", str(tmp_path / "ada.csv"), "--k", "5", "--json"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [row["item"] for row in whole] == [row["item"] for row in said["items"]]
    np.testing.assert_allclose([r["score"] for r in whole], [r["score"] for r in said["items"]], atol=1e-3)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["recommend", "--k", "99"], 2, "k: expected 1 to 15"),
        (["recommend", "--users", "nobody"], 2, "users: 'nobody'"),
        (["recommend", "--min-popularity", "9999"], 2, "the catalogue is empty"),
        (["recommend", "--output", "top.xlsx"], 2, "output: expected a name that ends in .csv or .parquet"),
        (["update"], 2, "without --time, --event must tell"),
        (["update", "--k", "0"], 2, "k: expected 1 to 15"),
        (["update", "--time", "soon"], 2, "time: expected seconds or an ISO date"),
    ],
)
def test_says_what_is_wrong(
    model: Path,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    given = ["--input", str(table)] if words[0] == "recommend" else ["--user", "u", "--item", "i1"]
    store = ["--store", str(tmp_path / "s.db")] if words[0] == "update" else []
    assert main([words[0], "--model", str(model), *given, *store, *words[1:]]) == status
    assert message in capsys.readouterr().err


def test_another_catalogue_and_a_damaged_store_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events(n_items=7).to_csv(tmp_path / "other.csv", index=False)
    assert main(["evaluate", "--model", str(model), "--data", str(tmp_path / "other.csv")]) == 2
    assert "has another catalogue" in capsys.readouterr().err
    (tmp_path / "bad.db").write_bytes(b"this is no database" * 100)
    words = [
        "update",
        "--model",
        str(model),
        "--store",
        str(tmp_path / "bad.db"),
        "--user",
        "u",
        "--item",
        "i1",
        "--time",
        "5",
    ]
    assert main(words) == 1
    assert "bad.db" in capsys.readouterr().err


def test_users_with_too_few_events_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1e9, 1e9]}).to_csv(
        tmp_path / "few.csv", index=False
    )
    words = ["train", "--data", str(tmp_path / "few.csv"), "--output", str(tmp_path / "run"), *SMALL]
    assert main(words) == 1
    assert "needs a user with three events" in capsys.readouterr().err


def test_new_items_need_a_model_that_reads_features_and_split_json_is_checked(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text("item,kind\nfresh,x\n", "utf-8")
    words = ["recommend", "--model", str(model), "--input", str(table), "--k", "2"]
    assert main([*words, "--item-features", str(tmp_path / "new.csv")]) == 2
    assert "was trained without features of items" in capsys.readouterr().err
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "split.json").write_text("{", "utf-8")
    assert main(["evaluate", "--model", str(copy), "--data", str(table)]) == 1
    assert "split.json is not valid JSON" in capsys.readouterr().err


def test_new_items_are_recommended_by_their_features(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = pd.DataFrame({"item": [f"i{i}" for i in range(15)], "kind": [f"k{i % 3}" for i in range(15)]})
    kinds.to_csv(tmp_path / "items.csv", index=False)
    run, new = str(tmp_path / "run"), tmp_path / "new.csv"
    words = ["train", "--data", str(table), "--item-features", str(tmp_path / "items.csv"), "--output", run]
    assert main([*words, "--device", "cpu", *SMALL, "--train.max_epochs", "1"]) == 0
    new.write_text("item,kind\nfresh,k1\nodd,of none\n", "utf-8")
    (tmp_path / "allow.txt").write_text("fresh\n", "utf-8")
    given = tmp_path / "given.csv"
    given.write_text("user,item,timestamp\nada,i3,100\nada,odd,200\nbob,i1,100\nbob,fresh,200\n", "utf-8")
    capsys.readouterr()
    words = ["recommend", "--model", run, "--input", str(given), "--item-features", str(new), "--k", "1"]
    assert main([*words, "--allow", str(tmp_path / "allow.txt"), "--json"]) == 0
    said = capsys.readouterr()
    assert [(row["user"], row["item"]) for row in json.loads(said.out)] == [("ada", "fresh")]
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
