from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.regression import ContinuousRankedProbabilityScore

from mambakit.core.metrics import (
    Coverage,
    IntervalWidth,
    PinballLoss,
    QuantileCRPS,
    SampleCRPS,
    SetCoverage,
    SetSize,
    WinklerScore,
)

NAN, INF = math.nan, math.inf


def normal_crps(mean: float, deviation: float, y: float) -> float:
    """Closed form of a normal distribution (Gneiting & Raftery 2007, section 4.2)."""
    z = (y - mean) / deviation
    return deviation * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("y", [-3.0, 0.2, 1.0, 4.0])
def test_crps_of_a_normal_distribution(y: float) -> None:
    levels = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    quantiles = torch.from_numpy(stats.norm.ppf(levels, 1.0, 0.5))
    target, expected = torch.tensor([y], dtype=torch.float64), normal_crps(1.0, 0.5, y)
    by_quantiles = QuantileCRPS(levels.tolist())
    by_quantiles.update(quantiles[None], target)
    assert float(by_quantiles.compute()) == pytest.approx(expected, abs=1e-3)
    by_samples = SampleCRPS()
    by_samples.update(quantiles[None], target)
    assert float(by_samples.compute()) == pytest.approx(expected, abs=1e-3)


def test_the_fair_crps_has_no_bias() -> None:
    """Two samples a target say, on the average, what the distribution says."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    target = torch.full((200_000,), 0.3, dtype=torch.float64)
    scores = {}
    for fair in (True, False):
        metric = SampleCRPS(fair=fair)
        metric.update(samples, target)
        scores[fair] = float(metric.compute())
    expected = normal_crps(0, 1, 0.3)
    assert scores[True] == pytest.approx(expected, abs=4 * 0.7 / math.sqrt(200_000))
    assert scores[False] > expected + 0.2
    with pytest.raises(ValueError, match="samples: expected at least 2 for each target, got 1"):
        SampleCRPS(fair=True).update(samples[:, :1], target)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 5), m=st.integers(2, 9))
def test_crps_of_samples_is_that_of_torchmetrics(seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples, target = torch.randn(n, m, generator=generator), torch.randn(n, generator=generator)
    ours, theirs = SampleCRPS(), ContinuousRankedProbabilityScore()
    ours.update(samples, target)
    assert float(ours.compute()) == pytest.approx(float(theirs(samples, target)), abs=1e-5)


def test_a_steeper_level_weighs_as_much_as_it_stands_for() -> None:
    metric = QuantileCRPS([0.1, 0.2, 0.8])  # for 0..0.15, 0.15..0.5 and 0.5..1
    metric.update(torch.zeros(1, 3), torch.ones(1))
    assert float(metric.compute()) == pytest.approx(2 * (0.15 * 0.1 + 0.35 * 0.2 + 0.5 * 0.8))


def test_pinball() -> None:
    metric = PinballLoss([0.1, 0.9])
    metric.update(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([3.0, 0.5]))
    # above both by 2 and 1; between the two by half
    assert float(metric.compute()) == pytest.approx((0.1 * 2 + 0.9 * 1 + 0.1 * 0.5 + 0.1 * 0.5) / 4)
    with pytest.raises(ValueError, match=r"increasing levels inside \(0, 1\), got \[0.9, 0.1\]"):
        PinballLoss([0.9, 0.1])
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(2, 3\)"):
        metric.update(torch.zeros(2, 3), torch.zeros(2))


def test_intervals() -> None:
    low, high = torch.tensor([0.0, 0.0, -INF, 1.0]), torch.tensor([1.0, 2.0, INF, 2.0])
    target = torch.tensor([1.0, 3.0, 5.0, NAN])
    coverage = Coverage()
    coverage.update(low, high, target)
    assert float(coverage.compute()) == pytest.approx(2 / 3)
    width = IntervalWidth()
    width.update(low[:2], high[:2], target[:2])
    assert float(width.compute()) == 1.5
    width.update(torch.tensor([INF]), torch.tensor([-INF]))  # empty
    assert float(width.compute()) == 1.0
    width.update(low, high, target)
    assert float(width.compute()) == INF
    score = WinklerScore(0.2)
    score.update(low[[0, 1, 3]], high[[0, 1, 3]], target[[0, 1, 3]])
    assert float(score.compute()) == pytest.approx((1 + 2 + 10 * 1) / 2)
    with pytest.raises(ValueError, match=r"expected one shape, got low \(4,\), high \(4,\), target \(3,\)"):
        coverage.update(low, high, target[:3])
    assert math.isnan(float(Coverage().compute()))


def test_the_right_interval_scores_best() -> None:
    target = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    scores = {}
    for z in (1.0, 1.2816, 1.7):
        metric = WinklerScore(0.2)
        metric.update(torch.full_like(target, -z), torch.full_like(target, z), target)
        scores[z] = float(metric.compute())
    assert min(scores, key=scores.__getitem__) == 1.2816


def test_sets() -> None:
    sets = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    coverage, size = SetCoverage(), SetSize()
    coverage.update(sets, torch.tensor([1, 0, -100]))
    size.update(sets)
    assert float(coverage.compute()) == 0.5
    assert float(size.compute()) == 1.0

    both = MetricCollection({"coverage": SetCoverage(), "size": SetSize()})
    assert float(both(sets, torch.tensor([1, 0, -100]))["size"]) == 1.5
    with pytest.raises(ValueError, match=r"target: expected classes in 0\.\.2, got \[0, 1, 7\]"):
        coverage.update(sets, torch.tensor([1, 0, 7]))


def test_metrics_of_a_collection_stay_apart_that_agree_at_first() -> None:
    """Where all targets are inside, every interval score is the width; where none is there, all is zero."""
    one, inside, outside = torch.ones(4), torch.zeros(4), torch.full((4,), 3.0)
    metrics = {"width": IntervalWidth(), "tenth": WinklerScore(0.1), "fifth": WinklerScore(0.2)}
    together = MetricCollection(metrics)
    for target in (inside, outside):
        together.update(-one, one, target)
    assert {k: float(v) for k, v in together.compute().items()} == {
        "width": 2.0,
        "tenth": 22.0,
        "fifth": 12.0,
    }
    pinball = MetricCollection(
        {"low": PinballLoss([0.1]), "high": PinballLoss([0.9]), "crps": QuantileCRPS([0.9])}
    )
    for target in (torch.full((4,), NAN), outside):
        pinball.update(one[:, None], target)
    found = {k: float(v) for k, v in pinball.compute().items()}
    assert found == pytest.approx({"low": 0.2, "high": 1.8, "crps": 3.6})


def test_batches_and_copies_add_up() -> None:
    target = torch.randn(3, 8)
    samples = torch.randn(3, 8, 5)
    whole, parts = SampleCRPS(), SampleCRPS()
    whole.update(samples, target)
    for i in range(3):
        parts.update(samples[i], target[i])
    assert float(whole.compute()) == pytest.approx(float(parts.compute()), abs=1e-12)
    parts.reset()
    parts.update(samples[0], target[0])
    assert float(parts(samples[1], target[1])) != float(parts.compute())


def test_calibration_error_of_a_calibrated_and_an_overconfident_model() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    target = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    honest, loud = MulticlassCalibrationError(4), MulticlassCalibrationError(4)
    assert float(honest(logits.softmax(-1), target)) < 0.015
    assert float(loud((3 * logits).softmax(-1), target)) > 0.1
