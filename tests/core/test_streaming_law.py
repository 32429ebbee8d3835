"""The streaming law over every registered block and over whole backbones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import BLOCKS, build_block, kind_of
from mambakit.core.state import State
from mambakit.core.testing import (
    Sequential,
    assert_states_close,
    check_packing,
    check_packs,
    check_padding,
    check_streaming,
    run_by_steps,
    run_in_pieces,
)

D_MODEL = 16
LENGTH = 11

# At least one entry for every registered kind; a new kind without one fails below.
CASES = {
    "mamba1": ("mamba1", {}),
    "mamba1-bare": ("mamba1", {"d_state": 3, "d_conv": 1, "conv_bias": False, "dt_rank": 2, "expand": 1}),
    "mamba1-limit": ("mamba1", {"dt_limit": (0.01, 0.05), "bias": True, "d_conv": 2}),
    "mamba2": ("mamba2", {"head_dim": 8, "d_state": 6}),
    "mamba2-groups": ("mamba2", {"head_dim": 4, "d_state": 5, "n_groups": 2, "dt_limit": (0.01, 0.1)}),
    "mamba2-no-norm": ("mamba2", {"head_dim": 16, "d_state": 4, "norm": False, "D_per_channel": True}),
    "mamba2-norm-first": (
        "mamba2",
        {
            "head_dim": 32,
            "d_state": 4,
            "norm_before_gate": True,
            "conv_bias": False,
            "bias": True,
            "d_conv": 1,
        },
    ),
    "mamba3": ("mamba3", {"head_dim": 8, "d_state": 6}),
    "mamba3-odd-shapes": (
        "mamba3",
        {"head_dim": 4, "d_state": 5, "n_groups": 2, "rope_fraction": 1, "norm": True, "bias": True},
    ),
    "mamba3-mimo": (
        "mamba3",
        {"head_dim": 8, "d_state": 6, "n_groups": 2, "mimo_rank": 3, "dt_limit": (0.01, 0.5)},
    ),
    "mamba3-real": (
        "mamba3",
        {
            "head_dim": 16,
            "d_state": 4,
            "mimo_rank": 2,
            "rope_fraction": 0,
            "norm": True,
            "A_init_range": (0.1, 4),
            "decay": "softplus",
        },
    ),
    "mamba1-normed": ("mamba1", {"d_state": 4, "inner_norm": "learned"}),
    "attention": ("attention", {"n_heads": 2}),
    "attention-grouped": ("attention", {"n_heads": 4, "n_kv_heads": 2, "rope": False, "bias": True}),
    "attention-both-ways": ("attention", {"n_heads": 2, "causal": False}),
    "attention-odd-shapes": (
        "attention",
        {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "rope_fraction": 0.67, "qk_norm": True, "scale": 0.3},
    ),
    "conv-attention": ("conv_attention", {"n_heads": 2, "d_conv": 3, "bias": True}),
    "conv-attention-odd-shapes": (
        "conv_attention",
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope_fraction": 0.67, "d_conv": 1},
    ),
    "sliding": ("sliding_attention", {"n_heads": 2, "window": 4}),
    "sliding-grouped": (
        "sliding_attention",
        {"n_heads": 4, "n_kv_heads": 2, "window": 3, "qk_norm": True, "bias": True, "out_bias": False},
    ),
    "sliding-both-ways": ("attention", {"n_heads": 2, "window": 3, "causal": False}),
    "mlp": ("mlp", {}),
    "moe": ("moe", {"n_experts": 5, "d_hidden": 8}),
    "moe-shared": (
        "moe",
        {"n_experts": 4, "top_k": 1, "normalize_gates": False, "d_hidden": 8, "d_shared": 8},
    ),
    "gru": ("gru", {}),
    "gru-wide": ("gru", {"d_hidden": 24, "bias": False}),
    "lstm": ("lstm", {}),
    "lstm-narrow": ("lstm", {"d_hidden": 5, "bias": False}),
    "conv": ("conv", {"width": 4}),
    "conv-both-ways": ("conv", {"width": 5, "causal": False, "norm": "layer", "expand": 2}),
    "zamba": ("zamba", {"n_heads": 2, "inner_options": {"d_state": 4}}),
    "bidirectional": ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 4}}),
    "bidirectional-concat": (
        "bidirectional",
        {"inner": "mamba2", "inner_options": {"head_dim": 8, "d_state": 4}, "merge": "concat"},
    ),
    "bidirectional-attention": (
        "bidirectional",
        {"inner": "attention", "inner_options": {"n_heads": 2}, "merge": "mean"},
    ),
    "bidirectional-gated": (
        "bidirectional",
        {"inner": "mamba1", "inner_options": {"d_state": 4}, "merge": "gated", "share": "all"},
    ),
    "bidirectional-tied": (
        "bidirectional",
        {"inner": "mamba2", "inner_options": {"head_dim": 8, "d_state": 4}, "share": "projections"},
    ),
    "bidirectional-mamba3": (
        "bidirectional",
        {"inner": "mamba3", "inner_options": {"head_dim": 8, "d_state": 4}, "share": "projections"},
    ),
    "sequence-windows": ("sequence_scan", {"scan": "windows", "size": 4, "inner": "mamba1"}),
    "sequence-dilated": ("sequence_scan", {"size": 3, "inner": "mamba1", "isolate": False}),
    "sequence-dilated-both-ways": (
        "sequence_scan",
        {"size": 2, "inner": "bidirectional", "inner_options": {"inner": "mamba1"}},
    ),
    "bidirectional-gru": ("bidirectional", {"inner": "gru", "merge": "concat"}),
    "unet": (
        "unet",
        {"levels": [["mamba1"], ["mamba1", "mlp"]], "inner_options": {"mamba1": {"d_state": 4}}},
    ),
    "unet-deep": (
        "unet",
        {
            "levels": [["mlp"], ["mamba2"], ["attention", "gru"]],
            "factor": [2, 3],
            "widths": [D_MODEL, 24, 32],
            "skip": "concat",
            "inner_options": {"mamba2": {"head_dim": 8, "d_state": 4}, "attention": {"n_heads": 2}},
        },
    ),
    "unet-bare": ("unet", {"levels": [[], ["conv"]], "factor": 4, "inner_options": {"conv": {"width": 3}}}),
    "unet-both-ways": (
        "unet",
        {
            "levels": [["mamba1"], ["moe"], ["attention"]],
            "causal": False,
            "factor": [3, 2],
            "inner_options": {"moe": {"n_experts": 3, "d_hidden": 8}, "attention": {"n_heads": 2}},
        },
    ),
}
LOCAL = {"sequence-windows", "sequence-dilated"}  # their first token does not see the last one
# nothing here is a whole grid, and a graph's edges lie in a sequence
TESTED_ELSEWHERE = {"grid_scan", "graph"}
SMALL = {
    "mamba1": {"d_state": 4},
    "mamba2": {"head_dim": 8, "d_state": 6},
    "mamba3": {"head_dim": 8, "d_state": 6},
    "attention": {"n_heads": 2},
    "sliding_attention": {"n_heads": 2, "window": 3},
    "moe": {"n_experts": 3, "d_hidden": 8},
    "conv": {"width": 3},
    "zamba": {"n_heads": 2, "d_hidden": 16, "inner_options": {"d_state": 4}},
    "unet": {
        "levels": [["mamba1"], ["zamba", "moe"]],
        "factor": 3,
        "inner_options": {"mamba1": {"d_state": 4}, "zamba": {"n_heads": 2}, "moe": {"n_experts": 3}},
    },
}
STACKS = {
    "stack-mamba1": (["mamba1"], 2, False),
    "stack-mamba2": (["mamba2", "mlp"], 2, False),
    "stack-mamba3": (["mamba3", "mlp", "attention"], 1, False),
    "stack-hybrid": (["mamba1", "mlp", "attention", "mamba2"], 1, False),
    "stack-shared": (["zamba@a", "moe", "attention@b", "attention@b", "zamba@a"], 1, False),
    "stack-recurrent": (["gru", "mlp", "lstm"], 1, False),
    "stack-unet": (["mamba1", "unet", "moe"], 1, False),
    "stack-dense": (["mamba2", "mlp", "mamba1"], 3, False),
    "stack-both-ways": (["mamba2", "attention", "mlp"], 1, True),
    "stack-unet-both-ways": (["mamba1", "unet", "mlp"], 1, True),
    "stack-everything-both-ways": (["conv", "sliding_attention", "moe", "zamba"], 1, True),
}
NAMES = [*CASES, *STACKS]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def build(name: str, dtype: torch.dtype = torch.float64) -> Sequential:
    torch.manual_seed(0)
    module: Sequential
    if name in CASES:
        kind, options = CASES[name]
        module = build_block(kind, D_MODEL, options)
    else:
        layers, repeat, bidirectional = STACKS[name]
        options = {kind: SMALL[kind] for kind in map(kind_of, layers) if kind in SMALL}
        module = Backbone(
            BackboneConfig(
                d_model=D_MODEL,
                layers=layers,
                repeat=repeat,
                block_options=options,
                bidirectional=bidirectional,
                dense=2 if name == "stack-dense" else 0,
            )
        )
    # larger dt than at the start of training, so that states forget within a few tokens
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.add_(3.0)
            if ".dense." in parameter_name:  # gates begin at zero
                parameter.add_(0.5 * torch.randn_like(parameter))
    return module.to(dtype).eval()


def sample(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)


STREAMING = [name for name in NAMES if build(name).causal]


def test_every_registered_block_is_here():
    assert {kind for kind, _ in CASES.values()} | TESTED_ELSEWHERE == set(BLOCKS)
    assert {"attention-both-ways", "bidirectional", "stack-both-ways"} <= set(NAMES) - set(STREAMING)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", STREAMING)
def test_steps_and_pieces_equal_the_whole(name, dtype):
    check_streaming(build(name, dtype), sample(dtype=dtype), [0, 1, 1, 4, 9, 11], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", STREAMING)
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(0, LENGTH), max_size=5).map(sorted),
    switch=st.integers(0, LENGTH),
)
def test_pieces_and_steps_in_any_mixture(name, cuts, switch):
    module, x = build(name), sample(batch=2)
    whole, final = module(x)
    pieces, state = run_in_pieces(module, x[:, :switch], [cut for cut in cuts if cut <= switch])
    steps, state = run_by_steps(module, x[:, switch:], state)
    torch.testing.assert_close(torch.cat([pieces, steps], dim=1), whole, atol=1e-10, rtol=0)
    assert_states_close(state, final, atol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_equal_each_alone(name, dtype):
    check_padding(
        build(name, dtype), sample(batch=6, dtype=dtype), [11, 0, 1, 2, 7, 10], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [[11], [3, 8], [1, 1, 7, 2], [1] * 11], ids=str)
def test_packed_rows_equal_each_alone(name, dtype, lengths):
    check_packing(build(name, dtype), sample(batch=2, dtype=dtype), lengths, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_rows_packed_differently(name):
    module, x = build(name), sample(batch=3)
    before = module(x[:, :5])[1] if module.causal else None
    check_packs(module, x, before, [[4, 7], [11], [2, 2, 7]], atol=1e-10)


@pytest.mark.parametrize("name", STREAMING)
def test_padded_pieces_continue_row_by_row(name):
    """Three ragged pieces in a row, one of them empty for some rows, then steps."""
    module, x = build(name), sample(batch=3, length=12)
    pieces = [torch.tensor([4, 0, 3]), torch.tensor([0, 2, 4]), torch.tensor([1, 4, 0])]
    state, got = None, [[], [], []]
    taken = torch.zeros(3, dtype=torch.long)
    for lengths in pieces:
        piece = torch.full((3, 4, D_MODEL), torch.nan, dtype=x.dtype)
        for row in range(3):
            piece[row, : lengths[row]] = x[row, taken[row] : taken[row] + lengths[row]]
        y, state = module(piece, state, lengths=lengths)
        for row in range(3):
            got[row].append(y[row, : lengths[row]])
        taken += lengths
    for _ in range(3):
        token = x[torch.arange(3), taken]
        y, state = module.step(token, state)
        for row in range(3):
            got[row].append(y[row : row + 1])
        taken += 1
    for row in range(3):
        alone, _ = module(x[row : row + 1, : taken[row]])
        torch.testing.assert_close(torch.cat(got[row])[None], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_all(name):
    module = build(name)
    y, state = module(sample(length=0))
    assert y.shape == (3, 0, D_MODEL)
    y, _ = module(sample(batch=0))
    assert y.shape == (0, LENGTH, D_MODEL)
    if not module.causal:
        return
    expected, _ = module(sample())
    torch.testing.assert_close(module(sample(), state)[0], expected, atol=1e-12, rtol=0)
    _, carried = module(sample())
    _, after = module(sample(length=0), carried)
    assert_states_close(after, carried, atol=0)
    _, after = module(sample(), carried, lengths=torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(module(sample(), after)[0], module(sample(), carried)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", STREAMING)
def test_only_the_past_is_seen(name):
    module, x = build(name), sample()
    y, _ = module(x)
    changed = x.clone()
    changed[:, 6:] += 1.0
    torch.testing.assert_close(module(changed)[0][:, :6], y[:, :6], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", STREAMING)
def test_gradients_flow_through_a_carried_state(name):
    module = build(name)
    x = sample(batch=2).requires_grad_()
    weight = torch.randn(2, LENGTH, D_MODEL, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [x, *module.parameters()]

    def gradients(y):
        grads = torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]

    expected = gradients(module(x)[0])
    assert any(grad.abs().sum() > 0 for grad in expected[1:])
    runs = {
        "pieces": run_in_pieces(module, x, [3, 7])[0],
        "steps": run_by_steps(module, x)[0],
    }
    for y in runs.values():
        for actual, grad in zip(gradients(y), expected, strict=True):
            torch.testing.assert_close(actual, grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", STREAMING)
def test_detached_states_cut_the_graph(name):
    module, x = build(name), sample(batch=2).requires_grad_()
    _, state = module(x[:, :5])
    y, _ = module(x[:, 5:], state.detach())
    grad = torch.autograd.grad(y.sum(), x)[0]
    assert not grad[:, :5].any()
    assert grad[:, 5:].any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_padded_rows_equal_each_alone(name):
    module, x = build(name), sample(batch=3)
    lengths = [11, 4, 0]
    padded = x.clone()
    for row, n in enumerate(lengths):
        padded[row, n:] = torch.nan
    padded.requires_grad_()
    y, _ = module(padded, lengths=torch.tensor(lengths))
    actual = torch.autograd.grad(y.square().sum(), [padded, *module.parameters()])
    x.requires_grad_()
    total = sum(module(x[row : row + 1, :n])[0].square().sum() for row, n in enumerate(lengths))
    expected = torch.autograd.grad(total, [x, *module.parameters()])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", STREAMING)
def test_a_saved_stream_goes_on(name, tmp_path):
    module, x = build(name, torch.float32), sample(dtype=torch.float32)
    _, state = module(x[:, :6])
    expected, _ = module(x[:, 6:], state)
    state.save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    assert torch.equal(module(x[:, 6:], loaded)[0], expected)
    for row in (2, 0):
        picked, _ = module(x[row : row + 1, 6:], state.index_select([row]))
        torch.testing.assert_close(picked, expected[row : row + 1], atol=1e-5, rtol=0)
    joined = State.cat([state.index_select([2]), state.index_select([0, 1])])
    both, _ = module(x[[2, 0, 1], 6:], joined)
    torch.testing.assert_close(both, expected[[2, 0, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STREAMING)
def test_a_state_given_is_left_as_it_was(name):
    module, x = build(name), sample()
    _, state = module(x)
    kept = state.clone()
    module(x, state)
    module.step(x[:, 0], state)
    with torch.inference_mode():
        module.step(x[:, 0], state)
    assert_states_close(state, kept, atol=0)


@pytest.mark.parametrize("backend", [None, "portable"])
@pytest.mark.parametrize("name", STREAMING)
def test_steps_in_place(name, backend, monkeypatch):
    if backend is not None:
        monkeypatch.setenv("MAMBAKIT_BACKEND", backend)
    module, x = build(name), sample()
    with torch.inference_mode():
        _, state = module(x)
        own = state.clone()
        for t in range(3):
            expected, state = module.step(x[:, t], state)
            y, own = module.step(x[:, t], own, inplace=True)
            torch.testing.assert_close(y, expected, atol=0, rtol=0)
    assert_states_close(own, state, atol=0)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(STREAMING)))
def test_both_directions_need_the_whole_sequence(name):
    module, x = build(name), sample()
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module.init_state(3)
    _, state = module(x)
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module(x, state)
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        module.step(x[:, 0], state)


@pytest.mark.parametrize(
    "name", sorted(set(NAMES) - set(STREAMING) - {"sequence-windows", "sequence-dilated"})
)
def test_both_directions_see_the_future(name):
    module, x = build(name), sample()
    changed = x.clone()
    changed[:, 1:] += 1.0
    assert (module(changed)[0][:, 0] - module(x)[0][:, 0]).abs().max() > 1e-6


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_states_are_kept_in_float32_at_least(name, dtype):
    module, x = build(name, dtype), sample(dtype=dtype)
    y, state = module(x)
    assert y.dtype == dtype
    start = module.init_state(3)
    for (key, tensor), (_, first) in zip(state.tensors(), start.tensors(), strict=True):
        if key.split(".")[-1] in ("conv", "ssm", "hidden", "cell"):
            assert tensor.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert tensor.dtype == first.dtype
    y_step, _ = module.step(x[:, 0], start)
    torch.testing.assert_close(y_step, y[:, 0], atol=0.05 if dtype == torch.bfloat16 else 1e-10, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "mamba1",
        "mamba2-groups",
        "mamba3",
        "mamba3-mimo",
        "bidirectional-concat",
        "stack-hybrid",
        "stack-recurrent",
    ],
)
def test_sequences_longer_than_a_chunk(name, dtype):
    """Lengths around the chunks of 32 and 64 that the scans work in."""
    module, x = build(name, dtype), sample(batch=2, length=151, dtype=dtype)
    if module.causal:
        check_streaming(module, x, [32, 64, 65, 97, 97, 130], atol=TOLERANCE[dtype])
    check_packing(module, x, [1, 63, 64, 3, 20], atol=TOLERANCE[dtype])
    check_packing(module, x, [65, 31, 32, 23], atol=TOLERANCE[dtype])
    check_padding(module, x, [128, 33], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_strided_inputs(name):
    module, x = build(name), sample()
    expected, _ = module(x)
    strided = torch.empty(D_MODEL, LENGTH, 3, dtype=x.dtype).permute(2, 1, 0).copy_(x)
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided)[0], expected, atol=1e-12, rtol=0)
    everyone = x[:1].expand(3, -1, -1)
    torch.testing.assert_close(module(everyone)[0][2], module(x[:1])[0][0], atol=1e-12, rtol=0)
