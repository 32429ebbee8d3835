"""Measures of generated molecules against sums by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from mambakit.core.errors import UsageError
from mambakit.domains.molecules.language.metrics import (
    DESCRIPTORS,
    MoleculeSet,
    kl_divergences,
    kl_score,
    scaffold_similarity,
    similarity_to_nearest,
)
from mambakit.domains.molecules.language.pictures import grid
from mambakit.domains.molecules.language.quality import HELD_OUT, SAMPLES, measure
from mambakit.domains.molecules.language.reference import Reference, hashes

SOME = ["CCO", "OCC", "c1ccccc1", "C(", "c1ccc2ccccc2c1", "CC(=O)Oc1ccccc1C(=O)O", "C1CCCCC1", ""]
OTHERS = ["CCN", "Cc1ccc2ccccc2c1", "c1ccc2ccccc2c1C", "OC(=O)c1ccccc1", "c1ccc(-c2ccccc2)cc1"]


def prints(smiles):
    maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    return [maker.GetFingerprint(Chem.MolFromSmiles(one)) for one in smiles]


def test_shares_are_of_what_they_say():
    some = MoleculeSet(SOME)
    assert some.validity == 6 / 8
    assert some.uniqueness(10_000) == 5 / 6
    assert some.uniqueness(2) == 1 / 2


def test_diversity_and_nearest_are_the_sums_over_pairs():
    some, others = MoleculeSet(SOME), MoleculeSet(OTHERS)
    # ethanol was drawn twice, and counts twice
    assert (some.names[0], some.times.tolist()) == ("CCO", [2, 1, 1, 1, 1])
    mine, theirs = prints([some.names[0], *some.names]), prints(OTHERS)
    pairs = [DataStructs.TanimotoSimilarity(a, b) for a, b in itertools.product(mine, mine)]
    assert some.internal_diversity == pytest.approx(1 - np.mean(pairs))
    best = [max(DataStructs.TanimotoSimilarity(a, b) for b in theirs) for a in mine]
    assert similarity_to_nearest(some, others) == pytest.approx(np.mean(best))
    assert similarity_to_nearest(some, some) == 1


def test_scaffolds_are_compared_by_their_counts():
    some, others = MoleculeSet(SOME), MoleculeSet(OTHERS)
    # naphthalene once against naphthalene twice and biphenyl once; single rings and chains don't count
    assert scaffold_similarity(some, others) == pytest.approx(2 / np.sqrt(5))
    assert np.isnan(scaffold_similarity(MoleculeSet(["CC"]), others))
    repeated = MoleculeSet(["c1ccc2ccccc2c1"] * 3 + ["c1ccc(-c2ccccc2)cc1"])
    assert scaffold_similarity(repeated, others) == pytest.approx((3 * 2 + 1) / np.sqrt(10 * 5))


def test_a_set_has_no_divergence_from_itself_and_much_from_another():
    rings = MoleculeSet(["c1ccccc1" + "C" * n for n in range(1, 12)])
    chains = MoleculeSet(["C" * n + "O" for n in range(1, 12)])
    same = kl_divergences(rings, rings)
    assert set(same) == {*DESCRIPTORS, "internal similarity"}
    assert max(abs(one) for one in same.values()) < 1e-9
    assert kl_score(same) == pytest.approx(1)
    apart = kl_divergences(chains, rings)
    assert apart["NumAromaticRings"] > 5
    assert kl_score(apart) < 0.7
    assert all(np.isnan(one) for one in kl_divergences(MoleculeSet(["C"]), rings).values())


def test_novelty_is_against_all_that_was_trained_on():
    known = Reference("some", np.sort(hashes([*OTHERS, "CCO"])), OTHERS, ["CCCl", "CCBr"], ["C(", "CCN"])
    found = measure([*SOME, "NCC"], known)
    rows = {row["molecules"]: row for row in found.rows}
    assert rows[SAMPLES]["novel"] == 4 / 6  # ethanol and ethylamine are known, however they are written
    assert rows[HELD_OUT]["novel"] == 1
    assert np.isnan(rows[HELD_OUT]["snn-held-out"])
    assert rows["6-gram"]["valid"] == 1 / 2
    with pytest.raises(UsageError, match="keeps no training molecules"):
        measure(SOME, Reference("none", hashes(OTHERS)))


def test_what_rdkit_says_of_a_drawing_stays_off_the_screen(capfd):
    grid(["[C]", "CCO"])
    assert capfd.readouterr() == ("", "")


def test_the_grid_is_a_picture(tmp_path):
    png = grid(["CCO", "c1ccccc1"], tmp_path / "some.png")
    assert png.startswith(b"\x89PNG")
    assert (tmp_path / "some.png").read_bytes() == png
    assert b"<svg" in grid(["CCO"], tmp_path / "some.svg")
    assert grid([]).startswith(b"\x89PNG")
