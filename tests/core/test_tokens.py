import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mambakit.core.adapters import NO_MODALITY, SampleError, TokenBatch, Tokens, pack_batch, pad_batch


def make_tokens(lengths, *, kind="channels", time=True, modality=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for n in lengths:
        shapes = {"channels": (n, 3), "fields": (n, 2), "ids": (n,)}
        if kind == "channels":
            values = torch.randn(shapes[kind], generator=generator)
        else:
            values = torch.randint(1, 9, shapes[kind], generator=generator)
        stamps = torch.rand(n, generator=generator, dtype=torch.float64).cumsum(0) - 3.0
        which = torch.randint(0, 3, (n,), generator=generator)
        samples.append(Tokens(values, stamps if time else None, which if modality else None))
    return samples


some_lengths = st.lists(st.integers(0, 7), min_size=1, max_size=9)
kinds = st.sampled_from(["channels", "fields", "ids"])


@given(
    some_lengths, kinds, st.booleans(), st.booleans(), st.sampled_from(["left", "right"]), st.integers(0, 3)
)
@settings(deadline=None)
def test_unbind_undoes_pad_batch(lengths, kind, time, modality, padding, extra):
    samples = make_tokens(lengths, kind=kind, time=time, modality=modality)
    batch = pad_batch(samples, padding=padding, length=max(lengths) + extra)
    again = batch.unbind()
    assert len(again) == len(samples)
    assert all(a.equals(b) for a, b in zip(samples, again, strict=True))
    assert batch.mask.sum(dim=1).tolist() == lengths


@given(some_lengths, kinds, st.booleans(), st.booleans(), st.integers(0, 9))
@settings(deadline=None)
def test_unbind_undoes_pack_batch(lengths, kind, time, modality, extra):
    samples = make_tokens(lengths, kind=kind, time=time, modality=modality)
    batch = pack_batch(samples, max(1, *lengths) + extra if len(lengths) > 1 else max(1, lengths[0]) + extra)
    again = batch.unbind()
    assert len(again) == len(samples)
    assert all(a.equals(b) for a, b in zip(samples, again, strict=True))
    assert int(batch.mask.sum()) == sum(lengths)


@given(some_lengths)
@settings(deadline=None)
def test_packed_batch_passes_its_own_checks_and_recovers_spans_from_seq_idx(lengths):
    batch = pack_batch(make_tokens(lengths), 8)
    rebuilt = TokenBatch(batch.values, batch.lengths, batch.time, batch.modality, batch.seq_idx)
    expected = sorted(span for span in batch.spans.tolist() if span[2])
    assert rebuilt.spans.tolist() == expected
    TokenBatch(batch.values, batch.lengths, batch.time, batch.modality, batch.seq_idx, spans=batch.spans)


def test_packing_is_first_fit_and_numbers_the_sequences_of_each_row():
    batch = pack_batch(make_tokens([3, 4, 2, 1]), 6)
    # 3 opens row 0, 4 opens row 1, 2 fits behind the 3, 1 is the first to fit into what is left of row 0
    assert batch.seq_idx.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1]]
    assert batch.seq_idx.dtype == torch.int32
    assert batch.lengths.tolist() == [6, 4]
    assert batch.spans.tolist() == [[0, 0, 3], [1, 0, 4], [0, 3, 2], [0, 5, 1]]
    assert batch.n_sequences == 4
    assert batch.layout().keys() == {"seq_idx"}


def test_padding_repeats_the_nearest_stamp_and_marks_no_modality():
    samples = [
        Tokens(torch.tensor([5, 6]), torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([0, 2])),
        Tokens(torch.tensor([7]), torch.tensor([9.0], dtype=torch.float64), torch.tensor([1])),
    ]
    right = pad_batch(samples, length=4, pad_value=8)
    assert right.values.tolist() == [[5, 6, 8, 8], [7, 8, 8, 8]]
    assert right.time.tolist() == [[1, 4, 4, 4], [9, 9, 9, 9]]
    assert right.modality[0].tolist() == [0, 2, NO_MODALITY, NO_MODALITY]
    left = pad_batch(samples, length=4, padding="left")
    assert left.values.tolist() == [[0, 0, 5, 6], [0, 0, 0, 7]]
    assert left.time.tolist() == [[1, 1, 1, 4], [9, 9, 9, 9]]
    assert left.layout()["padding"] == "left"


@pytest.mark.parametrize(
    "make", [lambda s: pad_batch(s), lambda s: pad_batch(s, padding="left"), lambda s: pack_batch(s, 9)]
)
def test_gaps_start_anew_with_each_sequence(make):
    samples = make_tokens([4, 0, 5, 1, 3])
    batch = make(samples)
    gaps = batch.gaps
    for part, sample in zip(batch.split(gaps), samples, strict=True):
        expected = torch.diff(sample.time, prepend=sample.time[:1])
        torch.testing.assert_close(part, expected, rtol=0, atol=0)
    assert not gaps[~batch.mask].any()


