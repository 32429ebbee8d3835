"""Hidden attention: times the values it is the block's output, for every option and layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.attribution import (
    attention_rollout,
    contributions_of_layers,
    hidden_attention,
    hidden_attention_of_layers,
)
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Attention, Block, Context, Mamba2, build_block
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

WIDTH = 8
BLOCKS = [
    ("mamba1", {"d_state": 3}),
    ("mamba1", {"d_state": 1, "d_conv": 1, "dt_rank": 2, "bias": True, "dt_limit": (0.01, 0.3)}),
    ("mamba1", {"d_state": 2, "d_conv": 3, "conv_bias": False, "expand": 1.5}),
    ("mamba1", {"d_state": 4, "inner_norm": "learned"}),
    ("mamba2", {"d_state": 4, "head_dim": 4}),
    ("mamba2", {"d_state": 3, "head_dim": 4, "n_groups": 2, "norm_before_gate": True}),
    ("mamba2", {"d_state": 3, "head_dim": 2, "n_groups": 4, "D_per_channel": True, "dt_limit": (0.01, 0.3)}),
    ("mamba2", {"d_state": 2, "head_dim": 8, "norm": False, "bias": True, "conv_bias": False, "d_conv": 2}),
    ("mamba2", {"d_state": 2, "head_dim": 16, "d_conv": 1, "recompute": True}),
    ("attention", {"n_heads": 2}),
    ("attention", {"n_heads": 4, "n_kv_heads": 2, "rope": False, "bias": True}),
    ("attention", {"n_heads": 2, "n_kv_heads": 1, "head_dim": 6, "scale": 0.7, "qk_norm": True, "window": 3}),
    ("sliding_attention", {"n_heads": 4, "window": 12}),
    ("conv_attention", {"n_heads": 2}),
    ("attention", {"n_heads": 2, "causal": False}),
    ("sliding_attention", {"n_heads": 2, "window": 2, "causal": False}),
    ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 2}}),
    ("bidirectional", {"inner": "mamba2", "inner_options": {"d_state": 2, "head_dim": 4}, "merge": "mean"}),
    ("bidirectional", {"inner": "attention", "inner_options": {"n_heads": 2}, "merge": "concat"}),
    ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 2}, "share": "all"}),
    ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 2}, "merge": "gated"}),
]
SOME = [
    ("mamba1", {"d_state": 3}),
    ("mamba2", {"d_state": 3, "head_dim": 4, "n_groups": 2}),
    ("attention", {"n_heads": 4, "n_kv_heads": 2}),
    ("bidirectional", {"inner": "mamba1", "inner_options": {"d_state": 2}}),
]
WINDOWS = [
    ("attention", {"n_heads": 2, "n_kv_heads": 1, "window": 3}),
    ("sliding_attention", {"n_heads": 2, "window": 5, "causal": False}),
]
FOLDS = [
    {},
    {"fold_convolution": True},
    {"fold_gate": True},
    {"fold_convolution": True, "fold_gate": True},
]


def make_block(kind: str, options: dict[str, object]) -> Block:
    torch.manual_seed(0)
    block = build_block(kind, WIDTH, options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return block


def inputs(batch: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
@pytest.mark.parametrize("fold", FOLDS)
def test_times_the_values_it_is_the_blocks_output(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    y = block(x)[0].detach()
    found = hidden_attention(block, x, **fold)
    close(found.output(), y)
    assert found.gap is not None
    assert found.gap < 1e-12
    some = hidden_attention(block, x, positions=[-1, 2], **fold)
    close(some.output(), y[:, [6, 2]])
    close(some.matrix, found.matrix[:, :, [6, 2]])


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
@pytest.mark.parametrize("fold", [FOLDS[0], FOLDS[3]])
def test_padded_and_packed_rows(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    padded = x.clone()
    padded[1, 4:] = torch.nan
    lengths = torch.tensor([7, 4])
    found = hidden_attention(block, padded, lengths=lengths, **fold)
    close(found.output(), block(padded, lengths=lengths)[0].detach())
    alone = hidden_attention(block, x[1:, :4], **fold)
    close(found.matrix[1:, :, :4, :4], alone.matrix)
    assert not found.matrix[1, :, 4:].any()
    assert not found.matrix[1, :, :, 4:].any()

    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 5, 5]], dtype=torch.int32)
    state = block(inputs(2, 3))[1].detach() if block.causal else None
    found = hidden_attention(block, x, state, seq_idx, **fold)
    close(found.output(), block(x, state, seq_idx)[0].detach())
    assert not found.matrix.masked_fill((seq_idx[:, None, :, None] == seq_idx[:, None, None]), 0.0).any()
    close(found.matrix[1:, :, 5:, 5:], hidden_attention(block, x[1:, 5:], **fold).matrix)


@pytest.mark.parametrize(
    ("kind", "options"),
    [case for case in BLOCKS if case[0] != "bidirectional" and case[1].get("causal", True)],
)
@pytest.mark.parametrize("fold", FOLDS)
def test_a_state_has_columns_of_its_own(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 7)
    whole = hidden_attention(block, x, **fold)
    _, state = block(x[:, :3])
    found = hidden_attention(block, x[:, 3:], state.detach(), **fold)
    close(found.output(), whole.output()[:, 3:])
    close(found.matrix, whole.matrix[:, :, 3:, 3:])
    if kind == "attention" and "window" not in options:
        close(found.state_matrix, whole.matrix[:, :, 3:, :3])
    else:
        assert found.state_matrix.abs().max() > 1e-6  # of a window: the cached tokens in order, the last last


@pytest.mark.parametrize(("kind", "options"), [*SOME, *WINDOWS])
def test_long_rows_of_other_lengths_and_positions_in_any_order(kind, options):
    block, x = make_block(kind, options), inputs(2, 90)
    lengths = torch.tensor([90, 47])
    y = block(x, lengths=lengths)[0].detach()
    found = hidden_attention(block, x, lengths=lengths)
    close(found.output(), y)
    positions = torch.randperm(85)[:50].tolist()
    some = hidden_attention(block, x, lengths=lengths, positions=positions)
    close(some.output(), y[:, positions])
    close(some.matrix, found.matrix[:, :, positions])
    if block.causal:
        state = block(x[:, :5])[1].detach()
        found = hidden_attention(block, x[:, 5:], state, positions=positions[:20])
        close(found.output(), block(x)[0].detach()[:, 5:][:, positions[:20]])


@pytest.mark.parametrize(("kind", "options"), [case for case in BLOCKS if case[1].get("merge") != "gated"])
@pytest.mark.parametrize("fold", [FOLDS[2], FOLDS[3]])
def test_contributions_are_norms_of_the_parts_of_the_output(kind, options, fold):
    """Each token's part, found by hiding all others' values."""
    block, x = make_block(kind, options), inputs(1, 5)
    found = hidden_attention(block, x, **fold)
    nothing = dataclasses.replace(found, values=torch.zeros_like(found.values)).output()
    for j in range(5):
        alone = torch.zeros_like(found.values)
        alone[:, :, j] = found.values[:, :, j]
        part = dataclasses.replace(found, values=alone).output() - nothing
        close(found.contributions()[:, :, j], part.norm(dim=-1))


def test_from_a_state_comes_the_last_column_of_contributions():
    block, x = make_block("mamba2", {"d_state": 3, "head_dim": 4}), inputs(1, 4)
    state = block(inputs(1, 6))[1].detach()
    found = hidden_attention(block, x, state, fold_gate=True)
    without = dataclasses.replace(found, state_matrix=None, state_values=None)
    assert found.contributions().shape == (1, 4, 5)
    close(found.contributions()[..., :4], without.contributions())
    close(found.contributions()[..., 4], (found.output() - without.output()).norm(dim=-1))


@pytest.mark.parametrize(("kind", "options"), SOME)
@pytest.mark.parametrize("fold", [FOLDS[0], FOLDS[3]])
def test_some_heads_are_the_same_as_among_all(kind, options, fold):
    block, x = make_block(kind, options), inputs(2, 5)
    every, some = hidden_attention(block, x, **fold), hidden_attention(block, x, heads=[-1, 1], **fold)
    places = [every.unit_names.index(name) for name in some.unit_names]
    assert len(places) == (some.matrix.shape[1])
    close(some.matrix, every.matrix[:, places])
    close(some.values, every.values[:, places])
    with pytest.raises(ValueError, match="needs all heads"):
        some.output()


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_in_float32_it_is_as_exact_as_the_block_far_from_the_start(kind):
    """Long sums of steps cancel: taken in float32 they would cost the digits that the scan keeps."""
    options = {"d_state": 2, "dt_limit": (0.1, 0.2)} | ({"head_dim": 4} if kind == "mamba2" else {})
    block, x = make_block(kind, options), inputs(1, 10_000)
    exact = block(x)[0].detach()
    block.float()
    naive = (block(x.float())[0].detach() - exact)[:, 9_990:].abs().max()
    found = hidden_attention(block, x.float(), positions=range(9_990, 10_000))
    assert (found.output() - exact[:, 9_990:]).abs().max() < 4 * naive


def test_softmax_attention_is_a_distribution_over_what_is_seen():
    found = hidden_attention(make_block("attention", {"n_heads": 2}), inputs(2, 6))
    close(found.matrix.sum(-1), torch.ones(2, 2, 6, dtype=torch.float64))
    assert not found.matrix.triu(1).any()


@given(length=st.integers(1, 9), batch=st.integers(1, 3), cut=st.integers(0, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_the_past_is_all_in_the_state(length, batch, cut, seed):
    torch.manual_seed(seed)
    block = make_block("mamba1", {"d_state": 2})
    x = torch.randn(batch, length, WIDTH, dtype=torch.float64)
    cut = min(cut, length - 1)
    state = block(x[:, :cut])[1].detach()
    found = hidden_attention(block, x[:, cut:], state, fold_convolution=True)
    close(found.output(), block(x)[0].detach()[:, cut:])


@pytest.mark.parametrize(("kind", "options"), [SOME[0], SOME[1], SOME[3]])
def test_gaps_that_drive_the_step_size_are_in_the_matrices(kind, options):
    block, x, elapsed = make_block(kind, options), inputs(2, 6), 4 * torch.rand(2, 6).double()
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]).int()
    for rows in ({}, {"lengths": torch.tensor([4, 6])}, {"seq_idx": seq_idx}):
        found = hidden_attention(block, x, **rows, elapsed=elapsed, fold_gate=True)
        close(found.output(), block(x, **rows, context=Context(elapsed=elapsed))[0].detach())
    config = BackboneConfig(d_model=WIDTH, layers=[kind], block_options={kind: options})
    backbone = Backbone(config).double()
    (seen,) = hidden_attention_of_layers(backbone, x, elapsed=elapsed).values()
    expected = hidden_attention(backbone.blocks[0], backbone.norms[0](x), elapsed=elapsed)
    close(seen.matrix, expected.matrix)
    (plain,) = hidden_attention_of_layers(backbone, x).values()
    assert (plain.matrix - seen.matrix).abs().max() > 1e-6


def test_layers_of_a_model_are_seen_as_it_runs():
    torch.manual_seed(0)
    layers = ["mamba2", "mlp", "attention"]
    options = {"mamba2": {"head_dim": 8, "d_state": 4}, "attention": {"n_heads": 2}}
    backbone = BackboneConfig(d_model=WIDTH, layers=layers, block_options=options)
    model = LanguageModel(LanguageModelConfig(7, backbone)).double()
    ids, lengths = torch.randint(7, (2, 6)), torch.tensor([3, 6])
    found = hidden_attention_of_layers(model, ids, lengths=lengths, padding="left")
    assert list(found) == ["0 Mamba2", "2 Attention"]
    written = contributions_of_layers(model, ids, lengths=lengths, padding="left")
    for name, layer in found.items():
        assert layer.gap < 1e-12
        assert not layer.matrix[0, :, 3:].any()  # the backbone's rows are padded on the right
        assert not written[name][0, :, 3:].any()
    block = model.backbone.blocks[0]
    x = model.backbone.norms[0](model.embedding(ids[1:]))
    expected = hidden_attention(block, x, fold_convolution=True, fold_gate=True).contributions()
    close(written["0 Mamba2"][1:], expected)
    only = hidden_attention_of_layers(model, ids, layers=[-1], hidden={"positions": [-1], "heads": [0]})
    assert list(only) == ["2 Attention"]
    assert only["2 Attention"].matrix.shape == (2, 1, 1, 6)


def test_a_block_in_two_places_is_seen_in_each():
    torch.manual_seed(0)
    options = {"mamba2": {"head_dim": 4, "d_state": 2}}
    model = Backbone(
        BackboneConfig(d_model=WIDTH, layers=["mamba2@a", "mlp", "mamba2@a"], block_options=options)
    )
    model.double()
    x = inputs(1, 5)
    found = hidden_attention_of_layers(model, x)
    assert list(found) == ["0 Mamba2", "2 Mamba2"]
    close(found["0 Mamba2"].output(), model.blocks[0](model.norms[0](x))[0].detach())
    assert (found["0 Mamba2"].matrix - found["2 Mamba2"].matrix).abs().max() > 1e-3
    model.forward = lambda x: (Backbone.forward(model, x), Backbone.forward(model, x))
    with pytest.raises(ValueError, match="run the backbone's 3 layers once each, got 6 runs"):
        hidden_attention_of_layers(model, x)


def test_rollout_multiplies_layers_and_keeps_the_residual():
    one = torch.tensor([[[1.0, 0.0], [2.0, 2.0]]])
    nothing = torch.zeros(1, 2, 2)
    mixed = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])
    torch.testing.assert_close(attention_rollout({"a": one}), mixed)
    torch.testing.assert_close(attention_rollout({"a": one, "b": nothing}), mixed)
    torch.testing.assert_close(attention_rollout({"a": one, "b": one}), mixed @ mixed)
    with pytest.raises(ValueError, match="a has negative numbers"):
        attention_rollout({"a": -one})
    with pytest.raises(ValueError, match=r"expected \(batch, length, length\), a has \(1, 1, 2\)"):
        attention_rollout({"a": one[:, :1]})
    with pytest.raises(ValueError, match="at least one"):
        attention_rollout({})


def test_a_picture_of_the_heads(tmp_path):
    found = hidden_attention(make_block("mamba2", {"d_state": 2, "head_dim": 4}), inputs(1, 5))
    figure = found.plot(tmp_path / "pictures" / "heads.svg", labels=["a", "b", "$c$", " ", "e"])
    text = (tmp_path / "pictures" / "heads.svg").read_text()
    assert [axis.get_title(loc="left") for axis in figure.axes[:4]] == found.unit_names
    assert "token that is read" in text
    with pytest.raises(ValueError, match="expected one for each of the 5 tokens, got 2"):
        found.plot(labels=["a", "b"])
    with pytest.raises(ValueError, match=r"expected an ending of .*png.*, got 'heads.gif2'"):
        found.plot(tmp_path / "heads.gif2")


class Twice(Mamba2):
    def mix(self, x, state, seq_idx, lengths):
        y, state = super().mix(x, state, seq_idx, lengths)
        return 2 * y, state


class InPieces(Attention):
    def mix(self, x, state, seq_idx, lengths):
        first, state = super().mix(x[:, :2], state, None, None)
        rest, state = super().mix(x[:, 2:], state, None, None)
        return torch.cat([first, rest], 1), state


def test_a_block_that_does_something_else_is_not_explained():
    with pytest.raises(ValueError, match="this Twice gives another output than its matrices"):
        hidden_attention(Twice(d_model=WIDTH, head_dim=4).double(), inputs(1, 5))
    with pytest.raises(ValueError, match="this InPieces to call softmax attention once"):
        hidden_attention(InPieces(d_model=WIDTH, n_heads=2).double(), inputs(1, 5))


def test_bad_input_is_named():
    block, x = make_block("mamba2", {"d_state": 2, "head_dim": 4}), inputs(1, 5)
    with pytest.raises(ValueError, match="MLP has no hidden attention; Mamba1, Mamba2, Attention"):
        hidden_attention(make_block("mlp", {}), x)
    with pytest.raises(ValueError, match=r"heads: 4 is outside 0\.\.3"):
        hidden_attention(block, x, heads=[4])
    with pytest.raises(ValueError, match=r"positions: -6 is outside 0\.\.4"):
        hidden_attention(block, x, positions=[-6])
    with pytest.raises(ValueError, match="positions: expected each at most once"):
        hidden_attention(block, x, positions=[4, -1])
    with pytest.raises(ValueError, match="at least one token"):
        hidden_attention(block, x[:, :0])
    with pytest.raises(ValueError, match=r"x: expected shape \(batch, length, d_model=8\)"):
        hidden_attention(block, x[..., :3])
    with pytest.raises(ValueError, match="state: it is for a batch of 2 rows"):
        hidden_attention(block, x, block.init_state(2))
    with pytest.raises(ValueError, match="lengths: values must be in"):
        hidden_attention(block, x, lengths=torch.tensor([9]))
    with pytest.raises(ValueError, match=r"4 matrices of 5 x 5 are 1\.0e\+02 numbers .* crop the sequence"):
        hidden_attention(block, x, most_numbers=99)
    with pytest.raises(ValueError, match="fold_gate=True"):
        hidden_attention(block, x).contributions()
    gated = make_block("bidirectional", {"inner": "attention", "merge": "gated"})
    with pytest.raises(ValueError, match="a gated merge of two directions cannot be folded in"):
        hidden_attention(gated, x, fold_gate=True).contributions()
    model = Backbone(BackboneConfig(d_model=WIDTH, layers=["mlp"])).double()
    with pytest.raises(ValueError, match="no layer has hidden attention; its blocks are MLP"):
        hidden_attention_of_layers(model, x)
    with pytest.raises(ValueError, match="expected one Backbone in Linear, found 0"):
        hidden_attention_of_layers(torch.nn.Linear(1, 1), x)
    hybrid = Backbone(BackboneConfig(d_model=WIDTH, layers=["mamba1", "mlp"])).double()
    with pytest.raises(ValueError, match="layer 1 MLP: block: MLP has no hidden attention"):
        hidden_attention_of_layers(hybrid, x, layers=[1])
