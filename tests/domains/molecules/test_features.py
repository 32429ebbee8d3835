"""Features: finite for odd molecules, the same however a molecule is written."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from mambakit.domains.molecules import features
from mambakit.domains.molecules.features import descriptor_names, descriptors, ecfp_counts, nearest_similarity
from mambakit.domains.molecules.structures import readable

ODD = ["[Na+].[Cl-]", "[Pt]", "*CC*", "[H][H]", "C" * 300, "O=[Mo](=O)=O", "CC>>CO"]
DRUGS = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C[C@H](N)C(=O)O"]


def test_descriptors_are_rdkits_and_finite_for_anything(capfd: pytest.CaptureFixture[str]):
    mols = readable(DRUGS + ODD)
    values = descriptors(mols)
    assert values.shape == (len(mols), len(descriptor_names()))
    assert np.isfinite(values).all()
    assert np.isfinite(values.astype(np.float32)).all()
    for name, of in (
        ("MolLogP", Descriptors.MolLogP),
        ("TPSA", Descriptors.TPSA),
        ("MolWt", Descriptors.MolWt),
    ):
        column = values[:, descriptor_names().index(name)]
        assert column.tolist() == [of(mol) for mol in mols]
    assert capfd.readouterr() == ("", "")


def test_a_macromolecule_does_without_what_would_take_minutes():
    """Of 2,400 atoms Ipc alone takes RDKit an hour."""
    values = dict(zip(descriptor_names(), descriptors(readable(["C" * 2400]))[0], strict=True))
    assert values["Ipc"] == 1e6  # where it is cut
    assert values["AvgIpc"] == values["BCUT2D_MWHI"] == values["MaxEStateIndex"] == 0.0
    assert values["HeavyAtomCount"] == 2400
    small = Chem.MolFromSmiles(DRUGS[0])
    assert descriptors([small])[0][descriptor_names().index("AvgIpc")] == Descriptors.AvgIpc(small)


@pytest.mark.slow
def test_more_processes_change_nothing(monkeypatch: pytest.MonkeyPatch):
    mols = readable([*DRUGS, *("C" * n + end for n in range(1, 71) for end in ("O", "N", "F"))])
    made = descriptors(mols, n_jobs=2)
    monkeypatch.setattr(features, "_known", {})
    assert np.array_equal(made, descriptors(mols))


def test_counts_count_and_do_not_depend_on_the_way_of_writing():
    mol = readable(DRUGS[:1])[0]
    written = readable([Chem.MolToSmiles(mol, doRandom=True) for _ in range(5)])
    counts = ecfp_counts(written)
    assert (counts == ecfp_counts([mol])).all()
    # one substructure an atom and radius, none where a larger one covers the same atoms
    assert counts[0].sum() >= mol.GetNumAtoms()
    assert counts[0].max() > 1
    methyls = ecfp_counts(readable(["CC", "CCC", "CC(C)C", "CC(C)(C)C"]), size=64)
    assert methyls.max(axis=1).tolist() == [2, 2, 3, 4]


def test_nearest_similarity_is_the_largest_of_all_pairs():
    mols = readable([*DRUGS, "CCO", "CC(=O)Oc1ccccc1"])
    training = readable(["OCC", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)OC"])
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    own, known = ([generator.GetFingerprint(one) for one in some] for some in (mols, training))
    expected = [max(DataStructs.TanimotoSimilarity(one, other) for other in known) for one in own]
    found = nearest_similarity(mols, training)
    assert found.tolist() == pytest.approx(expected)
    assert found[3] == 1
    with pytest.raises(ValueError, match="at least one molecule"):
        nearest_similarity(mols, [])
