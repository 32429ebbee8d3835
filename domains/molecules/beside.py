"""What stands beside a property model in every table, fitted on the molecules that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.molecules.baselines import Forest, Mean, forest_features
from mambakit.domains.molecules.molecules import Task

FOREST, MEAN = "random forest", "training mean"


def baselines(
    smiles: Sequence[str], labels: NDArray[np.float64], tasks: Sequence[Task], asked: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Predictions ``(m, n_tasks)`` by name: a random forest on ECFP counts and descriptors, and the mean.

    Args:
        smiles: Training molecules.
        labels: Theirs, ``(n, n_tasks)``; NaN where unknown.
        tasks: What the columns are.
        asked: The molecules to predict.

    Raises:
        DataError: If a task has no label.
    """
    forest = Forest().fit_features(forest_features(list(smiles)), labels, tasks)
    return {
        FOREST: forest.predict_features(forest_features(list(asked))),
        MEAN: Mean().fit(list(smiles), labels, tasks).predict(list(asked)),
    }
