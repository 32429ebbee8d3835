"""Oracles against published values, hand computation and RDKit's older functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import AllChem

from mambakit.core.errors import UsageError
from mambakit.domains.molecules.design import oracles, oracles_pmo
from mambakit.domains.molecules.design.fingerprints import FINGERPRINTS, tanimoto
from mambakit.domains.molecules.design.oracles_pmo import PMO

ASPIRIN = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")


def test_descriptors_of_aspirin() -> None:
    # PubChem CID 2244 has 180.16 g/mol, 63.6 square angstroms and one donor
    values = {name: oracle(ASPIRIN) for name, (oracle, _) in oracles.PLAIN.items()}
    assert values["mw"] == pytest.approx(180.16, abs=0.005)
    assert values["tpsa"] == pytest.approx(63.60)
    assert values["logp"] == pytest.approx(1.3101)
    assert values["qed"] == pytest.approx(0.550, abs=5e-4)
    assert values["sa"] == pytest.approx(1.58, abs=5e-3)
    counted = {"hbd": 1, "hba": 3, "rings": 1, "aromatic_rings": 1, "rotatable_bonds": 2, "heavy_atoms": 13}
    assert {name: values[name] for name in counted} == counted


def test_values_that_the_issue_of_tdc_states() -> None:
    # PyTDC 0.4.7 on the molecule of its documentation (mims-harvard/TDC, issue 244)
    mol = Chem.MolFromSmiles("CC(C)(C)[C@H]1CCc2c(sc(NC(=O)COc3ccc(Cl)cc3)c2C(N)=O)C1")
    stated = {
        "sitagliptin_mpo": 3.34970667598234e-12,
        "zaleplon_mpo": 0.0019017991803329235,
        "isomers_c7h8n2o2": 2.1987591132394053e-34,
        "isomers_c9h10n2o2pf2cl": 1.713908431542013e-15,
    }
    for name, value in stated.items():
        assert PMO[name]()(mol) == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(
    ("name", "smiles", "value"),
    [
        ("celecoxib_rediscovery", oracles_pmo.CELECOXIB, 1.0),
        ("thiothixene_rediscovery", oracles_pmo.THIOTHIXENE, 1.0),
        ("troglitazone_rediscovery", oracles_pmo.TROGLITAZONE, 1.0),
        ("albuterol_similarity", oracles_pmo.ALBUTEROL, 1.0),
        ("mestranol_similarity", oracles_pmo.MESTRANOL, 1.0),
        # pharmacophores and scaffold are kept, both decorations too; and the other way round
        ("deco_hop", oracles_pmo.HOP, 2 / 4),
        ("scaffold_hop", oracles_pmo.HOP, 2 / 3),
        # no aromatic ring where two are wanted: sqrt(1 exp(-(2/.5)^2/2)); two rings where three are
        ("perindopril_mpo", oracles_pmo.PERINDOPRIL, math.exp(-4)),
        ("amlodipine_mpo", oracles_pmo.AMLODIPINE, math.exp(-1)),
        # itself but for its likeness, exp(-(1/.1)^2/2), one of four
        ("sitagliptin_mpo", oracles_pmo.SITAGLIPTIN, math.exp(-50 / 4)),
        # C17H15N5O for C19H17N3O2: 2 carbons, hydrogens and nitrogens off, 1 oxygen, 3 atoms in all
        ("zaleplon_mpo", oracles_pmo.ZALEPLON, math.exp(-(3 * 4 / 2 + 1 / 2 + 9 / 8) / 5 / 2)),
        ("isomers_c7h8n2o2", "Nc1ccc(C(N)=O)c(O)c1", 1.0),
        # 7 C, 4 H, 2 N, 1 O, 1 P, 2 F, 1 Cl and 18 atoms short
        (
            "isomers_c9h10n2o2pf2cl",
            "CCO",
            math.exp(-((7**2 + 4**2 + 2**2 + 1 + 1 + 2**2 + 1) / 2 + 18**2 / 8) / 8),
        ),
    ],
)
def test_targets_and_hand_computation(name: str, smiles: str, value: float) -> None:
    assert PMO[name]()(Chem.MolFromSmiles(smiles)) == pytest.approx(value)


def test_median_is_the_root_of_both_similarities() -> None:
    camphor, menthol = (Chem.MolFromSmiles(one) for one in (oracles_pmo.CAMPHOR, oracles_pmo.MENTHOL))
    like = oracles.similarity(oracles_pmo.MENTHOL)(camphor)
    assert 0 < like < 1
    for mol in (camphor, menthol):
        assert PMO["median1"]()(mol) == pytest.approx(math.sqrt(like))


def test_there_are_the_twenty_of_pmo_without_classifiers() -> None:
    assert len(PMO) == 20
    assert not {"drd2", "gsk3b", "jnk3"} & set(PMO)


def test_fingerprints_are_those_of_the_functions_that_guacamol_calls(molecules: list[Chem.Mol]) -> None:
    older = {
        "ecfp4": lambda mol: AllChem.GetMorganFingerprint(mol, 2),
        "ecfp6": lambda mol: AllChem.GetMorganFingerprint(mol, 3),
        "fcfp4": lambda mol: AllChem.GetMorganFingerprint(mol, 2, useFeatures=True),
        "ap": lambda mol: AllChem.GetAtomPairFingerprint(mol, maxLength=10),
    }
    target = Chem.MolFromSmiles(oracles_pmo.OSIMERTINIB)
    with rdBase.BlockLogs():
        for name, old in older.items():
            new = FINGERPRINTS[name]
            for mol in molecules[:60]:
                expected = DataStructs.TanimotoSimilarity(old(mol), old(target))
                assert tanimoto(new(mol), new(target)) == expected


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_values_are_of_the_molecule_not_of_its_writing(
    data: st.DataObject, molecules: list[Chem.Mol]
) -> None:
    mol = data.draw(st.sampled_from(molecules))
    name = data.draw(st.sampled_from(sorted(PMO)))
    seed = data.draw(st.integers(1, 10_000))
    other = Chem.MolFromSmiles(Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)[0])
    same = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    value = PMO[name]()(same)
    assert 0 <= value <= 1
    assert PMO[name]()(other) == pytest.approx(value, abs=1e-9)


def test_patterns() -> None:
    acid = "C(=O)[OX2H1]"
    assert oracles.smarts(acid)(ASPIRIN) == 1
    assert oracles.smarts(acid, absent=True)(ASPIRIN) == 0
    assert oracles.smarts("[N]")(ASPIRIN) == 0
    assert oracles.smarts("[N]", absent=True)(ASPIRIN) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oracles.similarity("C1CC"), "target: RDKit can't read the SMILES 'C1CC'"),
        (lambda: oracles.similarity("CC", "ecfp5"), "fingerprint: expected one of .* did you mean ecfp"),
        (lambda: oracles.median(["CC"]), "targets: expected a list of at least two SMILES"),
        (lambda: oracles.smarts("[C"), r"pattern: expected a SMARTS, got '\[C'"),
        (lambda: oracles.isomer("c7h8"), "formula: expected one such as C7H8N2O2, got 'c7h8'"),
        (lambda: oracles.isomer("C7Xx2"), "formula: Xx in 'C7Xx2' is no element"),
    ],
)
def test_options_that_can_not_be(make, message: str) -> None:
    with rdBase.BlockLogs(), pytest.raises(UsageError, match=message):
        make()
