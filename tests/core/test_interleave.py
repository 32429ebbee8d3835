import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.adapters import (
    NO_MODALITY,
    ContinuousAdapter,
    IdAdapter,
    Interleave,
    Tokens,
    pack_batch,
    pad_batch,
)

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
