"""Beam search beside the exhaustive enumeration of all sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from mambakit.core.generation import AllowedIds, GenerationConfig, PrefixTrie, generate

LENGTH, N_IDS, EOS = 3, 4, 0
EVERY_PREFIX = N_IDS ** (LENGTH - 1)
PROMPTS = [[3, 1], [2], [1, 1, 2]]


@pytest.fixture(scope="module")
def tiny(language_model):
    """With a memory: where only the last id mattered, sequences of the same pairs would be equally likely."""
    return language_model(n_ids=N_IDS)


@torch.no_grad()
def enumerate_all(model, prompt, penalty, allowed=lambda ids: True, ends=(EOS,)):
    """Every sequence that ends or has the most ids, with its log-probability: the likeliest first."""
    every = torch.tensor(list(itertools.product(range(N_IDS), repeat=LENGTH)))
    logits, _ = model(torch.cat([torch.tensor(prompt).expand(len(every), -1), every], 1))
    log_probs = logits[:, len(prompt) - 1 : -1].log_softmax(-1).gather(2, every[..., None])[..., 0]
    found = {}
    for ids, row in zip(every.tolist(), log_probs, strict=True):
        n = next((t + 1 for t, one in enumerate(ids) if one in ends), LENGTH)
        if allowed(tuple(ids[:n])):
            found[tuple(ids[:n])] = (float(row[:n].sum()) / n**penalty, ids[:n], row[:n], ids[n - 1] in ends)
    return sorted(found.values(), key=lambda one: -one[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 0.6, -0.5])
@pytest.mark.parametrize("ends", [(EOS,), (), (0, 2)], ids=["one", "none", "two"])
def test_a_beam_of_every_prefix_is_exhaustive(tiny, penalty, ends):
    wanted = [enumerate_all(tiny, prompt, penalty, ends=ends) for prompt in PROMPTS]
    n_best = min(EVERY_PREFIX, *map(len, wanted))
    config = GenerationConfig(
        max_new_tokens=LENGTH,
        strategy="beam",
        beam_width=EVERY_PREFIX,
        n_best=n_best,
        length_penalty=penalty,
        eos_ids=ends,
        pad_id=-1,
    )
    made = generate(tiny, PROMPTS, config)
    for row, (score, ids, log_probs, ended) in enumerate(one for best in wanted for one in best[:n_best]):
        assert made.sequences()[row] == ids
        assert_close(float(made.scores[row]), score, atol=1e-5, rtol=0)
        assert_close(made.log_probs[row, : len(ids)], log_probs)
        assert bool(made.finished[row]) == ended


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_constrained_it_is_exhaustive_too(tiny, penalty):
    mask = torch.tensor([True, True, False, True])
    config = GenerationConfig(
        max_new_tokens=LENGTH,
        strategy="beam",
        beam_width=EVERY_PREFIX,
        n_best=EVERY_PREFIX,
        length_penalty=penalty,
        eos_ids=(EOS,),
    )
    made = generate(tiny, [[3, 1]], config, constraint=AllowedIds(mask))
    wanted = enumerate_all(tiny, [3, 1], penalty, allowed=lambda ids: 2 not in ids)
    assert [ids for ids in made.sequences() if ids] == [ids for _, ids, _, _ in wanted][:EVERY_PREFIX]
    listed = {(1,), (2, 1), (1, 1), (3,), ()}
    made = generate(tiny, [[3, 1]], config, constraint=PrefixTrie(listed, N_IDS, (EOS,)))
    whole = {(*one, EOS) for one in listed}
    wanted = enumerate_all(tiny, [3, 1], penalty, allowed=lambda ids: ids in whole)
    assert [ids for ids in made.sequences() if ids] == [ids for _, ids, _, _ in wanted]
    empty = made.lengths == 0
    assert empty.sum() == EVERY_PREFIX - len(listed)
    assert (made.scores[empty] == -math.inf).all()
    assert not made.finished[empty].any()


@pytest.mark.parametrize("kind", ["model", "hybrid"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_recurrent_state_follows_its_beam(kind, width, request):
    """What is returned has the log-probabilities of a full forward, once each, and in order."""
    model = request.getfixturevalue(kind)
    config = GenerationConfig(
        max_new_tokens=8, strategy="beam", beam_width=width, n_best=width, eos_ids=(0,), length_penalty=1.0
    )
    made = generate(model, PROMPTS, config, return_state=True)
    rows = made.sequences()
    for row, ids in enumerate(rows):
        prompt = PROMPTS[row // width]
        logits = model(torch.tensor([prompt + ids]))[0][0, len(prompt) - 1 :]
        log_probs = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert_close(made.log_probs[row, : len(ids)], log_probs, atol=2e-5, rtol=0)
        assert_close(made.scores[row], log_probs.sum() / len(ids), atol=2e-5, rtol=0)
        assert_close(made.next_logits[row], logits[-1], atol=2e-5, rtol=2e-5)
    for prompt in range(len(PROMPTS)):
        mine = slice(prompt * width, (prompt + 1) * width)
        assert len({tuple(ids) for ids in rows[mine]}) == width
        assert made.scores[mine].tolist() == sorted(made.scores[mine].tolist(), reverse=True)
    for prompt, ids in enumerate(PROMPTS):
        alone = generate(model, [ids], config)
        assert alone.sequences() == rows[prompt * width : (prompt + 1) * width]


@pytest.mark.parametrize("ends", [(), (4,)])
def test_a_beam_of_one_is_greedy(model, ends):
    """An unlikely end is not looked at, as short as it makes the sequence."""
    options = {"max_new_tokens": 9, "eos_ids": ends}
    greedy = generate(model, PROMPTS, GenerationConfig(**options))
    beam = generate(model, PROMPTS, GenerationConfig(**options, strategy="beam", beam_width=1))
    assert torch.equal(greedy.ids, beam.ids)
    assert_close(greedy.scores, beam.scores)


def test_it_stops_when_every_prompt_is_decided(table_model):
    """Where the end is likely, no hundred steps are taken."""
    steps = []

    class Counting(table_model):
        def step(self, ids, state, *, inplace=False):
            steps.append(ids)
            return super().step(ids, state)

    table = torch.tensor([[0.0, 0, 0, 0], [3.0, 0, 0, 0], [2.0, 0, 1, 0], [0.0, 0, 1, 1]])
    config = GenerationConfig(max_new_tokens=100, strategy="beam", beam_width=3, eos_ids=(EOS,))
    assert generate(Counting(table), PROMPTS, config).finished.all()
    assert len(steps) < 20
