"""Splits: whole, disjoint, of the sizes asked for, and honest about what test shares with training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.leaks import leaks
from mambakit.domains.molecules.molecules import Molecules, Split, Task
from mambakit.domains.molecules.splits import PROTOCOLS, scaffolds_of, split_molecules
from mambakit.domains.molecules.structures import canonical

RINGS = [
    "C1CC1",
    "C1CCC1",
    "C1CCCC1",
    "C1CCCCC1",
    "c1ccccc1",
    "c1ccncc1",
    "C1CCNCC1",
    "C1CCOC1",
    "c1ccsc1",
    "",
]


def made(smiles: list[str], labels: list[float] | None = None, **more: object) -> Molecules:
    n = len(smiles)
    y = np.array(labels if labels is not None else range(n), dtype=np.float64)[:, None]
    return Molecules("made", np.arange(1, n + 1), np.array(smiles), y, (Task("y", "regression"),), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def nci() -> Molecules:
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    return made([line.split()[0] for line in path.read_text().splitlines()[:400]])


def whole_and_disjoint(split: Split, n: int) -> bool:
    parts = np.concatenate([split.train, split.validation, split.test])
    return sorted(parts.tolist()) == list(range(n)) and parts.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 9), min_size=12, max_size=60),
    protocol=st.sampled_from(["random", "scaffold", "deepchem-scaffold"]),
    seed=st.integers(0, 5),
)
def test_every_molecule_is_in_one_part_and_scaffolds_in_one_too(kinds: list[int], protocol: str, seed: int):
    molecules = made([f"{'C' * (place % 4)}{RINGS[kind] or 'O'}" for place, kind in enumerate(kinds)])
    try:
        split = split_molecules(molecules, protocol, seed=seed)
    except DataError as error:
        assert "too few" in str(error)  # noqa: PT017  (few scaffolds of many molecules each)
        assert protocol != "random"
        return
    assert whole_and_disjoint(split, len(molecules))
    assert split.name == protocol
    if protocol != "random":
        scaffolds = scaffolds_of(molecules.smiles.tolist())
        train, validation, test = (
            set(scaffolds[part]) for part in (split.train, split.validation, split.test)
        )
        assert not train & test
        assert not train & validation
        assert not validation & test


@pytest.mark.parametrize("protocol", ["random", "scaffold", "deepchem-scaffold"])
def test_sizes_are_the_shares_asked_for(nci: Molecules, protocol: str):
    for fractions in ((0.8, 0.1, 0.1), (0.5, 0.3, 0.2)):
        split = split_molecules(nci, protocol, fractions=fractions)
        assert whole_and_disjoint(split, len(nci))
        for part, share in zip((split.train, split.validation, split.test), fractions, strict=True):
            assert len(part) == pytest.approx(share * len(nci), abs=2)


def test_seeds_decide_random_and_scaffold_and_nothing_else(nci: Molecules):
    for protocol in ("random", "scaffold", "deepchem-scaffold"):
        one, again, other = (split_molecules(nci, protocol, seed=seed) for seed in (0, 0, 1))
        assert np.array_equal(one.test, again.test)
        assert np.array_equal(one.test, other.test) == (protocol == "deepchem-scaffold")


def test_deepchem_scaffold_is_deepchems_algorithm(nci: Molecules):
    """Against its rule written out: groups by size, then by first index, both falling; fill until over."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(scaffolds_of(nci.smiles.tolist())):
        groups.setdefault(one, []).append(place)
    ordered = [group for _, group in sorted(groups.items(), key=lambda x: (len(x[1]), x[1][0]), reverse=True)]
    train: list[int] = []
    valid: list[int] = []
    test: list[int] = []
    for group in ordered:
        if len(train) + len(group) > 0.8 * len(nci):
            if len(train) + len(valid) + len(group) > 0.9 * len(nci):
                test += group
            else:
                valid += group
        else:
            train += group
    split = split_molecules(nci, "deepchem-scaffold")
    found = [part.tolist() for part in (split.train, split.validation, split.test)]
    assert found == [sorted(train), sorted(valid), sorted(test)]


