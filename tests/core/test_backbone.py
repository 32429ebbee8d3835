from __future__ import annotations

import json

import pytest
import torch

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.backbone_config import sizes_of_heads
from mambakit.core.blocks import MLP, Attention, Bidirectional, Mamba1, Mamba2
from mambakit.core.state import State

HYBRID = BackboneConfig(
    d_model=16,
    layers=["mamba1", "mlp", "attention", "mamba2"],
    block_options={"mamba2": {"head_dim": 8, "d_state": 6}, "attention": {"n_heads": 2}},
)


def build(config: BackboneConfig = HYBRID) -> Backbone:
    torch.manual_seed(0)
    return Backbone(config).double().eval()


def sample(batch: int = 4, length: int = 9) -> torch.Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_config_travels():
    config = BackboneConfig(
        d_model=32,
        layers=["mamba2", "bidirectional"],
        repeat=2,
        block_options={"bidirectional": {"inner": "mamba1", "inner_options": {"d_state": 4}}},
        dropout=0.1,
    )
    assert BackboneConfig.from_yaml(config.to_yaml()) == config
    assert BackboneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert BackboneConfig.from_dict({"d_model": 8}) == BackboneConfig(d_model=8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 3}, "no field 'depth'; fields are d_model, layers"),
        ({"layers": ["mamba2", "rnn"]}, "no block is called 'rnn'; known kinds are attention"),
        ({"layers": "rnn"}, r"a list of kinds or the name of a preset \(mamba1, .*\), got the string 'rnn'"),
        ({"layers": []}, "at least one layer"),
        ({"repeat": 0}, "at least one layer"),
        ({"d_model": 0}, "d_model: expected at least 1"),
        ({"dropout": 1.0}, "0 <= dropout < 1, got 1.0"),
        ({"block_options": {"mamba1": {}}}, "'mamba1' is not among the layers mamba2"),
        ({"block_options": {"mamba9": {}}}, r"'mamba9' is not among the layers mamba2 \(known kinds are"),
        (
            {"block_options": {"mamba2": {"headdim": 8}}},
            "mamba2 has no option 'headdim'; valid options are d_state, d_conv",
        ),
        ({"layers": None}, "layers: expected a list of kinds, .* got None"),
        ({"layers": [["mamba2"], 2]}, r"layers: expected a list of kinds, .* got \[\['mamba2'\], 2\]"),
        ({"block_options": None}, "block_options: expected a mapping, got None"),
        ({"block_options": {"mamba2": None}}, "block_options: mamba2: expected a mapping, got None"),
        ({"residual_scale": 0.5}, "residual_scale: expected a mapping, got 0.5"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig.from_dict(values)


@pytest.mark.parametrize(("name", "value"), [("d_model", "a"), ("d_model", 16.0), ("repeat", None)])
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected a whole number, got {value!r}"):
        BackboneConfig.from_dict({name: value})


def test_an_option_that_a_block_needs_is_named():
    with pytest.raises(ValueError, match="options of grid_scan: it needs grid"):
        Backbone(BackboneConfig(8, ["grid_scan"]))


def test_bad_yaml():
    with pytest.raises(ValueError, match="expected a YAML mapping, got list"):
        BackboneConfig.from_yaml("- mamba2")


def test_layers_are_what_the_config_says():
    backbone = Backbone(
        BackboneConfig(
            d_model=16,
            layers=["mamba1", "mamba2", "attention", "mlp"],
            repeat=2,
            block_options={"mamba2": {"head_dim": 4}},
        )
    )
    assert [type(block) for block in backbone.blocks] == [Mamba1, Mamba2, Attention, MLP] * 2
    assert backbone.blocks[5].head_dim == 4
    assert backbone.causal


def test_it_is_prenorm_with_residuals():
    backbone = build()
    x = sample()
    expected = x
    for norm, block in zip(backbone.norms, backbone.blocks, strict=True):
        expected = expected + block(norm(expected))[0]
    torch.testing.assert_close(backbone(x)[0], backbone.final_norm(expected))


def test_output_projections_shrink_with_depth():
    torch.manual_seed(0)
    deep = Backbone(BackboneConfig(d_model=64, layers=["mlp"], repeat=16))
    bound = deep.blocks[0].d_hidden ** -0.5  # of torch's linear layers
    assert 0.9 * bound / 4 < deep.blocks[3].out_proj.weight.abs().max() <= bound / 4
    assert deep.blocks[3].in_proj.weight.abs().max() > 0.9 * 64**-0.5


def test_bidirectional_turns_every_layer_that_has_a_direction():
    backbone = build(
        BackboneConfig(
            d_model=16,
            layers=["mamba1", "attention", "mlp", "bidirectional"],
            block_options={"bidirectional": {"inner": "mamba1"}, "mamba1": {"d_state": 3}},
            bidirectional=True,
        )
    )
    first, attention, mlp, last = backbone.blocks
    assert isinstance(first, Bidirectional)
    assert isinstance(first.ahead, Mamba1)
    assert first.back.d_state == 3
    assert isinstance(attention, Attention)
    assert not attention.causal
    assert isinstance(mlp, MLP)
    assert isinstance(last, Bidirectional)
    assert isinstance(last.ahead, Mamba1)
    assert not backbone.causal
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        backbone.init_state(2)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_left_padding_equals_each_row_alone(bidirectional):
    config = BackboneConfig.from_dict({**HYBRID.to_dict(), "bidirectional": bidirectional})
    backbone, x = build(config), sample()
    lengths = [9, 0, 1, 6]
    left = torch.full_like(x, torch.nan)
    for row, n in enumerate(lengths):
        left[row, 9 - n :] = x[row, :n]
    y, state = backbone(left, lengths=torch.tensor(lengths), padding="left")
    for row, n in enumerate(lengths):
        alone, last = backbone(x[row : row + 1, :n])
        torch.testing.assert_close(y[row : row + 1, 9 - n :], alone, atol=1e-10, rtol=0)
        assert not y[row, : 9 - n].any()
        if not bidirectional:
            follows, _ = backbone(x[row : row + 1], state.index_select([row]))
            expected, _ = backbone(x[row : row + 1], last)
            torch.testing.assert_close(follows, expected, atol=1e-10, rtol=0)


def test_left_padded_pieces_continue():
    backbone, x = build(), sample(batch=2)
    first = torch.stack([x[0, :4], torch.cat([torch.zeros(2, 16).double(), x[1, :2]])])
    _, state = backbone(first, lengths=torch.tensor([4, 2]), padding="left")
    y, _ = backbone(torch.stack([x[0, 4:7], x[1, 2:5]]), state)
    whole, _ = backbone(x)
    torch.testing.assert_close(y, torch.stack([whole[0, 4:7], whole[1, 2:5]]), atol=1e-10, rtol=0)


def test_wrong_calls():
    backbone, x = build(), sample()
    with pytest.raises(ValueError, match=r"expected shape .*d_model=16"):
        backbone(x[..., :8])
    with pytest.raises(ValueError, match="padding: expected 'right' or 'left', got 'both'"):
        backbone(x, padding="both")
    with pytest.raises(ValueError, match=r"values must be in 0..9 .* got \[1, 2, 3, 10\]"):
        backbone(x, lengths=torch.tensor([1, 2, 3, 10]), padding="left")
    with pytest.raises(ValueError, match="not both"):
        backbone(x, lengths=torch.tensor([1, 2, 3, 4]), seq_idx=torch.zeros(4, 9, dtype=torch.int32))
    with pytest.raises(TypeError, match="state: expected a State"):
        backbone(x, {})
    with pytest.raises(ValueError, match="another backbone: expected one nested state for each of 4 layers"):
        backbone(x, State({"0": State()}))
    with pytest.raises(ValueError, match="for a batch of 3 rows, but x has 4"):
        backbone(x, backbone.init_state(3))
    with pytest.raises(ValueError, match="belongs to another"):
        backbone.step(x[:, 0], backbone.init_state(4)["0"])


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.from_dict({**HYBRID.to_dict(), "dropout": 0.5})).double()
    x = sample()
    assert not torch.equal(backbone(x)[0], backbone(x)[0])
    backbone.eval()
    assert torch.equal(backbone(x)[0], backbone(x)[0])


