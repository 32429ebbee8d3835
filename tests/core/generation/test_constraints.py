"""Constraints: only what is allowed comes, for every strategy; what is forbidden altogether is an error."""

from __future__ import annotations

import itertools

import pytest
import torch

from mambakit.core.generation import (
    AllowedIds,
    Automaton,
    GenerationConfig,
    PrefixTrie,
    generate,
    stream,
)

PROMPTS = [[1, 2, 3], [6]]
EOS = 0
STRATEGIES = {
    "greedy": {},
    "sample": {"strategy": "sample", "n_samples": 8, "temperature": 2.0, "seed": 0},
    "beam": {"strategy": "beam", "beam_width": 4, "n_best": 4},
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def config(strategy: str, **changes: object) -> GenerationConfig:
    return GenerationConfig(
        **{"max_new_tokens": 7, "eos_ids": (EOS,), "pad_id": -1, **STRATEGIES[strategy], **changes}
    )


@each_strategy
def test_each_prompt_has_its_own_set(model, strategy):
    sets = [{1, 4, EOS}, {2, 5, 6}]
    made = generate(model, PROMPTS, config(strategy), constraint=AllowedIds.of(sets, 7))
    copies = len(made.ids) // 2
    for row, ids in enumerate(made.sequences()):
        assert ids
        assert set(ids) <= sets[row // copies]


@each_strategy
def test_no_id_comes_twice(model, strategy):
    """As a list of recommended items; the end id alone may stay for when nothing else is left."""
    everything = torch.ones(7, dtype=torch.bool)
    made = generate(
        model,
        PROMPTS,
        config(strategy, max_new_tokens=9),
        constraint=AllowedIds(everything, once=True, keep=[EOS]),
    )
    for ids in made.sequences():
        assert len(set(ids)) == len(ids)
        assert ids[-1] == EOS


@each_strategy
def test_only_listed_sequences_come(model, strategy):
    listed = {(1,), (1, 2), (1, 2, 2, 5), (4, 4, 4), (6, 1)}
    made = generate(model, PROMPTS, config(strategy), constraint=PrefixTrie(listed, 7, (EOS,)))
    assert made.finished.all()
    for ids in made.sequences():
        assert ids[-1] == EOS
        assert tuple(ids[:-1]) in listed
    if strategy == "beam":  # fewer sequences than places in the beam: each of them once
        whole = generate(
            model, PROMPTS, config("beam", beam_width=8, n_best=8), constraint=PrefixTrie(listed, 7, (EOS,))
        )
        assert whole.lengths.reshape(2, 8).gt(0).sum(1).tolist() == [5, 5]
        assert whole.scores.isinf().sum() == 6
        assert {tuple(ids[:-1]) for ids in whole.sequences()[:5]} == listed


@pytest.mark.parametrize("ends", [(0,), (0, 6)])
def test_a_trie_allows_just_what_continues_a_listed_sequence(ends):
    generator = torch.Generator().manual_seed(0)
    listed = {
        tuple(torch.randint(1, 6, (n,), generator=generator).tolist()) for n in (0, 1, 2, 3, 3, 4, 4, 4)
    }
    trie = PrefixTrie(sorted(listed), 7, ends)
    empty = torch.zeros(1, 0, dtype=torch.int64)
    for length in range(5):
        for prefix in itertools.product(range(1, 6), repeat=length):
            state = trie.start(empty, torch.zeros(1, dtype=torch.int64))
            for one in prefix:
                state = trie.advance(state, torch.tensor([one]))
            allowed = set(trie.allowed(state)[0].nonzero()[:, 0].tolist())
            wanted = {one[length] for one in listed if len(one) > length and one[:length] == prefix}
            assert allowed == wanted | (set(ends) if prefix in listed else set())


@each_strategy
def test_a_grammar_of_brackets(model, strategy):
    """1 opens, 2 closes, at most two deep, and the end only where all is closed: the value is the depth."""

    def allowed(depth):
        return [EOS, 1, 3] if depth == 0 else ([2, 3, 1] if depth == 1 else [2, 3])

    grammar = Automaton(
        lambda prompt: prompt.count(1) - prompt.count(2),
        lambda depth, one: depth + {1: 1, 2: -1}.get(one, 0),
        allowed,
        7,
    )
    made = generate(model, [[3, 1], [3]], config(strategy, max_new_tokens=14), constraint=grammar)
    copies = len(made.ids) // 2
    for row, ids in enumerate(made.sequences()):
        depth = 1 if row < copies else 0
        for one in ids:
            assert one in allowed(depth)  # the end id only at depth 0
            depth += {1: 1, 2: -1}.get(one, 0)


@each_strategy
def test_a_plain_function_sees_the_ids_so_far_and_the_prompt(model, strategy):
    """It makes every row repeat its prompt's last id, then count up; also where rows have been dropped."""

    def function(ids, prompt):
        last = torch.tensor([row[-1] for row in PROMPTS])[prompt]
        wanted = last if ids.shape[1] == 0 else (ids[:, -1] + 1) % 7
        return torch.nn.functional.one_hot(wanted, 7).bool()

    made = generate(model, PROMPTS, config(strategy), constraint=function)
    rows = {tuple(ids) for ids in made.sequences()}
    assert rows - {()} == {(3, 4, 5, 6, 0), (6, 0)}
    assert made.sampled_log_probs is None or not made.sampled_log_probs.any(), "there was no choice"
    assert (made.log_prob[made.lengths > 0] < 0).all()


@each_strategy
def test_a_mask_that_forbids_everything_names_row_and_position(model, strategy):
    def function(ids, prompt):
        mask = torch.ones(len(ids), 7, dtype=torch.bool)
        mask[:, EOS] = False
        if ids.shape[1] == 2:
            mask[prompt == 1] = False
        return mask

    options = config(strategy)
    sample = r" \(sample 0\)" if strategy == "sample" else ""
    with pytest.raises(
        ValueError, match=f"constraint: it forbids every id at row 1{sample}, generated position 2"
    ):
        generate(model, PROMPTS, options, constraint=function)
    if strategy != "beam":
        with pytest.raises(ValueError, match="row 1"):
            list(stream(model, PROMPTS, options, constraint=function))


def test_a_bad_constraint_is_one_sentence(model):
    with pytest.raises(TypeError, match=r"constraint: expected a function .* got int"):
        generate(model, PROMPTS, constraint=3)
    with pytest.raises(TypeError, match=r"constraint: expected a bool tensor from it, got torch.float32"):
        generate(model, PROMPTS, constraint=lambda ids, prompt: torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"mask of shape \(rows=2, n_ids=7\) from it, got \(2, 6\)"):
        generate(model, PROMPTS, constraint=lambda ids, prompt: torch.ones(2, 6).bool())
    with pytest.raises(ValueError, match="mask: it is for 3 prompts, but there are 2"):
        generate(model, PROMPTS, constraint=AllowedIds(torch.ones(3, 7).bool()))
    with pytest.raises(ValueError, match="sets: row 1 allows id 7, outside the vocabulary of 7"):
        AllowedIds.of([{1}, {7}], 7)
    with pytest.raises(TypeError, match=r"mask: expected a bool tensor, got torch.float32"):
        AllowedIds(torch.ones(7))
    with pytest.raises(ValueError, match="sequences: expected at least one"):
        PrefixTrie([], 7, (0,))
    with pytest.raises(ValueError, match="sequences: id 0 of number 1 is an end id"):
        PrefixTrie([[1], [2, 0]], 7, (0,))
    with pytest.raises(ValueError, match="sequences: id 9 of number 0 is outside the vocabulary of 7"):
        PrefixTrie([[9]], 7, (0,))
    with pytest.raises(ValueError, match="eos_ids: expected ids"):
        PrefixTrie([[1]], 7, ())
    with pytest.raises(ValueError, match="allowed: id 7 is outside the vocabulary of 7"):
        generate(model, PROMPTS, constraint=Automaton(len, lambda a, b: a, lambda a: [7], 7))
