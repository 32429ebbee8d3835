"""`mambakit molecules explain` as a person calls it: pictures, tables, pages, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.molecules import main
from mambakit.core.training import RunFolder
from mambakit.domains.molecules.config import PRESET_LOSS, PRESET_TRAIN, ModelConfig
from mambakit.domains.molecules.molecules import Split
from mambakit.domains.molecules.reading import read_molecules
from mambakit.domains.molecules.training import train_properties

SMALL = ModelConfig(
    members=1,
    d_model=16,
    n_layers=1,
    d_state=8,
    head_dim=8,
    d_hidden=16,
    features="ecfp",
    test_smiles=2,
    trees=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of chains of carbon: of their boiling points roughly, and a class."""
    made = tmp_path_factory.mktemp("explain")
    rows = [
        ("C" * n + end, 30.0 * n + 20 * len(end), int(end == "O"))
        for n in range(1, 13)
        for end in ("O", "N", "")
    ]
    pd.DataFrame(rows, columns=["smiles", "boils", "acid or base"]).to_csv(made / "data.csv", index=False)
    molecules = read_molecules(made / "data.csv", units={"boils": "K"})
    model, _ = train_properties(
        molecules,
        Split("random", np.arange(24), np.arange(24, 36), np.arange(0)),
        RunFolder(made / "run"),
        model_config=SMALL,
        loss_config=PRESET_LOSS,
        train_config=dataclasses.replace(PRESET_TRAIN, max_epochs=2, lr=1e-2, device="cpu"),
    )
    model.save_pretrained(made / "run")
    return made


def words(folder: Path, *more: str | Path) -> list[str]:
    return ["explain", "--model", str(folder / "run"), *map(str, more)]


def test_draws_and_tells_one_molecule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--output", folder / "why.svg", "--table", folder / "why.csv", "--task", "boils", "--json"]
    assert main(words(folder, "--smiles", "OC(=O)CC", *outputs)) == 0
    said = capsys.readouterr()
    assert f"picture: {folder / 'why.svg'}" in said.err
    (found,) = json.loads(said.out)["molecules"]
    assert [atom["symbol"] for atom in found["atoms"]] == list("OCOCC")
    assert (found["task"], found["unit"], found["ways_of_writing"]) == ("boils", "K", 2)
    parts = [atom["contribution"] for atom in found["atoms"]]
    assert found["explained"] == pytest.approx(
        found["base"] + sum(parts) + found["descriptors"] + found["residual"]
    )
    assert found["descriptors"] == 0
    table = pd.read_csv(folder / "why.csv")
    assert table["contribution"].tolist() == pytest.approx(parts)
    assert table["atom"].tolist() == list(range(5))
    drawn = ElementTree.parse(folder / "why.svg").getroot()
    assert drawn.tag.endswith("svg")
    assert {f"atom-{i}" for i in range(5)} <= {
        word for element in drawn.iter() for word in element.get("class", "").split()
    }
    predict = ["predict", "--model", str(folder / "run"), "--input", str(folder / "one.smi"), "--json"]
    (folder / "one.smi").write_text("OC(=O)CC\n")
    assert main(predict) == 0
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    assert found["prediction"] == pytest.approx(row["boils_predicted"], rel=1e-5)
    assert found["prediction"] == pytest.approx(
        found["trust"] * found["explained"] + (1 - found["trust"]) * found["forest"]
    )
    assert "explained is what the networks say" in said.err + said.out


def test_each_property_has_its_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = words(folder, "--smiles", "CCO", "--output", folder / "two.png", "--method", "leave-one-out")
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "CCO  boils (K)" in said
    assert "CCO  acid or base (logit)" in said
    for name in ("two-boils.png", "two-acid-or-base.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_many_molecules_keep_their_bad_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "many.csv").write_text("smiles,name\nCCO,good\nc1ccccc,bad\nCO>>C=O,reaction\nCCN,good\n")
    given = ["--input", folder / "many.csv", "--task", "boils"]
    outputs = ["--output", folder / "why.html", "--table", folder / "why.json"]
    assert main(words(folder, *given, *outputs)) == 0
    said = capsys.readouterr()
    assert "2 of 4 rows have an error (the first, row 2: " in said.err
    assert "row 3: CO>>C=O: it is a reaction" in said.out
    page = (folder / "why.html").read_text()
    assert page.count("<figure>") == 2
    assert "unclosed ring" in page
    rows = json.loads((folder / "why.json").read_text())
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert "unclosed ring" in rows[1]["error"]
    assert (
        main(words(folder, *given, "--output", folder / "pictures", "--table", folder / "many_atoms.csv"))
        == 0
    )
    assert sorted(one.name for one in (folder / "pictures").iterdir()) == ["row1.svg", "row4.svg"]
    table = pd.read_csv(folder / "many_atoms.csv")
    assert table["row"].tolist() == [1, 1, 1, 2, 3, 4, 4, 4]
    assert table["error"].notna().tolist() == [False] * 3 + [True] * 2 + [False] * 3


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        (["--smiles", "c1ccccc"], 1, "smiles: 'c1ccccc': SMILES Parse Error: unclosed ring"),
        (["--smiles", "CCO", "--task", "melts"], 2, "task: the model does not predict 'melts'; it predicts"),
        (["--smiles", "CCO", "--output", "why.pdf"], 2, "expected a name that ends in .svg or .png or .html"),
        (["--smiles", "CCO", "--table", "why.xml"], 2, "table: expected a name that ends in .csv"),
        (["--input", "x.csv", "--output", "why.svg"], 2, "output: for many molecules expected a folder"),
        (["--smiles", "CCO", "--input", "x.csv"], 2, "smiles, input: expected one of the two"),
        ([], 2, "smiles, input: expected one of the two"),
        (["--smiles", "CCO", "--randomised", "0"], 2, "randomised: expected at least 1, got 0"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(
    more: list[str], status: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, *more)) == status
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
