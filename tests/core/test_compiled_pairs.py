"""A few frames through pairs of blocks in one compiled call: op by op's numbers, or out of the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.blocks import RMSNorm, build_block
from mambakit.core.compiled_pairs import PairParts, ShortPairs
from mambakit.core.state import State
from mambakit.kernels.testing import assert_as_accurate

pytest.importorskip("numba")

WIDTH, ROWS = 24, 7
OPTIONS = [
    {"d_state": 16, "head_dim": 12},
    {"d_state": 20, "head_dim": 8, "n_groups": 2, "bias": True, "norm": False},
    {"d_state": 3, "head_dim": 8, "n_groups": 3, "norm_before_gate": True, "conv_bias": False, "d_conv": 2},
    {"d_state": 5, "head_dim": 12, "D_per_channel": True, "dt_limit": (0.0, 0.03)},
]


def make_pairs(options: dict[str, object], n: int = 2, **rows: object) -> tuple[nn.Module, list[PairParts]]:
    torch.manual_seed(0)
    both = {"inner": "mamba2", "inner_options": options, **rows}
    pairs = [
        PairParts(
            RMSNorm(WIDTH),
            build_block("mamba2", WIDTH, options),
            RMSNorm(WIDTH),
            build_block("bidirectional", WIDTH, both),
        )
        for _ in range(n)
    ]
    root = nn.ModuleList(part for pair in pairs for part in pair)
    with torch.no_grad():
        for parameter in root.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return root.eval(), pairs


@torch.no_grad()
def op_by_op(pairs: list[PairParts], x: Tensor, states: list[State] | None) -> tuple[Tensor, list[State]]:
    after = []
    for i, pair in enumerate(pairs):
        past = None if states is None else states[i]
        along = x[0].transpose(0, 1)
        y, state = pair.time(pair.time_norm(along), past)
        across = (along + y).transpose(0, 1)
        x = (across + pair.rows(pair.row_norm(across))[0])[None]
        after.append(state)
    return x, after


def compiled(root: nn.Module, pairs: list[PairParts], x: Tensor, states: list[State] | None = None):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return ShortPairs().run(root, pairs, x, states)


@pytest.mark.parametrize("n_frames", [1, 3, 8])
@pytest.mark.parametrize("options", OPTIONS)
def test_is_as_accurate_as_op_by_op(
    options: dict[str, object], n_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, pairs = make_pairs(options)
    x = torch.randn(1, 2 * n_frames, ROWS, WIDTH)
    first, states = compiled(root, pairs, x[:, :n_frames])
    kept = [state.clone() for state in states]
    second, after = compiled(root, pairs, x[:, n_frames:].contiguous(), states)
    for state, before in zip(states, kept, strict=True):
        assert all(torch.equal(state[name], before[name]) for name in state)
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    naive, naive_after = op_by_op(pairs, x, None)
    exact, exact_after = op_by_op(
        [PairParts(*(part.double() for part in pair)) for pair in pairs], x.double(), None
    )
    assert_as_accurate("y", torch.cat([first, second], 1), exact=exact, naive=naive)
    for mine, plain, true in zip(after, naive_after, exact_after, strict=True):
        for name in mine:
            assert_as_accurate(name, mine[name], exact=true[name], naive=plain[name])


def test_sees_weights_change_and_be_replaced() -> None:
    root, pairs = make_pairs(OPTIONS[0])
    x, short = torch.randn(1, 1, ROWS, WIDTH), ShortPairs()
    with torch.no_grad():
        before, _ = short.run(root, pairs, x, None)
        pairs[1].rows.back.D.add_(1.0)
        changed, _ = short.run(root, pairs, x, None)
        pairs[0].time.D = nn.Parameter(torch.zeros_like(pairs[0].time.D))
        replaced, _ = short.run(root, pairs, x, None)
    assert not torch.allclose(before, changed)
    assert not torch.allclose(changed, replaced)
    torch.testing.assert_close(replaced, op_by_op(pairs, x, None)[0], rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(short)
    with torch.no_grad():
        assert torch.equal(again.run(root, pairs, x, None)[0], replaced)


def test_is_out_of_the_way_where_anything_is_out_of_the_usual() -> None:
    root, pairs = make_pairs(OPTIONS[0])
    x = torch.randn(1, 2, ROWS, WIDTH)
    assert compiled(root, pairs, x) is not None
    assert compiled(root, pairs, x.expand(2, -1, -1, -1).contiguous()) is None
    assert compiled(root, pairs, torch.randn(1, 9, ROWS, WIDTH)) is None
    assert compiled(root, pairs, x[:, :0]) is None
    assert compiled(root, pairs, x.double()) is None
    assert compiled(root, pairs, x.transpose(1, 2)) is None
    assert ShortPairs().run(root, pairs, x, None) is None  # a loss wants gradients
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ShortPairs().run(root, pairs, x, None) is None
    wrong = [pair.time.init_state(ROWS + 1) for pair in pairs]
    assert compiled(root, pairs, x, wrong) is None
    handle = pairs[0].time.register_forward_hook(lambda *_: None)
    assert compiled(root, pairs, x) is None
    handle.remove()
    pairs[1].time.learn_initial_state()
    assert compiled(root, pairs, x) is None


@pytest.mark.parametrize(
    "rows", [{"merge": "mean"}, {"share": "all"}, {"inner": "mamba1", "inner_options": {}}]
)
def test_other_ways_along_the_rows_go_op_by_op(rows: dict[str, object]) -> None:
    root, pairs = make_pairs(OPTIONS[0], 1, **rows)
    assert compiled(root, pairs, torch.randn(1, 1, ROWS, WIDTH)) is None


def test_blocks_of_two_shapes_go_op_by_op() -> None:
    root, pairs = make_pairs(OPTIONS[0])
    other, more = make_pairs({"d_state": 8, "head_dim": 12})
    both = nn.ModuleList([root, other])
    assert compiled(both, [*pairs, *more], torch.randn(1, 1, ROWS, WIDTH)) is None
