"""Property models on SELFIES, graphs, reactions and components: they learn, and mark what they can't read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.molecules.config import LossConfig, ModelConfig, Notation
from mambakit.domains.molecules.data import DataSpec, load, save, to_evaluate
from mambakit.domains.molecules.files import read_source
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split
from mambakit.domains.molecules.notations import notation_of
from mambakit.domains.molecules.prediction import inputs_of, predict
from mambakit.domains.molecules.reading import read_molecules
from mambakit.domains.molecules.tables import predicted_table
from mambakit.domains.molecules.training import train_properties

SMALL = ModelConfig(
    members=1, d_model=16, n_layers=1, d_state=4, head_dim=8, features="none", d_hidden=32, test_smiles=3,
    dropout=0.0, head_dropout=0.0,
)  # fmt: skip
DATIVE = "N->[Cu]"
BRANCHED = ("CC(C)(O)C[C@H](N)c1ccncc1", "C[C@H]1CC[C@@H](C)CC1", "C/C=C/C(C)(C)C")


def trained(
    folder: Path, molecules: Molecules, tokenizer: Notation, epochs: int = 12, config: ModelConfig = SMALL
) -> PropertyModel:
    n = np.arange(len(molecules))
    model, _ = train_properties(
        molecules,
        Split("random", n[n % 4 > 0], n[n % 4 == 0], n[:0]),
        RunFolder(folder),
        model_config=config,
        loss_config=LossConfig(),
        train_config=TrainConfig(max_epochs=epochs, batch_size=4, lr=1e-2, patience=0, device="cpu"),
        tokenizer=tokenizer,
    )
    return model


def written(folder: Path, rows: list[tuple[object, ...]], columns: list[str]) -> Path:
    pd.DataFrame(rows, columns=columns).to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def chains(folder: Path) -> Path:
    """Size and a class of chains with three ends, and a molecule that SELFIES can't hold."""
    rows = [(f"{'C' * n}{end}", n + 0.5, int(end == "O")) for n in range(1, 13) for end in ("O", "N", "")]
    rows.insert(7, (DATIVE, 3.5, 0))
    rows.append(("CN(=O)=O", 4.5, 0))  # which SELFIES holds with charges alone
    return written(folder, rows, ["smiles", "size", "acid"])


@pytest.mark.parametrize("tokenizer", ["selfies", "graph"])
def test_learns_is_saved_and_marks_what_it_can_not_read(tokenizer: Notation, tmp_path: Path) -> None:
    path = chains(tmp_path)
    molecules, _ = load(DataSpec(str(path), "random", tokenizer=tokenizer))
    model = trained(tmp_path / "run", molecules, tokenizer)
    said = predict(model, inputs_of(model, ["CCO", "CCCCCCCCCC"]))
    assert said.value[1, 0] > said.value[0, 0] + 1.5
    model.save_pretrained(tmp_path / "model")
    again = PropertyModel.from_pretrained(tmp_path / "model")
    made = [predicted_table(one, read_source(path), embed=True) for one in (model, again)]
    pd.testing.assert_frame_equal(made[0].table, made[1].table)
    pd.testing.assert_frame_equal(made[0].embeddings, made[1].embeddings)
    errors = {place: one for place, one in enumerate(made[0].table["error"]) if one}
    if tokenizer == "graph":
        assert not errors
        return
    reason = "SELFIES can't hold it: failed to parse input"
    assert errors == {7: reason}
    assert molecules.left_out[["row", "reason"]].to_numpy().tolist() == [[8, reason]]
    assert DATIVE not in molecules.smiles.tolist()
    with pytest.raises(DataError, match=r"molecule 2, .*SELFIES can't hold it"):
        inputs_of(model, ["CC", DATIVE])


