"""Split conformal intervals and sets: exact small cases, and coverage on exchangeable samples."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.calibration import ConformalSets, SplitConformal, samples_needed
from mambakit.core.metrics import Coverage, SetCoverage, SetSize

INF, NAN = math.inf, math.nan


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residuals(values: list[float]) -> SplitConformal:
    target = torch.tensor(values, dtype=torch.float64)
    return SplitConformal().fit(torch.zeros_like(target), target)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [
        (9, 0.1, 9),
        (10, 0.1, 10),
        (19, 0.1, 18),
        (19, 0.05, 19),
        (18, 0.1, 18),
        (9, 0.7, 3),
        (1, 0.5, 1),
        (4, 0.5, 3),
    ],
)
def test_the_rank_counts_the_new_sample(n: int, alpha: float, rank: int) -> None:
    """ceil((n + 1)(1 - alpha))-th of n scores 1..n, in any order and of any sign of the residual."""
    values = [float(v) * (-1) ** v for v in torch.randperm(n, generator=generator()).add(1).tolist()]
    low, high = residuals(values).interval(torch.tensor([10.0], dtype=torch.float64), alpha)
    assert (float(low), float(high)) == (10 - rank, 10 + rank)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.1, 0.05, 0.01, 0.3])
def test_too_few_samples_promise_nothing(alpha: float) -> None:
    n = samples_needed(alpha)
    assert residuals([1.0] * n).interval(torch.zeros(1), alpha)[1].isfinite().all()
    low, high = residuals([1.0] * (n - 1)).interval(torch.zeros(1), alpha)
    assert (float(low), float(high)) == (-INF, INF)


def test_coverage_is_what_the_rank_says() -> None:
    """2000 channels, each with 19 held-out samples of a skewed law: 18 of 20 on the average, exactly."""
    draw = torch.distributions.Exponential(1.0)
    torch.manual_seed(0)
    held_out, fresh = draw.sample((19, 2000)), draw.sample((50, 2000))
    conformal = SplitConformal().fit(torch.ones_like(held_out), held_out)
    metric = Coverage()
    metric.update(*conformal.interval(torch.ones_like(fresh), 0.1), fresh)
    # the coverage given the held-out samples is Beta(18, 2) distributed
    deviation = math.sqrt((18 * 2 / (20**2 * 21) + 0.9 * 0.1 / 50) / 2000)
    assert float(metric.compute()) == pytest.approx(0.9, abs=4 * deviation)


def test_quantile_intervals_cover_and_follow_the_noise() -> None:
    torch.manual_seed(1)
    x = torch.rand(6000, 3)
    y = x + (0.1 + x) * torch.randn(6000, 3)
    wrong = torch.stack([x - 0.3 * (0.1 + x), x + 0.3 * (0.1 + x)], -1)  # far too narrow
    conformal = SplitConformal("quantile").fit(wrong[:3000], y[:3000])
    low, high = conformal.interval(wrong[3000:], 0.2)
    metric = Coverage()
    metric.update(low, high, y[3000:])
    assert float(metric.compute()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 * (1 / 3000 + 1 / 9000)))
    width = high - low
    assert width[x[3000:] > 0.8].mean() > 1.2 * width[x[3000:] < 0.2].mean()
    # too wide ones shrink
    wide = torch.stack([x - 9, x + 9], -1)
    low, high = SplitConformal("quantile").fit(wide[:3000], y[:3000]).interval(wide[3000:], 0.2)
    assert (high - low).max() < 6


def test_a_quantile_pair_by_hand() -> None:
    pair = torch.tensor([[0.0, 1.0]] * 4)
    conformal = SplitConformal("quantile").fit(pair, torch.tensor([0.5, 1.5, -0.25, 4.0]))
    # scores -0.5, 0.5, 0.25, 3: the third of four
    low, high = conformal.interval(torch.tensor([[2.0, 3.0]]), 0.4)
    assert (float(low), float(high)) == (1.5, 3.5)


def test_each_output_has_its_own_width_and_pooled_ones_share() -> None:
    torch.manual_seed(2)
    spread = torch.tensor([[1.0, 5.0], [10.0, 50.0]])  # (horizon, channels)
    target = spread * torch.randn(999, 2, 2)
    own = SplitConformal().fit(torch.zeros_like(target), target)
    widths = own.interval(torch.zeros(1, 2, 2), 0.1)[1][0]
    torch.testing.assert_close(widths / spread, torch.full((2, 2), 1.645), atol=0.2, rtol=0)
    for dim in (0, 1):
        pooled = SplitConformal(pooled=[dim]).fit(torch.zeros_like(target), target)
        assert pooled.counts.tolist() == [[1998, 1998]]
        widths = pooled.interval(torch.zeros(3, 2, 2), 0.1)[1]
        assert torch.equal(widths.select(dim + 1, 0), widths.select(dim + 1, 1))
        expected = target.abs().movedim(dim + 1, 1).flatten(0, 1).sort(0).values[math.ceil(1999 * 0.9) - 1]
        assert torch.equal(widths[0].select(dim, 0), expected)
    all_pooled = SplitConformal(pooled=[0, 1]).fit(torch.zeros_like(target), target)
    assert all_pooled.interval(torch.zeros(1, 2, 2), 0.1)[1].unique().numel() == 1


def test_missing_targets_do_not_count() -> None:
    target = torch.tensor([[1.0, NAN], [2.0, 5.0], [3.0, NAN]])
    conformal = SplitConformal().fit(torch.zeros(3, 2), target)
    assert conformal.counts.tolist() == [[3, 1]]
    assert conformal.interval(torch.zeros(1, 2), 0.25)[1].tolist() == [[3.0, INF]]
    assert conformal.interval(torch.zeros(1, 2), 0.5)[1].tolist() == [[2.0, 5.0]]


def test_groups_are_calibrated_apart() -> None:
    torch.manual_seed(3)
    groups = torch.randint(2, (4000,))
    target = torch.randn(4000) * torch.tensor([1.0, 8.0])[groups]
    zero = torch.zeros(4000)
    conformal = SplitConformal(n_groups=2).fit(zero[:2000], target[:2000], groups=groups[:2000])
    together = SplitConformal().fit(zero[:2000], target[:2000])
    for group in (0, 1):
        of_group = groups[2000:] == group
        scores = {}
        for name, one, given_groups in (("apart", conformal, groups[2000:]), ("together", together, None)):
            low, high = one.interval(zero[2000:], 0.1, groups=given_groups)
            metric = Coverage()
            metric.update(low[of_group], high[of_group], target[2000:][of_group])
            scores[name] = float(metric.compute())
        assert scores["apart"] == pytest.approx(0.9, abs=0.04)
        assert abs(scores["together"] - 0.9) > 0.05


def test_a_predicted_spread_scales_the_width() -> None:
    scale = torch.tensor([1.0, 2.0, 4.0])
    conformal = SplitConformal().fit(torch.zeros(3), torch.tensor([1.0, -4.0, 12.0]), scale=scale)
    # scores 1, 2, 3
    low, high = conformal.interval(torch.zeros(2), 0.25, scale=torch.tensor([1.0, 10.0]))
    assert high.tolist() == [3.0, 30.0]
    assert low.tolist() == [-3.0, -30.0]
    with pytest.raises(ValueError, match=r"target: .* got a single number"):
        SplitConformal().fit(torch.tensor(1.0), torch.tensor(2.0))
    with pytest.raises(ValueError, match="scale: expected positive numbers, got 0"):
        conformal.interval(torch.zeros(1), 0.25, scale=torch.zeros(1))
    with pytest.raises(ValueError, match=r"scale: expected shape \(1,\), got \(2,\)"):
        conformal.interval(torch.zeros(1), 0.25, scale=torch.ones(2))
    for again in (conformal, SplitConformal.from_saved(conformal.options(), conformal.tensors())):
        with pytest.raises(ValueError, match="scale: it was fitted with one, so the interval needs one"):
            again.interval(torch.zeros(1), 0.25)
    with pytest.raises(ValueError, match="scale: it was fitted without one, so the interval takes none"):
        SplitConformal().fit(torch.zeros(3), scale).interval(torch.zeros(1), 0.25, scale=torch.ones(1))
    with pytest.raises(ValueError, match=r"target: expected classes in 0\.\.2, got \[0, 7\]"):
        ConformalSets().fit(torch.ones(2, 3) / 3, torch.tensor([0, 7]))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    alphas=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2).map(sorted),
    score=st.sampled_from(["residual", "quantile"]),
    seed=st.integers(0, 99),
)
def test_fewer_misses_allowed_is_wider(n: int, alphas: list[float], score: str, seed: int) -> None:
    shape = (n, 2) if score == "residual" else (n, 2, 2)
    prediction = torch.randn(shape, generator=generator(seed))
    target = torch.randn(n, 2, generator=generator(seed + 1))
    conformal = SplitConformal(score).fit(prediction, target)
    low, high = conformal.interval(prediction, alphas[0])
    low_more, high_more = conformal.interval(prediction, alphas[1])
    assert (low <= low_more).all()
    assert (high >= high_more).all()


def classifier(n: int, n_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities too sure of themselves, and targets."""
    logits = 1.5 * torch.randn(n, n_classes, generator=generator(seed))
    target = torch.multinomial(logits.softmax(-1), 1, generator=generator(seed + 1)).squeeze(1)
    return (2 * logits).softmax(-1), target


