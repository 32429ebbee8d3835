"""Steps as CUDA graphs: the same ids and log-probabilities as without, and models that have none."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mambakit.core.generation import (
    AllowedIds,
    GenerationConfig,
    GraphedDecoder,
    PrefixTrie,
    generate,
    stream,
)
from mambakit.core.generation.decoder import begin
from mambakit.core.generation.decoding import Decoding
from mambakit.core.generation.rows import decode_rows
from mambakit.core.generation.warpers import Uniforms

PROMPTS = [[1, 2, 3, 4, 5], [6], [2, 2, 1]]
CONFIGS = {
    "greedy": GenerationConfig(max_new_tokens=40),
    "sample": GenerationConfig(
        max_new_tokens=40, strategy="sample", n_samples=3, top_k=5, top_p=0.9, seed=2, eos_ids=(0,), pad_id=-1
    ),
    "beam": GenerationConfig(max_new_tokens=20, strategy="beam", beam_width=4, n_best=2, eos_ids=(0,)),
}


class Counting:
    """How often the model's own step is taken."""

    def __init__(self, model):
        self.model = model
        self.init_state = model.init_state
        self.parameters = model.parameters
        self.taken = 0

    def __call__(self, ids, state=None, *, lengths=None):
        return self.model(ids, state, lengths=lengths)

    def step(self, ids, state, *, inplace=False):
        self.taken += 1
        return self.model.step(ids, state, inplace=inplace)


def test_off_the_gpu_it_is_the_model(model):
    config = CONFIGS["sample"]
    made = generate(GraphedDecoder(model), PROMPTS, config, return_state=True)
    assert torch.equal(made.ids, generate(model, PROMPTS, config, graph=True).ids)
    state = made.state.clone()
    counting = Counting(model)
    logits, after = GraphedDecoder(counting).step(made.lengths * 0, state)
    assert counting.taken == 1
    assert_close(logits, model.step(made.lengths * 0, made.state)[0])
    assert after.nbytes == state.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_give_what_the_plain_step_does(language_model, name, constrained):
    model, config = language_model().cuda(), CONFIGS[name]
    constraint = None
    if constrained:
        constraint = AllowedIds(torch.tensor([True, True, False, True, True, True, False]))
    plain = generate(model, PROMPTS, config, constraint=constraint, graph=False, return_state=True)
    counting = Counting(model)
    graphed = GraphedDecoder(counting)
    for _ in range(2):  # recorded, and replayed from a new state
        made = generate(graphed, PROMPTS, config, constraint=constraint, return_state=True)
        assert torch.equal(made.ids, plain.ids)
        assert torch.equal(made.lengths, plain.lengths)
        assert_close(made.log_probs, plain.log_probs, atol=1e-4, rtol=0)
        if made.sampled_log_probs is not None:
            assert_close(made.sampled_log_probs, plain.sampled_log_probs, atol=1e-4, rtol=0)
        assert_close(made.next_logits, plain.next_logits, atol=1e-4, rtol=1e-4)
    assert counting.taken < 10, "after the recording the model's own step is not taken"
    if name != "beam":
        streamed = [step.ids for step in stream(graphed, PROMPTS, config, constraint=constraint)]
        assert torch.equal(torch.stack(streamed, 1), plain.ids)
    alike = generate(model.cpu(), PROMPTS, config, constraint=constraint)
    assert torch.equal(alike.ids, plain.ids.cpu()), "the draws do not depend on the device"


@pytest.mark.gpu
def test_a_step_that_is_not_in_place_leaves_its_state(language_model):
    model = language_model().cuda()
    graphed = GraphedDecoder(model)
    state = model.init_state(2)
    ids = torch.tensor([1, 2], device="cuda")
    first = graphed.step(ids, state)
    second = graphed.step(ids, first[1])
    expected = model.step(ids, model.step(ids, state)[1])
    assert_close(second[0], expected[0])
    assert_close(graphed.step(ids, state)[0], first[0])
    assert not any(tensor.any() for _, tensor in state.tensors())


@pytest.mark.gpu
def test_interleaved_streams_need_a_decoder_each(language_model):
    model = language_model().cuda()
    graphed = GraphedDecoder(model)
    first, second = (stream(graphed, [[one]], CONFIGS["greedy"]) for one in (1, 2))
    for one in (first, second, first, second):  # the second id takes the first step
        next(one)
    with pytest.raises(RuntimeError, match="give each of two interleaved streams"):
        next(first)
    pairs = [
        [step.ids for step in pair]
        for pair in zip(*(stream(model, [[one]], CONFIGS["greedy"]) for one in (1, 2)), strict=True)
    ]
    for row, one in enumerate((1, 2)):
        alone = generate(model, [[one]], CONFIGS["greedy"], graph=False).ids[0]
        assert torch.equal(torch.cat([pair[row] for pair in pairs]), alone)


@pytest.mark.gpu
def test_no_wait_for_the_gpu_between_checks(language_model):
    """Greedy and sampled decoding queue up their steps; reading the prompt and the checks may wait."""
    model = language_model().cuda()
    graphed = GraphedDecoder(model)
    unlike = AllowedIds(torch.ones(7, dtype=torch.bool), once=True, keep=(0, 1))
    uniforms = Uniforms(range(9), torch.device("cuda"))
    for config, constraint, draws in (
        (CONFIGS["greedy"], PrefixTrie([[1, 2], [3] * 30], 7, (0,)), None),
        (CONFIGS["sample"], unlike, uniforms),
    ):
        begun = begin(graphed, PROMPTS, config, None, None, None)
        decoding = Decoding(graphed, begun, config.copies, constraint)
        loop = decode_rows(decoding, config, draws, check_every=99, drop=False)
        for _ in range(3):  # recorded
            next(loop)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                next(loop)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["grows", "waits"])
def test_a_model_that_can_not_be_recorded_runs_as_it_is(language_model, kind):
    model = language_model(("mamba2", "attention") if kind == "grows" else ("mamba2",)).cuda()
    if kind == "waits":
        step = type(model).step

        class Waiting(type(model)):
            def step(self, ids, state, *, inplace=False):
                assert int(ids.max()) < 7
                return step(self, ids, state, inplace=inplace)

        model.__class__ = Waiting
    plain = generate(model, PROMPTS, CONFIGS["greedy"], graph=False)
    made = generate(model, PROMPTS, CONFIGS["greedy"])
    assert torch.equal(made.ids, plain.ids)
    assert torch.cuda.get_sync_debug_mode() == 0
