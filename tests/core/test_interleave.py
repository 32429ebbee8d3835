import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.adapters import (
    NO_MODALITY,
    ContinuousAdapter,
    Embedded,
    IdAdapter,
    Interleave,
    Tokens,
    pack_batch,
    pad_batch,
)
from mambakit.core.backbone import Backbone
from mambakit.core.backbone_config import BackboneConfig

NAMES = ("state", "word", "action")


def build(seed=0):
    torch.manual_seed(seed)
    return Interleave(
        {
            "state": ContinuousAdapter(2, 4),
            "word": IdAdapter(9, 4),
            "action": ContinuousAdapter(1, 4, time_scale=1.0),
        }
    )


def one(name, stamps, seed):
    generator = torch.Generator().manual_seed(seed)
    n = len(stamps)
    values = {
        "state": torch.randn(n, 2, generator=generator),
        "word": torch.randint(0, 9, (n,), generator=generator),
        "action": torch.randn(n, 1, generator=generator),
    }[name]
    return Tokens(values, torch.tensor(sorted(stamps), dtype=torch.float64))


# few different stamps, so that ties are common
stamps = st.lists(st.integers(0, 4), max_size=5)
rows = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, stamps)), min_size=1, max_size=4)
sides = st.sampled_from(["left", "right"])


def make_batches(rows, padding, names=NAMES):
    return {
        name: pad_batch([one(name, row[name], seed=i) for i, row in enumerate(rows)], padding=padding)
        for name in names
    }


@given(rows, sides, sides)
@settings(deadline=None, max_examples=40)
def test_each_row_equals_the_sample_merged_by_hand_and_alone(rows, given_padding, padding):
    interleave = build()
    batches = make_batches(rows, given_padding)
    x, line = interleave(batches, padding=padding)
    for i, row in enumerate(rows):
        expected = []
        for number, name in enumerate(NAMES):
            tokens = one(name, row[name], seed=i)
            vectors = (
                interleave.adapters[name].embed(pad_batch([tokens]))[0] + interleave.modality.weight[number]
            )
            expected += list(
                zip(tokens.time.tolist(), [number] * len(tokens), range(len(tokens)), vectors, strict=True)
            )
        expected.sort(key=lambda entry: entry[:3])
        n = len(expected)
        start = x.shape[1] - n if padding == "left" else 0
        got = x[i, start : start + n]
        assert line.lengths[i] == n
        assert line.time[i, start : start + n].tolist() == [entry[0] for entry in expected]
        assert line.modality[i, start : start + n].tolist() == [entry[1] for entry in expected]
        if n:
            torch.testing.assert_close(
                got, torch.stack([entry[3] for entry in expected]), rtol=1e-5, atol=1e-6
            )
        outside = torch.ones(x.shape[1], dtype=torch.bool)
        outside[start : start + n] = False
        assert not x[i, outside].any()
        assert (line.modality[i, outside] == NO_MODALITY).all()
    assert torch.equal(line.mask.sum(dim=1), line.lengths)
    assert not (line.time.diff(dim=1) < 0).any()


@given(rows, sides, sides)
@settings(deadline=None, max_examples=40)
def test_read_out_finds_each_modality_again(rows, given_padding, padding):
    batches = make_batches(rows, given_padding)
    x, line = build()(batches, padding=padding)
    stamped = torch.stack((line.time, line.modality.double()), dim=-1)
    for number, name in enumerate(NAMES):
        batch = batches[name]
        found = line.read_out(stamped, name)
        assert found.shape == (*batch.values.shape[:2], 2)
        assert torch.equal(found[batch.mask][:, 0], batch.time[batch.mask])
        assert (found[batch.mask][:, 1] == number).all()
        assert not found[~batch.mask].any()
        # the vectors, not only their labels
        alone = build().adapters[name].embed(batch) + build().modality.weight[number]
        torch.testing.assert_close(
            line.read_out(x, name)[batch.mask], alone[batch.mask], rtol=1e-5, atol=1e-6
        )


@given(rows, sides)
@settings(deadline=None, max_examples=40)
def test_a_missing_modality_is_as_one_without_tokens(rows, padding):
    rows = [{**row, "word": []} for row in rows]
    interleave = build()
    x, line = interleave(make_batches(rows, padding, names=("state", "action")))
    x_all, line_all = interleave(make_batches(rows, padding))
    torch.testing.assert_close(x, x_all)
    assert torch.equal(line.modality, line_all.modality)
    assert torch.equal(line.positions["action"], line_all.positions["action"])
    with pytest.raises(ValueError, match="no modality 'word' on this time line; there are: state, action"):
        line.read_out(x, "word")


def test_ties_follow_the_order_of_the_adapters_not_of_the_batches():
    batches = {"action": pad_batch([one("action", [0, 1], 0)]), "state": pad_batch([one("state", [0, 1], 0)])}
    _, line = build()(batches)
    assert line.modality.tolist() == [[0, 2, 0, 2]]
    assert {name: p.tolist() for name, p in line.positions.items()} == {"state": [[0, 2]], "action": [[1, 3]]}


def test_gradients_reach_every_adapter_through_read_out():
    interleave = build()
    batches = make_batches([{name: [0, 1, 2] for name in NAMES}], "right")
    x, line = interleave(batches)
    sum(line.read_out(x, name).square().sum() for name in NAMES).backward()
    assert all(p.grad is not None and p.grad.any() for p in interleave.parameters())


