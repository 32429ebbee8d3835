"""Patterns of layers: the streaming law over random ones, presets, shared weights, and bad patterns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Context, Zamba, build_block, kind_of
from mambakit.core.cli import run_app
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.presets import PRESETS
from mambakit.core.testing import check_packing, check_padding, check_streaming

D_MODEL = 8
LENGTH = 10
TINY = {
    "mamba1": {"d_state": 3},
    "mamba2": {"head_dim": 4, "d_state": 4},
    "mamba3": {"head_dim": 4, "d_state": 4},
    "moe": {"n_experts": 3, "d_hidden": 8},
    "zamba": {"d_hidden": 8, "inner_options": {"d_state": 3}},
    "conv": {"width": 3},
    "sliding_attention": {"window": 4},
}


def sample(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, generator=generator, dtype=torch.float64)


def build(**fields: object) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**{"d_model": D_MODEL, **fields})).double().eval()


def tiny(layers: list[str]) -> dict[str, dict[str, object]]:
    return {kind: TINY[kind] for kind in map(kind_of, layers) if kind in TINY}


# --- any pattern

OPTIONS = {
    "mamba1": st.fixed_dictionaries(
        {
            "d_state": st.integers(1, 4),
            "d_conv": st.integers(1, 4),
            "inner_norm": st.sampled_from([None, "learned", "plain"]),
        }
    ),
    "mamba2": st.fixed_dictionaries(
        {"head_dim": st.sampled_from([4, 8]), "d_state": st.integers(1, 4), "norm": st.booleans()}
    ),
    "mamba3": st.fixed_dictionaries(
        {"head_dim": st.sampled_from([4, 8]), "d_state": st.integers(1, 4), "mimo_rank": st.integers(1, 2)}
    ),
    "attention": st.fixed_dictionaries(
        {
            "n_heads": st.sampled_from([2, 4]),
            "n_kv_heads": st.sampled_from([1, 2]),
            "head_dim": st.sampled_from([2, 4]),
            "window": st.sampled_from([None, 1, 2, 5, 12]),
            "rope": st.booleans(),
            "qk_norm": st.booleans(),
        }
    ),
    "sliding_attention": st.fixed_dictionaries({"n_heads": st.just(2), "window": st.integers(1, 12)}),
    "mlp": st.fixed_dictionaries(
        {"gated": st.booleans(), "activation": st.sampled_from(["silu", "gelu", "relu2"])}
    ),
    "moe": st.fixed_dictionaries(
        {"n_experts": st.integers(2, 5), "top_k": st.just(2), "d_shared": st.sampled_from([0, 4])}
    ),
    "conv": st.fixed_dictionaries({"width": st.sampled_from([1, 3, 5, 15])}),
    "zamba": st.fixed_dictionaries(
        {"inner": st.sampled_from(["mamba1", "attention", "conv"]), "n_heads": st.sampled_from([1, 2])}
    ),
}


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, object]:
    layers = draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(OPTIONS)), st.sampled_from(["", "", "@a", "@b"])),
            min_size=1,
            max_size=4,
        )
    )
    kinds = {kind for kind, _ in layers}
    return {
        "layers": [kind + label for kind, label in layers],
        "block_options": {kind: draw(OPTIONS[kind]) for kind in sorted(kinds)},
        "residual_scale": {kind: 0.5 for kind in kinds if draw(st.booleans())},
        "bidirectional": draw(st.sampled_from([False, False, True])),
    }


CASES = {
    "pattern": patterns(),
    "cuts": st.lists(st.integers(0, LENGTH), max_size=3).map(sorted),
    "lengths": st.lists(st.integers(0, LENGTH), min_size=3, max_size=3),
}


@settings(max_examples=12, deadline=None)
@given(**CASES)
def test_the_law_holds_for_any_pattern(pattern, cuts, lengths):
    check_law(pattern, cuts, lengths)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_the_law_holds_for_many_patterns(pattern, cuts, lengths):
    check_law(pattern, cuts, lengths)


def check_law(pattern, cuts, lengths):
    backbone, x = build(**pattern), sample(3)
    assert backbone.causal != pattern["bidirectional"] or set(map(kind_of, pattern["layers"])) <= {
        "mlp",
        "moe",
    }
    if backbone.causal:
        check_streaming(backbone, x, cuts, atol=1e-10)
    check_padding(backbone, x, lengths, atol=1e-10)
    bounds = [0, *sorted(set(cuts) - {0, LENGTH}), LENGTH]
    check_packing(backbone, x, [b - a for a, b in pairwise(bounds)], atol=1e-10)


# --- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stream(name):
    layers = PRESETS[name].layers
    backbone = build(layers=name, block_options=tiny(layers))
    assert len(backbone.blocks) == len(layers)
    x = sample()
    check_streaming(backbone, x, [3, 7], atol=1e-10)
    both = build(layers=name, block_options=tiny(layers), bidirectional=True)
    assert not both.causal
    check_padding(both, x, [LENGTH, 4], atol=1e-10)


def test_a_preset_is_a_line_of_yaml():
    config = BackboneConfig.from_yaml(
        "layers: jamba\nd_model: 32\nrepeat: 2\nblock_options: {moe: {n_experts: 4}, mlp: {d_hidden: 48}}"
    )
    assert len(config.layers) == 16
    assert [kind for kind in config.layers if kind not in ("mlp", "moe")].index("attention") == 4
    assert config.layers.count("moe") == config.layers.count("mlp") == 4
    assert config.block_options["moe"] == {"n_experts": 4, "top_k": 2, "normalize_gates": False}
    assert config.block_options["mlp"] == {"d_hidden": 48}
    assert config.block_options["mamba1"] == {"inner_norm": "learned"}
    assert BackboneConfig.from_yaml(config.to_yaml()) == config
    assert BackboneConfig(layers="conmamba", residual_scale={"conv": 2.0}).residual_scale == {
        "mlp": 0.5,
        "conv": 2.0,
    }
    assert BackboneConfig(layers="jamba").block_options["moe"]["n_experts"] == 16  # the table is as it was


def test_presets_have_the_published_shares():
    hybrid = PRESETS["mamba2-hybrid"].layers * 4  # 56 layers: 24 Mamba-2, 4 attention, 28 MLP
    assert [hybrid.count(kind) for kind in ("mamba2", "attention", "mlp")] == [24, 4, 28]
    assert PRESETS["samba"].layers == ["mamba1", "mlp", "sliding_attention", "mlp"]
    assert PRESETS["jamba"].layers.count("mamba1") == 7 * PRESETS["jamba"].layers.count("attention")


# --- scales and shared weights


def test_residual_scales_by_kind():
    backbone, x = build(layers="conmamba", block_options=tiny(PRESETS["conmamba"].layers)), sample()
    first, scan, conv, last = zip(backbone.norms, backbone.blocks, strict=True)
    expected = x
    for (norm, block), scale in zip((first, scan, conv, last), (0.5, 1.0, 1.0, 0.5), strict=True):
        expected = expected + scale * block(norm(expected))[0]
    torch.testing.assert_close(backbone(x)[0], backbone.final_norm(expected), atol=1e-12, rtol=0)


def test_layers_of_one_label_share_weights_and_nothing_else():
    backbone = build(
        layers=["attention@a", "mlp", "attention@a", "attention@b", "attention"],
        repeat=2,
        block_options={"attention": {"n_heads": 2}, "attention@b": {"n_heads": 1}},
    )
    first, _, second, other, plain = backbone.blocks[:5]
    assert first is second is backbone.blocks[5]
    assert other is backbone.blocks[8]
    assert len({id(block) for block in (first, other, plain, backbone.blocks[9])}) == 4
    assert other.n_heads == 1
    assert plain.n_heads == 2
    assert len({id(norm) for norm in backbone.norms}) == 10
    _, state = backbone(sample())
    assert (state["0"]["key"] - state["2"]["key"]).abs().max() > 1e-3  # each place has a state of its own
    alone = build(layers=["attention"], block_options={"attention": {"n_heads": 2}}).blocks[0]
    shrunk = alone.out_proj.weight.abs().max() / 10**0.5  # by depth, once and not at every place
    assert first.out_proj.weight.abs().max().item() == pytest.approx(shrunk.item(), rel=0.3)


def test_zamba_shares_its_transformer_and_reads_the_input_again():
    options = {"zamba": {"n_heads": 2, "inner_options": {"d_state": 3}}, "mamba1": {"d_state": 3}}
    backbone, x = build(layers=["mamba1", "zamba@a", "zamba@a"], block_options=options), sample()
    _, first, second = backbone.blocks
    assert isinstance(first, Zamba)
    assert first.transformer is second.transformer
    assert first.inner is not second.inner
    assert first.link is not second.link
    hidden = x + backbone.blocks[0](backbone.norms[0](x))[0]
    for block in (first, second):
        part = block.transformer
        y = part["attention"](part["attention_norm"](torch.cat([hidden, x], dim=-1)))[0]
        y = part["mlp"](part["mlp_norm"](y))[0]
        hidden = hidden + block.inner(block.norm(hidden + block.link(y)))[0]
    torch.testing.assert_close(backbone(x)[0], backbone.final_norm(hidden), atol=1e-12, rtol=0)


def test_shared_weights_are_saved_once_and_shared_again(tmp_path):
    layers = ["zamba@a", "mlp@m", "mlp@m", "zamba@a"]
    config = BackboneConfig(
        d_model=D_MODEL, layers=layers, block_options=tiny(layers), residual_scale={"mlp": 2.0}
    )
    model = LanguageModel(LanguageModelConfig(7, config)).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = LanguageModel.from_pretrained(tmp_path / "model").eval()
    assert loaded.config == model.config
    first, *_, last = loaded.backbone.blocks
    assert first.transformer is last.transformer
    ids = torch.randint(7, (2, LENGTH))
    assert torch.equal(loaded(ids)[0], model(ids)[0])
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == sum(p.numel() for p in model.parameters())


def test_a_preset_by_flag(capsys):
    seen = []

    def show(*, backbone: BackboneConfig) -> None:
        """Show it."""
        seen.append(backbone)

    call = ["show", "--backbone.layers", "samba", "--backbone.d-model", "32", "--backbone.repeat", "2"]
    assert run_app("test", {"show": show}, call) == 0, capsys.readouterr().err
    assert run_app("test", {"show": show}, ["show", "--backbone.layers", "[mlp, conv]"]) == 0
    assert seen[0] == BackboneConfig(layers="samba", d_model=32, repeat=2)
    assert seen[1] == BackboneConfig(layers=["mlp", "conv"])
    assert run_app("test", {"show": show}, ["show", "--backbone.layers", "sambo"]) == 2
    assert "the name of a preset (mamba1, " in capsys.readouterr().err


# --- patterns that are none


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ["mamba2", "rnn@a"]}, "no block is called 'rnn'"),
        ({"layers": ["mlp@"]}, "layers: 'mlp@' has no label after the @; write for instance mlp@shared"),
        ({"layers": "jambo"}, r"the name of a preset \(mamba1, .*conmamba\), got the string 'jambo'"),
        ({"layers": ["mlp@a"], "block_options": {"mlp@b": {}}}, "'mlp@b' is not among the layers mlp@a"),
        ({"layers": ["mlp@a"], "block_options": {"mlp@a": {"heads": 1}}}, "mlp@a has no option 'heads'"),
        ({"layers": ["mlp"], "residual_scale": {"conv": 0.5}}, "residual_scale: 'conv' is not among"),
    ],
)
def test_bad_patterns(fields, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(d_model=8, **fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": {"n_heads": 3}}, "n_heads: d_model=8 is not divisible by n_heads=3"),
        ({"attention": {"n_heads": 8}}, "pairs of channels, not 1 of them: an odd head_dim=1"),
        ({"mamba1": {"inner_norm": "rms"}}, "inner_norm: expected 'learned', 'plain' or None, got 'rms'"),
        (
            {"zamba": {"inner": "bidirectional", "inner_options": {"inner": "mamba1"}}},
            "looks in both directions; wrap a causal block",
        ),
    ],
)
def test_bad_options_of_layers(options, message):
    with pytest.raises(ValueError, match=message):
        build(layers=list(options), block_options=options)


WRAPPERS = {
    "both-ways": ("bidirectional", {}),
    "both-ways-shared": ("bidirectional", {"share": "all"}),
    "grid": ("grid_scan", {"grid": [2, 3]}),
    "grid-shared": ("grid_scan", {"grid": [2, 3], "share": "all"}),
    "strides": ("sequence_scan", {"size": 2}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_experts_inside_another_block_are_balanced_too(wrapper: str) -> None:
    torch.manual_seed(0)
    kind, options = WRAPPERS[wrapper]
    options = {**options, "inner": "moe", "inner_options": {"n_experts": 3, "d_hidden": 8}}
    backbone = Backbone(BackboneConfig(d_model=8, layers=[kind], block_options={kind: options}))
    backbone(torch.randn(2, 6, 8))
    loss = auxiliary_loss(backbone)
    assert loss > 0
    loss.backward()
    routers = [p for name, p in backbone.named_parameters() if "router" in name]
    assert routers
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_block_inside_another_reads_the_stacks_input_in_its_own_order(wrapper: str) -> None:
    """Zamba's transformer reads the input of the stack: the token's own, wherever the token is read."""
    torch.manual_seed(0)
    kind, options = WRAPPERS[wrapper]
    inner = {"n_heads": 2, "d_hidden": 8, "inner_options": {"d_state": 4}}
    block = build_block(kind, 8, {**options, "inner": "zamba", "inner_options": inner}).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    own, _ = block(x, context=Context(inputs=x))
    alone, _ = block(x)  # without a stack a block's input is its own
    torch.testing.assert_close(own, alone)
    other, _ = block(x, context=Context(inputs=torch.randn_like(x)))
    assert not torch.allclose(other, own)