@pytest.mark.parametrize("order", ["degree", "canonical"])
def test_graphs_are_read_alike_however_they_are_written(order: str, tmp_path: Path) -> None:
    config = ModelConfig(**{**SMALL.__dict__, "order": order, "members": 2})
    model = trained(tmp_path / "run", read_molecules(chains(tmp_path)), "graph", 1, config)
    for smiles in BRANCHED:
        ways = [smiles, *Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 5, randomSeed=3)]
        assert len(set(ways)) > 2
        value = predict(model, inputs_of(model, ways)).value
        np.testing.assert_allclose(value, value[[0] * len(ways)], rtol=1e-6)
    inputs = inputs_of(model, list(BRANCHED))
    assert inputs.ways == (1 if order == "canonical" else 3)


def test_what_selfies_can_not_hold_is_left_out_of_an_evaluation_too(tmp_path: Path) -> None:
    spec = DataSpec(str(chains(tmp_path)), "random", tokenizer="selfies")
    molecules, split = load(spec)
    save(tmp_path, spec, molecules, split)
    for data in (None, str(tmp_path / "data.csv"), str(tmp_path / "other.csv")):
        if data is not None and "other" in data:
            (tmp_path / "other.csv").write_bytes((tmp_path / "data.csv").read_bytes())
        found, _, _ = to_evaluate(tmp_path, molecules.tasks, data, "all", None)
        assert found.left_out["row"].tolist() == [8]
        assert len(found) == 37


@pytest.mark.parametrize("tokenizer", ["smiles", "graph"])
def test_reads_each_component_as_what_it_is(tokenizer: Notation, tmp_path: Path) -> None:
    """A value that goes by how many carbons the first component has more than the second."""
    rows = [("C" * n, "C" * m, n - m + 0.5) for n in range(1, 9) for m in range(1, 9)]
    path = written(tmp_path, [*rows, ("CC", None, 1)], ["a", "b", "y"])
    molecules = read_molecules(path, smiles_column=["a", "b"])
    config = ModelConfig(**{**SMALL.__dict__, "features": "descriptors"})
    model = trained(tmp_path / "run", molecules, tokenizer, 8, config)
    assert (model.config.form, model.config.components) == ("molecule;molecule", ["a", "b"])
    said = predict(model, inputs_of(model, ["CCCCCCC;CC", "CC;CCCCCCC"])).value[:, 0]
    assert said[0] > said[1] + 4
    made = predicted_table(model, read_source(path, model.config.components)).table
    assert made["error"].tolist() == [""] * len(rows) + ["b: there is no structure"]
    with pytest.raises(DataError, match=r"it is one molecule, where the model reads 2 components \(a, b\)"):
        inputs_of(model, ["CC"])


def test_reads_reactions(tmp_path: Path) -> None:
    rows = [
        (f"{'C' * n}O>{agent}>{'C' * n}", 9.5 * bool(agent)) for agent in ("", "[H+]") for n in range(1, 13)
    ]
    config = ModelConfig(**{**SMALL.__dict__, "features": "ecfp"})
    path = written(tmp_path, [*rows, ("CC>>c1cccc1", 1), ("CC", 1)], ["rxn_smiles", "y"])
    model = trained(tmp_path / "run", read_molecules(path), "graph", 8, config)
    said = predict(model, inputs_of(model, ["CCCO>[H+]>CCC", "CCCO>>CCC"])).value[:, 0]
    assert said[0] > said[1] + 2
    errors = predicted_table(model, read_source(path)).table["error"].tolist()
    assert errors[-2].startswith("products: Can't kekulize")
    assert errors[-1] == "it is one molecule, where the model reads a reaction (reactants>agents>products)"


def test_notation_is_the_language_models_or_smiles() -> None:
    assert notation_of(None, None) == "smiles"
    assert notation_of("graph", None) == "graph"

    class Language:
        class tokenizer:  # noqa: N801
            kind = "selfies"

    assert notation_of(None, Language) == "selfies"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reads selfies, got 'graph'"):
        notation_of("graph", Language)  # type: ignore[arg-type]
