"""Explanations of predictions: they add up, they know which atom is which, and they find what was planted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.molecules.atoms import atoms_of_tokens, fragment_shares, without_atoms
from mambakit.domains.molecules.config import PRESET_LOSS, PRESET_TRAIN, ModelConfig, PropertyConfig
from mambakit.domains.molecules.explaining import METHODS, Method, explain
from mambakit.domains.molecules.features import ecfp_counts
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split, Task
from mambakit.domains.molecules.neighbours import TrainingSet
from mambakit.domains.molecules.prediction import inputs_of, predict
from mambakit.domains.molecules.tokenizer import SelfiesTokenizer, SmilesTokenizer
from mambakit.domains.molecules.training import train_properties

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMILES = [ASPIRIN, "CCO", "c1ccccc1", "C[C@H](N)C(=O)O", "F/C=C/Cl", "[Na+].[Cl-]", "CC(C)(C)C1CC1"]
SMALL = ModelConfig(
    members=2, d_model=16, n_layers=1, d_state=8, head_dim=8, d_hidden=16, features="mixed", test_smiles=3
)
TASKS = [Task("solubility", "regression", "log mol/L"), Task("passes", "classification")]


def untrained(config: ModelConfig = SMALL) -> PropertyModel:
    """A model of chance weights, none of them so small that a mistake hides."""
    torch.manual_seed(0)
    inputs = MoleculeInputs(SMILES, config, ways=2)
    tokenizer = SmilesTokenizer().fit(SMILES)
    model = PropertyModel(
        PropertyConfig(
            tasks=TASKS,
            mean=[-2.0, 0.0],
            deviation=[1.5, 1.0],
            n_ids=tokenizer.n_ids,
            backbone=config.backbone(),
            n_descriptors=inputs.descriptors.shape[1],
            n_ecfp=inputs.fragments.shape[1] if config.reads_ecfp else 0,
            model=config,
        )
    )
    model.tokenizer, model.trained = tokenizer, TrainingSet.of(inputs.fragments)
    if config.reads_descriptors:
        model.scaler.fit(torch.from_numpy(inputs.descriptors))
    for member in model.members:
        if config.sequence:
            torch.nn.init.normal_(member.embedding.weight, std=0.5)
        torch.nn.init.normal_(member.value.weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> PropertyModel:
    return untrained()


@pytest.mark.parametrize("smiles", ["CCO", "C[C@H](N)C(=O)O", "[Na+].[Cl-]"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_explained_is_the_prediction(smiles: str, method: Method, model: PropertyModel) -> None:
    (said,) = predict(model, inputs_of(model, [smiles])).value
    for found, value in zip(explain(model, smiles, method=method), said, strict=True):
        assert found.predicted == pytest.approx(value, abs=1e-5)
        parts = found.base + found.atoms.sum() + found.descriptors + found.residual
        assert parts == pytest.approx(found.value, abs=1e-9)
        assert len(found.atoms) == found.mol.GetNumAtoms()


@pytest.mark.parametrize("smiles", [ASPIRIN, "F/C=C/Cl"])
def test_integrated_gradients_are_complete(smiles: str, model: PropertyModel) -> None:
    for found in explain(model, smiles, method="gradients"):
        difference = abs(found.value - found.base)
        assert abs(found.residual) <= max(0.01 * difference, 0.01)
        assert sum(found.by_descriptor.values()) == pytest.approx(found.descriptors)


@pytest.mark.parametrize("features", ["none", "ecfp", "descriptors"])
@pytest.mark.parametrize("sequence", [True, False])
def test_each_part_is_there_only_if_it_is_read(features: str, sequence: bool) -> None:
    if features == "none" and not sequence:
        return
    config = dataclasses.replace(SMALL, members=1, features=features, sequence=sequence)
    found, _ = explain(untrained(config), "CCO")
    assert bool(found.by_descriptor) == (features == "descriptors")
    assert (found.descriptors != 0) == (features == "descriptors")
    assert (np.abs(found.atoms).max() > 0) == (sequence or features == "ecfp")
    assert abs(found.residual) < 0.02


def test_atoms_keep_the_order_of_the_smiles_that_was_given(model: PropertyModel) -> None:
    forward, backward = (
        explain(model, one, tasks=["solubility"], randomised=1)[0] for one in ("CC(=O)N", "NC(C)=O")
    )
    assert [atom.GetSymbol() for atom in forward.mol.GetAtoms()] == list("CCON")
    assert [atom.GetSymbol() for atom in backward.mol.GetAtoms()] == list("NCCO")
    np.testing.assert_allclose(forward.atoms, backward.atoms[[2, 1, 3, 0]], atol=1e-6)


def test_atoms_that_are_alike_differ_less_the_more_ways_of_writing(model: PropertyModel) -> None:
    def spread(ways: int) -> float:
        found = explain(model, "c1ccccc1", tasks=["solubility"], method="leave-one-out", randomised=ways)[0]
        assert found.n_written == ways
        return float(found.atoms.std())

    assert spread(64) < 0.5 * spread(1)


def test_ring_atoms_of_one_kind_are_alike_without_a_sequence() -> None:
    made = untrained(dataclasses.replace(SMALL, sequence=False, features="ecfp"))
    found = explain(made, "c1ccccc1", tasks=["solubility"])[0]
    np.testing.assert_allclose(found.atoms, found.atoms.mean(), atol=1e-6)
    assert abs(found.atoms.mean()) > 1e-4


@pytest.mark.parametrize(
    ("smiles", "owners"),
    [
        ("CC(=O)N", [{0}, {1}, {1}, {1, 2}, {2}, {1}, {3}]),
        ("C1=CC=1", [{0}, {0}, {0, 1}, {1}, {2}, {2}, {2}]),
        ("[Na+].[Cl-]", [{0}, {0, 1}, {1}]),
        ("F/C=C\\Cl", [{0}, {0, 1}, {1}, {1, 2}, {2}, {2, 3}, {3}]),
        ("C(C)(N)1CC1", [{0}, {0}, {1}, {0}, {0}, {2}, {0}, {0}, {3}, {4}, {4}]),
    ],
)
def test_tokens_belong_to_their_atoms(smiles: str, owners: list[set[int]]) -> None:
    pieces = SmilesTokenizer().pieces(smiles)
    shares = atoms_of_tokens(pieces, Chem.MolFromSmiles(smiles).GetNumAtoms())
    assert [set(np.flatnonzero(row).tolist()) for row in shares] == owners
    np.testing.assert_allclose(shares.sum(1), 1)


def test_every_way_of_writing_names_the_same_atoms() -> None:
    """The atom tokens of each way are those of the molecule's atoms, whatever the order."""
    smiles = "O=C(NCc1ccc(F)cc1)[C@@H]1CSCN1C.Cl"
    inputs = MoleculeInputs([smiles], SMALL, ways=6)
    inputs.tokenizer = SmilesTokenizer().fit([smiles])
    symbols = [atom.GetSymbol().lower() for atom in inputs.mols[0].GetAtoms()]
    for way in range(6):
        pieces = inputs.tokenizer.pieces(inputs.written(0, way))
        shares = inputs.token_atoms(0, way)
        assert shares[[0, -1]].sum() == 0
        np.testing.assert_allclose(shares[1:-1].sum(1), 1)
        for piece, row in zip(pieces, shares[1:-1], strict=True):
            if piece[0].isalpha() or piece[0] == "[":
                (owner,) = np.flatnonzero(row)
                assert symbols[owner] in piece.lower()