def test_weights_travel():
    ours, other = build(), Backbone(HYBRID).double()
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.eval()(sample())[0], ours(sample())[0])


def test_a_stack_learns_a_batch_by_heart():
    torch.manual_seed(0)
    backbone = Backbone(HYBRID)
    x, target = sample().float(), sample().float().flip(0, 1)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        loss = (backbone(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("layers", [["mamba1", "mlp"], ["mamba2", "attention"]])
def test_export_sees_through_blocks_and_state(layers):
    """One graph for any length; the state that comes out of it goes on."""
    torch.manual_seed(0)
    options = {kind: values for kind, values in HYBRID.block_options.items() if kind in layers}
    backbone = Backbone(BackboneConfig(d_model=16, layers=layers, block_options=options)).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    with torch.no_grad():
        graph = torch.export.export(backbone, (torch.randn(2, 8, 16),), dynamic_shapes={"x": {1: length}})
        for n in (3, 71):
            x = torch.randn(2, n, 16)
            torch.testing.assert_close(graph.module()(x)[0], backbone(x)[0])
        _, state = graph.module()(x)
        torch.testing.assert_close(backbone.step(x[:, 0], state)[0], backbone(x[:, :1], state)[0][:, 0])


@pytest.mark.parametrize("layers", [["mamba2", "mlp"], ["mlp", "mamba1"], ["mlp"], HYBRID.layers], ids=str)
def test_keep_is_the_output_of_some_tokens(layers):
    options = {kind: HYBRID.block_options[kind] for kind in HYBRID.block_options if kind in layers}
    backbone = build(BackboneConfig(d_model=16, layers=layers, block_options=options))
    keep = torch.tensor([8, 0, 3, 3])
    whole, kept = sample().requires_grad_(), sample().requires_grad_()
    y, state = backbone(whole)
    some, other = backbone(kept, keep=keep)
    torch.testing.assert_close(some, y[:, keep])
    torch.testing.assert_close(dict(state.tensors()), dict(other.tensors()))
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out, x in ((y[:, keep], whole), (some, kept))]
    torch.testing.assert_close(*grads)
    with pytest.raises(ValueError, match="keep: only of whole rows"):
        backbone(kept, keep=keep, lengths=torch.tensor([9, 9, 9, 9]))


def test_sizes_of_heads_are_given_to_the_layers_that_are_there():
    layers = ["mamba3", "attention", "mamba2", "mamba1", "mamba3"]
    sizes = sizes_of_heads(layers, d_state=4, head_dim=8)
    assert sizes == {kind: {"d_state": 4, "head_dim": 8} for kind in ("mamba2", "mamba3")}
    assert sizes_of_heads(["attention"], d_state=4, head_dim=8) == {}
    backbone = Backbone(BackboneConfig(d_model=16, layers=layers, block_options=sizes))
    assert {block.head_dim for block in backbone.blocks if hasattr(block, "dt_bias")} == {8}
