"""Irregular gaps drive the step size: the streaming law, gradients, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambakit.core.adapters import Tokens, pack_batch, pad_batch
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Context
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
    "mamba3": {"head_dim": 4, "d_state": 4, "dt_limit": (0.05, 0.6)},
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
    "mamba3": ["mamba3"],
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
STREAMING = ["mamba1", "mamba2", "mamba3", "hybrid", "zamba", "no-norm-recomputed", "learned-start"]
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


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "mamba3", "hybrid"])
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


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "mamba3", "both-ways-tied", "dilated"])
def test_gradients_to_the_gaps(name):
    module, x = backbone(name), tokens(batch=2, length=5)
    elapsed = gaps(2, 5).clamp(min=0.1).requires_grad_()
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(lambda e: module(x, lengths=lengths, elapsed=e)[0], elapsed)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2", "mamba3"])
def test_gradients_through_steps_equal_those_of_the_whole(kind):
    module, x, elapsed = backbone(kind), tokens(batch=2), gaps(batch=2).requires_grad_()
    inputs = torch.cat([x, elapsed[..., None]], dim=-1)
    expected = torch.autograd.grad(module(x, elapsed=elapsed)[0].square().sum(), elapsed)[0]
    stepped, _ = run_by_steps(WithGaps(module), inputs)
    torch.testing.assert_close(torch.autograd.grad(stepped.square().sum(), elapsed)[0], expected)


def test_a_film_shown_backwards():
    """Both directions with the same weights: time reversed, gaps and all, gives the output reversed."""
    module, x, elapsed = backbone("both-ways-tied"), tokens(), gaps()
    expected, _ = module(x, elapsed=elapsed)
    got, _ = module(x.flip(1), elapsed=torch.cat([elapsed[:, :1], elapsed[:, 1:].flip(1)], dim=1))
    torch.testing.assert_close(got.flip(1), expected, atol=1e-10, rtol=0)


# --- from stamps


@pytest.mark.parametrize(
    "make", [pad_batch, lambda s: pad_batch(s, padding="left"), lambda s: pack_batch(s, LENGTH)]
)
@pytest.mark.parametrize("name", ["hybrid", "both-ways"])
def test_a_batch_of_stamped_tokens(name, make):
    module, draw = backbone(name, torch.float32), torch.Generator().manual_seed(3)
    samples = []
    for n in (4, 9, 1, 3):
        stamps = 60.0 * torch.rand(n, generator=draw, dtype=torch.float64).mul(4).cumsum(0) + 1.7e9
        samples.append(Tokens(torch.randn(n, D_MODEL, generator=draw), stamps))
    batch = make(samples)
    y, _ = module(batch.values, **batch.layout(), elapsed=batch.elapsed(60.0))
    for got, one in zip(batch.split(y), samples, strict=True):
        gaps = torch.cat([torch.ones(1), (one.time.diff() / 60.0).float()])
        alone, _ = module(one.values[None], elapsed=gaps[None])
        torch.testing.assert_close(got, alone[0], atol=2e-5, rtol=0)


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


@pytest.mark.parametrize("name", ["mamba1", "mamba2", "mamba3", "both-ways-tied", "dilated"])
def test_compiles_in_one_graph(name):
    module, x, elapsed = backbone(name), tokens(), gaps()
    lengths = torch.tensor([LENGTH, 4, 6])
    torch.compiler.reset()  # the limit of graphs is the process's
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    got, _ = compiled(x, lengths=lengths, elapsed=elapsed)
    torch.testing.assert_close(got, module(x, lengths=lengths, elapsed=elapsed)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mamba1", "mamba2", "mamba3", "both-ways"])
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
