"""A sliding window beside a masked softmax, and what its state costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.blocks import Attention, SlidingAttention, build_block
from mambakit.core.testing import check_packing, check_padding, check_streaming, run_by_steps


def block(window: int | None, **options: object) -> Attention:
    torch.manual_seed(0)
    values = {"n_heads": 4, "n_kv_heads": 2, "window": window, **options}
    return build_block("attention", 16, values).double()  # type: ignore[return-value]


def sample(length: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 16, generator=generator, dtype=torch.float64)


def by_masked_softmax(block: Attention, x: torch.Tensor) -> torch.Tensor:
    """All scores at once, those outside the window at minus infinity."""
    length = x.shape[1]
    q, k, v = block._project(x, torch.arange(length)[None])
    k, v = (part.repeat_interleave(2, dim=2) for part in (k, v))
    scores = torch.einsum("bqhp,bkhp->bhqk", q, k) * (block.scale or block.head_dim**-0.5)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = distance.abs() < block.window
    if block.causal:
        seen &= distance >= 0
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return block.out_proj(torch.einsum("bhqk,bkhp->bqhp", weights, v).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("window", "length"), [(1, 5), (3, 3), (3, 4), (5, 63), (5, 64), (5, 65), (64, 65), (70, 200), (200, 150)]
)
def test_equals_a_masked_softmax(window, length, causal):
    module, x = block(window, causal=causal, scale=0.7), sample(length)
    torch.testing.assert_close(module(x)[0], by_masked_softmax(module, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [9, 10, 100])
def test_a_window_over_everything_is_full_attention(window, causal):
    narrow, full, x = block(window, causal=causal), block(None, causal=causal), sample(9)
    full.load_state_dict(narrow.state_dict())
    torch.testing.assert_close(narrow(x)[0], full(x)[0], atol=1e-12, rtol=0)
    lengths = torch.tensor([9, 4])
    torch.testing.assert_close(narrow(x, lengths=lengths)[0], full(x, lengths=lengths)[0], atol=1e-12, rtol=0)
    if causal:
        torch.testing.assert_close(run_by_steps(narrow, x)[0], full(x)[0], atol=1e-12, rtol=0)


def test_the_law_over_several_blocks_of_queries():
    module, x = block(6), sample(150)
    check_streaming(module, x[:1], [1, 64, 65, 66, 140], atol=1e-12)
    check_packing(module, x, [1, 63, 64, 3, 19], atol=1e-12)
    check_padding(module, x, [150, 66], atol=1e-12)
    both = block(6, causal=False)
    check_packing(both, x, [70, 63, 1, 3, 13], atol=1e-12)
    check_padding(both, x, [66, 150], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(window=st.integers(1, 9), length=st.integers(0, 14), changed=st.integers(0, 13))
def test_a_token_reaches_the_window_and_no_further(window, length, changed):
    module, x = block(window), sample(length, batch=1)
    if changed >= length:
        return
    other = x.clone()
    other[:, changed] += 1.0
    differs = (module(other)[0] - module(x)[0]).abs().amax((0, 2)) > 1e-9
    expected = [changed <= t < changed + window for t in range(length)]
    assert differs.tolist() == expected


def test_the_state_stays_as_large_as_the_window():
    module, x = block(4), sample(30)
    first = module.init_state(2, dtype=torch.float64)
    _, state = module(x)
    assert first.nbytes == state.nbytes
    assert state["key"].shape == (2, 4, 2, 4)
    assert state["position"].tolist() == [30, 30]
    _, state = module(x, lengths=torch.tensor([30, 3]))
    assert state["position"].tolist() == [30, 3]
    assert not state["key"][1, 3:].any()  # what is not known yet


def test_steps_in_place_write_one_slot():
    module, x = block(4), sample(6)
    _, state = module(x)
    memory, before = state["key"].data_ptr(), state["key"].clone()
    with torch.no_grad():
        _, state = module.step(x[:, 0], state, inplace=True)
    assert state["key"].data_ptr() == memory
    changed = (state["key"] != before).flatten(2).any(2)
    assert changed.tolist() == [[False, False, True, False]] * 2  # 6 % 4


def test_a_stream_of_ten_million_tokens_sees_what_a_new_one_sees():
    """Rotary angles so far out would be off by a tenth of a turn in float32."""
    module, x = block(4).float(), sample(6).float()
    _, state = module(x)
    far = 10_000_002  # the same slot
    moved = {**state, "position": state["position"] + far - 6}
    keys = module._project(x[:, 2:], torch.arange(far - 4, far)[None])[1]
    moved["key"] = keys[:, [2, 3, 0, 1]]  # positions 2, 3, 4, 5 of a ring of four, moved by a multiple of it
    near, _ = module(x, state)
    y, _ = module(x, type(state)(moved))
    torch.testing.assert_close(y, near, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected at least 1"),
        ({"head_dim": 0}, "head_dim: expected at least 1, got 0"),
        ({"head_dim": 5}, "pairs of channels, not 5 of them: an odd head_dim=5"),
        ({"rope_fraction": 0.0}, "0 < rope_fraction <= 1, got 0.0"),
        ({"rope_fraction": 0.75}, "not 3 of them"),
        ({"n_heads": 3, "n_kv_heads": 3}, "d_model=16 is not divisible by n_heads=3"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SlidingAttention(**{"d_model": 16, "n_heads": 4, **options})
