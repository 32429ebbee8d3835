"""Languages of molecules, as a person calls them: pretrain, continue on other data, generate, bad calls."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("rdkit")

import torch
from rdkit import Chem, RDConfig

from mambakit.apps.molecules import main
from mambakit.core.adaptation import load_adapter, merge
from mambakit.domains.molecules.language.model import MoleculeModel

SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]
BUDGET = ["--train.max_epochs", "2", "--train.batch_size", "32", "--train.lr", "2e-2", "--device", "cpu"]
CORPUS = ["--corpus.max_length", "40", "--corpus.n_reference", "50"]


def pretrain(data: Path, output: Path, *words: str) -> int:
    run = ["pretrain", "--data", str(data), "--output", str(output), "--samples", "20"]
    return main([*run, *SMALL, *BUDGET, *CORPUS, *words])


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "some.smi"
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    path.write_text("\n".join([*lines[:120], "C1CC"]) + "\n")
    return path


@pytest.fixture(scope="module")
def model(molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "lm"
    assert pretrain(molecules, folder) == 0
    return folder


def test_a_run_leaves_a_model_a_report_and_the_rows_left_out(model: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "training.safetensors", "metrics.csv"):
        assert (model / name).exists()
    report = (model / "report.html").read_text("utf-8")
    for word in ("6-gram", "held-out molecules", "unique@10k", "bits a token"):
        assert word in report
    with (model / "left_out.csv").open() as stream:
        reasons = {int(row["row"]): row["reason"] for row in csv.DictReader(stream)}
    assert "ring" in reasons[121]


def test_molecules_are_written_with_their_faults(model: Path, tmp_path: Path, capsys) -> None:
    out = {name: tmp_path / f"new.{name}" for name in ("csv", "smi", "html", "png")}
    words = ["generate", "--model", str(model), "--n", "30", "--max-length", "40", "--device", "cpu"]
    more = ["--report", str(out["html"]), "--grid", str(out["png"]), "--json"]
    assert main([*words, "--output", str(out["csv"]), *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["molecules"] for one in found["results"]] == ["mambakit", "held-out molecules", "6-gram"]
    with out["csv"].open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["number"] for row in rows] == [str(i) for i in range(1, 31)]
    for row in rows:
        assert (row["valid"] == "true") == (row["reason"] == "")
    valid = [row for row in rows if row["valid"] == "true"]
    assert found["results"][0]["valid"] == pytest.approx(len(valid) / 30)
    assert json.loads(out["html"].with_suffix(".json").read_text())["results"][0]["n"] == 30
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--output", str(out["smi"]), "--measure", "false"]) == 0
    lines = out["smi"].read_text().splitlines()
    assert lines == [f"{row['smiles']} sample-{row['number']}" for row in valid]


def test_unique_ones_of_a_scaffold(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    words = ["generate", "--model", str(model), "--n", "5", "--unique", "--scaffold", "*c1ccccc1"]
    words += ["--max-length", "30", "--device", "cpu", "--batch-size", "60", "--measure", "false"]
    assert main([*words, "--output", str(path)]) == 0
    with path.open() as stream:
        names = [row["canonical"] for row in csv.DictReader(stream)]
    assert 0 < len(names) <= 5  # a model that has hardly learned may not find five in a hundred draws
    assert len(set(names)) == len(names)
    phenyl = Chem.MolFromSmarts("[!#1]c1[cH][cH][cH][cH][cH]1")
    assert all(Chem.MolFromSmiles(name).HasSubstructMatch(phenyl) for name in names)


def test_the_exported_step_reads_a_molecule_as_the_model(model: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "step.pt2"
    assert main(["export", "--model", str(model), "--output", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    network = MoleculeModel.from_pretrained(model).eval()
    ids = network.tokenizer.encode("CC(=O)O").values
    assert [said["tokens"]["start"], said["tokens"]["end"]] == [ids[0], ids[-1]]
    step = torch.export.load(path).module()
    state = {name: torch.zeros(1, *shape) for name, shape in said["state"].items()}
    with torch.no_grad():
        expected, _ = network(ids[None])
        for t, token in enumerate(ids):
            logits, state = step(token[None], state, {})
            torch.testing.assert_close(logits, expected[:, t], atol=1e-5, rtol=0)
    assert main(["export", "--model", str(model), "--output", "step.bin"]) == 2
    assert "ends in .pt2 or .onnx" in capsys.readouterr().err


def test_training_goes_on_with_a_larger_vocabulary(model: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "tin.smi"
    data.write_text("\n".join("C" * n + "[Lu]" for n in range(1, 30)) + "\n")
    assert pretrain(data, tmp_path / "tin", "--pretrained", str(model)) == 0
    assert "tokens are new to the model: [Lu] (row 1, 2, 3, ...)" in capsys.readouterr().err
    old, new = (json.loads((one / "config.json").read_text())["n_ids"] for one in (model, tmp_path / "tin"))
    assert new > old  # RDKit writes neighbours of a metal in brackets: those are new too


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prefix", "C!"], "position 1, '!'"),
        (["--scaffold", "c1ccccc1"], "needs atoms and, where substituents go, *"),
        (["--temperature", "0"], "temperature: expected a positive number"),
        (["--output", "new.txt"], "ends in .csv or .smi"),
        (["--n", "0"], "n: expected at least 1"),
    ],
)
def test_wrong_calls_say_what_is_wrong(model: Path, words: list[str], said: str, capsys) -> None:
    assert main(["generate", "--model", str(model), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "state", "prefix"])
def test_few_parameters_of_a_saved_model_learn(
    kind: str, model: Path, molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    words = ["--train.adapt.kind", kind, "--train.adapt.base", str(model), "--train.adapt.rank", "2"]
    folder = tmp_path / "adapted"
    assert pretrain(molecules, folder, *words, "--samples", "0") == 0
    assert "parameters learn (" in capsys.readouterr().err
    base, whole = (MoleculeModel.from_pretrained(one) for one in (model, folder))
    before = {name: one.clone() for name, one in base.state_dict().items()}
    load_adapter(base, folder / "adapter")
    merge(base)
    assert any(not torch.equal(one, before.get(name, one * 0)) for name, one in whole.state_dict().items())
    for name, one in whole.state_dict().items():
        assert torch.equal(one, base.state_dict()[name]), name
    said = ["generate", "--model", str(folder), "--n", "5", "--max-length", "20", "--output"]
    assert main([*said, str(tmp_path / "new.csv"), "--device", "cpu"]) == 0


def test_a_base_that_does_not_fit_is_said(
    model: Path, molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapting = ["--train.adapt.kind", "state"]
    other = tmp_path / "other.smi"
    other.write_text("\n".join(["CCO", "CCN", "CCBr", "CC(=O)O", "c1ccccc1", "CCP"] * 20) + "\n")
    for words, status, said in [
        ([*adapting], 2, "base: name the folder of the saved model that state adapts"),
        ([*adapting, "--train.adapt.base", str(tmp_path / "none")], 1, "base: no saved model at"),
        ([*adapting, "--train.adapt.base", str(model), "--model.d_model", "24"], 1, "of another shape"),
        ([*adapting, "--train.adapt.base", str(model), "--data", str(other)], 1, "vocabulary"),
        (["--train.adapt.kind", "lora", "--train.adapt.rank", "0"], 2, "rank: expected at least 1, got 0"),
        (["--train.adapt.base", str(model)], 2, "without effect while adapt.kind is none"),
    ]:
        found = pretrain(molecules, tmp_path / "out", "--overwrite", *words)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error
        assert found == status, error
