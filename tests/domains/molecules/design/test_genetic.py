"""Children of molecules: sound, new, drawn by the generator alone, and what each edit makes by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Mol

from mambakit.domains.molecules.design import mutations
from mambakit.domains.molecules.design.genetic import (
    MAX_RING,
    crossover,
    mutate,
    offspring,
    rank_weights,
)
from mambakit.domains.molecules.design.graph_ga import GraphGAConfig, graph_ga
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.measures import top_mean
from mambakit.domains.molecules.design.objective import Component, Objective

# valences, by element and charge
USUAL = {
    (6, 0): {4}, (7, 0): {3}, (7, 1): {4}, (7, -1): {2}, (8, 0): {2}, (8, -1): {1}, (8, 1): {3},
    (9, 0): {1}, (17, 0): {1}, (35, 0): {1}, (15, 0): {3, 5}, (16, 0): {2, 4, 6}, (16, -1): {1}, (53, 0): {1},
}  # fmt: skip
DRUGS = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[C@H](N)C(=O)N1CCC[C@H]1C(=O)O",
    "O=C(O)c1ccc([N+](=O)[O-])cc1",
    "C[NH+](C)CCOC(c1ccccc1)c1ccccc1",
    "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1",
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "CS(=O)(=O)c1ccc(C2=C(c3ccccc3)C(=O)OC2)cc1",
    "C#CCN1CCc2ccccc2C1",
    "OCC(F)(F)F",
    "CC1CC2CC1C=C2",
]


def check_child(smiles: str, mol: Chem.Mol, max_atoms: int) -> None:
    again = Chem.MolFromSmiles(smiles)
    assert again is not None
    assert Chem.MolToSmiles(again) == smiles == Chem.MolToSmiles(mol)
    assert "." not in smiles
    assert "@" not in smiles
    assert "/" not in smiles
    assert 0 < mol.GetNumAtoms() <= max_atoms
    for atom in mol.GetAtoms():
        assert atom.GetNumRadicalElectrons() == 0
        usual = USUAL.get((atom.GetAtomicNum(), atom.GetFormalCharge()))
        assert usual is None or atom.GetTotalValence() in usual, smiles
        if atom.GetAtomicNum() == 16 and atom.GetTotalValence() > 2:
            assert atom.GetTotalNumHs() == 0
        if atom.GetFormalCharge() < 0 and atom.GetAtomicNum() == 8:
            assert atom.GetDegree() == 1
    rings = mol.GetRingInfo().AtomRings()
    assert all(len(ring) <= MAX_RING for ring in rings)
    small = {i for ring in rings if len(ring) < 5 for i in ring}
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        if bond.IsInRing():
            assert bond.GetBondType() != Chem.BondType.TRIPLE
        if bond.GetBondType() == Chem.BondType.DOUBLE and bond.IsInRingSize(4):
            assert not {one.GetIdx() for one in ends} <= small
        assert not (ends[0].GetAtomicNum() == ends[1].GetAtomicNum() == 8)


@settings(max_examples=25, deadline=None)
@example(chosen=[15, 14, 21, 43, 0], seed=11, rate=0.5, max_atoms=6)  # an aromatic ring with O-O
@given(
    chosen=st.lists(st.integers(0, 159), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    max_atoms=st.integers(5, 60),
)
def test_every_child_is_a_sound_new_molecule(
    molecules: list[Chem.Mol], chosen: list[int], seed: int, rate: float, max_atoms: int
) -> None:
    pool = [*map(Chem.MolFromSmiles, DRUGS), *molecules]
    parents = [Chem.MolToSmiles(pool[i]) for i in chosen]
    made = offspring(parents, 6, np.random.default_rng(seed), mutation_rate=rate, max_atoms=max_atoms)
    assert len(made) <= 6
    for smiles, mol in made.items():
        check_child(smiles, mol, max_atoms)
        assert smiles not in parents
    flat = {Chem.MolToSmiles(Chem.MolFromSmiles(one), isomericSmiles=False) for one in parents}
    assert not flat & set(made)
    again = offspring(parents, 6, np.random.default_rng(seed), mutation_rate=rate, max_atoms=max_atoms)
    assert list(again) == list(made)


def test_drugs_have_as_many_children_as_asked() -> None:
    parents = [Chem.CanonSmiles(one) for one in DRUGS]
    assert len(offspring(parents, 200, np.random.default_rng(0))) == 200
    assert offspring([], 5, np.random.default_rng(0)) == {}
    assert set(offspring(["C"], 3, np.random.default_rng(0), max_atoms=1)) < {
        "N", "O", "F", "S", "Cl", "Br",
    }  # fmt: skip


def children(one: str, other: str, n: int = 300) -> set[str]:
    a, b = Chem.MolFromSmiles(one), Chem.MolFromSmiles(other)
    made = [crossover(a, b, np.random.default_rng(seed)) for seed in range(n)]
    return {Chem.MolToSmiles(mol) for mol in made if mol is not None}


def n_nitro(smiles: str) -> int:
    nitro = Chem.MolFromSmarts("[!-][N+](=O)[O-]")
    return len(Chem.MolFromSmiles(smiles).GetSubstructMatches(nitro))


def test_crossing_by_hand() -> None:
    assert children("CO", "CN") == {"CC", "CN", "CO", "NO"}
    # nothing to cut in a common way
    assert children("CC", "C1CC1") == set()
    assert children("C", "CC") == set()
    # rings are joined by arcs: five to seven atoms, some of each
    for smiles in children("C1CCCCC1", "N1NNNNN1"):
        mol = Chem.MolFromSmiles(smiles)
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        assert 5 <= len(numbers) <= 7
        assert mol.GetRingInfo().NumRings() == 1
        assert {6, 7} == set(numbers)
    # nitro groups stay whole
    for smiles in children("C[N+](=O)[O-]", "CCO"):
        assert n_nitro(smiles) == smiles.count("+"), smiles


@pytest.mark.parametrize(
    ("mutation", "before", "after"),
    [
        (mutations.append_atom, "C", "CC C=C C#C CN C=N C#N CO C=O CF CS C=S CCl CBr"),
        (mutations.insert_atom, "CC", "CCC CNC COC CSC"),
        (mutations.delete_atom, "CCO", "CO CC"),
        (mutations.change_order, "CC", "C=C C#C"),
        (mutations.change_element, "CC", "CN CO CF CS CCl CBr"),
        (mutations.change_element, "C=C", "C=N C=O C=S"),
        (mutations.add_ring, "CCCCCC", "C1CCCCC1 CC1CCCC1 CCC1CCC1 CC1CCC1C CCCC1CC1 CCC1CC1C"),
        (mutations.delete_ring, "C1CCCC1O", "CCCCCO CCCC(C)O CCC(O)CC"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_each_mutation_by_hand(mutation: mutations.Mutation, before: str, after: str) -> None:
    made = set()
    for seed in range(400):
        mol = Chem.RWMol(Chem.MolFromSmiles(before))
        if mutation(mol, np.random.default_rng(seed)):
            Chem.SanitizeMol(mol)
            made.add(Chem.MolToSmiles(mol))
    assert made == {Chem.CanonSmiles(one) for one in after.split()}


def test_mutations_leave_charges_alone() -> None:
    mol = Chem.MolFromSmiles("CC[N+](=O)[O-]")
    made = {Chem.MolToSmiles(mutate(mol, np.random.default_rng(seed)) or mol) for seed in range(100)}
    assert len(made) > 5
    assert {n_nitro(one) for one in made} == {1}


@given(st.integers(1, 600))
def test_ranks_weigh_as_published(n: int) -> None:
    weights = rank_weights(n)
    assert weights.sum() == pytest.approx(1)
    # 1 / (0.01 n + rank), Kim et al. 2024
    np.testing.assert_allclose(weights[0] / weights, (0.01 * n + np.arange(n)) / (0.01 * n))


# --- the algorithm alone


class Nitrogens:
    """Share of nitrogen; writes down what it was asked, and is killed if so wished."""

    def __init__(self, killed_at: int = 10**9) -> None:
        self.asked: list[str] = []
        self.killed_at = killed_at

    def __call__(self, smiles: Sequence[str], mols: Sequence[Mol]) -> tuple[NDArray[np.float64], list[str]]:
        if len(self.asked) + len(smiles) > self.killed_at:
            raise KeyboardInterrupt
        self.asked += smiles
        shares = [np.mean([atom.GetAtomicNum() == 7 for atom in mol.GetAtoms()]) for mol in mols]
        return np.array(shares, dtype=np.float64), [""] * len(smiles)


def test_a_killed_graph_ga_goes_on_and_gets_better(tmp_path: Path, molecules: list[Chem.Mol]) -> None:
    start = [Chem.MolToSmiles(mol) for mol in molecules]
    config = GraphGAConfig(population=40, offspring=20)

    def bred(folder: str, oracle: Nitrogens, budget: int = 250) -> History:
        objective = Objective([Component("nitrogens", oracle)])
        history = History(tmp_path / folder / "molecules.csv", objective.names)
        assert graph_ga(start, objective, history, budget=budget, config=config, seed=3) == "budget"
        return history

    whole = Nitrogens()
    history = bred("whole", whole)
    rewards = history.rewards
    assert len(rewards) == 250 == len(set(whole.asked))
    assert {one.smiles for one in history.calls[:40]} <= set(start)
    assert top_mean(rewards) > 1.5 * top_mean(rewards[:40])
    cut, rest = Nitrogens(killed_at=130), Nitrogens()
    with pytest.raises(KeyboardInterrupt):
        bred("cut", cut)
    bred("cut", rest, budget=200)
    more = Nitrogens()
    assert [one.smiles for one in bred("cut", more).calls] == whole.asked
    assert cut.asked + rest.asked + more.asked == whole.asked


def test_a_graph_ga_ends_when_nothing_new_is_bred(tmp_path: Path) -> None:
    objective = Objective([Component("nitrogens", Nitrogens())])
    history = History(tmp_path / "molecules.csv", objective.names)
    config = GraphGAConfig(max_atoms=1)
    assert graph_ga(["C"], objective, history, budget=100, config=config) == "nothing-new"
    assert len(history) == 7  # C, N, O, F, S, Cl, Br
