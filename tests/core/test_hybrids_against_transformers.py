"""Whole hybrids, named by preset, beside the transformers package's: the same weights, the same outputs.

And the sizes of released models, from our presets and from its configs' defaults.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.presets import PUBLISHED
from mambakit.core.testing import run_by_steps, run_in_pieces

# its parts are imported when a test wants them: they take seconds
transformers = pytest.importorskip("transformers", reason="the test extra installs it")

TOLERANCE = 1e-5  # it keeps A, B, C and router probabilities in float32
SIZES = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}


def mamba(theirs: nn.Module, inner_norms: bool = False) -> dict[str, Tensor]:
    """The weights of a Mamba-1 mixer under our names."""
    found = {name.replace("_proj_", "_proj."): tensor for name, tensor in theirs.state_dict().items()}
    for norm in ("dt", "b", "c"):
        if inner_norms:
            found[f"{norm.upper() if norm != 'dt' else norm}_norm.weight"] = found.pop(
                f"{norm}_layernorm.weight"
            )
    found["conv_weight"], found["conv_bias"] = found.pop("conv1d.weight"), found.pop("conv1d.bias")
    return found


def zamba_mamba(theirs: nn.Module) -> dict[str, Tensor]:
    found = mamba(theirs)
    rows = found["in_proj.weight"]  # the scan's input and the gate take turns, channel by channel
    return found | {"in_proj.weight": torch.cat([rows[0::2], rows[1::2]])}


def attention(theirs: nn.Module) -> dict[str, Tensor]:
    projections = [getattr(theirs, f"{name}_proj").weight for name in "qkv"]
    return {"in_proj.weight": torch.cat(projections), "out_proj.weight": theirs.o_proj.weight}


def mlp(theirs: nn.Module) -> dict[str, Tensor]:
    return {
        "in_proj.weight": torch.cat([theirs.gate_proj.weight, theirs.up_proj.weight]),
        "out_proj.weight": theirs.down_proj.weight,
    }


def experts(theirs: nn.Module) -> dict[str, Tensor]:
    return {
        "router.weight": theirs.router.weight,
        "in_proj.weight": theirs.experts.gate_up_proj,
        "out_proj.weight": theirs.experts.down_proj,
    }


def zamba(theirs: nn.Module) -> dict[str, Tensor]:
    shared, decoder = theirs.shared_transf, theirs.mamba_decoder
    parts = {
        "transformer.attention_norm": {"weight": shared.input_layernorm.weight},
        "transformer.attention": attention(shared.self_attn),
        "transformer.mlp_norm": {"weight": shared.pre_ff_layernorm.weight},
        "transformer.mlp": mlp(shared.feed_forward),
        "link": {"weight": theirs.linear.weight},
        "norm": {"weight": decoder.input_layernorm.weight},
        "inner": zamba_mamba(decoder.mamba),
    }
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def load(ours: Backbone, blocks: list[dict[str, Tensor]], norms: list[Tensor | None], last: Tensor) -> None:
    state = {"final_norm.weight": last}
    for i, (block, norm) in enumerate(zip(blocks, norms, strict=True)):
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
        if norm is not None:
            state[f"norms.{i}.weight"] = norm
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes.keys() == state.keys()
    ours.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()})


def jamba_pair() -> tuple[Backbone, nn.Module]:
    theirs = transformers.JambaModel(
        transformers.JambaConfig(
            **SIZES, num_hidden_layers=8, num_key_value_heads=2, num_experts=5, mamba_d_state=4,
            attn_implementation="eager",
        )
    )  # fmt: skip
    randomize(theirs)
    options = {
        "mamba1": {"d_state": 4},
        "attention": {"n_heads": 4, "n_kv_heads": 2},
        "mlp": {"d_hidden": 24},
        "moe": {"n_experts": 5, "d_hidden": 24},
    }
    ours = Backbone(BackboneConfig(layers="jamba", d_model=16, block_options=options, norm_eps=1e-6))
    blocks, norms = [], []
    for layer in theirs.layers:
        attends = hasattr(layer, "self_attn")
        blocks.append(attention(layer.self_attn) if attends else mamba(layer.mamba, inner_norms=True))
        routed = hasattr(layer.feed_forward, "router")
        blocks.append((experts if routed else mlp)(layer.feed_forward))
        norms += [layer.input_layernorm.weight, layer.pre_ff_layernorm.weight]
    load(ours, blocks, norms, theirs.final_layernorm.weight)
    return ours, theirs


def zamba_pair() -> tuple[Backbone, nn.Module]:
    kinds = ["mamba", "hybrid", "mamba", "hybrid"]
    theirs = transformers.ZambaModel(
        transformers.ZambaConfig(
            **SIZES, num_hidden_layers=4, num_key_value_heads=4, n_mamba_heads=1, mamba_d_state=4,
            layers_block_type=kinds, attn_implementation="eager",
        )
    )  # fmt: skip
    randomize(theirs)
    options = {
        "mamba1": {"d_state": 4},
        "zamba": {"n_heads": 4, "d_hidden": 24, "inner_options": {"d_state": 4}},
    }
    layers = ["zamba@shared" if kind == "hybrid" else "mamba1" for kind in kinds]
    ours = Backbone(BackboneConfig(layers=layers, d_model=16, block_options=options))
    blocks, norms = [], []
    for kind, layer in zip(kinds, theirs.layers, strict=True):
        blocks.append(zamba(layer) if kind == "hybrid" else zamba_mamba(layer.mamba))
        norms.append(None if kind == "hybrid" else layer.input_layernorm.weight)
    load(ours, blocks, norms, theirs.final_layernorm.weight)
    return ours, theirs


def mistral_pair() -> tuple[Backbone, nn.Module]:
    theirs = transformers.MistralModel(
        transformers.MistralConfig(
            **SIZES, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, sliding_window=4,
            attn_implementation="eager",
        )
    )  # fmt: skip
    randomize(theirs)
    options = {
        "sliding_attention": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "window": 4},
        "mlp": {"d_hidden": 24},
    }
    layers = ["sliding_attention", "mlp"]
    ours = Backbone(BackboneConfig(layers=layers, repeat=2, d_model=16, block_options=options, norm_eps=1e-6))
    blocks, norms = [], []
    for layer in theirs.layers:
        blocks += [attention(layer.self_attn), mlp(layer.mlp)]
        norms += [layer.input_layernorm.weight, layer.post_attention_layernorm.weight]
    load(ours, blocks, norms, theirs.norm.weight)
    return ours, theirs


def falcon_pair() -> tuple[Backbone, nn.Module]:
    theirs = transformers.FalconMambaModel(
        transformers.FalconMambaConfig(
            vocab_size=11, hidden_size=16, num_hidden_layers=2, state_size=4, use_bias=False
        )
    )
    randomize(theirs)
    options = {"mamba1": {"d_state": 4, "inner_norm": "plain"}}
    ours = Backbone(BackboneConfig(layers=["mamba1"], repeat=2, d_model=16, block_options=options))
    blocks = [mamba(layer.mixer) for layer in theirs.layers]
    load(ours, blocks, [layer.norm.weight for layer in theirs.layers], theirs.norm_f.weight)
    return ours, theirs


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("pair", [jamba_pair, zamba_pair, mistral_pair, falcon_pair])
def test_the_same_outputs_from_the_same_weights(pair):
    torch.manual_seed(0)
    ours, theirs = pair()
    ours, theirs = ours.eval(), theirs.eval()
    x = torch.randn(2, 13, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # as their generation does: a prompt, then token by token from the cache
        expected = theirs(inputs_embeds=x[:, :9], use_cache=True)
        outputs = [expected.last_hidden_state]
        cache = next(name for name in ("past_key_values", "cache_params") if name in expected)
        for t in range(9, 13):
            expected = theirs(inputs_embeds=x[:, t : t + 1], **{cache: expected[cache]}, use_cache=True)
            outputs.append(expected.last_hidden_state)
        expected = torch.cat(outputs, dim=1)
        for y in (ours(x)[0], run_in_pieces(ours, x, [5, 9])[0], run_by_steps(ours, x)[0]):
            torch.testing.assert_close(y, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # the released checkpoints' own counts; their papers round them to the number in the name
        ("mamba-130m", 129_135_360),
        ("mamba-2.8b", 2_768_345_600),
        ("mamba2-130m", 128_989_632),
        ("mamba2-2.7b", 2_702_599_680),
        ("jamba-v0.1", "JambaForCausalLM"),
        ("zamba-7b-v1", "ZambaForCausalLM"),
    ],
)
def test_published_sizes(name, parameters):
    fields = dict(PUBLISHED[name])
    config = LanguageModelConfig(**{**fields, "backbone": BackboneConfig(**fields["backbone"])})
    with torch.device("meta"):
        ours = sum(parameter.numel() for parameter in LanguageModel(config).parameters())
        if not isinstance(parameters, int):
            kind = getattr(transformers, parameters)
            theirs = kind(kind.config_class())
            parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert ours == parameters


def test_jamba_is_52_billion_of_which_12_work():
    """Section 3 of arXiv:2403.19887: 52B parameters, 12B of them active for a token."""
    fields = PUBLISHED["jamba-v0.1"]
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(**fields["backbone"]))
    total = sum(p.numel() for p in backbone.parameters()) + 2 * fields["n_ids"] * backbone.d_model
    asleep = sum(
        parameter.numel() * 14 // 16
        for name, parameter in backbone.named_parameters()
        if parameter.dim() == 3  # of all 16 experts
    )
    assert round(total / 1e9) == 52
    assert round((total - asleep) / 1e9) == 12
