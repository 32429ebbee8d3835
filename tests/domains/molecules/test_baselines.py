"""Baselines: they learn what is there to learn, task by task, from known labels alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from rdkit import RDConfig
from rdkit.Chem import Descriptors

from mambakit.core.errors import DataError
from mambakit.domains.molecules.baselines import BASELINES, Forest, Mean, fit_baseline, forest_features
from mambakit.domains.molecules.cards import load_molecules
from mambakit.domains.molecules.metrics import score
from mambakit.domains.molecules.molecules import Molecules, Task
from mambakit.domains.molecules.reading import read_molecules
from mambakit.domains.molecules.splits import split_molecules
from mambakit.domains.molecules.structures import readable

TASKS = (
    Task("logp", "regression", "logP"),
    Task("long", "classification"),
    Task("ones", "classification"),
)


@pytest.fixture(scope="module")
def labelled() -> Molecules:
    """90 structures with a number, a class with blanks, and a class that is always 1."""
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"
    smiles = read_molecules(path, tasks=()).smiles[:90]
    mols = readable(smiles.tolist())
    labels = np.ones((90, 3))
    labels[:, 0] = [Descriptors.MolLogP(mol) for mol in mols]
    labels[:, 1] = [len(one) > 20 for one in smiles.tolist()]
    labels[::3, 1] = np.nan
    return Molecules("nci", np.arange(1, 91), smiles, labels, TASKS)


def test_a_forest_beats_the_mean_and_predicts_every_task(labelled: Molecules):
    split = split_molecules(labelled, "random", fractions=(0.7, 0, 0.3))
    held = labelled.smiles[split.test].tolist()
    scores = {}
    for name in BASELINES:
        options = {"n_trees": 20} if name == "forest" else {}
        baseline = fit_baseline(name, labelled, split.train, **options)
        predictions = baseline.predict(held)
        assert predictions.shape == (len(held), 3)
        assert (predictions[:, 2] == 1).all()
        scores[name] = score(predictions, labelled.labels[split.test], TASKS)
    assert scores["forest"].tasks[0].values["rmse"] < 0.8 * scores["mean"].tasks[0].values["rmse"]
    assert scores["mean"].tasks[1].values["roc_auc"] == 0.5


def test_the_mean_is_that_of_known_labels(labelled: Molecules):
    mean = Mean().fit(labelled.smiles.tolist(), labelled.labels, TASKS)
    assert mean.predict(["C"])[0].tolist() == pytest.approx(np.nanmean(labelled.labels, axis=0).tolist())


def test_a_seed_decides_and_molecules_are_as_good_as_smiles(labelled: Molecules):
    smiles = labelled.smiles[:15].tolist()
    labels = labelled.labels[:15]
    one = Forest(n_trees=5, seed=1).fit(smiles, labels, TASKS)
    same = Forest(n_trees=5, seed=1).fit(readable(smiles), labels, TASKS)
    other = Forest(n_trees=5, seed=2).fit(smiles, labels, TASKS)
    assert np.array_equal(one.predict(smiles), same.predict(readable(smiles)))
    assert not np.array_equal(one.predict(smiles), other.predict(smiles))
    assert one.predict([]).shape == (0, 3)


def test_blank_labels_do_not_count(labelled: Molecules):
    smiles, labels = labelled.smiles[:40].tolist(), labelled.labels[:40, :1].copy()
    labels[20:] = np.nan
    features = forest_features(smiles)
    with_blanks = Forest(n_trees=5).fit_features(features, labels, TASKS[:1]).predict_features(features)
    without = Forest(n_trees=5).fit_features(features[:20], labels[:20], TASKS[:1]).predict_features(features)
    assert np.array_equal(with_blanks, without)


@pytest.mark.parametrize("baseline", [Mean(), Forest(n_trees=2)])
def test_a_task_without_labels_and_wrong_shapes(baseline: Mean | Forest):
    with pytest.raises(DataError, match="y: no training molecule has a label"):
        baseline.fit(["C"], np.array([[np.nan]]), (Task("y", "regression"),))
    with pytest.raises(DataError, match=r"expected shape \(2, 1\), got \(1, 1\)"):
        baseline.fit(["C", "CC"], np.array([[1.0]]), (Task("y", "regression"),))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")
@pytest.mark.parametrize(
    ("name", "protocol", "low", "high"),
    [("freesolv", "ibm-split", 1.2, 1.4), ("freesolv", "deepchem-scaffold", 2.35, 2.65)],
)
def test_a_forest_scores_what_forests_score(name: str, protocol: str, low: float, high: float):
    molecules = load_molecules(name, protocol=protocol)
    split = split_molecules(molecules, protocol)
    forest = fit_baseline("forest", molecules, split.train)
    predictions = forest.predict(molecules.smiles[split.test].tolist())
    assert low < score(predictions, molecules.labels[split.test], molecules.tasks).figure("rmse") < high
