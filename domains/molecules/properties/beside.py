"""What stands beside a property model in every table, fitted on the molecules that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from mambakit.domains.molecules.features import descriptors, ecfp_counts
from mambakit.domains.molecules.molecules import Task
from mambakit.domains.molecules.properties.evaluation import FOREST, MEAN
from mambakit.domains.molecules.structures import readable


def baselines(
    smiles: Sequence[str], labels: NDArray[np.float64], tasks: Sequence[Task], asked: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Predictions ``(m, n_tasks)`` by name: a random forest on ECFP counts and descriptors, the mean.

    Args:
        smiles: Training molecules.
        labels: Theirs, ``(n, n_tasks)``; NaN where unknown.
        tasks: What the columns are.
        asked: The molecules to predict.
    """
    known, wanted = (_features(one) for one in (smiles, asked))
    forest = np.full((len(asked), len(tasks)), np.nan)
    for i, task in enumerate(tasks):
        there = ~np.isnan(labels[:, i])
        x, y = known[there], labels[there, i]
        if task.kind == "regression":
            forest[:, i] = RandomForestRegressor(200, n_jobs=1, random_state=0).fit(x, y).predict(wanted)
        else:
            fitted = RandomForestClassifier(200, n_jobs=1, random_state=0).fit(x, y)
            forest[:, i] = fitted.predict_proba(wanted)[:, list(fitted.classes_).index(1.0)]
    mean = np.broadcast_to(np.nanmean(labels, axis=0), forest.shape)
    return {FOREST: forest, MEAN: mean}


def _features(smiles: Sequence[str]) -> NDArray[np.float64]:
    mols = readable(list(smiles))
    return np.concatenate([ecfp_counts(mols), descriptors(mols)], axis=1)
