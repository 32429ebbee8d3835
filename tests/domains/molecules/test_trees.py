"""The forest beside the networks says what scikit-learn's does, and counts as much as validation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rdkit")

from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError
from mambakit.domains.molecules.baselines import Forest
from mambakit.domains.molecules.molecules import Task
from mambakit.domains.molecules.trees import FILE, Trees

TASKS = (Task("size", "regression", "atoms"), Task("oxygen", "classification"))


def some(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Features with ties and numbers between float32s, a number and a class of them; some labels unknown."""
    rng = np.random.default_rng(seed)
    x = np.concatenate(
        [rng.integers(0, 3, (n, 4)), rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-6, 6, 3)], 1
    )
    y = np.stack([x[:, 0] + x[:, 4] / np.abs(x[:, 4]).max(), (x[:, 1] > 0) & (x[:, 2] < 2)], 1).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    y[:2, 1] = (0, 1)
    return x.astype(np.float32), y


def grown(seed: int = 0, n_trees: int = 7) -> Trees:
    x, y = some(seed)
    return Trees.grow(x, y, TASKS, n_trees=n_trees, seed=seed, n_jobs=1)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_says_what_scikit_learn_says(seed: int) -> None:
    x, y = some(seed)
    expected = Forest(n_trees=7, seed=seed).fit_features(x, y, TASKS)
    for asked in (x, some(seed + 1)[0]):
        np.testing.assert_allclose(
            grown(seed).predict(asked), expected.predict_features(asked), rtol=1e-5, atol=1e-6
        )


def test_is_saved(tmp_path: Path) -> None:
    trees = grown()
    trees.save(tmp_path)
    x = some(1)[0]
    assert np.array_equal(Trees.load(tmp_path).predict(x), trees.predict(x))
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(DataError, match=r"forest.safetensors is missing or damaged"):
        Trees.load(tmp_path)


def test_trust_follows_who_is_right_as_far_as_labels_reach() -> None:
    trees = grown()
    for n, least in ((20, 0.5), (2000, 0.9)):
        rng = np.random.default_rng(0)
        labels = np.stack([rng.normal(size=n), rng.random(n) < 0.5], 1).astype(float)
        right, wrong = np.clip(labels, None, 1.0), np.full_like(labels, 0.5)
        labels[:, 0] = right[:, 0]
        ours = trees.trusting(right, wrong, labels, TASKS)
        theirs = trees.trusting(wrong, right, labels, TASKS)
        assert (ours.trust > least).all()
        np.testing.assert_allclose(ours.trust, 1 - theirs.trust)
    mixed = ours.mixed(right, wrong)
    np.testing.assert_allclose(mixed, ours.trust * right + (1 - ours.trust) * wrong)
    nothing = trees.trusting(right, wrong, np.full_like(labels, np.nan), TASKS)
    assert nothing.trust.tolist() == [0.5, 0.5]
