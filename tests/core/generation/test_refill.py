"""Sequences through few rows: each comes out as ``generate`` gives it, whatever the rows beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.generation import (
    AllowedIds,
    Automaton,
    Drawn,
    GenerationConfig,
    GraphedDecoder,
    PrefixTrie,
    generate,
    in_order,
    sample_stream,
)
from mambakit.core.language_model import LanguageModel
from mambakit.core.state import State

N_IDS = 7
OPTIONS = {"strategy": "sample", "temperature": 1.5, "eos_ids": (0, 6), "pad_id": -1}
CONSTRAINTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "ids": lambda: AllowedIds(torch.tensor([1, 1, 1, 0, 1, 1, 0]).bool(), once=True, keep=(0,)),
    "trie": lambda: PrefixTrie([[1, 2], [3, 3, 4, 5], [2], [5] * 12], N_IDS, (0, 6)),
    # as many ids as the prompt has, then the end
    "automaton": lambda: Automaton(len, lambda n, _: n - 1, lambda n: [1, 2, 3] if n > 0 else [0], N_IDS),
}


@pytest.fixture(scope="module")
def exact(language_model) -> LanguageModel:
    """In float64, where no draw hangs on the order in which a sum is taken."""
    return language_model().double()


def expected(model, prompts, config, seeds, constraint=None) -> list[Drawn]:
    made = generate(model, prompts, config, seeds=seeds, constraint=constraint)
    rows = zip(made.sequences(), made.finished.tolist(), made.log_prob.tolist(), strict=True)
    return [Drawn(number, *row) for number, row in enumerate(rows)]


def assert_same(drawn: list[Drawn], wanted: list[Drawn]) -> None:
    assert [one[:3] for one in drawn] == [one[:3] for one in wanted]
    log_probs, others = (torch.tensor([one.log_prob for one in some]) for some in (drawn, wanted))
    torch.testing.assert_close(log_probs, others)


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, N_IDS - 1), min_size=1, max_size=6), min_size=1, max_size=12),
    slots=st.integers(1, 14),
    most=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(sorted(CONSTRAINTS)),
    strategy=st.sampled_from(["greedy", "sample"]),
)
def test_a_sequence_is_what_generate_gives_it(exact, prompts, slots, most, seed, kind, strategy):
    options = OPTIONS if strategy == "sample" else {"eos_ids": (0, 6)}
    config = GenerationConfig(**{**options, "strategy": strategy, "max_new_tokens": most})
    seeds = [seed + i for i in range(len(prompts))] if strategy == "sample" else None
    drawn = sample_stream(exact, prompts, config, slots=slots, seeds=seeds, constraint=CONSTRAINTS[kind]())
    assert_same(list(in_order(drawn)), expected(exact, prompts, config, seeds, CONSTRAINTS[kind]()))


class Counting:
    """How many rows each step of the model has."""

    def __init__(self, model):
        self.model, self.rows = model, []
        self.init_state, self.parameters = model.init_state, model.parameters

    def __call__(self, ids, state=None, *, lengths=None):
        return self.model(ids, state, lengths=lengths)

    def step(self, ids, state, *, inplace=False):
        self.rows.append(len(ids))
        return self.model.step(ids, state, inplace=inplace)


def test_no_step_is_taken_for_nothing(exact):
    """Every row of every step on the CPU gives an id, but for the one step that looks at the state's size."""
    config = GenerationConfig(**OPTIONS, max_new_tokens=30, seed=3)
    counting = Counting(exact)
    drawn = list(sample_stream(counting, [5, 1], config, n=60, slots=8))
    lengths = [len(one.ids) for one in drawn]
    assert len(set(lengths)) > 5, "sequences of many lengths, or the test shows nothing"
    assert sum(counting.rows) - 1 == sum(lengths)
    assert counting.rows[1:10] == [8] * 9
    assert [one.number for one in drawn] != sorted(one.number for one in drawn), "as they end"


def test_the_default_seeds_are_those_of_generate(model):
    config = GenerationConfig(**OPTIONS, max_new_tokens=20, seed=11)
    wanted = expected(model, [[2]] * 9, config, None)
    for prompts in ([2], torch.tensor([2]), itertools.repeat([2])):
        assert_same(list(in_order(sample_stream(model, prompts, config, n=9, slots=4))), wanted)
    graphed = GraphedDecoder(model)
    assert_same(list(in_order(sample_stream(graphed, [[2]] * 9, config, slots=4))), wanted)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_a_state_that_grows_goes_batch_by_batch(hybrid, strategy):
    options = OPTIONS if strategy == "sample" else {}
    config = GenerationConfig(**options, max_new_tokens=12)
    seeds = range(5) if strategy == "sample" else None
    prompts = [[1, 2, 3], [4], [5, 5], [1], [2, 3]]
    drawn = list(sample_stream(hybrid, prompts, config, slots=2, seeds=seeds))
    assert_same(drawn, expected(hybrid, prompts, config, None if seeds is None else list(seeds)))


def test_prompts_are_taken_as_slots_get_free(model):
    """Endless prompts, of which only some are asked for; and the model's gradients stay the reader's."""
    taken = []

    def prompts():
        for number in itertools.count():
            taken.append(number)
            yield [1 + number % 5] * (1 + number % 3)

    config = GenerationConfig(**OPTIONS, max_new_tokens=15, seed=0)
    some = list(itertools.islice(in_order(sample_stream(model, prompts(), config, slots=4)), 10))
    assert len(taken) < 40
    assert torch.is_grad_enabled()
    wanted = expected(model, [[1 + i % 5] * (1 + i % 3) for i in range(10)], config, None)
    assert_same(some, wanted)