def test_bad_calls_are_named():
    interleave = build()
    good = make_batches([{name: [0, 1] for name in NAMES}], "right")
    with pytest.raises(ValueError, match="no adapter for sound; there are: state, word, action"):
        interleave({"sound": good["state"]})
    with pytest.raises(ValueError, match="expected at least one of state, word, action"):
        interleave({})
    two = pad_batch([one("word", [0], 0), one("word", [1], 1)])
    with pytest.raises(ValueError, match=r"same rows in each, got \{'state': 1, 'word': 2\}"):
        interleave({"state": good["state"], "word": two})
    with pytest.raises(ValueError, match=r"batches\['word'\]: packed rows can't be interleaved"):
        interleave({"word": pack_batch([one("word", [0], 0)], 4)})
    with pytest.raises(ValueError, match=r"batches\['word'\]: has no time"):
        interleave({"word": pad_batch([Tokens(torch.tensor([1]))])})
    with pytest.raises(ValueError, match="padding: expected 'left' or 'right'"):
        interleave(good, padding="both")
    x, line = interleave(good)
    with pytest.raises(ValueError, match=r"output: expected shape \(1, 6\)"):
        line.read_out(x[:, :-1], "state")
    with pytest.raises(ValueError, match=r"expected one d_model for all, got \{'a': 4, 'b': 5\}"):
        Interleave({"a": IdAdapter(3, 4), "b": IdAdapter(3, 5)})
    with pytest.raises(ValueError, match="expected at least one modality"):
        Interleave({})


STEPS = (2, 5)


def embedded(hidden=(), there=True, seed=0):
    """Tokens of each step of two rows; of the hidden modalities one is missing here and there."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {}
    for name in NAMES:
        mask = torch.rand(STEPS, generator=generator) < 0.6 if name in hidden else None
        x = torch.randn(*STEPS, 4, generator=generator, dtype=torch.float64)
        tokens[name] = Embedded(x, torch.ones(STEPS, dtype=torch.bool) if there and mask is None else mask)
    return tokens


def test_steps_that_are_all_there_merge_as_sorted_ones():
    interleave = build().double()
    seq_idx = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 3]], dtype=torch.int32)
    for packed in (None, seq_idx):
        x, line = interleave.merge(embedded(there=False), seq_idx=packed)
        x_sorted, sorted_line = interleave.merge(embedded(), seq_idx=packed)
        torch.testing.assert_close(x, x_sorted, rtol=0, atol=0)
        for part in ("lengths", "time", "modality"):
            assert torch.equal(getattr(line, part), getattr(sorted_line, part)), part
        assert all(torch.equal(line.positions[name], sorted_line.positions[name]) for name in NAMES)
        if packed is not None:
            assert torch.equal(line.seq_idx, sorted_line.seq_idx)
            assert line.layout().keys() == {"seq_idx"}


def test_steps_merge_as_token_batches_of_their_times():
    interleave = build()
    batches = make_batches([{name: range(4) for name in NAMES}] * 2, "right")
    x, line = interleave(batches)
    alone = {name: Embedded(interleave.adapters[name](batches[name])) for name in NAMES}
    merged, of_steps = interleave.merge(alone)
    torch.testing.assert_close(merged, x, rtol=0, atol=0)
    assert torch.equal(of_steps.modality, line.modality)


@pytest.mark.parametrize("layers", [["mamba2"], ["attention"]])
def test_one_step_after_another_equals_merged_rows_with_tokens_missing(layers):
    """Packed as two sequences a row, and from a state row by row: the same, wherever a token is missing."""
    interleave = build().double()
    options = {"mamba2": {"d_state": 8, "head_dim": 4}, "attention": {"window": 4, "head_dim": 2}}
    shape = BackboneConfig(d_model=4, layers=layers, repeat=2, block_options={layers[0]: options[layers[0]]})
    backbone = Backbone(shape).double().eval()
    tokens = embedded(hidden=("state", "word"))
    seq_idx = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.int32)
    x, line = interleave.merge(tokens, seq_idx=seq_idx)
    assert line.lengths.tolist() == [int(sum(tokens[n].there[i].sum() for n in NAMES)) for i in range(2)]
    assert line.lengths[0] != line.lengths[1]
    with torch.no_grad():
        hidden, _ = backbone(x, **line.layout())
        whole = line.read_out(hidden, *NAMES)
        state = fresh = backbone.init_state(2, dtype=torch.float64)
        for t in range(STEPS[1]):
            if t:
                state = state.where_rows(seq_idx[:, t] != seq_idx[:, t - 1], fresh)
            found = torch.zeros(2, 4, dtype=torch.float64)
            moment = {name: Embedded(one.x[:, t], one.there[:, t]) for name, one in tokens.items()}
            for x_t, there in interleave.step(moment):
                made, after = backbone.step(x_t, state)
                state = state.where_rows(there, after)
                found = torch.where(there[:, None], made, found)
            torch.testing.assert_close(found, whole[:, t], rtol=0, atol=1e-10)


def test_bad_steps_are_named():
    interleave = build().double()
    tokens = embedded()
    with pytest.raises(ValueError, match="no adapter for sound"):
        interleave.step({"sound": tokens["word"]})
    with pytest.raises(ValueError, match=r"one shape .* for all"):
        interleave.merge({**tokens, "word": Embedded(tokens["word"].x[:, 1:])})
    _, line = interleave.merge(tokens)
    with pytest.raises(ValueError, match="expected one, or several of one shape"):
        line.read_out(torch.zeros(2, 15, 4))
    own = torch.nn.Linear(2, 4)
    own.d_model = 4
    with pytest.raises(ValueError, match="takes no TokenBatch; embed it, then merge"):
        Interleave({"state": own})({"state": make_batches([{"state": [0]}], "right", ("state",))["state"]})
