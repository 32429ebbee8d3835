"""Warped distributions beside their definitions, one id after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mambakit.core.generation import GenerationConfig, warp
from mambakit.core.generation.warpers import Uniforms, draw

# sixteenths: their differences are exact, so that the definitions' order is float32's
LOGITS = st.lists(
    st.one_of(st.integers(-128, 128).map(lambda n: n / 16), st.sampled_from([0.0, 1.0, -math.inf])),
    min_size=1,
    max_size=9,
).filter(lambda row: max(row) > -math.inf)


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(one - max(logits)) for one in logits]
    return [one / sum(weights) for one in weights]


def by_likelihood(probabilities: list[float]) -> list[int]:
    return sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))


def left(warped: torch.Tensor) -> set[int]:
    assert abs(float(warped.double().exp().sum()) - 1) <= 10 * torch.finfo(torch.float32).eps
    return {i for i, one in enumerate(warped.tolist()) if one > -math.inf}


@given(LOGITS, st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_top_k_keeps_the_k_likeliest(logits, k):
    probabilities = softmax(logits)
    warped = warp(torch.tensor(logits), top_k=k)
    wanted = {i for i in by_likelihood(logits)[:k] if logits[i] > -math.inf}
    assert left(warped) == wanted
    total = sum(probabilities[i] for i in wanted)
    for i in wanted:
        assert math.exp(warped[i]) == pytest.approx(probabilities[i] / total, abs=1e-6)


@given(LOGITS, st.floats(0.01, 0.999))
@settings(deadline=None, max_examples=50)
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    order, probabilities = by_likelihood(logits), softmax(logits)
    kept = left(warp(torch.tensor(logits), top_p=p))
    assert kept == set(order[: len(kept)])
    reached = [sum(probabilities[i] for i in order[:n]) for n in range(len(order) + 1)]
    assert reached[len(kept)] >= p - 1e-6
    assert reached[len(kept) - 1] < p + 1e-6


@given(LOGITS, st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=50)
def test_min_p_is_a_share_of_the_likeliest(logits, p):
    kept = left(warp(torch.tensor(logits), min_p=p))
    ratios = [math.exp(one - max(logits)) for one in logits]
    assert kept >= {i for i, ratio in enumerate(ratios) if ratio > p * (1 + 1e-5)}
    assert kept <= {i for i, ratio in enumerate(ratios) if ratio >= p * (1 - 1e-5)}
    assert max(range(len(logits)), key=lambda i: logits[i]) in kept


@given(LOGITS, st.floats(1e-30, 1e4), st.integers(1, 9), st.floats(0.1, 1.0), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=50)
def test_one_after_the_other_and_never_nothing(logits, temperature, k, p, min_p):
    row = torch.tensor(logits)
    together = warp(row, temperature=temperature, top_k=k, top_p=p, min_p=min_p)
    one_by_one = warp(warp(warp(warp(row, temperature=temperature), top_k=k), top_p=p), min_p=min_p)
    assert left(together)
    both = torch.stack([together, one_by_one]).exp()
    if left(together) == left(one_by_one):  # rounding may move what lies on a limit
        assert_close(both[0], both[1])
    assert_close(warp(row + 3.0, temperature=0.5), warp(row, temperature=0.5), atol=1e-5, rtol=1e-5)


@given(LOGITS, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_draw_inverts_the_cumulative_distribution(logits, uniforms):
    log_probs = torch.tensor(logits).log_softmax(-1)
    ids = draw(log_probs.expand(len(uniforms), -1), torch.tensor(uniforms, dtype=torch.float64))
    probabilities = softmax(logits)
    for uniform, one in zip(uniforms, ids.tolist(), strict=True):
        assert probabilities[one] > 0
        assert sum(probabilities[:one]) <= uniform + 1e-6
        assert uniform <= sum(probabilities[: one + 1]) + 1e-6


def test_uniform_numbers_of_a_row_are_its_own():
    many, one = Uniforms([(1, 0), (1, 1), 7], torch.device("cpu")), Uniforms([7], torch.device("cpu"))
    numbers = torch.stack([many.at(t) for t in range(150)])
    assert torch.equal(numbers[:, 2], torch.cat([one.at(t) for t in range(150)]))
    assert len(set(numbers.flatten().tolist())) == numbers.numel()
    assert 0 <= numbers.min() < numbers.max() < 1


BAD_OPTIONS = {
    "a strategy": ({"strategy": "best"}, "strategy: expected one of greedy, sample, beam, got 'best'"),
    "not its option": (
        {"temperature": 0.5},
        "temperature: 0.5 has no effect with strategy='greedy'.*'sample'",
    ),
    "not its width": ({"strategy": "sample", "beam_width": 2}, "beam_width: 2 has no effect"),
    "temperature": ({"strategy": "sample", "temperature": 0}, "temperature: .*got 0; .*strategy='greedy'"),
    "not a number": ({"strategy": "sample", "temperature": math.nan}, "temperature: expected a positive"),
    "top_k": ({"strategy": "sample", "top_k": 0}, "top_k: expected at least 1, got 0"),
    "top_p": ({"strategy": "sample", "top_p": 1.2}, "top_p: expected 0 < top_p <= 1, got 1.2"),
    "min_p": ({"strategy": "sample", "min_p": -0.1}, "min_p: expected 0 <= min_p <= 1"),
    "tokens": ({"max_new_tokens": -1}, "max_new_tokens: expected at least 0, got -1"),
    "n_best": ({"strategy": "beam", "beam_width": 2, "n_best": 3}, "n_best: expected at most beam_width=2"),
    "eos": ({"eos_ids": (-1,)}, "eos_ids: ids are not negative"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_one_sentence(case):
    options, match = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=match):
        GenerationConfig(**options)
    with pytest.raises(TypeError, match=r"max_new_tokens: expected a whole number, got 2\.5"):
        GenerationConfig(max_new_tokens=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="eos_ids: expected a list of ids, got 3"):
        GenerationConfig(eos_ids=3)


def test_the_config_goes_through_yaml():
    import dataclasses

    import yaml

    config = GenerationConfig(strategy="sample", top_k=5, eos_ids=(1, 2), seed=3)
    values = yaml.safe_load(yaml.safe_dump({**dataclasses.asdict(config), "eos_ids": [1, 2]}))
    assert GenerationConfig(**values) == config