def test_fragments_are_spread_over_the_atoms_that_set_them() -> None:
    mol = Chem.MolFromSmiles(ASPIRIN)
    (counts,) = ecfp_counts([mol])
    shares, without = fragment_shares(mol), without_atoms(mol)
    np.testing.assert_allclose(shares.sum(1), counts > 0)
    assert (without >= 0).all()
    assert ((without < counts) == (shares.T > 0)).all()  # an atom's fragments are those that go with it


@pytest.mark.slow
def test_finds_the_atoms_that_were_planted(tmp_path: Path) -> None:
    """The label is +1 for a nitrogen and -1 for a chlorine: so are their parts, far beyond the others'."""
    rng = np.random.default_rng(0)
    smiles, labels = [], []
    for _ in range(120):
        letters = rng.choice(["C", "C", "C", "N", "C(Cl)", "C(O)"], size=int(rng.integers(4, 9)))
        smiles.append("C" + "".join(letters))
        labels.append(smiles[-1].count("N") - smiles[-1].count("Cl"))
    molecules = Molecules(
        "planted",
        np.arange(1, 121),
        np.array(smiles),
        np.array(labels, dtype=np.float64)[:, None],
        (Task("planted", "regression"),),
    )
    plain = {"dropout": 0.0, "head_dropout": 0.0, "test_smiles": 1}
    config = dataclasses.replace(SMALL, members=1, features="ecfp", d_hidden=32, **plain)
    made, _ = train_properties(
        molecules,
        Split("random", np.arange(100), np.arange(100, 120), np.arange(0)),
        RunFolder(tmp_path / "run"),
        model_config=config,
        loss_config=PRESET_LOSS,
        train_config=dataclasses.replace(PRESET_TRAIN, max_epochs=12, lr=1e-2, batch_size=10, device="cpu"),
    )
    means: dict[str, list[float]] = {}
    for one in ("CCNCC(Cl)CC", "CC(O)CCNCC", "CC(Cl)CCC(O)N"):
        found = explain(made, one)[0]
        for atom, part in zip(found.mol.GetAtoms(), found.atoms, strict=True):
            means.setdefault(atom.GetSymbol(), []).append(part)
    part = {symbol: float(np.mean(parts)) for symbol, parts in means.items()}
    others = [part["C"], part["O"]]
    assert part["N"] > max(0.3, 1.5 * max(others)), part
    assert part["Cl"] < min(-0.3, 1.5 * min(others)), part


def test_what_cannot_be_explained_is_one_sentence(model: PropertyModel) -> None:
    for smiles, reason in (("c1ccccc", "unclosed ring"), ("CCO>>CC=O", "it is a reaction")):
        with pytest.raises(DataError, match=reason):
            explain(model, smiles)
    with pytest.raises(UsageError, match="task: the model does not predict 'what'; it predicts solubility"):
        explain(model, "CCO", tasks=["what"])
    with pytest.raises(UsageError, match="randomised: expected at least 1, got 0"):
        explain(model, "CCO", randomised=0)
    features = untrained(dataclasses.replace(SMALL, sequence=False, features="ecfp"))
    with pytest.raises(UsageError, match="reads no SMILES"):
        explain(features, "CCO", method="hidden-attention")
    attended = untrained(dataclasses.replace(SMALL, blocks=["mamba2", "moe"]))
    with pytest.raises(UsageError, match="layer 1 MoE: its coefficients cannot be held"):
        explain(attended, "CCO", method="hidden-attention")
    selfies = untrained()
    selfies.tokenizer = SelfiesTokenizer().fit(["CCO"])
    with pytest.raises(UsageError, match="it reads selfies tokens"):
        explain(selfies, "CCO")
