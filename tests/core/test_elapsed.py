"""Irregular gaps: the streaming law, the recurrence written out, and what each reading order sees of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Bidirectional, Block, Context, GridScan, SequenceScan, build_block
from mambakit.core.state import State
from mambakit.core.testing import (
    assert_states_close,
    check_packing,
    check_packs,
    check_padding,
    check_streaming,
    run_by_steps,
    run_in_pieces,
)

D_MODEL = 8
LENGTH = 9
OPTIONS = {
    "mamba1": {"d_state": 3, "dt_limit": (0.05, 0.6)},
    "mamba2": {"head_dim": 4, "d_state": 4, "dt_limit": (0.05, 0.6)},
    "attention": {"n_heads": 2},
    "conv": {"width": 3},
    "moe": {"n_experts": 3, "d_hidden": 8},
    "zamba": {"n_heads": 2, "d_hidden": 8, "inner_options": {"d_state": 3}},
    "bidirectional": {"inner": "mamba1", "inner_options": {"d_state": 3}},
    "sequence_scan": {"size": 3, "inner": "mamba1", "inner_options": {"d_state": 3}, "isolate": False},
}
LAYERS = {
    "mamba1": ["mamba1"],
    "mamba2": ["mamba2", "mlp"],
    "hybrid": ["mamba1", "attention", "mamba2", "conv", "moe"],
    "zamba": ["zamba@a", "zamba@a"],
    "bidirectional": ["bidirectional", "mamba2"],
    "dilated": ["sequence_scan"],
}
FIELDS = {
    "no-norm-recomputed": {
        "layers": ["mamba2"],
        "block_options": {"mamba2": {"head_dim": 4, "d_state": 4, "norm": False, "recompute": True}},
    },
    "learned-start": {"layers": ["mamba1", "mamba2"], "learn_initial_state": True},
    "both-ways": {"layers": ["mamba2", "attention", "zamba"], "bidirectional": True},
    "both-ways-tied": {
        "layers": ["bidirectional"],
        "block_options": {"bidirectional": {**OPTIONS["bidirectional"], "share": "all"}},
    },
    "windows": {
        "layers": ["sequence_scan"],
        "block_options": {
            "sequence_scan": {
                "scan": "windows",
                "size": 4,
                "inner": "bidirectional",
                "inner_options": OPTIONS["bidirectional"],
            }
        },
    },
}
NAMES = [*LAYERS, *FIELDS]
STREAMING = ["mamba1", "mamba2", "hybrid", "zamba", "no-norm-recomputed", "learned-start"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}


def backbone(name: str, dtype: torch.dtype = torch.float64) -> Backbone:
    torch.manual_seed(0)
    fields = FIELDS.get(name) or {"layers": LAYERS[name]}
    used = {layer.partition("@")[0] for layer in fields["layers"]}
    options = {kind: given for kind, given in OPTIONS.items() if kind in used}
    config = BackboneConfig(**{"d_model": D_MODEL, "block_options": options, **fields})
    return _lively(Backbone(config)).to(dtype).eval()


def _lively(module: nn.Module) -> nn.Module:
    """Larger dt than at the start of training, so that gaps are felt within a few tokens."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.add_(3.0)
            if ".initial." in f".{name}":
                nn.init.normal_(parameter)
    return module


