"""Greedy decoding and sampling: the same rows in any batch, the log-probabilities of a full forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mambakit.core.generation import AllowedIds, GenerationConfig, generate, stream, warp

PROMPTS = [[1, 2, 3, 4, 5], [6], [2, 2, 1]]
GREEDY = GenerationConfig(max_new_tokens=12)
SAMPLE = GenerationConfig(max_new_tokens=12, strategy="sample", temperature=1.5, top_k=6, top_p=0.95, seed=4)
ENDING = {"eos_ids": (0, 6), "pad_id": -1}


def with_ends(config):
    return GenerationConfig(**{**config.__dict__, **ENDING})


@pytest.mark.parametrize("kind", ["model", "hybrid"])
@pytest.mark.parametrize("config", [GREEDY, SAMPLE, with_ends(SAMPLE)], ids=["greedy", "sample", "ends"])
def test_a_batch_gives_what_each_row_gives_alone(kind, config, request):
    model = request.getfixturevalue(kind)
    seeds = [11, 12, 13] if config.strategy == "sample" else None
    together = generate(model, PROMPTS, config, seeds=seeds)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], config, seeds=None if seeds is None else [seeds[row]])
        assert alone.sequences()[0] == together.sequences()[row]
        n = int(alone.lengths[0])
        assert_close(together.log_probs[row, :n], alone.log_probs[0])
        assert not together.log_probs[row, n:].any()
        assert alone.finished[0] == together.finished[row]
    padded = torch.full((3, 7), -5)  # what padding holds is not looked at
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    same = generate(model, padded, config, lengths=torch.tensor([5, 1, 3]), seeds=seeds)
    assert torch.equal(same.ids, together.ids)


def test_rows_end_early_and_the_rest_goes_on(model):
    config = with_ends(SAMPLE)
    config = GenerationConfig(**{**config.__dict__, "n_samples": 6})
    made = generate(model, PROMPTS, config)
    free = generate(model, PROMPTS, GenerationConfig(**{**config.__dict__, "eos_ids": ()}))
    assert len(set(made.lengths.tolist())) > 3, "rows of many lengths, or the test shows nothing"
    for row, ids in enumerate(free.ids.tolist()):
        ends = [t for t, one in enumerate(ids) if one in config.eos_ids]
        n = ends[0] + 1 if ends else len(ids)
        assert made.sequences()[row] == ids[:n]
        assert made.ids[row, n:].tolist() == [-1] * (made.ids.shape[1] - n)
        assert bool(made.finished[row]) == bool(ends)
        assert_close(made.log_probs[row, :n], free.log_probs[row, :n])


@pytest.mark.parametrize("config", [GREEDY, with_ends(SAMPLE)], ids=["greedy", "sample"])
def test_a_stream_yields_what_generate_returns(model, config):
    made = generate(model, PROMPTS, config)
    steps = list(stream(model, PROMPTS, config))
    assert [step.position for step in steps] == list(range(made.ids.shape[1]))
    assert torch.equal(torch.stack([step.ids for step in steps], 1), made.ids)
    assert torch.equal(torch.stack([step.log_probs for step in steps], 1), made.log_probs)
    assert torch.equal(steps[-1].finished, made.finished)
    if made.sampled_log_probs is not None:
        assert torch.equal(torch.stack([step.sampled_log_probs for step in steps], 1), made.sampled_log_probs)
    assert torch.is_grad_enabled()
    for _ in stream(model, PROMPTS, config):
        assert torch.is_grad_enabled(), "a reader's gradients are its own"


@pytest.mark.parametrize("kind", ["model", "hybrid"])
def test_log_probs_are_those_of_a_full_forward(kind, request):
    model = request.getfixturevalue(kind)
    config = GenerationConfig(**{**with_ends(SAMPLE).__dict__, "n_samples": 2})
    mask = torch.tensor([True, True, True, True, True, False, True])
    made = generate(model, PROMPTS, config, constraint=AllowedIds(mask))
    for row, ids in enumerate(made.sequences()):
        prompt = PROMPTS[row // 2]
        logits = model(torch.tensor([prompt + ids]))[0][0, len(prompt) - 1 : -1]
        chosen = torch.tensor(ids)[:, None]
        raw = logits.log_softmax(-1)
        assert_close(made.log_probs[row, : len(ids)], raw.gather(1, chosen)[:, 0], atol=2e-5, rtol=0)
        warped = warp(raw.masked_fill(~mask, -math.inf), temperature=1.5, top_k=6, top_p=0.95)
        drawn = made.sampled_log_probs[row, : len(ids)]
        assert_close(drawn, warped.gather(1, chosen)[:, 0], atol=2e-5, rtol=0)
        assert_close(made.log_prob[row], made.log_probs[row].sum())
        assert 5 not in ids
    assert generate(model, PROMPTS, GREEDY).sampled_log_probs is None


def test_greedy_takes_the_likeliest_of_a_full_forward(model):
    made = generate(model, PROMPTS, GREEDY)
    for prompt, ids in zip(PROMPTS, made.sequences(), strict=True):
        logits = model(torch.tensor([prompt + ids]))[0][0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == ids


@pytest.mark.parametrize("kind", ["model", "hybrid"])
@pytest.mark.parametrize("ends", [(), (0, 6)], ids=["full", "ends"])
def test_a_saved_state_goes_on_as_one_long_prompt(kind, ends, request, tmp_path):
    model = request.getfixturevalue(kind)
    config = GenerationConfig(max_new_tokens=5, strategy="sample", n_samples=2, seed=1, eos_ids=ends)
    first = generate(model, PROMPTS, config, return_state=True)
    history = [PROMPTS[row // 2] + ids for row, ids in enumerate(first.sequences())]
    first.state.save(tmp_path / "state.safetensors")
    state = type(first.state).load(tmp_path / "state.safetensors")
    before = {name: tensor.clone() for name, tensor in state.tensors()}
    # with no ids of its own, the prompt is what the state has read
    after = generate(model, [[]] * 6, GREEDY, state=state, next_logits=first.next_logits)
    whole = generate(model, history, GREEDY)
    assert after.sequences() == whole.sequences()
    assert_close(after.log_probs, whole.log_probs, atol=2e-5, rtol=0)
    # with many more ids in one call, and none in some rows
    more = [[4, 1, 5, 5], [], [2], [], [3, 3], [6]]
    after = generate(model, more, GREEDY, state=state, next_logits=first.next_logits)
    whole = generate(model, [a + b for a, b in zip(history, more, strict=True)], GREEDY)
    assert after.sequences() == whole.sequences()
    for name, tensor in state.tensors():
        assert torch.equal(tensor, before[name]), "the given state is left as it is"


def test_an_empty_prompt_begins_with_the_start_id(model):
    config = GenerationConfig(max_new_tokens=6, start_id=2)
    made = generate(model, [[], [1, 3]], config)
    assert made.sequences() == generate(model, [[2], [1, 3]], GenerationConfig(max_new_tokens=6)).sequences()
    assert generate(model, [[]], config).sequences()[0] == made.sequences()[0]
    read = generate(model, [[2, 1]], GenerationConfig(max_new_tokens=0), return_state=True)
    assert read.ids.shape == (1, 0)
    assert_close(read.next_logits, model(torch.tensor([[2, 1]]))[0][:, -1])


def test_the_state_does_not_grow(model):
    sizes = {
        generate(model, PROMPTS, GenerationConfig(max_new_tokens=n), return_state=True).state.nbytes
        for n in (1, 5, 40)
    }
    assert sizes == {model.init_state(3).nbytes}


def chi_square(ids: Tensor, probabilities: Tensor) -> float:
    """How often counts at least this far from the expected ones come (Pearson's test)."""
    counts = ids.bincount(minlength=len(probabilities))
    kept = probabilities > 0
    assert not counts[~kept].any(), "what has no probability never comes"
    wanted = len(ids) * probabilities[kept]
    statistic = ((counts[kept] - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc((kept.sum() - 1) / 2, statistic / 2))


def test_draws_follow_the_distribution(table_model):
    """Chi-square of 4000 first and second ids beside the table's probabilities; and seeds repeat them."""
    torch.manual_seed(1)
    table = 1.2 * torch.randn(8, 8)
    config = GenerationConfig(
        max_new_tokens=2, strategy="sample", temperature=0.7, top_k=6, n_samples=4000, seed=0
    )
    made = generate(table_model(table), [[3]], config)
    expected = warp(table.log_softmax(-1), temperature=0.7, top_k=6).exp()
    firsts, seconds = made.ids.T
    second = int(firsts.bincount().argmax())
    p_values = [chi_square(firsts, expected[3]), chi_square(seconds[firsts == second], expected[second])]
    assert min(p_values) > 1e-3
    assert torch.equal(generate(table_model(table), [[3]], config).ids, made.ids)


def test_seeds_repeat_and_differ(model):
    free = GenerationConfig(max_new_tokens=70, strategy="sample", temperature=2.0)
    assert not torch.equal(generate(model, [[1]], free).ids, generate(model, [[1]], free).ids)
    draw = [generate(model, [[1]], free, seeds=torch.Generator().manual_seed(3)).ids for _ in range(2)]
    assert torch.equal(*draw)
    two = generate(model, [[1], [1]], free, seeds=[5, 5])
    assert torch.equal(two.ids[0], two.ids[1])
    short = GenerationConfig(max_new_tokens=10, strategy="sample", temperature=2.0)
    assert torch.equal(generate(model, [[1]], short, seeds=[5]).ids[0], two.ids[0, :10])


def test_half_precision_logits_give_float32_log_probs(table_model):
    table = torch.randn(7, 7).bfloat16()
    made = generate(table_model(table), PROMPTS, GREEDY)
    assert made.log_probs.dtype == torch.float32
    wanted = table.float().log_softmax(-1)
    last = [prompt[-1] for prompt in PROMPTS]
    assert_close(made.log_probs[:, 0], wanted[last].amax(-1))
    double = generate(table_model(table.double()), PROMPTS, GREEDY)
    assert double.log_probs.dtype == torch.float64


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_named(table_model, value):
    table = torch.zeros(4, 4)
    table[0, 1] = table[1, 2] = 9.0  # 0 -> 1 -> 2 -> broken
    table[2, 3] = value
    table[3, 3] = 1.0
    with pytest.raises(ValueError, match="not a number at row 1, generated position 2"):
        generate(table_model(table), [[3], [0]], GREEDY)
    beams = GenerationConfig(strategy="beam", beam_width=1)
    with pytest.raises(ValueError, match="not a number at row 1, generated position 2"):
        generate(table_model(table), [[3], [0]], beams)
    steps = stream(table_model(table), [[3], [0]], GREEDY)
    assert [next(steps).position, next(steps).position] == [0, 1]
    with pytest.raises(ValueError, match="not a number at row 1"):
        next(steps)


BAD_CALLS = {
    "floats": (
        {"prompt": torch.zeros(1, 2)},
        TypeError,
        "prompt: expected an int64 tensor, got torch.float32",
    ),
    "flat": ({"prompt": [1, 2]}, TypeError, r"prompt: expected a list of lists of ids, got torch.int64 \(\)"),
    "text": ({"prompt": "ab"}, TypeError, "prompt: expected a tensor or a list of lists of ids, got str"),
    "none": ({"prompt": []}, ValueError, "prompt: expected at least one row"),
    "no-rows": ({"prompt": torch.zeros(0, 3).long()}, ValueError, "prompt: expected at least one row"),
    "empty": ({"prompt": [[1], []]}, ValueError, "prompt: row 1 is empty.*start_id"),
    "unknown": ({"prompt": [[1], [9, 1]]}, ValueError, "ids: 9 is outside the vocabulary of n_ids=7"),
    "lengths": (
        {"prompt": torch.ones(1, 2).long(), "lengths": torch.tensor([3])},
        ValueError,
        r"lengths: values must be in 0..2, got \[3\]",
    ),
    "logits": ({"next_logits": torch.zeros(1, 7)}, ValueError, "next_logits: give the state too"),
    "seeds": ({"seeds": [1]}, ValueError, "seeds: nothing is drawn with strategy='greedy'"),
    "n-seeds": (
        {"seeds": [1, 2], "config": SAMPLE},
        ValueError,
        "seeds: expected one for each of 1 rows, got 2",
    ),
    "eos": (
        {"config": GenerationConfig(eos_ids=(7,))},
        ValueError,
        "eos_ids: 7 is outside the vocabulary of 7",
    ),
    "row-of-text": ({"prompt": ["ab"]}, TypeError, "prompt: expected .*, got the text 'ab' for row 0"),
    "state": ({"state": {"0": {}}}, TypeError, "state: expected a State, got dict"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_sentence(model, case):
    arguments, error, match = BAD_CALLS[case]
    with pytest.raises(error, match=match):
        generate(model, **{"prompt": [[1, 2]], **arguments})


def test_a_state_of_another_batch_or_model_is_refused(model, hybrid):
    with pytest.raises(ValueError, match="state: it is for a batch of 2 rows, but there are 1 prompts"):
        generate(model, [[1]], state=model.init_state(2))
    with pytest.raises(ValueError, match="state: it belongs to another"):
        generate(model, [[1]], state=hybrid.init_state(1))
    with pytest.raises(ValueError, match="next_logits: they are for 5 ids, but the model gives 7"):
        generate(model, [[]], state=model.init_state(1), next_logits=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="stream with greedy or sample"):
        stream(model, [[1]], GenerationConfig(strategy="beam"))