def test_a_column_says_the_part():
    words = ["train", "Valid", "test ", "TRAIN", "val"]
    molecules = made(["C", "CC", "CCC", "CO", "CN"], table=pd.DataFrame({"Fold": words}))
    split = split_molecules(molecules, "column", column="fold")
    assert [part.tolist() for part in (split.train, split.validation, split.test)] == [[0, 3], [1, 4], [2]]
    wrong = made(["C", "CC", "CCC"], table=pd.DataFrame({"fold": ["train", "1", None]}))
    with pytest.raises(DataError, match=r"column 'fold' says '1' in row 2 \(2 rows in all\); expected train"):
        split_molecules(wrong, "column", column="fold")
    with pytest.raises(DataError, match="split column 'fool' is missing; did you mean 'fold'"):
        split_molecules(wrong, "column", column="fool")
    with pytest.raises(DataError, match="no molecule is in the training part"):
        split_molecules(made(["C"], table=pd.DataFrame({"fold": ["test"]})), "column", column="fold")


def test_given_parts_are_the_ibm_split():
    molecules = made(["C", "CC", "CCC"], parts=np.array(["test", "train", "validation"]))
    split = split_molecules(molecules, "ibm-split")
    assert (split.train.tolist(), split.validation.tolist(), split.test.tolist()) == ([1], [2], [0])


def test_wrong_calls():
    molecules = made(["C", "CC", "CCC"])
    assert "ibm-split" in PROTOCOLS
    for protocol, more, message in (
        ("scafold", {}, "expected random, scaffold, deepchem-scaffold, column, ibm-split, got 'scafold'"),
        ("ibm-split", {}, "was not loaded in the parts of its ibm-split"),
        ("column", {}, "name the column"),
        ("column", {"column": "x"}, "made has no table"),
        ("random", {"column": "x"}, "only the protocol column reads one"),
        ("random", {"fractions": (0.8, 0.3, 0.1)}, "sum 1"),
    ):
        with pytest.raises(UsageError, match=message):
            split_molecules(molecules, protocol, **more)
    with pytest.raises(DataError, match="2 molecules have too few molecules for this split"):
        split_molecules(made(["C", "CC"]), "random")
    with pytest.raises(DataError, match="too few small scaffolds for this split; split at random"):
        split_molecules(made(["C" * n for n in range(1, 21)]), "scaffold")


def test_leaks_count_structures_labels_scaffolds_and_neighbours():
    smiles = ["CCO", "Cc1ccccc1", "C1CC1", "OCC", "Oc1ccccc1", "CC", "c1ccncc1"]
    molecules = made(smiles, [1, 2, 3, 1.5, 5, 6, 7])
    found = leaks(molecules, Split("mine", np.array([0, 1, 2]), np.array([5]), np.array([3, 4, 6])))
    assert (found.train, found.test, found.structures, found.conflicting) == (3, 3, 1, 1)
    assert (found.scaffolds, found.known_scaffolds, found.ringed, found.on_known_scaffolds) == (2, 1, 2, 1)
    assert 0 < found.similarity < 1
    said = found.sentence()
    assert "of 3 test molecules 1 (33%) stand in training too, 1 with another label" in said
    assert "1 of 2 with rings (50%) have a scaffold of training (1 of 2 scaffolds)" in said


def test_scaffold_splits_leak_no_scaffold_and_random_ones_do(nci: Molecules):
    assert leaks(nci, split_molecules(nci, "scaffold")).on_known_scaffolds == 0
    found = leaks(nci, split_molecules(nci, "random"))
    assert found.on_known_scaffolds > found.ringed / 2
    assert found.similarity > leaks(nci, split_molecules(nci, "deepchem-scaffold")).similarity


def test_random_splits_keep_rows_of_one_structure_together(nci: Molecules):
    """However they are written, and with parts as large as ever; without repeats nothing changes."""
    own = list(dict.fromkeys(canonical(one) for one in nci.smiles[:60].tolist()))
    n = len(own)
    written = [*own, *(Chem.MolToSmiles(Chem.MolFromSmiles(one), canonical=False) for one in own[: n // 2])]
    for seed in range(5):
        split = split_molecules(made(written), "random", seed=seed)
        parts = [
            {canonical(written[i]) for i in part} for part in (split.train, split.validation, split.test)
        ]
        assert sum(len(one) for one in parts) == n
        assert len(split.train) + len(split.validation) + len(split.test) == len(written)
        assert abs(len(split.test) - 0.1 * len(written)) <= 2
        alone, order = (
            split_molecules(made(own), "random", seed=seed),
            np.random.default_rng(seed).permutation(n),
        )
        assert alone.test.tolist() == sorted(order[-round(n / 10) :])
