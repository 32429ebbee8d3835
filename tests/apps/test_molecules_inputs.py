"""What property models read beside plain SMILES, as a person calls it: graphs and several structures."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from mambakit.apps.molecules import main

SMALL = ["--model.members", "1", "--model.d_model", "8", "--model.n_layers", "1", "--model.d_state", "4"]
SMALL += ["--model.head_dim", "8", "--model.d_hidden", "8", "--model.test_smiles", "2", "--device", "cpu"]
SMALL += ["--model.features", "ecfp", "--model.trees", "10", "--train.max_epochs", "2", "--split", "random"]
pytestmark = pytest.mark.usefixtures("few_trees")


def solutions() -> pd.DataFrame:
    rows = [(f"{'C' * n}N", one, n + 0.5) for n in range(1, 13) for one in ("O", "CO", "CCCO")]
    rows += [("CC", "c1cccc1", 1.0), ("CC", None, 1.0)]
    return pd.DataFrame(rows, columns=["solute", "solvent", "value"])


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_several_columns_of_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model, output = tmp_path / "data.csv", tmp_path / "run", tmp_path / "o.csv"
    solutions().to_csv(data, index=False)
    flags = ("--tokenizer", "graph", "--smiles-column", "solute", "solvent", "--json")
    words = ("train", "--data", data, "--output", model, *flags, *SMALL)
    assert run(*words) == 0
    first = capsys.readouterr()
    assert "the first, row 37: solvent: Can't kekulize" in first.err
    assert run(*words) == 0
    again = capsys.readouterr()
    assert "finished: its best weights are loaded" in again.err
    assert run("evaluate", "--model", model, "--json") == 0
    results = [json.loads(said)["results"] for said in (first.out, again.out, capsys.readouterr().out)]
    assert results[0] == results[1] == results[2]

    assert run("predict", "--model", model, "--input", data, "--output", output) == 0
    made = pd.read_csv(output, keep_default_na=False)
    assert made["error"].tolist()[:36] == [""] * 36
    assert made["error"][36:].str.startswith("solvent: ").all()
    assert made["solvent"].tolist() == solutions()["solvent"].fillna("").tolist()
    capsys.readouterr()
    solutions().rename(columns={"solute": "smiles"}).to_csv(data, index=False)
    assert run("predict", "--model", model, "--input", data) == 1
    assert "SMILES column 'solute' is missing" in capsys.readouterr().err
    assert run("predict", "--model", model, "--input", data, "--smiles-column", "smiles") == 1
    assert "it is one molecule, where the model reads 2 components (solute, solvent)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--tokenizer", "inchi"], 2, "inchi"),
        (["--smiles-column", "solute", "solute"], 2, "'solute' is named twice"),
        (["--smiles-column", "solute", "water"], 1, "SMILES column 'water' is missing"),
        (["--tokenizer", "graph", "--model.order", "random"], 2, "order"),
        (["--tokenizer", "graph", "--model.n_walks", "-1"], 2, "n_walks: expected at least 0"),
    ],
)
def test_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, said: str
) -> None:
    solutions().to_csv(tmp_path / "data.csv", index=False)
    assert run("train", "--data", tmp_path / "data.csv", "--output", tmp_path / "run", *flags) == status
    assert said in capsys.readouterr().err