def test_an_empty_prompt_begins_with_the_start_id(model):
    config = GenerationConfig(**OPTIONS, max_new_tokens=15, seed=0, start_id=2)
    drawn = list(in_order(sample_stream(model, [[], [1, 3]], config)))
    assert_same(drawn, expected(model, [[], [1, 3]], config, None))
    nothing = GenerationConfig(max_new_tokens=0)
    assert list(sample_stream(model, [[1], [2]], nothing)) == [(i, [], False, 0.0) for i in (0, 1)]
    assert list(sample_stream(model, iter([]), config)) == []


class Growing:
    """A constraint that keeps all ids."""

    def start(self, prompt, lengths):
        return State.of(ids=prompt[:, :0])

    def allowed(self, state):
        return torch.ones(len(state["ids"]), N_IDS, dtype=torch.bool)

    def advance(self, state, ids):
        return State.of(ids=torch.cat([state["ids"], ids[:, None]], 1))


SAMPLE = GenerationConfig(**OPTIONS, max_new_tokens=9)
BAD_CALLS = {
    "beam": ({"config": GenerationConfig(strategy="beam")}, ValueError, "config: expected greedy or sample"),
    "samples": (
        {"config": GenerationConfig(strategy="sample", n_samples=2)},
        ValueError,
        "config: expected greedy or sample with n_samples=1",
    ),
    "n": ({"prompts": [1]}, ValueError, "n: how many"),
    "slots": ({"slots": 0}, ValueError, "slots: expected at least 1, got 0"),
    "seeds": ({"seeds": [1]}, ValueError, "seeds: expected one for each prompt, .* none for number 1"),
    "negative": ({"seeds": [1, -1, 2]}, ValueError, "seeds: expected numbers that are not negative, got -1"),
    "nothing-drawn": (
        {"seeds": [1], "config": GenerationConfig()},
        ValueError,
        "seeds: nothing is drawn with strategy='greedy'",
    ),
    "empty": ({"prompts": [[1], [2], [3], []]}, ValueError, "prompt: row 3 is empty"),
    "text": ({"prompts": [[1], [2], [3], "ab"]}, TypeError, "got the text 'ab' for row 3"),
    "unknown": ({"prompts": [[1], [9]]}, ValueError, "ids: 9 is outside the vocabulary of n_ids=7"),
    "eos": ({"config": GenerationConfig(eos_ids=(7,))}, ValueError, "eos_ids: 7 is outside the vocabulary"),
    "function": ({"constraint": lambda ids, prompt: ids}, ValueError, "constraint: rows are at different"),
    "masks": (
        {"constraint": AllowedIds(torch.ones(3, N_IDS).bool())},
        ValueError,
        "constraint: rows are at different",
    ),
    "grows": ({"constraint": Growing()}, ValueError, "constraint: its state grows"),
    "forbids": (
        {"constraint": AllowedIds(torch.zeros(N_IDS).bool())},
        ValueError,
        "constraint: it forbids every id at row 0, generated position 0",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_sentence(model, case):
    arguments, error, match = BAD_CALLS[case]
    with pytest.raises(error, match=match):
        list(sample_stream(model, **{"prompts": [[1], [2], [3]], "config": SAMPLE, "slots": 2, **arguments}))


def test_a_fault_is_named_by_number_and_position(table_model):
    table = torch.full((4, 4), -torch.inf)
    table[0, 1] = table[1, 2] = table[2, 0] = 0.0  # round and round, or from 3 to where there is no number
    table[3] = torch.nan
    config = GenerationConfig(max_new_tokens=3)
    drawn = sample_stream(table_model(table), [[0], [1], [0], [3]], config, slots=2)
    assert next(drawn) == (0, [1, 2, 0], False, 0.0)
    with pytest.raises(ValueError, match="not a number at row 3, generated position 0"):
        list(drawn)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(CONSTRAINTS))
def test_recorded_steps_give_what_the_plain_ones_do(language_model, kind):
    """Rows change under one recording, and in the end there are smaller ones."""
    model = language_model().cuda()
    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(150)]
    config = GenerationConfig(**OPTIONS, max_new_tokens=40, seed=5)
    wanted = expected(model, prompts, config, None, CONSTRAINTS[kind]())
    counting = Counting(model)
    graphed = GraphedDecoder(counting)
    plain = sample_stream(model, prompts, config, slots=32, constraint=CONSTRAINTS[kind](), graph=False)
    assert_same(list(in_order(plain)), wanted)
    for _ in range(2):  # recorded, and replayed from a new state
        drawn = sample_stream(graphed, prompts, config, slots=32, constraint=CONSTRAINTS[kind]())
        assert_same(list(in_order(drawn)), wanted)
    assert {1, 4, 8, 16, 32} >= set(counting.rows), "no other sizes than those that are recorded"
    taken = len(counting.rows)
    list(sample_stream(graphed, prompts, config, slots=32, constraint=CONSTRAINTS[kind]()))
    assert len(counting.rows) == taken + 1, "only the state's size is looked at"
