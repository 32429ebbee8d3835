"""The molecules benchmarks: rows of made-up results, and a tiny run of each script."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

import torch
from rdkit import RDConfig

from mambakit.core.adapters import pad_batch
from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModelConfig
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.tokenizer import PAD, SmilesTokenizer

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "some.smi"
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    path.write_text("\n".join(lines[:120]) + "\n")
    return path


def saturn(seed: int, **found: Any) -> dict[str, Any]:
    values = {"hits": 10, "scaffolds": 4, "first": 500, "tenth": 900, "hundredth": None}
    return {"task": "saturn-part1", "seed": seed, **values, **found}


def test_rows_of_saturns_task_are_means_where_every_seed_came_so_far(load: Any) -> None:
    benchmark = load("molecules_design")
    rows = benchmark.saturn_rows([saturn(1, hits=20), saturn(0)], [saturn(0, hits=3), saturn(1, hits=5)])
    found = {row["what"].removeprefix("molecules/saturn-part1/"): row for row in rows}
    assert (found["hits"]["value"], found["hits"]["spread"], found["hits"]["seeds"]) == (15, 5, [0, 1])
    assert found["hits"]["peers"]["Saturn (published, one seed, ChEMBL prior)"] == 125
    assert found["hits"]["peers"][benchmark.GRAPH_GA] == 4
    assert (found["hundredth-hit"]["value"], found["hundredth-hit"]["spread"]) == (None, None)
    assert benchmark.GRAPH_GA not in found["hundredth-hit"]["peers"]
    assert found["tenth-hit"]["value"] == 900


def test_rows_of_pmo_are_of_the_seeds_asked_for(load: Any) -> None:
    benchmark = load("molecules_design")
    done = [{"task": "qed", "seed": seed, "auc_top10": 0.9 + seed / 100} for seed in (1, 0)]
    (row,) = benchmark.pmo_rows(done, [], [0, 1])
    assert (row["value"], row["spread"], row["seeds"]) == (0.905, 0.005, [0, 1])
    assert row["peers"]["REINVENT (published)"] == 0.941
    # one of three seeds failed in all tasks: two of them are no result of three
    assert benchmark.pmo_rows(done, [], [0, 1, 2]) == []
    whole = [{**one, "task": task} for task in benchmark.PUBLISHED for one in done]
    *_, total = benchmark.pmo_rows(whole, [], [1, 0])
    assert total["what"] == "molecules/pmo-20/sum-auc-top10"
    assert (total["value"], total["spread"]) == (pytest.approx(20 * 0.905), pytest.approx(0.1))
    assert total["peers"]["REINVENT (published)"] == pytest.approx(11.58, abs=0.02)


def test_runs_of_pmo_that_were_cut_count_with_what_they_had(load: Any, tmp_path: Path) -> None:
    benchmark = load("molecules_design")
    job = {"task": "qed", "seed": 0, "method": benchmark.DESIGN, "budget": 10_000, "output": str(tmp_path)}
    assert benchmark.cut_short(job) is None
    (tmp_path / "qed-0").mkdir()
    (tmp_path / "qed-0" / "molecules.csv").write_text(
        "call,smiles,scaffold,reward,qed,qed:shaped,reason\n1,CCO,,0.4,0.4,0.4,\n2,CCN,,0.5,0.5,0.5,\n"
    )
    cut = benchmark.cut_short(job)
    assert (cut["calls"], cut["top10"], cut["hits"]) == (2, 0.45, 0)
    assert cut["auc_top10"] == pytest.approx(0.45, abs=1e-3)  # the last mean, to the budget's end
    whole = {**job, "seed": 1, "stopped": "budget", "calls": 10_000, "auc_top10": 0.95}
    (row,) = benchmark.pmo_rows([cut, whole], [], [0, 1])
    assert row["unit"].endswith("; at least: 1 of 2 runs were cut at 2, their last mean kept")
    assert benchmark.cut_short({**job, "task": benchmark.SATURN}) is None


def test_settings_of_each_design_task(load: Any, tmp_path: Path, molecules: Path) -> None:
    """Those of few calls for Saturn's task; for PMO those published there, without filter and purge."""
    benchmark = load("molecules_design")
    start = [line.split()[0] for line in molecules.read_text().splitlines()[:60]]
    tokenizer = SmilesTokenizer().fit(start)
    torch.manual_seed(0)
    model = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, BackboneConfig(d_model=32, layers=["gru"])))
    model.tokenizer = tokenizer
    ids = pad_batch([tokenizer.encode(one) for one in ("CCO", "CCN", "CCCO", "CC(C)O", "CC(=O)O")]).values
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        logits, _ = model(ids[:, :-1])
        loss = model.loss(logits, ids[:, 1:], ids[:, 1:] != PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "lm")
    job = {
        "seed": 0,
        "model": str(tmp_path / "lm"),
        "budget": 4,
        "device": "cpu",
        "max_time": 30.0,
        "output": str(tmp_path),
        "changes": {"max_tokens": 12},
        "ga_changes": {},
        "start": start,
    }
    settings = {}
    for task in ("saturn-part1", "qed"):
        done = benchmark.run_job({**job, "task": task, "method": benchmark.DESIGN})
        assert (done["calls"], done["stopped"]) == (4, "budget")
        assert 0 <= done["auc_top10"] <= 1
        assert done["hits"] >= done["scaffolds"]
        settings[task] = (tmp_path / f"{task}-0" / "config.yaml").read_text()
    for task, words in (
        ("saturn-part1", ["batch_size: 16", "sigma: 128.0", "rounds: 10", "bucket_size: 10"]),
        ("qed", ["batch_size: 64", "sigma: 500.0", "lr: 0.0005", "rounds: 2", "bucket_size: 0"]),
    ):
        assert [word for word in words if word not in settings[task]] == []
    done = benchmark.run_job({**job, "task": "qed", "method": benchmark.GRAPH_GA})
    assert done["calls"] == 4
    assert done["top10"] > 0


