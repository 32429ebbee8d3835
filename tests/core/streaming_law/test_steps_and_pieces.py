"""Steps, pieces and any mixture of both give what the whole sequence does, and only the past is seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.blocks import BLOCKS
from mambakit.core.testing import (
    assert_states_close,
    check_packing,
    check_padding,
    check_streaming,
    run_by_steps,
    run_in_pieces,
)

LENGTH = 11
LOCAL = {"sequence-windows", "sequence-dilated"}  # what they begin with sees itself alone
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def test_every_registered_block_is_here(kinds, both_ways_names):
    assert kinds == set(BLOCKS)
    assert {"attention-both-ways", "bidirectional", "stack-both-ways", *LOCAL} <= both_ways_names


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_steps_and_pieces_equal_the_whole(streaming_name, dtype, build, sample):
    check_streaming(
        build(streaming_name, dtype), sample(dtype=dtype), [0, 1, 1, 4, 9, 11], atol=TOLERANCE[dtype]
    )


@settings(max_examples=5, deadline=None)
@given(
    cuts=st.lists(st.integers(0, LENGTH), max_size=5).map(sorted),
    switch=st.integers(0, LENGTH),
)
def test_pieces_and_steps_in_any_mixture(streaming_name, cuts, switch, build, sample):
    module, x = build(streaming_name), sample(batch=2)
    whole, final = module(x)
    pieces, state = run_in_pieces(module, x[:, :switch], [cut for cut in cuts if cut <= switch])
    steps, state = run_by_steps(module, x[:, switch:], state)
    torch.testing.assert_close(torch.cat([pieces, steps], dim=1), whole, atol=1e-10, rtol=0)
    assert_states_close(state, final, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in ("mamba1", "mamba2-groups", "mamba3", "mamba3-mimo")),
        *((name, torch.float64) for name in ("bidirectional-concat", "stack-hybrid", "stack-recurrent")),
        *((name, torch.float32) for name in ("mamba1", "mamba2-groups", "mamba3-mimo", "stack-recurrent")),
    ],
    ids=str,
)
def test_sequences_longer_than_a_chunk(name, dtype, build, sample):
    """Lengths around the chunks of 32 and 64 that the scans work in."""
    module, x = build(name, dtype), sample(batch=2, length=151, dtype=dtype)
    if module.causal:
        check_streaming(module, x, [32, 64, 65, 97, 97, 130], atol=TOLERANCE[dtype])
    check_packing(module, x, [1, 63, 64, 3, 20], atol=TOLERANCE[dtype])
    check_packing(module, x, [65, 31, 32, 23], atol=TOLERANCE[dtype])
    check_padding(module, x, [128, 33], atol=TOLERANCE[dtype])


def test_only_the_past_is_seen(streaming_name, build, sample):
    module, x = build(streaming_name), sample()
    y, _ = module(x)
    changed = x.clone()
    changed[:, 6:] += 1.0
    torch.testing.assert_close(module(changed)[0][:, :6], y[:, :6], atol=1e-12, rtol=0)


def test_both_directions_need_the_whole_sequence(both_ways_name, build, sample):
    module, x = build(both_ways_name), sample()
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module.init_state(3)
    _, state = module(x)
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module(x, state)
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module.step(x[:, 0], state)


def test_both_directions_see_the_future(both_ways_name, build, sample):
    module, x = build(both_ways_name), sample()
    changed = x.clone()
    changed[:, 1:] += 1.0
    moved = (module(changed)[0][:, 0] - module(x)[0][:, 0]).abs().max()
    if both_ways_name in LOCAL:
        assert moved < 1e-12
    else:
        assert moved > 1e-6
