"""Rows of several structures and reactions: read, named in reasons, described and split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.baselines import forest_features
from mambakit.domains.molecules.components import (
    commonest_form,
    features_by_component,
    first_component,
    form_of,
    in_words,
)
from mambakit.domains.molecules.features import descriptors, ecfp_counts
from mambakit.domains.molecules.reading import read_molecules
from mambakit.domains.molecules.splits import scaffolds_of, split_molecules
from mambakit.domains.molecules.structures import canonical, joined, leaves, readable, structure

side = st.sampled_from(["", "CCO", "N->[Cu]", "CC.[Na+]", "c1ccccc1"])
molecule = side.filter(bool)
reaction = st.tuples(side, side, side).filter(any).map(">".join)
row = st.lists(molecule | reaction, min_size=1, max_size=3).map(";".join)


@given(row)
def test_leaves_are_joined_again_and_forms_survive_canonical_names(smiles: str) -> None:
    assert joined(*leaves(smiles)) == smiles
    assert form_of(canonical(smiles)) == form_of(smiles)
    assert canonical(canonical(smiles)) == canonical(smiles)


@pytest.mark.parametrize(
    ("smiles", "called", "reason"),
    [
        ("CCO;c1cccc1", ("solute", "solvent"), "solvent: Can't kekulize mol"),
        ("CCO;", ("solute", "solvent"), "solvent: there is no structure"),
        (";", (), "component 1: there is no structure"),
        ("CC>>C(C", (), "products: "),
        ("C1>>C1", (), "reactants: SMILES Parse Error: unclosed ring"),  # the mixture alone would be a ring
        ("CC>C1>CC;O", ("step",), "step: agents: SMILES Parse Error: unclosed ring"),
        ("O;CC>hello>", ("step",), "component 2: agents: SMILES Parse Error: syntax error"),
    ],
)
def test_each_structure_is_checked_and_named(smiles: str, called: tuple[str, ...], reason: str) -> None:
    mol, said = structure(smiles, called)
    assert mol is None
    assert said.startswith(reason)


def test_features_stand_beside_each_other() -> None:
    smiles = ["CCO;O", "c1ccccc1;CO", "CCO;CO"]
    made = features_by_component(smiles, readable(smiles), form_of(smiles[0]), descriptors)
    expected = [descriptors(readable([one.split(";")[i] for one in smiles])) for i in range(2)]
    np.testing.assert_array_equal(made, np.concatenate(expected, 1))
    mols = readable(["CCO"])
    np.testing.assert_array_equal(
        features_by_component(["CCO"], mols, "molecule", ecfp_counts), ecfp_counts(mols)
    )


def test_reactions_are_reactants_differences_and_agents() -> None:
    smiles = ["CCO.CC(=O)O>[H+]>CCOC(C)=O", "CCO>>CC=O", ">>C"]
    made = features_by_component(smiles, readable(smiles), "reaction", ecfp_counts)
    reactants, difference, agents = np.split(made, 3, axis=1)
    before, after = (ecfp_counts(readable([one.split(">")[i] for one in smiles[:2]])) for i in (0, 2))
    np.testing.assert_array_equal(reactants[:2], before)
    np.testing.assert_array_equal(difference[:2], after - before)
    assert agents[0].sum() == 1
    assert not agents[1].any()
    assert not reactants[2].any()
    back = features_by_component(["CC=O>>CCO"], readable(["CC=O>>CCO"]), "reaction", ecfp_counts)
    np.testing.assert_array_equal(np.split(back[0], 3)[1], -difference[1])
    assert forest_features(["CCO>>CC=O"]).shape[1] == 3 * forest_features(["CCO"]).shape[1]


def test_forms_in_words() -> None:
    assert in_words(form_of("CCO;O"), ("solute", "solvent")) == "2 components (solute, solvent)"
    assert in_words(form_of("A>>B")) == "a reaction (reactants>agents>products)"
    assert commonest_form(["A>>B", "C", "D"]) == "molecule"
    assert [first_component(one) for one in ("A;B", "A.C>>B;D", ">>B")] == ["A", "A.C", "B"]


def file(tmp_path: Path, text: str, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_several_columns_are_one_row(tmp_path: Path) -> None:
    path = file(tmp_path, "solvent,y,solute\nO,1.5,CCO\nc1cccc1,2,CC\n,3,CC\nCO,4,OCC.Cl\nO,5,CCO\n")
    found = read_molecules(path, smiles_column=["Solute", "solvent"])
    assert found.components == ("solute", "solvent")
    assert found.smiles.tolist() == ["CCO;O", "OCC.Cl;CO", "CCO;O"]
    assert found.labels[:, 0].tolist() == [1.5, 4, 5]
    assert found.left_out["row"].tolist() == [2, 3]
    assert found.left_out["reason"].str.startswith("solvent: ").all()
    assert any("rows 1, 5" in note for note in found.notes)
    assert read_molecules(path, smiles_column=["solute", "solvent"], largest=True).smiles[1] == "CCO;CO"


def test_rows_of_another_form_are_left_out_with_a_reason(tmp_path: Path) -> None:
    found = read_molecules(file(tmp_path, "smiles,y\nCC>>CO,1\nCC,2\nCO>>CC,3\nC;O,4\n"))
    assert found.rows.tolist() == [1, 3]
    assert found.left_out["reason"].tolist() == [
        "it is one molecule, where most rows are a reaction (reactants>agents>products)",
        "it is 2 components (molecule, molecule), where most rows are a reaction (reactants>agents>products)",
    ]


@pytest.mark.parametrize(
    ("name", "columns", "error", "said"),
    [
        ("my.csv", ["solute", "solute"], UsageError, "'solute' is named twice"),
        ("my.csv", ["solute", "solvant"], DataError, "did you mean 'solvent'"),
        ("my.smi", ["solute", "solvent"], UsageError, "need a table"),
    ],
)
def test_says_which_column_is_wrong(
    tmp_path: Path, name: str, columns: list[str], error: type[Exception], said: str
) -> None:
    path = file(tmp_path, "solute,solvent,y\nCC,O,1\n", name)
    with pytest.raises(error, match=said):
        read_molecules(path, smiles_column=columns)


def test_splits_go_by_the_first_component(tmp_path: Path) -> None:
    rings = ["C1CC1", "C1CCC1", "C1CCCC1", "c1ccccc1", "c1ccncc1", "C1CCNCC1", "c1ccoc1", "c1ccsc1", "C1COC1"]
    rows = [
        f"{ring}{'C' * n},{solvent},{n}" for ring in rings for n, solvent in enumerate(("O", "c1ccccc1C"))
    ]
    path = file(tmp_path, "solute,solvent,y\n" + "\n".join(rows) + "\n")
    found = read_molecules(path, smiles_column=["solute", "solvent"])
    parts = split_molecules(found, "scaffold", fractions=(0.6, 0.2, 0.2))
    train, test = (set(scaffolds_of(found.smiles[part].tolist())) for part in (parts.train, parts.test))
    assert not train & test
    assert scaffolds_of(["C1CC1C;c1ccccc1"]).tolist() == ["C1CC1"]
