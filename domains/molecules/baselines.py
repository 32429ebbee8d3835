"""What a model must beat: a random forest on fingerprints and descriptors, and saying the mean.

All predict alike: ``fit(smiles, labels, tasks)``, then ``predict(smiles)`` gives ``(n, n_tasks)``, of classes
the probability of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.domains.molecules.components import ONE_MOLECULE, features_by_component, form_of
from mambakit.domains.molecules.features import descriptors, ecfp_counts
from mambakit.domains.molecules.molecules import Molecules, Task
from mambakit.domains.molecules.structures import readable

Structures = Sequence[str] | Sequence[Chem.Mol]
Array = NDArray[np.float64]


class Baseline(Protocol):
    """Learns from labelled structures, and predicts."""

    def fit(self, structures: Structures, labels: Array, tasks: Sequence[Task]) -> Baseline: ...

    def predict(self, structures: Structures) -> Array: ...


class Mean:
    """Says the mean of the known training labels: of classes the share of ones, which ranks nothing."""

    def fit(self, structures: Structures, labels: Array, tasks: Sequence[Task]) -> Mean:
        """``labels`` ``(n, n_tasks)``, NaN where unknown. Raises DataError if a task has no label."""
        _check(structures, labels, tasks)
        self.means = np.nanmean(labels, axis=0)
        return self

    def predict(self, structures: Structures) -> Array:
        """``(n, n_tasks)``."""
        return np.tile(self.means, (len(structures), 1))


class Forest:
    """Random forests (Breiman 2001) on ECFP4 counts and RDKit's 2D descriptors: one a task, on its labels.

    Args:
        n_trees: Of each forest.
        seed: Of the draws of rows and features.
        n_jobs: Processes; -1 takes all cores.
    """

    def __init__(self, *, n_trees: int = 200, seed: int = 0, n_jobs: int = 1) -> None:
        self.n_trees = n_trees
        self.seed = seed
        self.n_jobs = n_jobs

    def fit(self, structures: Structures, labels: Array, tasks: Sequence[Task]) -> Forest:
        """``labels`` ``(n, n_tasks)``, NaN where unknown.

        Raises:
            DataError: If a structure can't be read, or a task has no label.
        """
        _check(structures, labels, tasks)
        return self.fit_features(forest_features(structures, n_jobs=self.n_jobs), labels, tasks)

    def fit_features(self, features: NDArray[np.float32], labels: Array, tasks: Sequence[Task]) -> Forest:
        """As ``fit``, on what ``forest_features`` gives."""
        self._tasks = tuple(tasks)
        self.forests = [self._forest(features, labels[:, i], task) for i, task in enumerate(tasks)]
        return self

    def predict(self, structures: Structures) -> Array:
        """``(n, n_tasks)``: means of trees, or probabilities of 1. Raises DataError as ``fit`` does."""
        return self.predict_features(forest_features(structures, n_jobs=self.n_jobs))

    def predict_features(self, features: NDArray[np.float32]) -> Array:
        """As ``predict``, on what ``forest_features`` gives."""
        found = np.empty((len(features), len(self._tasks)))
        if not len(features):
            return found
        for i, (task, forest) in enumerate(zip(self._tasks, self.forests, strict=True)):
            if task.kind == "regression":
                found[:, i] = forest.predict(features)
            else:
                classes = forest.classes_.tolist()  # one class only, where training holds no other
                ones = forest.predict_proba(features)
                found[:, i] = ones[:, classes.index(1.0)] if 1.0 in classes else 0.0
        return found

    def _forest(self, features: NDArray[np.float32], labels: Array, task: Task) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        known = ~np.isnan(labels)
        options = {"n_estimators": self.n_trees, "random_state": self.seed, "n_jobs": self.n_jobs}
        if task.kind == "regression":
            # a third of the features at each split, as Breiman has it: about as good as all, in half the time
            forest = RandomForestRegressor(max_features=1 / 3, **options)
        else:
            forest = RandomForestClassifier(**options)
        return forest.fit(features[known], labels[known])


BASELINES: dict[str, type[Mean] | type[Forest]] = {"mean": Mean, "forest": Forest}


def forest_features(structures: Structures, *, n_jobs: int = 1) -> NDArray[np.float32]:
    """ECFP4 counts beside descriptors, ``(n, 2048 + n_descriptors)`` float32, as scikit-learn wants it.

    Of reactions and several components as many times, as ``components`` has them.
    """
    mols = [one for one in structures if isinstance(one, Chem.Mol)]
    if len(mols) < len(structures):
        mols = readable([str(one) for one in structures])
    texts = [] if mols is structures else [one for one in structures if isinstance(one, str)]
    form = form_of(texts[0]) if texts else ONE_MOLECULE
    counts = features_by_component(texts, mols, form, ecfp_counts)
    described = features_by_component(texts, mols, form, partial(descriptors, n_jobs=n_jobs))
    return np.concatenate([counts, described.astype(np.float32)], axis=1).astype(np.float32, copy=False)


def fit_baseline(name: str, molecules: Molecules, train: NDArray[np.int64], **options: Any) -> Mean | Forest:
    """A baseline of ``BASELINES`` on some of the molecules."""
    made = BASELINES[name](**options)
    return made.fit(molecules.smiles[train].tolist(), molecules.labels[train], molecules.tasks)


def _check(structures: Structures, labels: Array, tasks: Sequence[Task]) -> None:
    if labels.shape != (len(structures), len(tasks)):
        raise DataError(f"labels: expected shape ({len(structures)}, {len(tasks)}), got {labels.shape}")
    for i, task in enumerate(tasks):
        if np.isnan(labels[:, i]).all():
            raise DataError(f"{task.name}: no training molecule has a label")
