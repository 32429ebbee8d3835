"""The card of a saved model says what its folder's other files say, and nothing that isn't known."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.data import load_card
from mambakit.core.hub import HubModel
from mambakit.core.training import RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.trust.about import About
from mambakit.core.trust.data_facts import facts_of


class Line(nn.Module, HubModel):
    """Draws straight lines."""

    about = About(
        task="drawing lines", use="Lines, of three numbers.", limits=("No curves.",), commands=("x",)
    )

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)


class Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Line()

    def error(self, batch: Any) -> torch.Tensor:
        return (self.model.linear(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.error(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", self.error(batch))
        self.log("val/root", self.error(batch).sqrt())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.6)  # too much: the best epoch is not the last


def trained(path: Path, data: str = "co2") -> tuple[RunFolder, Line]:
    seed_everything(0)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16)
    config = TrainConfig(max_epochs=4, device="cpu")
    run, task = RunFolder(path), Task()
    run.start({"data": data, "split": "by time", "model": {"width": 3}, "train": config}, seed=5)
    fit(task, loader, loader, config, run)
    run.save(task.model)
    return run, task.model


@pytest.fixture(scope="module")
def run_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Line]:
    return trained(tmp_path_factory.mktemp("card") / "run")


def results_of(path: Path, split: str) -> dict[str, float]:
    found = ModelCard.load(path).data.eval_results or []
    return {one.metric_name: one.metric_value for one in found if one.dataset_split == split}


def test_validation_figures_are_those_of_the_row_that_was_kept(run_and_model):
    run, _ = run_and_model
    assert run.result is not None
    with run.metrics_path.open() as stream:
        rows = list(csv.DictReader(stream))
    best = min(rows, key=lambda row: float(row["val/loss"]))
    found = results_of(run.path / "README.md", "validation")
    assert found["val/loss"] == run.result["best_score"]
    assert found["val/root"] == float(best["val/root"])
    assert best is not rows[-1] or len({row["val/loss"] for row in rows}) > 1


def test_data_code_and_size_are_told(run_and_model):
    run, _ = run_and_model
    card = ModelCard.load(run.path / "README.md")
    environment = json.loads((run.path / "environment.json").read_text())
    assert card.data.datasets == ["co2"]
    assert card.data.library_name == "mambakit"
    for said in (
        load_card("co2").head.get("license_name", load_card("co2").license),
        "split by time",
        "seed 5",
        f"mambakit {environment['versions']['mambakit']}",
        "4 parameters in 2 tensors",
        "No curves.",
        "Lines, of three numbers.",
        f"{run.result['steps']} optimizer steps",  # type: ignore[index]
    ):
        assert said in card.text
    if environment["git_commit"]:
        assert environment["git_commit"] in card.text
    loading = card.text.split("```python\n")[1].split("```")[0]
    assert f"from {Line.__module__} import Line" in loading


def test_measured_figures_are_those_of_the_json_and_only_our_rows_are_results(tmp_path):
    run, model = trained(tmp_path)
    rows = [
        {"model": "ours", "part": "easy", "error": 0.25, "error-lo": 0.2, "error-hi": 0.3, "n": 7},
        {"model": "ours", "part": "hard", "error": float("nan"), "n": 2},
        {"model": "mean", "part": "easy", "error": 0.5, "n": 7},
    ]
    run.measured(model, rows, data="later", ours={"model": "ours"})
    run.measured(model, rows, data="later", ours={"model": "ours"})  # a resumed run does so twice
    path = tmp_path / "README.md"
    assert results_of(path, "test") == {"error (part easy)": 0.25, "n (part easy)": 7, "n (part hard)": 2}
    assert len(results_of(path, "validation")) == 2
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["results"][0] == rows[0]
    assert saved["results"][1]["error"] is None
    text = ModelCard.load(path).text
    assert text.count("## Measured") == 1
    assert "| error | 0.25 (0.2 to 0.3) | – | 0.5 |" in text
    assert "Nothing was measured" not in text


def test_saving_other_weights_takes_the_figures_back(tmp_path):
    run, model = trained(tmp_path)
    run.measured(model, [{"model": "ours", "error": 0.25}], data="later", ours={"model": "ours"})
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "0.25" not in text
    assert "Nothing was measured" in text
    assert "is not recorded in this folder" in text
    run.save(model, "last", of_result=False)
    text = (tmp_path / "last" / "README.md").read_text()
    assert "co2" in text
    assert "val/loss" not in text


def test_a_card_of_a_persons_own_stays(tmp_path):
    tmp_path.joinpath("README.md").write_text("mine")
    run, model = trained(tmp_path)
    run.measured(model, [{"model": "ours", "error": 0.25}], data="later", ours={"model": "ours"})
    assert (tmp_path / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / "evaluation.json").read_text())["results"][0]["error"] == 0.25


def test_files_and_folders_are_known_by_their_contents_and_not_by_where_they_lie(tmp_path):
    data = tmp_path / "private" / "events.csv"
    data.parent.mkdir()
    data.write_text("a,b\n1,2\n")
    (one,) = facts_of(str(data))
    assert (one.name, one.license) == ("events.csv", None)
    assert one.fingerprints == (("events.csv", hashlib.sha256(data.read_bytes()).hexdigest()),)
    (before,) = facts_of(str(data.parent))
    data.write_text("a,b\n1,3\n")
    (after,) = facts_of(str(data.parent))
    assert before.name == "private"
    assert before.fingerprints != after.fingerprints
    run, _ = trained(tmp_path / "run", str(data))
    text = (run.path / "README.md").read_text()
    assert facts_of(str(data))[0].fingerprints[0][1] in text
    assert "licence of the data: not known" in text
    assert str(tmp_path) not in text


def test_cards_between_commas_are_told_one_by_one():
    names = [one.name for one in facts_of("fsdd, noise")]
    assert names == ["fsdd", "noise"]
    (esol,) = facts_of("ESOL")
    assert esol.is_card
    assert esol.fingerprints[0][1] == load_card("esol").files[0].sha256


def test_the_card_of_a_class_without_a_word_says_that_nothing_is_known(tmp_path):
    class Silent(nn.Module, HubModel):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.linear = nn.Linear(width, 1)

    Silent().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count("Not said by the author of `Silent`.") == 2
    with pytest.raises(TypeError, match="expected run alone, got licence"):
        Silent().save_pretrained(tmp_path, model_card_kwargs={"licence": "mit"})
