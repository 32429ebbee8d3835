"""Scores: references, labels, the interquartile mean and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.scores import (
    bootstrap_interval,
    interquartile_mean,
    normalised_score,
    reference_of,
    score_label,
)

VALUES = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30)


def test_references_score_0_and_100() -> None:
    reference = reference_of("Hopper-v5")
    assert reference is not None
    found = normalised_score([reference.random, reference.expert], reference.random, reference.expert)
    assert found.tolist() == pytest.approx([0, 100])
    with pytest.raises(UsageError, match="two different"):
        normalised_score([1.0], 2.0, 2.0)


def test_scores_of_other_versions_are_never_called_d4rl_scores() -> None:
    assert score_label("Hopper-v2") == "D4RL normalised score"
    assert "not comparable with D4RL" in score_label("Hopper-v5")
    assert score_label("Nothing-v5").startswith("raw return")
    assert score_label("Hopper").startswith("D4RL-reference-normalised score (no version")
    assert reference_of("somebody/Hopper-v0") is None, "another's environment of that name"
    assert reference_of("my_module:Walker2d-v5") == reference_of("Walker2d-v2")


@given(VALUES)
def test_interquartile_mean_is_scipys_where_quarters_are_whole(values: list[float]) -> None:
    fourfold = np.repeat(values, 4)
    expected = trim_mean(fourfold, 0.25)
    assert interquartile_mean(values) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(VALUES, st.floats(-100, 100))
def test_interquartile_mean_moves_with_its_values(values: list[float], shift: float) -> None:
    moved = interquartile_mean(np.array(values) + shift)
    assert moved == pytest.approx(interquartile_mean(values) + shift, abs=1e-7)
    assert min(values) - 1e-9 <= interquartile_mean(values) <= max(values) + 1e-9


def test_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(120):
        runs = [rng.normal(0.0, 1.0, 20) for _ in range(3)]
        low, high = bootstrap_interval(runs, resamples=200, seed=seed, level=0.9)
        hits += low <= 0.0 <= high
    # 108 expected, standard deviation 3.3; a percentile interval covers a little less than it says
    assert 96 <= hits <= 118
