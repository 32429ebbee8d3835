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
import torch

from mambakit.apps.recommendation import main
from mambakit.core.adaptation import load_adapter
from mambakit.core.continual import Memory
from mambakit.domains.recommendation.cards import load_interactions
from mambakit.domains.recommendation.counting import training_events
from mambakit.domains.recommendation.data import leave_one_out
from mambakit.domains.recommendation.model import Recommender

Events = Callable[..., pd.DataFrame]
SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]

BUDGET = ["--train.max_epochs", "5", "--train.lr", "1e-2", "--train.ema_decay", "0.8"]
COUNTED = {"mambakit", "bigram", "item neighbours", "popularity"}


@pytest.fixture(scope="module")
def model(shop_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "shop"
    words = ["train", "--data", str(shop_table), "--output", str(folder), "--device", "cpu", *SMALL]
    assert main([*words, *BUDGET]) == 0
    return folder


def test_a_run_leaves_a_report_and_a_model(model: Path) -> None:
    report = (model / "report.html").read_text("utf-8")
    for word in ("bigram", "popularity", "item neighbours", "validation NDCG@10", "unfiltered", "filtered"):
        assert word in report
    for name in ("config.json", "model.safetensors", "tokenizer.json", "split.json", "metrics.csv"):
        assert (model / name).exists()


def test_the_card_says_what_was_measured(model: Path, check_card: Callable[[Path], str]) -> None:
    assert "| ndcg@10 |" in check_card(model)


def test_spoilt_histories_foretell_less(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "probe",
        "--model",
        str(model),
        *("--data", str(shop_table), "--device", "cpu"),
        "--output",
        str(tmp_path / "p.csv"),
    ]
    assert main([*words, "--plot", str(tmp_path / "p.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row[found["metric"]] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "drop", "replace", "shuffle", "dt"}
    table = pd.read_csv(tmp_path / "p.csv")
    assert table[found["metric"]].tolist() == pytest.approx(
        [row[found["metric"]] for row in found["results"]]
    )
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert (
        main(["evaluate", "--model", str(model), "--data", str(shop_table), "--device", "cpu", "--json"]) == 0
    )
    evaluated = json.loads(capsys.readouterr().out)["results"][0]
    assert rows["clean", None] == pytest.approx(evaluated["ndcg@10"], abs=1e-6)
    assert rows["replace", 0.6] < rows["clean", None]  # the shop's next item follows the last one


def test_evaluates_beside_the_baselines(
    model: Path, shop_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(shop_table), "--device", "cpu", "--json"]
    assert main(["evaluate", "--model", str(model), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["scorer"], row["filter"]): row for row in found["results"]}
    assert rows["mambakit", "unfiltered"]["ndcg@10"] > rows["popularity", "unfiltered"]["ndcg@10"]
    assert {name for name, _ in rows} == COUNTED


def test_slices_go_to_json_csv_and_report(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--model", str(model), "--data", str(shop_table), "--device", "cpu"]
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
    assert "By slice" in (model / "report.html").read_text("utf-8")
    assert main([*given, "--slices", "gender"]) == 2
    assert "no column 'gender' of users" in capsys.readouterr().err
    assert main([*given, *files]) == 2
    assert "name them" in capsys.readouterr().err


def test_a_membership_probe_reads_the_models_own_losses(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--model", str(model), "--data", str(shop_table), "--device", "cpu"]
    words += ["--attack", "membership", "--reference", str(model)]
    assert (
        main([*words, "--plot", str(tmp_path / "r.png"), "--output", str(tmp_path / "r.csv"), "--json"]) == 0
    )
    row, beside = json.loads(capsys.readouterr().out)["results"]
    assert 0 < row["auc-lo"] <= row["auc"] <= row["auc-hi"] <= 1
    assert beside["auc"] == 0.5  # by itself, nothing is left of a loss
    assert (row["members"], row["others"]) == (60, 60)
    assert pd.read_csv(tmp_path / "r.csv")["auc"][0] == pytest.approx(row["auc"])
    assert (tmp_path / "r.png").exists()
    assert main([*words, "--only", "drop"]) == 2
    assert "of --attack perturb" in capsys.readouterr().err


def test_networks_of_others_are_added_to_a_finished_run(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "shop")
    given = ["--data", str(shop_table), "--device", "cpu", "--json"]
    words = ["train", *given, "--output", str(folder), *SMALL, *BUDGET, "--baselines", "gru4rec", "sasrec"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err.count("finished: its best weights are loaded") == 1  # ours was not trained again
    trained = json.loads(out)["results"]
    for name in ("sasrec", "gru4rec"):
        rows = (folder / "baselines" / name / "metrics.csv").read_text("utf-8").splitlines()
        assert len(rows) == 6  # the same budget
    assert main(["evaluate", "--model", str(folder), *given]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == trained
    rows = {(row["scorer"], row["filter"]): row for row in trained}
    assert len(rows) == 12
    assert all(rows[name, "unfiltered"]["hr@10"] > 0.5 for name in ("SASRec", "GRU4Rec"))
    assert len({rows[name, "unfiltered"]["ndcg@10"] for name in ("mambakit", "SASRec", "GRU4Rec")}) == 3
    assert "GRU4Rec" in (folder / "report.html").read_text("utf-8")
    assert main([*words[:-3], "--overwrite"]) == 0
    assert {row["scorer"] for row in json.loads(capsys.readouterr().out)["results"]} == COUNTED


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


def test_approximate_search_says_its_recall(
    model: Path, shop_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    words = ["recommend", "--model", str(model), "--input", str(shop_table), "--k", "3", "--json"]
    assert main(words) == 0
    exact = json.loads(capsys.readouterr().out)
    assert main([*words, "--search", "approximate", "--min-recall", "1.0"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (exact["search"], found["search"], found["recall"]) == ("exact", "approximate", 1.0)
    assert "approximate search: 100.0% of the exact top 3 found for 30 of the users" in printed.err
    assert len(found["recommendations"]) == len(exact["recommendations"])


def test_exports_once_into_a_new_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--model", str(model), "--output", str(tmp_path / "served")]
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
    model: Path,
    shop_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    given = ["--input", str(shop_table)] if words[0] == "recommend" else ["--user", "u", "--item", "i1"]
    store = ["--store", str(tmp_path / "s.db")] if words[0] == "update" else []
    assert main([words[0], "--model", str(model), *given, *store, *words[1:]]) == status
    assert message in capsys.readouterr().err


def test_another_catalogue_and_a_damaged_store_are_refused(
    shop_events: Events, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop_events(n_items=7).to_csv(tmp_path / "other.csv", index=False)
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


def test_updates_from_a_table_say_what_single_ones_and_whole_histories_say(
    shop_events: Events,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = shop_events(n_users=6)
    given.to_csv(tmp_path / "new.csv", index=False)
    words = ["update", "--model", str(model), "--store", str(tmp_path / "s.db"), "--k", "4"]
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
    words = ["recommend", "--model", str(model), "--input", str(tmp_path / "whole.csv"), "--k", "4"]
    assert main([*words, "--output", str(tmp_path / "whole.parquet"), "--device", "cpu"]) == 0
    whole = pd.read_parquet(tmp_path / "whole.parquet").sort_values(["user", "rank"], ignore_index=True)
    pd.testing.assert_frame_equal(found, whole, atol=1e-3, check_dtype=False)


def test_updates_from_standard_input_until_nothing_can_be_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["update", "--model", str(model), "--store", str(tmp_path / "s.db"), "--k", "2", "--input", "-"]
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
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.csv").write_text("item,kind\nfresh,x\n", "utf-8")
    words = ["recommend", "--model", str(model), "--input", str(shop_table), "--k", "2"]
    assert main([*words, "--item-features", str(tmp_path / "new.csv")]) == 2
    assert "was trained without features of items" in capsys.readouterr().err
    copy = shutil.copytree(model, tmp_path / "copy")
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


def test_few_parameters_of_a_saved_recommender_learn(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(shop_table), "--device", "cpu", *SMALL, *BUDGET]
    adapting = ["--train.adapt.kind", "prefix", "--train.adapt.base", str(model), "--train.adapt.tokens", "2"]
    assert main([*words, *adapting, "--output", str(tmp_path / "run")]) == 0
    assert "2 vectors before each sequence" in capsys.readouterr().err
    base, whole = (Recommender.from_pretrained(one) for one in (model, tmp_path / "run"))
    load_adapter(base, tmp_path / "run" / "adapter")
    for name, one in whole.state_dict().items():
        assert torch.equal(one, base.state_dict()[name]), name
    other = tmp_path / "other.csv"
    pd.read_csv(shop_table).assign(item=lambda rows: "other " + rows["item"]).to_csv(other, index=False)
    words[words.index(str(shop_table))] = str(other)
    assert main([*words, *adapting, "--output", str(tmp_path / "bad")]) == 1
    assert "the vocabulary of" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_saved_recommender_goes_on_and_replays_what_it_learned(
    shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--data",
        str(shop_table),
        "--device",
        "cpu",
        *SMALL,
        *BUDGET,
        "--train.continual.keep",
        "2",
    ]
    assert main([*words, "--output", str(tmp_path / "first")]) == 0
    base = ["--train.continual.kind", "both", "--train.continual.base", str(tmp_path / "first")]
    assert main([*words, *base, "--output", str(tmp_path / "second")]) == 0
    assert f"going on from {tmp_path / 'first'}: both" in capsys.readouterr().err
    memory = Memory.load(tmp_path / "second" / "memory" / "batches.pt")
    assert memory.seen == 2 * Memory.load(tmp_path / "first" / "memory" / "batches.pt").seen


def test_neighbours_are_kept_beside_the_model_and_used(
    model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    shutil.copytree(model, tmp_path / "run")
    words = ["--model", str(tmp_path / "run"), "--data", str(shop_table), "--device", "cpu", "--json"]
    assert main(["neighbours", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["validation ndcg@10"] >= said["without"]
    assert said["keys"] == int(Recommender.from_pretrained(model).popularity.sum())
    path = tmp_path / "run" / "neighbours" / "neighbours.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "share": 0.5, "k": 3}))
    interactions = load_interactions(shop_table)
    split = leave_one_out(interactions)
    alone, helped = (Recommender.from_pretrained(one) for one in (model, tmp_path / "run"))
    events = split.test[:5]
    before, after = (one.scores(interactions, events) for one in (alone, helped))
    learned = np.flatnonzero(training_events(interactions, split))
    catalogue = alone.catalogue()
    with torch.no_grad():
        hidden = alone.hidden(interactions, interactions.user[learned], learned, catalogue)
        own = alone.hidden(interactions, interactions.user[events], events, catalogue)
    for row in range(len(events)):
        d = (hidden - own[row]).square().sum(1) / helped.neighbours.scale  # type: ignore[union-attr]
        near = d.topk(3, largest=False)
        wanted = 0.5 * before[row].softmax(0)
        for place, weight in zip(near.indices, (-near.values / said["temperature"]).softmax(0), strict=True):
            wanted[int(interactions.item[learned[place]])] += 0.5 * weight
        torch.testing.assert_close(after[row].exp(), wanted, atol=1e-4, rtol=1e-3)
    assert main(["recommend", "--model", str(tmp_path / "run"), "--input", str(shop_table), "--k", "3",
                 "--search", "approximate"]) == 2  # fmt: skip
    assert "what neighbours say is not in the index of items" in capsys.readouterr().err