@pytest.mark.slow
def test_a_language_is_learned_drawn_from_and_measured(load: Any, tmp_path: Path, molecules: Path) -> None:
    benchmark = load("molecules_generation")
    small = {"d_model": 16, "n_layers": 1, "d_state": 8, "head_dim": 8}
    changes = {f"model.{name}": value for name, value in small.items()}
    changes |= {"train.max_epochs": 1, "train.batch_size": 32, "corpus.n_reference": 20}
    job = {"seed": 0, "folder": str(tmp_path), "changes": changes, "data": str(molecules), "device": "cpu"}
    job |= {"workers": None, "n": 20, "batch": 20, "limit": 100}
    assert benchmark.run_seed({**job, "measure": False})["rows"] == {}
    done = benchmark.run_seed({**job, "measure": True})  # of what was drawn before
    assert set(done["rows"]) == set(benchmark.SAMPLINGS)
    for rows in done["rows"].values():
        assert set(rows) == {"mambakit", "held-out molecules", "6-gram"}
        assert set(benchmark.MEASURES) <= set(rows["mambakit"])
    with pytest.raises(SystemExit, match="another --keep"):
        benchmark.run_seed({**job, "n": 30, "measure": True})
    assert 0 < done["bits_per_token"] < 10
    assert MoleculeModel.from_pretrained(tmp_path / "seed-0").reference is not None
    json.dumps(done)


@pytest.mark.slow
def test_both_networks_draw_the_same_molecules_dry(
    load: Any, monkeypatch: pytest.MonkeyPatch, molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load("molecules_sampling")
    written: list[Any] = []
    monkeypatch.setattr(benchmark, "write_rows", lambda name, made: written.extend(made) or name)
    words = ["--data", str(molecules), "--n", "4", "--batch", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["molecules_sampling.py", *words, "--dry"])
    benchmark.main()
    said = capsys.readouterr().out
    assert "GPT, KV cache" in said
    assert written == []
