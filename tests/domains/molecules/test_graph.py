"""Molecules as graphs: what is read of them, in which order, and what atoms hear of their surroundings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig

from mambakit.core.adapters.vocabulary import N_SPECIAL, UNK_ID
from mambakit.domains.molecules.config import ModelConfig, PropertyConfig
from mambakit.domains.molecules.graph import GraphTokenizer, MoleculeGraph, collated, graph_of
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import Network
from mambakit.domains.molecules.molecules import Task
from mambakit.domains.molecules.neighbourhood import Neighbourhood
from mambakit.domains.molecules.structures import canonical, readable
from mambakit.domains.molecules.tokenizer import END, START

NCI = [line.split()[0] for line in (Path(RDConfig.RDDataDir) / "NCI/first_5K.smi").open()][:400:4]
CHIRAL = "C[C@@H](N)C(=O)O"
some_molecule = st.sampled_from([one for one in NCI if Chem.MolFromSmiles(one) is not None])
some_seed = st.integers(0, 2**31 - 1)


def read(smiles: str, n_walks: int = 4) -> MoleculeGraph:
    return graph_of(canonical(smiles), n_walks=n_walks)


def shuffled(graph: MoleculeGraph, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(graph.symbols))


@settings(deadline=None, max_examples=25)
@given(some_molecule, some_seed)
def test_bonds_and_elements_are_rdkits_in_any_order(smiles: str, seed: int) -> None:
    graph = read(smiles)
    order = shuffled(graph, seed)
    batch = collated([graph], [order], len(order) + 5)
    mol = readable([canonical(smiles)])[0]
    assert [graph.symbols[i] for i in order] == [
        f"{a.GetIsotope() or ''}{a.GetSymbol()}" for i in order for a in [mol.GetAtomWithIdx(int(i))]
    ]
    found = {
        (int(order[place]), int(order[other - 1]))
        for place, row in enumerate(batch.neighbours[0, 1:])
        for other in row.tolist()
        if other
    }
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    assert found == {pair for a, b in bonds for pair in ((a, b), (b, a))}
    assert not batch.atoms[0, 0].any()
    assert not batch.neighbours[0, len(order) + 1 :].any()


@settings(deadline=None, max_examples=15)
@given(some_molecule)
def test_walks_are_diagonals_of_powers(smiles: str) -> None:
    graph = read(smiles, n_walks=6)
    adjacency = Chem.GetAdjacencyMatrix(readable([canonical(smiles)])[0]).astype(float)
    step = adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1)
    expected = [np.diag(np.linalg.matrix_power(step, k + 1)) for k in range(6)]
    np.testing.assert_allclose(graph.walks, np.stack(expected, 1), atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(some_molecule, some_seed, st.integers(1, 31))
def test_atoms_of_many_bonds_come_last_and_chance_breaks_ties(smiles: str, seed: int, way: int) -> None:
    graph = read(f"{smiles};CC(C)(C)O")
    degree = graph.atoms[:, 0]
    for order in (graph.order("degree"), graph.order("degree", way, seed)):
        assert sorted(order) == list(range(len(order)))
        assert (np.diff(graph.molecule[order]) >= 0).all()  # molecule by molecule
        inside = graph.molecule[order][1:] == graph.molecule[order][:-1]
        assert (np.diff(degree[order])[inside] >= 0).all()
    first = graph.order("degree")
    for value in np.unique(degree):
        alike = first[(degree[first] == value) & (graph.molecule[first] == 0)]
        assert (np.diff(alike) > 0).all()  # ties as in the canonical SMILES
    np.testing.assert_array_equal(graph.order("degree", way, seed), graph.order("degree", way, seed))


def test_orders_of_chance_differ() -> None:
    graph = read("CC(C)(C)CC(C)(C)C")
    assert len({tuple(graph.order("degree", way)) for way in range(1, 9)}) > 5
    assert len({tuple(graph.order("canonical", way)) for way in range(1, 9)}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CHIRAL, "C[C@H](N)C(=O)O"),
        ("C/C=C/C", "C/C=C\\C"),
        ("C[C@H]1CC[C@@H](C)CC1", "C[C@H]1CC[C@H](C)CC1"),
        ("CC[O-]", "CCO"),
        ("[2H]C", "C"),
        ("C1CCCCC1", "c1ccccc1"),
        ("CCO>>CC=O", "CC=O>>CCO"),
        ("CCO;O", "O;CCO"),
    ],
)
def test_tells_apart(one: str, other: str) -> None:
    first, second = read(one), read(other)
    same = first.symbols == second.symbols and np.array_equal(first.neighbours, second.neighbours)
    assert not (
        same and np.array_equal(first.atoms, second.atoms) and np.array_equal(first.bonds, second.bonds)
    )


@settings(deadline=None, max_examples=8)
@given(st.lists(some_molecule, min_size=1, max_size=3), some_seed)
def test_surroundings_do_not_depend_on_order_or_company(smiles: list[str], seed: int) -> None:
    torch.manual_seed(0)
    layer = Neighbourhood(d_model=8, n_layers=3, n_walks=4).double()
    graphs = [read(one) for one in smiles]
    straight = [np.arange(len(one.symbols)) for one in graphs]
    mixed = [shuffled(one, seed) for one in graphs]
    length = max(map(len, straight)) + 2
    x = torch.randn(len(graphs), length, 8, dtype=torch.float64)
    moved = x.clone()
    for row, order in enumerate(mixed):
        moved[row, 1 : len(order) + 1] = x[row, 1 + torch.from_numpy(order)]

    @torch.no_grad()
    def run(x: torch.Tensor, orders: list[np.ndarray], which: slice = slice(None)) -> torch.Tensor:
        batch = collated(graphs[which], orders[which], x.shape[1])
        return layer(x, batch._replace(walks=batch.walks.double()))

    expected, found = run(x, straight), run(moved, mixed)
    for row, order in enumerate(mixed):
        alone = run(x[row : row + 1, : len(order) + 1], straight, slice(row, row + 1))
        there = torch.from_numpy(order) + 1
        torch.testing.assert_close(found[row, 1 : len(order) + 1], expected[row, there])
        torch.testing.assert_close(alone[0], expected[row, : len(order) + 1])


def test_an_atom_hears_as_many_bonds_far_as_there_are_layers() -> None:
    torch.manual_seed(0)
    graph = read("CCCCCCCC")
    layer = Neighbourhood(d_model=8, n_layers=2, n_walks=0)
    x = torch.randn(1, 9, 8, requires_grad=True)
    layer(x, collated([read("CCCCCCCC", 0)], [np.arange(8)], 9))[0, 4].sum().backward()
    assert x.grad is not None
    heard = x.grad[0].abs().sum(-1) > 0
    assert heard.tolist() == [False, False, True, True, True, True, True, False, False]
    assert len(graph.symbols) == 8


@pytest.mark.parametrize("order", ["canonical", "degree"])
@settings(deadline=None, max_examples=5)
@given(smiles=some_molecule, seed=some_seed)
def test_any_way_of_writing_is_read_alike(order: str, smiles: str, seed: int) -> None:
    mol = Chem.MolFromSmiles(smiles)
    again = Chem.MolToRandomSmilesVect(mol, 1, randomSeed=1 + seed % 1000)[0]
    config = ModelConfig(
        order=order, features="none", d_model=8, n_layers=1, d_state=4, head_dim=8, members=1, d_hidden=8
    )  # type: ignore[arg-type]
    tokenizer = GraphTokenizer().fit([smiles])
    torch.manual_seed(0)
    network = Network(
        PropertyConfig(
            [Task("y", "regression")], [0.0], [1.0], tokenizer.n_ids, config.backbone(), tokenizer="graph",
            model=config,
        )
    ).eval()  # fmt: skip
    said = []
    for text in (smiles, again):
        inputs = MoleculeInputs([text, "CCO"], config, ways=4)
        inputs.tokenizer = tokenizer
        ways = [0, min(2, inputs.ways - 1)]
        with torch.no_grad():
            said.append([network(inputs.batch([0], [way]), torch.zeros(1, 0))[0] for way in ways])
    assert torch.equal(torch.stack(said[0]), torch.stack(said[1]))


def test_unseen_elements_separators_and_long_molecules() -> None:
    config = ModelConfig(features="none", max_tokens=8)
    inputs = MoleculeInputs(["CCO;O", "C[Se]C;O", "C" * 30 + ";O"], config, ways=2, form="molecule;molecule")
    inputs.tokenizer = GraphTokenizer().fit(["CCO;O"])
    assert inputs.tokenizer.decode(inputs.tokenizer.encode("OCC;O")) == ["C", "C", "O", ";", "O"]
    assert (inputs.ids(1) == UNK_ID).sum() == 1
    assert inputs.ids(0)[0] == START
    assert inputs.ids(0)[-1] == END
    assert (inputs.ids(0)[1:-1] >= N_SPECIAL).all()
    batch = inputs.batch([2, 0], [1, 1])
    assert inputs.cut == {2}
    assert batch.lengths.tolist() == [8, 7]
    assert batch.graph is not None
    assert batch.graph.neighbours.max() <= 6  # no bond leads to an atom that was cut


def test_saved_tokenizer_reads_alike(tmp_path: Path) -> None:
    tokenizer = GraphTokenizer().fit(NCI[:20])
    tokenizer.save(tmp_path)
    again = GraphTokenizer.load(tmp_path)
    assert torch.equal(again.encode(NCI[0]).values, tokenizer.encode(NCI[0]).values)
