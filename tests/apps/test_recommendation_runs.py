"""What goes on from a saved recommender: probes, other networks, few parameters, more training."""

from __future__ import annotations

import json
import shutil
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

KEEP = ["--train.continual.keep", "2"]  # as the shared model did
COUNTED = {"mambakit", "bigram", "item neighbours", "popularity"}


def test_spoilt_histories_foretell_less(
    shop_model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "probe",
        "--model",
        str(shop_model),
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
        main(["evaluate", "--model", str(shop_model), "--data", str(shop_table), "--device", "cpu", "--json"])
        == 0
    )
    evaluated = json.loads(capsys.readouterr().out)["results"][0]
    assert rows["clean", None] == pytest.approx(evaluated["ndcg@10"], abs=1e-6)
    assert rows["replace", 0.6] < rows["clean", None]  # the shop's next item follows the last one


def test_a_membership_probe_reads_the_models_own_losses(
    shop_model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--model", str(shop_model), "--data", str(shop_table), "--device", "cpu"]
    words += ["--attack", "membership", "--reference", str(shop_model)]
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


@pytest.mark.slow
def test_networks_of_others_are_added_to_a_finished_run(
    shop_model: Path,
    shop_flags: list[str],
    shop_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(shop_model, tmp_path / "shop")
    given = ["--data", str(shop_table), "--device", "cpu", "--json"]
    words = ["train", *given, "--output", str(folder), *shop_flags, *KEEP, "--baselines", "gru4rec", "sasrec"]
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


def test_few_parameters_of_a_saved_recommender_learn(
    shop_model: Path,
    shop_flags: list[str],
    shop_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", "--data", str(shop_table), "--device", "cpu", *shop_flags]
    adapting = [
        "--train.adapt.kind",
        "prefix",
        "--train.adapt.base",
        str(shop_model),
        "--train.adapt.tokens",
        "2",
    ]
    assert main([*words, *adapting, "--output", str(tmp_path / "run")]) == 0
    assert "2 vectors before each sequence" in capsys.readouterr().err
    base, whole = (Recommender.from_pretrained(one) for one in (shop_model, tmp_path / "run"))
    load_adapter(base, tmp_path / "run" / "adapter")
    for name, one in whole.state_dict().items():
        assert torch.equal(one, base.state_dict()[name]), name
    other = tmp_path / "other.csv"
    pd.read_csv(shop_table).assign(item=lambda rows: "other " + rows["item"]).to_csv(other, index=False)
    words[words.index(str(shop_table))] = str(other)
    assert main([*words, *adapting, "--output", str(tmp_path / "bad")]) == 1
    assert "the vocabulary of" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_saved_recommender_goes_on_and_replays_what_it_learned(
    shop_model: Path,
    shop_flags: list[str],
    shop_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", "--data", str(shop_table), "--device", "cpu", *shop_flags, *KEEP]
    words += ["--train.continual.kind", "both", "--train.continual.base", str(shop_model)]
    assert main([*words, "--output", str(tmp_path / "second")]) == 0
    assert f"going on from {shop_model}: both" in capsys.readouterr().err
    first, second = (Memory.load(one / "memory" / "batches.pt") for one in (shop_model, tmp_path / "second"))
    assert 0 < second.seen == 2 * first.seen


def test_neighbours_are_kept_beside_the_model_and_used(
    shop_model: Path, shop_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    shutil.copytree(shop_model, tmp_path / "run")
    words = ["--model", str(tmp_path / "run"), "--data", str(shop_table), "--device", "cpu", "--json"]
    assert main(["neighbours", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["validation ndcg@10"] >= said["without"]
    assert said["keys"] == int(Recommender.from_pretrained(shop_model).popularity.sum())
    path = tmp_path / "run" / "neighbours" / "neighbours.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "share": 0.5, "k": 3}))
    interactions = load_interactions(shop_table)
    split = leave_one_out(interactions)
    alone, helped = (Recommender.from_pretrained(one) for one in (shop_model, tmp_path / "run"))
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