@pytest.mark.parametrize(
    "make", [lambda s: pad_batch(s), lambda s: pad_batch(s, padding="left"), lambda s: pack_batch(s, 9)]
)
def test_elapsed_counts_ordinary_gaps_and_begins_with_one(make):
    samples = make_tokens([4, 0, 5, 1, 3])
    batch = make(samples)
    elapsed = batch.elapsed(0.25)
    assert elapsed.dtype == torch.float32
    for part, sample in zip(batch.split(elapsed), samples, strict=True):
        expected = torch.cat([torch.ones(min(1, len(sample))), (torch.diff(sample.time) / 0.25).float()])
        torch.testing.assert_close(part, expected, rtol=0, atol=0)
    units = 0.25 + torch.arange(batch.batch_size, dtype=torch.float64)[:, None]
    torch.testing.assert_close(batch.elapsed(units)[0], elapsed[0], rtol=0, atol=0)
    torch.testing.assert_close(batch.elapsed(units.expand(-1, batch.length)), batch.elapsed(units))


def test_elapsed_needs_an_ordinary_gap():
    batch = pad_batch(make_tokens([4, 2]))
    for unit in (0.0, -1.0, float("nan"), float("inf"), torch.tensor([[1.0], [0.0]])):
        with pytest.raises(ValueError, match="unit: expected an ordinary gap, finite and above 0"):
            batch.elapsed(unit)
    with pytest.raises(ValueError, match=r"shape \(batch=2, 1 or length=4\), got \(2,\)"):
        batch.elapsed(torch.ones(2))
    with pytest.raises(ValueError, match="time: this batch has none"):
        pad_batch(make_tokens([4, 2], time=False)).elapsed(1.0)


def test_split_reads_outputs_out_in_the_order_of_the_samples():
    samples = make_tokens([3, 4, 2, 1], kind="ids")
    batch = pack_batch(samples, 6)
    parts = batch.split(batch.values[..., None].expand(-1, -1, 5))
    assert [part[:, 0].tolist() for part in parts] == [sample.values.tolist() for sample in samples]
    with pytest.raises(ValueError, match=r"length=6, \.\.\.\), got \(2, 5, 1\)"):
        batch.split(torch.zeros(2, 5, 1))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"values": [1, 2]}, TypeError, "values: expected a torch.Tensor of .* got list"),
        ({"values": torch.ones(2, 3).double()}, TypeError, "float32 channels, got float64"),
        ({"values": torch.ones(2)}, ValueError, r"got float32 of shape \(2,\)"),
        ({"values": torch.ones(2, 3, 4)}, ValueError, r"shape \(2, 3, 4\)"),
        (
            {"values": torch.tensor([1]), "time": torch.ones(1)},
            TypeError,
            "time: expected float64, got float32",
        ),
        (
            {"values": torch.tensor([1]), "time": torch.ones(2).double()},
            ValueError,
            r"time: expected shape \(1,\)",
        ),
        ({"values": torch.tensor([1]), "modality": torch.ones(1)}, TypeError, "modality: expected int64"),
        ({"values": torch.tensor([1, -7])}, SampleError, "id -7 at position 1"),
        ({"values": torch.tensor([[1.0], [float("nan")]])}, SampleError, "NaN at position 1, channel 0"),
        ({"values": torch.tensor([[1.0, float("inf")]])}, SampleError, "inf at position 0, channel 1"),
        (
            {"values": torch.tensor([1, 1]), "time": torch.tensor([3.0, 2.0]).double()},
            SampleError,
            "time: 2.0 at position 1 follows 3.0",
        ),
        (
            {"values": torch.tensor([1]), "time": torch.tensor([torch.nan]).double()},
            SampleError,
            "time: nan at position 0",
        ),
        (
            {"values": torch.tensor([1]), "modality": torch.tensor([-1])},
            SampleError,
            "modality: -1 at position 0",
        ),
    ],
)
def test_tokens_are_checked(parts, error, message):
    with pytest.raises(error, match=message):
        Tokens(**parts)


def good_parts():
    return {
        "values": torch.ones(2, 3, 1),
        "lengths": torch.tensor([3, 1]),
        "time": torch.tensor([[0.0, 1, 2], [5, 5, 5]]).double(),
        "modality": torch.tensor([[0, 1, 0], [0, -1, -1]]),
    }


