"""A random forest beside the networks: grown by scikit-learn, kept as plain arrays, read without it.

What networks and forest say is averaged, ``trust * networks + (1 - trust) * forest``, values and
probabilities alike. Where labels are few, models on fragments are hard to beat (arXiv:2508.06199: 25 models
on 25 sets), and a forest's errors are not those of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.molecules.baselines import Forest
from mambakit.domains.molecules.molecules import Task

FILE = "forest.safetensors"
# Trust is drawn to a half as by so many labels: validation chose the networks' weights, and flatters them.
_PRIOR = 150
_STEPS = 41


@dataclass(frozen=True, eq=False)
class Trees:
    """The trees of all tasks, node behind node; a node's left child is the one behind it.

    Attributes:
        feature: What a node asks, ``(n_nodes,)`` int16; -1 of a leaf.
        threshold: To the left go values up to here, ``(n_nodes,)`` float32.
        right: Place of the right child, ``(n_nodes,)`` int32.
        value: What a leaf says: a value, or the share of ones, ``(n_nodes,)`` float32.
        roots: Places of the trees' first nodes, ``(n_tasks, n_trees)`` int32.
        trust: Share of the networks in what is said of each task, ``(n_tasks,)``.
    """

    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    right: NDArray[np.int32]
    value: NDArray[np.float32]
    roots: NDArray[np.int32]
    trust: NDArray[np.float64]

    @classmethod
    def grow(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.float64],
        tasks: Sequence[Task],
        *,
        n_trees: int,
        seed: int = 0,
        n_jobs: int = -1,
    ) -> Self:
        """Of training molecules, the same for any number of threads; the trust is a half until it is fitted.

        Args:
            features: ``(n, n_features)``.
            labels: ``(n, n_tasks)``, NaN where unknown.
            tasks: What the columns are.
            n_trees: Of each task.
            seed: Of the draws of rows and features.
            n_jobs: Threads; -1: one a core.
        """
        grown = Forest(n_trees=n_trees, seed=seed, n_jobs=n_jobs).fit_features(features, labels, tasks)
        parts: list[dict[str, NDArray[Any]]] = []
        roots, begin = [], 0
        for forest, task in zip(grown.forests, tasks, strict=True):
            column = 0 if task.kind == "regression" else forest.classes_.tolist().index(1.0)
            for one in forest.estimators_:
                tree = one.tree_
                leaf = tree.children_left < 0
                parts.append(
                    {
                        "feature": np.where(leaf, -1, tree.feature).astype(np.int16),
                        # rounded down: a float32 is then on the same side as of the float64 threshold
                        "threshold": _down(tree.threshold),
                        "right": (tree.children_right + begin).astype(np.int32),
                        "value": tree.value[:, 0, column].astype(np.float32),
                    }
                )
                roots.append(begin)
                begin += tree.node_count
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return cls(
            **whole,
            roots=np.array(roots, dtype=np.int32).reshape(len(tasks), n_trees),
            trust=np.full(len(tasks), 0.5),
        )

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Means over the trees: values, or probabilities of 1, ``(m, n_tasks)``."""
        rows = np.arange(len(features))
        said = np.zeros((len(features), len(self.roots)))
        for task, roots in enumerate(self.roots):
            for root in roots.tolist():
                at = np.full(len(features), root)
                while (inside := self.feature[at] >= 0).any():
                    asked = features[rows, np.maximum(self.feature[at], 0)]
                    after = np.where(asked <= self.threshold[at], at + 1, self.right[at])
                    at = np.where(inside, after, at)
                said[:, task] += self.value[at]
        return said / self.roots.shape[1]

    def mixed(self, networks: NDArray[np.float64], forest: NDArray[np.float64]) -> NDArray[np.float64]:
        """What both say together, ``(m, n_tasks)``."""
        return self.trust * networks + (1 - self.trust) * forest

    def trusting(
        self,
        networks: NDArray[np.float64],
        forest: NDArray[np.float64],
        labels: NDArray[np.float64],
        tasks: Sequence[Task],
    ) -> Self:
        """The same trees with the trust of the least loss on validation molecules, drawn to a half.

        Args:
            networks, forest: What is said of them, ``(m, n_tasks)``.
            labels: Theirs, NaN where unknown.
            tasks: What the columns are.
        """
        weights = np.linspace(0.0, 1.0, _STEPS)
        trust = np.full(len(tasks), 0.5)
        for i, task in enumerate(tasks):
            known = ~np.isnan(labels[:, i])
            target, n = labels[known, i], int(known.sum())
            if n:
                both = weights[:, None] * networks[known, i] + (1 - weights[:, None]) * forest[known, i]
                best = weights[int(np.argmin(_loss(both, target, task)))]
                trust[i] = (n * best + _PRIOR * 0.5) / (n + _PRIOR)
        return type(self)(self.feature, self.threshold, self.right, self.value, self.roots, trust)

    def save(self, folder: Path) -> None:
        """Writes them into a folder."""
        safetensors.numpy.save_file(dict(self.__dict__), folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of ``save``.

        Raises:
            DataError: If the file is missing or damaged.
        """
        try:
            return cls(**safetensors.numpy.load_file(folder / FILE))
        except (OSError, TypeError, safetensors.SafetensorError) as error:
            raise DataError(
                f"{folder / FILE} is missing or damaged ({error}); save the model again"
            ) from None


def _down(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    rounded = threshold.astype(np.float32)
    return np.where(rounded > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _loss(said: NDArray[np.float64], target: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Squared error or cross-entropy of each row of ``said``."""
    if task.kind == "regression":
        return ((said - target) ** 2).mean(1)
    p = np.clip(said, 1e-4, 1 - 1e-4)
    return -(target * np.log(p) + (1 - target) * np.log1p(-p)).mean(1)