class WithGaps(nn.Module):
    """A backbone whose last channel of x is ``elapsed``, so that the checks of the law cut both alike."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner
        self.causal = inner.causal
        self.init_state = inner.init_state

    def forward(self, x: Tensor, state: State | None = None, **rows: Tensor) -> tuple[Tensor, State]:
        return self.inner(x[..., :-1], state, elapsed=x[..., -1], **rows)

    def step(self, x: Tensor, state: State, **options: bool) -> tuple[Tensor, State]:
        return self.inner.step(x[..., :-1], state, elapsed=x[..., -1], **options)


def tokens(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)


def gaps(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    """From 0.1 to 10 ordinary gaps, and now and then none at all."""
    draw = torch.Generator().manual_seed(2)
    drawn = 10.0 ** (2 * torch.rand(batch, length, generator=draw, dtype=torch.float64) - 1)
    return drawn.masked_fill(torch.rand(batch, length, generator=draw) < 0.1, 0.0).to(dtype)


def with_gaps(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([tokens(batch, length, dtype), gaps(batch, length, dtype)[..., None]], dim=-1)


# --- the law


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", STREAMING)
def test_steps_and_pieces_equal_the_whole(name, dtype):
    check_streaming(
        WithGaps(backbone(name, dtype)), with_gaps(dtype=dtype), [0, 1, 4, 9], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "hybrid"])
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, LENGTH), max_size=4).map(sorted), switch=st.integers(0, LENGTH))
def test_pieces_and_steps_in_any_mixture(name, cuts, switch):
    module, x = WithGaps(backbone(name)), with_gaps(batch=2)
    whole, final = module(x)
    pieces, state = run_in_pieces(module, x[:, :switch], [cut for cut in cuts if cut <= switch])
    steps, state = run_by_steps(module, x[:, switch:], state)
    got = torch.cat([pieces, steps[..., :D_MODEL]], dim=1)
    torch.testing.assert_close(got, whole, atol=1e-10, rtol=0)
    assert_states_close(state, final, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_equal_each_alone(name):
    check_padding(WithGaps(backbone(name)), with_gaps(batch=4), [LENGTH, 0, 1, 6], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_left_padded_rows_equal_right_padded_ones(name):
    module, x, elapsed = backbone(name), tokens(), gaps()
    lengths = torch.tensor([LENGTH, 2, 5])
    expected, _ = module(x, lengths=lengths, elapsed=elapsed)
    moved, moved_gaps = torch.full_like(x, torch.nan), torch.full_like(elapsed, torch.nan)
    for row, n in enumerate(lengths.tolist()):
        moved[row, LENGTH - n :], moved_gaps[row, LENGTH - n :] = x[row, :n], elapsed[row, :n]
    got, _ = module(moved, lengths=lengths, padding="left", elapsed=moved_gaps)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[row, LENGTH - n :], expected[row, :n], atol=1e-12, rtol=0)
        assert not got[row, : LENGTH - n].any()


@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_equal_each_alone(name):
    module, x = WithGaps(backbone(name)), with_gaps(batch=2)
    for lengths in ([LENGTH], [3, 6], [1, 1, 5, 2]):
        check_packing(module, x, lengths, atol=1e-10)
    before = module(x[:, :4])[1] if module.causal else None
    check_packs(module, x, before, [[4, 5], [2, 2, 5]], atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_gaps_are_as_none(name):
    module, x = backbone(name), tokens()
    expected, state = module(x)
    got, same = module(x, elapsed=torch.ones(3, LENGTH, dtype=x.dtype))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    assert_states_close(same, state, atol=1e-12)
    assert (module(x, elapsed=gaps())[0] - expected).abs().max() > 1e-3  # and others are not
    if module.causal:
        expected, state = module.step(x[:, 0], state)
        got, same = module.step(x[:, 0], same, elapsed=torch.ones(3, dtype=x.dtype))
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
        assert_states_close(same, state, atol=1e-12)


def test_steps_in_float32_with_and_without_gaps():
    """Without, one compiled call a block; with, op by op: the same numbers to rounding."""
    for name in ("mamba1", "mamba2", "hybrid"):
        module, x = backbone(name, torch.float32), tokens(batch=1, dtype=torch.float32)
        with torch.inference_mode():
            plain, state = run_by_steps(module, x)
            own = module.init_state(1)
            outputs = []
            for t in range(LENGTH):
                y, own = module.step(x[:, t], own, inplace=True, elapsed=torch.ones(1))
                outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), plain, atol=1e-5, rtol=0)
        assert_states_close(own, state, atol=1e-5)


# --- the recurrence


def _dt(raw: Tensor, bias: Tensor, elapsed: Tensor) -> Tensor:
    """Softplus, then the limits, then the gap: a gap may take dt out of its limits."""
    return torch.log1p(torch.exp(raw + bias)).clamp(0.05, 0.6) * elapsed[..., None]


def _convolved(inputs: Tensor, block: Block) -> Tensor:
    past = F.pad(inputs, (0, 0, 3, 0))
    taps = (past[:, k : k + LENGTH] * block.conv_weight[:, k] for k in range(4))
    return F.silu(sum(taps) + block.conv_bias)


def test_mamba1_by_its_equations():
    block = _lively(build_block("mamba1", D_MODEL, OPTIONS["mamba1"])).double()
    x, elapsed = tokens(), gaps()
    u, z = (x @ block.in_proj.weight.T).split(16, dim=-1)
    u = _convolved(u, block)
    dt, B, C = (u @ block.x_proj.weight.T).split([1, 3, 3], dim=-1)
    dt = _dt(dt @ block.dt_proj.weight.T, block.dt_proj.bias, elapsed)
    h = torch.zeros(3, 16, 3, dtype=torch.float64)
    outputs = []
    for t in range(LENGTH):
        h = torch.exp(dt[:, t, :, None] * -torch.exp(block.A_log)) * h
        h = h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + block.D * u[:, t])
    expected = (torch.stack(outputs, 1) * F.silu(z)) @ block.out_proj.weight.T
    got, state = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"], h, atol=1e-12, rtol=0)


def test_mamba2_by_its_equations():
    block = _lively(build_block("mamba2", D_MODEL, {**OPTIONS["mamba2"], "norm": False})).double()
    x, elapsed = tokens(), gaps()
    z, inputs, dt = (x @ block.in_proj.weight.T).split([16, 24, 4], dim=-1)
    u, B, C = _convolved(inputs, block).split([16, 4, 4], dim=-1)
    u = u.unflatten(-1, (4, 4))
    dt = _dt(dt, block.dt_bias, elapsed)
    h = torch.zeros(3, 4, 4, 4, dtype=torch.float64)
    outputs = []
    for t in range(LENGTH):
        h = torch.exp(dt[:, t] * -torch.exp(block.A_log))[..., None, None] * h
        h = h + (dt[:, t, :, None] * u[:, t])[..., None] * B[:, t, None, None]
        outputs.append((h @ C[:, t, None, :, None])[..., 0] + block.D[:, None] * u[:, t])
    expected = (torch.stack(outputs, 1).flatten(2) * F.silu(z)) @ block.out_proj.weight.T
    got, state = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"], h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
@settings(max_examples=10, deadline=None)
@given(first=st.floats(0, 20), second=st.floats(0, 20))
def test_decays_over_gaps_compose(kind, first, second):
    """With nothing coming in, two gaps one after the other are one as long as both."""
    options = {**OPTIONS[kind], "d_conv": 1, "conv_bias": False}
    block = _lively(build_block(kind, D_MODEL, options)).double()
    _, state = block(tokens(batch=1))
    nothing = torch.zeros(1, D_MODEL, dtype=torch.float64)

    def after(state: State, gap: float) -> State:
        told = Context(elapsed=torch.tensor([gap], dtype=torch.float64))
        return block.step(nothing, state, context=told)[1]

    assert_states_close(after(after(state, first), second), after(state, first + second), atol=1e-12)
    bias = block.dt_bias if kind == "mamba2" else block.dt_proj.bias
    rate = F.softplus(bias).clamp(0.05, 0.6)
    decay = torch.exp(rate.view(-1, 1) * -torch.exp(block.A_log).view(len(rate), -1) * first)
    expected = state["ssm"] * decay.view(*decay.shape, *[1] * (state["ssm"].dim() - 3))
    torch.testing.assert_close(after(state, first)["ssm"], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_no_time_leaves_the_state(kind):
    block = _lively(build_block(kind, D_MODEL, OPTIONS[kind])).double()
    _, state = block(tokens())
    _, after = block.step(tokens()[:, 0], state, context=Context(elapsed=torch.zeros(3).double()))
    torch.testing.assert_close(after["ssm"], state["ssm"], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "both-ways-tied", "dilated"])
def test_gradients_to_the_gaps(name):
    module, x = backbone(name), tokens(batch=2, length=5)
    elapsed = gaps(2, 5).clamp(min=0.1).requires_grad_()
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(lambda e: module(x, lengths=lengths, elapsed=e)[0], elapsed)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_gradients_through_steps_equal_those_of_the_whole(kind):
    module, x, elapsed = backbone(kind), tokens(batch=2), gaps(batch=2).requires_grad_()
    inputs = torch.cat([x, elapsed[..., None]], dim=-1)
    expected = torch.autograd.grad(module(x, elapsed=elapsed)[0].square().sum(), elapsed)[0]
    stepped, _ = run_by_steps(WithGaps(module), inputs)
    torch.testing.assert_close(torch.autograd.grad(stepped.square().sum(), elapsed)[0], expected)


# --- other orders


def _reversed_gaps(elapsed: Tensor) -> Tensor:
    """From the stamps: the sequence filmed backwards, which begins as the other does."""
    stamps = elapsed.cumsum(1)
    return torch.cat([elapsed[:, :1], -stamps.flip(1).diff(dim=1)], dim=1)


@pytest.mark.parametrize("share", ["none", "all"])
def test_backwards_a_gap_is_that_to_the_next_token(share):
    torch.manual_seed(0)
    block = _lively(
        Bidirectional(d_model=D_MODEL, inner="mamba2", inner_options=OPTIONS["mamba2"], share=share)
    ).double()
    x, elapsed = tokens(), gaps()
    reader = block.back or block.ahead
    back, _ = reader(x.flip(1), context=Context(elapsed=_reversed_gaps(elapsed)))
    ahead, _ = block.ahead(x, context=Context(elapsed=elapsed))
    got, _ = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, ahead + back.flip(1), atol=1e-10, rtol=0)
    # its own gap read backwards would be another thing
    wrong, _ = reader(x.flip(1), context=Context(elapsed=elapsed.flip(1)))
    assert (wrong - back).abs().max() > 1e-3


def test_a_film_shown_backwards():
    """Both directions with the same weights: time reversed, gaps and all, gives the output reversed."""
    module, x, elapsed = backbone("both-ways-tied"), tokens(), gaps()
    expected, _ = module(x, elapsed=elapsed)
    got, _ = module(x.flip(1), elapsed=_reversed_gaps(elapsed))
    torch.testing.assert_close(got.flip(1), expected, atol=1e-10, rtol=0)


def _mean_gaps(elapsed: Tensor, order: list[int]) -> Tensor:
    """Between tokens read one after the other: the time from one to the other over their distance."""
    stamps = elapsed.cumsum(1)
    read = [elapsed[:, 0]]
    for before, now in pairwise(order):
        read.append((stamps[:, now] - stamps[:, before]).abs() / abs(now - before))
    return torch.stack(read, dim=1)


def test_a_stride_sees_the_mean_of_the_gaps_it_spans():
    options = {"inner": "mamba1", "inner_options": OPTIONS["mamba1"], "isolate": False}
    block = _lively(SequenceScan(d_model=D_MODEL, size=3, **options)).double()
    x, elapsed = tokens(), gaps()
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    y, _ = block.inner(x[:, order], context=Context(elapsed=_mean_gaps(elapsed, order)))
    expected = torch.empty_like(y)
    expected[:, order] = y
    got, _ = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("share", ["none", "all"])
def test_a_grid_in_every_order(share):
    grid = GridScan(
        d_model=D_MODEL,
        grid=(3, 3),
        scan="zigzag",
        inner="mamba1",
        inner_options=OPTIONS["mamba1"],
        share=share,
    )
    grid = _lively(grid).double()
    x, elapsed = tokens(), gaps()
    total = torch.zeros_like(x)
    for i, order in enumerate(grid.orders.tolist()):
        told = Context(elapsed=_mean_gaps(elapsed, order))
        y, _ = grid.inner[i % len(grid.inner)](x[:, order], context=told)
        total[:, order] += y
    got, _ = grid(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, total, atol=1e-10, rtol=0)


# --- at the boundary


def test_bad_gaps_are_refused_in_a_sentence():
    module, x = backbone("mamba1"), tokens()
    state = module.init_state(3)
    with pytest.raises(TypeError, match="expected a tensor of floats, got torch"):
        module(x, elapsed=torch.ones(3, LENGTH, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"elapsed: expected shape \(batch=3, length=9\).*got \(3,\)"):
        module(x, elapsed=torch.ones(3))
    with pytest.raises(ValueError, match=r"elapsed: expected shape \(batch=3\).*got \(3, 1\)"):
        module.step(x[:, 0], state, elapsed=torch.ones(3, 1))
    for bad in (-1.0, math.nan, math.inf):
        elapsed = gaps()
        elapsed[1, 4] = bad
        with pytest.raises(ValueError, match=f"finite and at least 0, got {bad} in row 1"):
            module(x, elapsed=elapsed)
        module(x, lengths=torch.tensor([9, 4, 9]), elapsed=elapsed)  # padding holds what it likes
        with pytest.raises(ValueError, match=f"got {bad} in row 1"):
            module.step(x[:, 4], state, elapsed=elapsed[:, 4])
    with pytest.raises(ValueError, match=r"elapsed: expected a number a token, \(3, 9\), got \(9,\)"):
        module.blocks[0](x, context=Context(elapsed=torch.ones(9)))


def test_a_backbone_without_step_sizes_says_so():
    config = BackboneConfig(
        d_model=D_MODEL, layers=["attention", "mlp"], block_options={"attention": {"n_heads": 2}}
    )
    module = Backbone(config)
    assert not module.uses_elapsed
    with pytest.raises(ValueError, match="elapsed: no layer of this backbone has a step size"):
        module(tokens(dtype=torch.float32), elapsed=torch.ones(3, LENGTH))


def test_nothing_at_all():
    for name in NAMES:
        module = backbone(name)
        assert module(tokens(length=0), elapsed=gaps(length=0))[0].shape == (3, 0, D_MODEL)
        assert module(tokens(batch=0), elapsed=gaps(batch=0))[0].shape == (0, LENGTH, D_MODEL)


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "both-ways-tied", "dilated"])
def test_compiles_in_one_graph(name):
    module, x, elapsed = backbone(name), tokens(), gaps()
    lengths = torch.tensor([LENGTH, 4, 6])
    torch.compiler.reset()  # the limit of graphs is the process's
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    got, _ = compiled(x, lengths=lengths, elapsed=elapsed)
    torch.testing.assert_close(got, module(x, lengths=lengths, elapsed=elapsed)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mamba1", "mamba2", "both-ways"])
def test_a_gpu_is_not_waited_for(name):
    from mambakit.core.cuda_graph import record, waits_for_gpu

    module, x = backbone(name, torch.float32).cuda(), tokens(dtype=torch.float32).cuda()
    elapsed = gaps(dtype=torch.float32).cuda()
    with torch.no_grad():
        module(x, elapsed=elapsed)
        assert not waits_for_gpu(lambda: module(x, elapsed=elapsed))
        graph, (y, _) = record(lambda: module(x, elapsed=elapsed))
        elapsed.add_(0.5)
        graph.replay()
        torch.testing.assert_close(y, module(x, elapsed=elapsed)[0], atol=1e-4, rtol=1e-4)
