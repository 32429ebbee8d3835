"""The recommendation app, as a person calls it: train, evaluate, recommend, update, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.recommendation import main

Events = Callable[..., pd.DataFrame]
SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]
COUNTED = {"mambakit", "bigram", "item neighbours", "popularity"}


def test_a_run_leaves_a_report_and_a_model(shop_model: Path) -> None:
    report = (shop_model / "report.html").read_text("utf-8")
    for word in ("bigram", "popularity", "item neighbours", "validation NDCG@10", "unfiltered", "filtered"):
        assert word in report
    for name in ("config.json", "model.safetensors", "tokenizer.json", "split.json", "metrics.csv"):
        assert (shop_model / name).exists()


def test_the_card_says_what_was_measured(shop_model: Path, check_card: Callable[[Path], str]) -> None:
    assert "| ndcg@10 |" in check_card(shop_model)


def test_evaluates_beside_the_baselines(
    shop_model: Path, shop_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(shop_table), "--device", "cpu", "--json"]
    assert main(["evaluate", "--model", str(shop_model), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["scorer"], row["filter"]): row for row in found["results"]}
    assert rows["mambakit", "unfiltered"]["ndcg@10"] > rows["popularity", "unfiltered"]["ndcg@10"]
    assert {name for name, _ in rows} == COUNTED


def test_slices_go_to_json_csv_and_report(
    shop_model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--model", str(shop_model), "--data", str(shop_table), "--device", "cpu"]
    files = ["--output", str(tmp_path / "s.csv"), "--report", str(tmp_path / "r.html")]
    assert main([*given, "--slices", "activity,popularity", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "s.csv")
    groups = found["slices"]["groups"]
    assert table["ndcg@10"].tolist() == pytest.approx([row["ndcg@10"] for row in groups])
    whole = {(row["scorer"], row["filter"]): row["ndcg@10"] for row in found["results"]}
    for (_, scorer, column), own in table.groupby(["slice", "scorer", "filter"]):
        mean = (own["ndcg@10"] * own["cases"]).sum() / own["cases"].sum()
        assert mean == pytest.approx(whole[scorer, column])
    assert "By slice" in (tmp_path / "r.html").read_text("utf-8")
    assert "By slice" in (shop_model / "report.html").read_text("utf-8")
    assert main([*given, "--slices", "gender"]) == 2
    assert "no column 'gender' of users" in capsys.readouterr().err
    assert main([*given, *files]) == 2
    assert "name them" in capsys.readouterr().err


def test_recommends_to_users_never_seen(shop_model: Path, tmp_path: Path) -> None:
    given = pd.DataFrame(
        {"user": ["new", "new", "other"], "item": ["i3", "i4", "what"], "timestamp": [1e9, 2e9, 1e9]}
    )
    given.to_parquet(tmp_path / "given.parquet")
    words = ["recommend", "--model", str(shop_model), "--input", str(tmp_path / "given.parquet"), "--k", "4"]
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


def test_approximate_search_says_its_recall(
    shop_model: Path, shop_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    words = ["recommend", "--model", str(shop_model), "--input", str(shop_table), "--k", "3", "--json"]
    assert main(words) == 0
    exact = json.loads(capsys.readouterr().out)
    assert main([*words, "--search", "approximate", "--min-recall", "1.0"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (exact["search"], found["search"], found["recall"]) == ("exact", "approximate", 1.0)
    assert "approximate search: 100.0% of the exact top 3 found for 30 of the users" in printed.err
    assert len(found["recommendations"]) == len(exact["recommendations"])


def test_exports_once_into_a_new_folder(
    shop_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--model", str(shop_model), "--output", str(tmp_path / "served")]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["n_items"], said["start"]) == (15, {"item": 15, "gap": 0})
    assert {path.name for path in (tmp_path / "served").iterdir()} >= {
        "items.parquet",
        "step.pt2",
        "serving.json",
    }
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "new")]) == 1
    assert "no saved model at" in capsys.readouterr().err


def test_updates_say_what_the_whole_history_says(
    shop_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [("i3", 1_700_000_000), ("i4", 1_700_000_900), ("i9", 1_700_090_000)]
    for item, time in [*history, history[1]]:  # the second one comes again, late
        words = [
            "update",
            "--model",
            str(shop_model),
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
    words = [
        "recommend",
        "--model",
        str(shop_model),
        "--input",
        str(tmp_path / "ada.csv"),
        "--k",
        "5",
        "--json",
    ]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)["recommendations"]
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
        (["update", "--input", "more.csv"], 2, "--user, --item: these are of a single event"),
        (["update", "--time", "5", "--output", "top.csv"], 2, "--output: these are for --input"),
        (["update", "--time", "5", "--k", "0"], 2, "k: expected 1 to 15"),
        (["update", "--time", "soon"], 2, "time: expected seconds or an ISO date"),
    ],
)
def test_says_what_is_wrong(
    shop_model: Path,
    shop_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    given = ["--input", str(shop_table)] if words[0] == "recommend" else ["--user", "u", "--item", "i1"]
    store = ["--store", str(tmp_path / "s.db")] if words[0] == "update" else []
    assert main([words[0], "--model", str(shop_model), *given, *store, *words[1:]]) == status
    assert message in capsys.readouterr().err


def test_another_catalogue_and_a_damaged_store_are_refused(
    shop_events: Events, shop_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop_events(n_items=7).to_csv(tmp_path / "other.csv", index=False)
    assert main(["evaluate", "--model", str(shop_model), "--data", str(tmp_path / "other.csv")]) == 2
    assert "has another catalogue" in capsys.readouterr().err
    (tmp_path / "bad.db").write_bytes(b"this is no database" * 100)
    words = [
        "update",
        "--model",
        str(shop_model),
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


def test_updates_from_a_table_say_what_single_ones_and_whole_histories_say(
    shop_events: Events,
    shop_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = shop_events(n_users=6)
    given.to_csv(tmp_path / "new.csv", index=False)
    words = ["update", "--model", str(shop_model), "--store", str(tmp_path / "s.db"), "--k", "4"]
    first = given.iloc[0]
    single = ["--user", first["user"], "--item", first["item"], "--time", str(first["timestamp"])]
    assert main([*words, *single]) == 0
    more = ["--output", str(tmp_path / "top.parquet"), "--left-out", str(tmp_path / "left.csv"), "--json"]
    capsys.readouterr()
    with (tmp_path / "new.csv").open("a") as file:
        file.write("u1,what,1900000000\nu2,i1,soon\n")
    assert main([*words, "--input", str(tmp_path / "new.csv"), *more]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "rows": len(given) + 2,
        "applied": len(given) - 1,
        "repeated": 1,
        "left_out": {"unknown item": 1, "bad time": 1},
        "users": 6,
        "output": str(tmp_path / "top.parquet"),
    }
    assert "left out 1 rows: unknown item (the first: row" in said.err
    assert pd.read_csv(tmp_path / "left.csv")["reason"].to_list() == ["unknown item", "bad time"]
    found = pd.read_parquet(tmp_path / "top.parquet").sort_values(["user", "rank"], ignore_index=True)
    given.to_csv(tmp_path / "whole.csv", index=False)
    words = ["recommend", "--model", str(shop_model), "--input", str(tmp_path / "whole.csv"), "--k", "4"]
    assert main([*words, "--output", str(tmp_path / "whole.parquet"), "--device", "cpu"]) == 0
    whole = pd.read_parquet(tmp_path / "whole.parquet").sort_values(["user", "rank"], ignore_index=True)
    pd.testing.assert_frame_equal(found, whole, atol=1e-3, check_dtype=False)


def test_updates_from_standard_input_until_nothing_can_be_used(
    shop_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "update",
        "--model",
        str(shop_model),
        "--store",
        str(tmp_path / "s.db"),
        "--k",
        "2",
        "--input",
        "-",
    ]
    for rows, status in (("ada,i3,5\nada,i4,9\n", 0), ("ada,what,5\neve,i4,\n", 1)):
        raw = io.BytesIO(f"user,item,timestamp\n{rows}".encode())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw))
        assert main(words) == status
        said = capsys.readouterr()
        if status:
            assert "no row can be used: 1 unknown item, 1 no time" in said.err
        else:
            assert pd.read_csv(io.StringIO(said.out))["user"].to_list() == ["ada", "ada"]


def test_new_items_need_a_model_that_reads_features_and_split_json_is_checked(
    shop_model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text("item,kind\nfresh,x\n", "utf-8")
    words = ["recommend", "--model", str(shop_model), "--input", str(shop_table), "--k", "2"]
    assert main([*words, "--item-features", str(tmp_path / "new.csv")]) == 2
    assert "was trained without features of items" in capsys.readouterr().err
    copy = shutil.copytree(shop_model, tmp_path / "copy")
    (copy / "split.json").write_text("{", "utf-8")
    assert main(["evaluate", "--model", str(copy), "--data", str(shop_table)]) == 1
    assert "split.json is not valid JSON" in capsys.readouterr().err


def test_what_cannot_be_built_leaves_no_folder(
    shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(shop_table), "--output", str(tmp_path / "run"), "--model.d_model", "32"]
    assert main([*words, "--model.time", "dt", "--model.blocks", "[attention,mlp]"]) == 2
    assert "time: dt drives dt, which none of the blocks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "--baselines", "foo"]) == 2
    assert "--baselines: expected one of 'sasrec', 'gru4rec', got 'foo'" in capsys.readouterr().err