METHODS = [("lac", False), ("aps", False), ("raps", False), ("aps", True), ("raps", True)]


@pytest.mark.parametrize(("method", "randomized"), METHODS)
def test_sets_cover(method: str, randomized: bool) -> None:
    p, target = classifier(8000)
    conformal = ConformalSets(method, randomized=randomized, penalty=0.05, free_ranks=2)
    conformal.fit(p[:4000], target[:4000], generator=generator(5))
    coverage, size = SetCoverage(), SetSize()
    sets = conformal.sets(p[4000:], 0.1, generator=generator(6))
    coverage.update(sets, target[4000:])
    size.update(sets)
    assert float(coverage.compute()) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 * 2 / 4000))
    assert 1 < float(size.compute()) < 4


def test_set_scores_by_hand() -> None:
    p = torch.tensor([[0.5, 0.1, 0.3, 0.1]], dtype=torch.float64)
    held_out, target = p.repeat(4, 1), torch.tensor([0, 0, 2, 1])
    # of four held-out samples the third: alpha 0.4
    lac = ConformalSets("lac").fit(held_out, target)  # 0.5 0.5 0.7 0.9
    assert lac.sets(p, 0.4).tolist() == [[True, False, True, False]]
    aps = ConformalSets("aps").fit(held_out, target)  # 0.5 0.5 0.8 0.9
    torch.testing.assert_close(aps.scores, torch.tensor([0.5, 0.5, 0.8, 0.9], dtype=torch.float64))
    assert aps.sets(p, 0.4).tolist() == [[True, False, True, False]]
    assert aps.sets(p, 0.2).tolist() == [[True, True, True, False]]
    assert aps.sets(p, 0.1).tolist() == [[True, True, True, True]]  # fewer samples than that needs
    raps = ConformalSets("raps", penalty=1.0, free_ranks=1).fit(held_out, target)  # 0.5 0.5 1.8 2.9
    torch.testing.assert_close(raps.scores, torch.tensor([0.5, 0.5, 1.8, 2.9], dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(
    method=st.sampled_from(["lac", "aps", "raps"]),
    alphas=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2).map(sorted),
    n=st.integers(1, 60),
)
def test_fewer_misses_allowed_is_a_larger_set(method: str, alphas: list[float], n: int) -> None:
    p, target = classifier(n)
    conformal = ConformalSets(method).fit(p, target)
    more, fewer = conformal.sets(p, alphas[0]), conformal.sets(p, alphas[1])
    assert (more | ~fewer).all()


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score: expected one of residual, quantile, got 'mse'"):
        SplitConformal("mse")
    with pytest.raises(RuntimeError, match="call fit with held-out samples first"):
        SplitConformal().interval(torch.zeros(1), 0.1)
    fitted = SplitConformal().fit(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(
        ValueError, match=r"alpha: expected the share of misses allowed, inside \(0, 1\), got 90"
    ):
        fitted.interval(torch.zeros(1, 2), 90)
    with pytest.raises(ValueError, match=r"outputs of shape \(3,\), but those fitted have \(2,\)"):
        fitted.interval(torch.zeros(1, 3), 0.5)
    with pytest.raises(ValueError, match=r"target: expected shape \(3, 2\) as predicted, got \(3,\)"):
        SplitConformal().fit(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="NaN for a target that is there"):
        SplitConformal().fit(torch.tensor([NAN]), torch.ones(1))
    with pytest.raises(ValueError, match=r"expected \(..., 2\), a low and a high quantile"):
        SplitConformal("quantile").fit(torch.zeros(3, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"pooled: expected dimensions in 0..0 of an output, got \[1\]"):
        SplitConformal(pooled=[1]).fit(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="groups: expected each sample's group, as there are 2, got None"):
        SplitConformal(n_groups=2).fit(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"groups: values must be in 0..1, got \[0, 2\]"):
        SplitConformal(n_groups=2).fit(torch.zeros(2), torch.ones(2), groups=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="method: expected one of lac, aps, raps, got 'top'"):
        ConformalSets("top")
    with pytest.raises(ValueError, match=r"probabilities: expected numbers in 0..1; apply a softmax"):
        ConformalSets().fit(torch.tensor([[2.0, -1.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="randomized: lac has nothing to draw"):
        ConformalSets("lac", randomized=True)
