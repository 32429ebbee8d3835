"""Structures: RDKit's reasons, canonical names, scaffolds."""

from __future__ import annotations

import pytest
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.domains.molecules.structures import (
    canonical,
    largest_component,
    readable,
    scaffold,
    sides,
    structure,
)

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("C1CC", "unclosed ring"),
        ("CC(=O", "extra open parentheses"),
        ("hello", "syntax error (around position 1)"),
        ("[Xx]C", "syntax error"),
        ("C(C)(C)(C)(C)C", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
        ("c1cccc1", "Can't kekulize mol"),
        ("", "there is no structure"),
        ("  ", "there is no structure"),
        ("CC O", "a blank stands inside"),
        ("CC>>C(C", "extra open parentheses"),
        (">>", "it has no atoms"),
    ],
)
def test_a_bad_structure_has_a_reason_and_the_screen_stays_clean(
    smiles: str, reason: str, capfd: pytest.CaptureFixture[str]
):
    mol, said = structure(smiles)
    assert mol is None
    assert reason in said
    assert "\n" not in said
    assert smiles == "" or "for input" not in said
    assert capfd.readouterr() == ("", "")


def test_warnings_of_rdkit_stay_off_the_screen_too(capfd: pytest.CaptureFixture[str]):
    assert structure("[H].CC")[0] is not None  # "not removing hydrogen atom without neighbors"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "smiles",
    [ASPIRIN, f" {ASPIRIN}\t", "[Na+].[Cl-]", "[13CH3][C@@H](N)O", "N->[Cu]", "CC(=O)O.OCC>[H+]>CC(=O)OCC"],
)
def test_salts_isotopes_dative_bonds_and_reactions_are_read(smiles: str):
    mol, reason = structure(smiles)
    assert mol is not None
    assert reason == ""


def test_a_reaction_is_the_mixture_of_its_parts():
    mol, _ = structure("CC(=O)O.OCC>[H+]>CC(=O)OCC")
    assert mol is not None
    assert mol.GetNumAtoms() == 4 + 3 + 1 + 6
    assert sides("N->[Cu]>>C") == ["N->[Cu]", "", "C"]


def test_canonical_names_agree_for_every_way_to_write_a_molecule():
    mol = readable([ASPIRIN])[0]
    written = {Chem.MolToSmiles(mol, doRandom=True) for _ in range(20)}
    assert len(written) > 5
    assert {canonical(one) for one in written} == {canonical(ASPIRIN)}
    assert canonical("OCC>>O=CC") == canonical("C(O)C>>CC=O") == "CCO>>CC=O"
    with pytest.raises(DataError, match=r"'c1cccc1': Can't kekulize"):
        canonical("c1cccc1")


def test_scaffolds_are_rings_and_linkers_without_stereochemistry():
    mols = readable([ASPIRIN, "CCO", "C[C@H]1CC[C@@H](Cc2ccncc2)CC1"])
    assert [scaffold(mol) for mol in mols] == ["c1ccccc1", "", "c1cc(CC2CCCCC2)ccn1"]


def test_largest_component_goes_by_heavy_atoms_then_by_mass():
    for smiles, largest in (("CCN.Cl", "CCN"), ("[Na+].[K+]", "[K+]"), ("O.CCCC.O", "CCCC")):
        assert Chem.MolToSmiles(largest_component(readable([smiles])[0])) == largest


def test_readable_names_the_place():
    with pytest.raises(DataError, match=r"smiles\[1\], 'C1CC': .*unclosed ring"):
        readable(["CC", "C1CC"])


@pytest.mark.parametrize(("smiles", "place"), [("CC\u00e9", 3), ("C\u2212C", 2), ("\uff23C", 1)])
def test_refuses_letters_of_no_smiles_by_their_place(smiles: str, place: int):
    """RDKit overlooks one at the end: CC\u00e9 would be read as CC."""
    mol, reason = structure(smiles)
    assert mol is None
    assert f"character {place}, {smiles[place - 1]!r}" in reason