def nan_at(row, position):
    values = torch.ones(2, 3, 1)
    values[row, position] = torch.nan
    return values


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lengths": torch.tensor([3, 4])}, ValueError, "lengths: expected 0 to length=3, got 3 to 4"),
        ({"lengths": torch.tensor([-1, 1])}, ValueError, "got -1 to 1"),
        ({"lengths": torch.tensor([3])}, ValueError, r"lengths: expected shape \(2,\)"),
        ({"lengths": torch.tensor([3, 1], dtype=torch.int32)}, TypeError, "lengths: expected int64"),
        ({"values": nan_at(0, 2)}, ValueError, "NaN at row 0, position 2, channel 0"),
        (
            {"time": torch.tensor([[0.0, 3, 2], [5, 5, 5]]).double()},
            ValueError,
            "2.0 at row 0, position 2 follows 3.0",
        ),
        (
            {"modality": torch.tensor([[0, -1, 0], [0, -1, -1]])},
            ValueError,
            "modality: -1 at row 0, position 1",
        ),
        ({"padding": "middle"}, ValueError, "padding: expected 'left' or 'right', got 'middle'"),
        ({"seq_idx": torch.zeros(2, 3, dtype=torch.int32), "padding": "left"}, ValueError, "packed batches"),
        ({"seq_idx": torch.zeros(2, 3)}, TypeError, "seq_idx: expected int32"),
        ({"seq_idx": torch.tensor([[1, 0, 0], [0, 0, 0]]).int()}, ValueError, "non-decreasing"),
        ({"spans": torch.zeros(1, 3).long()}, ValueError, "only a packed batch"),
        (
            {
                "seq_idx": torch.tensor([[0, 0, 1], [0, 1, 1]]).int(),
                "spans": torch.tensor([[0, 0, 3], [1, 0, 1]]),
            },
            ValueError,
            "spans: expected the row, start and length of each run",
        ),
    ],
)
def test_batches_are_checked(change, error, message):
    TokenBatch(**good_parts())
    with pytest.raises(error, match=message):
        TokenBatch(**{**good_parts(), **change})


def test_what_lies_in_the_padding_is_nobodys_business():
    batch = TokenBatch(**{**good_parts(), "values": nan_at(1, 2)})
    assert batch.unbind()[1].values.tolist() == [[1.0]]


def test_time_may_start_again_in_the_next_packed_sequence():
    parts = good_parts()
    parts["time"] = torch.tensor([[4.0, 5, 1], [5, 5, 5]]).double()
    with pytest.raises(ValueError, match=r"follows 5.0"):
        TokenBatch(**parts)
    packed = TokenBatch(**parts, seq_idx=torch.tensor([[0, 0, 1], [0, 1, 1]]).int())
    assert packed.gaps.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_samples_that_do_not_go_together_are_named():
    with pytest.raises(ValueError, match="expected at least one sample"):
        pad_batch([])
    ids, channels = make_tokens([2], kind="ids"), make_tokens([2])
    with pytest.raises(ValueError, match="sample 1 has float32 values of 3 columns"):
        pad_batch([*ids, *channels])
    with pytest.raises(ValueError, match="sample 1 has int64 values with no time, but sample 0 has"):
        pack_batch([*ids, *make_tokens([2], kind="ids", time=False, modality=False)], 8)
    with pytest.raises(TypeError, match="expected a list of Tokens, got one of Tensor"):
        pad_batch([torch.zeros(3)])


def test_too_long_samples_are_named():
    with pytest.raises(ValueError, match="sample 1 has 7 tokens, more than a row of length=6"):
        pack_batch(make_tokens([3, 7]), 6)
    with pytest.raises(ValueError, match="sample 1 has 7 tokens, more than length=6"):
        pad_batch(make_tokens([3, 7]), length=6)
    with pytest.raises(ValueError, match="length: expected at least 1, got 0"):
        pack_batch(make_tokens([0]), 0)


def test_a_data_loader_collates_and_pins_in_workers():
    samples = make_tokens([2, 5, 1, 4, 3])
    loader = DataLoader(
        samples, batch_size=2, collate_fn=pad_batch, num_workers=1, pin_memory=torch.cuda.is_available()
    )
    again = [sample for batch in loader for sample in batch.unbind()]
    assert all(a.equals(b) for a, b in zip(samples, again, strict=True))


def test_to_keeps_everything_and_pin_memory_needs_no_gpu():
    batch = pack_batch(make_tokens([3, 2, 4]), 5)
    moved = batch.to("meta")
    assert moved.device.type == "meta"
    assert moved.time.dtype == torch.float64
    assert moved.seq_idx.device.type == moved.lengths.device.type == "meta"
    same = batch.to("cpu").pin_memory()
    assert all(a.equals(b) for a, b in zip(batch.unbind(), same.unbind(), strict=True))
    copy = pickle.loads(pickle.dumps(batch))
    assert all(a.equals(b) for a, b in zip(batch.unbind(), copy.unbind(), strict=True))
    assert "packed" in repr(batch)
    assert "3 sequences" in repr(batch)


@pytest.mark.gpu
def test_round_trip_over_the_gpu():
    samples = make_tokens([3, 0, 2, 4])
    for batch in (pad_batch(samples), pad_batch(samples, padding="left"), pack_batch(samples, 5)):
        pinned = batch.pin_memory()
        assert pinned.is_pinned()
        moved = pinned.to("cuda", non_blocking=True)
        torch.testing.assert_close(moved.gaps.cpu(), batch.gaps)
        assert all(a.equals(b) for a, b in zip(samples, moved.to("cpu").unbind(), strict=True))


def test_lightning_moves_a_batch_and_never_rounds_its_time():
    from lightning.pytorch.plugins.precision import HalfPrecision
    from lightning.pytorch.utilities import move_data_to_device

    batch = pad_batch(make_tokens([2, 3]))
    assert move_data_to_device(batch, torch.device("cpu")).unbind()[0].equals(batch.unbind()[0])
    assert HalfPrecision("bf16-true").convert_input(batch).time.dtype == torch.float64
