"""Checkpoints of mamba_ssm, which state-spaces publishes: names and shapes, and what its layers compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import DataError
from mambakit.core.interop import read_checkpoint, write_checkpoint
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

# config.json of state-spaces/mamba-130m and mamba2-130m, but for the sizes
MAMBA_130M = {
    "d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
}  # fmt: skip
MAMBA2_130M = {
    "d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
    "pad_vocab_size_multiple": 16, "tie_embeddings": True,
}  # fmt: skip
SMALLER = {"d_model": 64, "n_layer": 2, "vocab_size": 37}
# Their tensors, each with its shape as it follows from the width d, the rank r = d / 16 and h = d / 32 heads.
OF_EVERY_MODEL = {"backbone.embedding.weight": "v d", "backbone.norm_f.weight": "d", "lm_head.weight": "v d"}
OF_MAMBA_LAYER = {
    "norm.weight": "d", "mixer.A_log": "2d 16", "mixer.D": "2d", "mixer.in_proj.weight": "4d d",
    "mixer.conv1d.weight": "2d 1 4", "mixer.conv1d.bias": "2d", "mixer.x_proj.weight": "r+32 2d",
    "mixer.dt_proj.weight": "2d r", "mixer.dt_proj.bias": "2d", "mixer.out_proj.weight": "d 2d",
}  # fmt: skip
OF_MAMBA2_LAYER = {
    "norm.weight": "d", "mixer.A_log": "h", "mixer.D": "h", "mixer.dt_bias": "h",
    "mixer.in_proj.weight": "4d+256+h d", "mixer.conv1d.weight": "2d+256 1 4", "mixer.conv1d.bias": "2d+256",
    "mixer.norm.weight": "2d", "mixer.out_proj.weight": "d 2d",
}  # fmt: skip


def published_weights(config: dict[str, Any], layer: dict[str, str]) -> dict[str, Tensor]:
    """Random tensors of a published checkpoint's names and shapes; the head is the embedding's copy."""
    d = config["d_model"]
    multiple = config["pad_vocab_size_multiple"]
    sizes = {
        "d": d,
        "2d": 2 * d,
        "4d": 4 * d,
        "r": d // 16,
        "h": d // 32,
        "v": -(-config["vocab_size"] // multiple),
    }
    sizes["v"] *= multiple

    def draw(shape: str) -> Tensor:
        dims = [sum(sizes.get(term) or int(term) for term in dim.split("+")) for dim in shape.split()]
        return 0.1 * torch.randn(dims, generator=generator)

    generator = torch.Generator().manual_seed(0)
    names = dict(OF_EVERY_MODEL)
    for i in range(config["n_layer"]):
        names |= {f"backbone.layers.{i}.{name}": shape for name, shape in layer.items()}
    weights = {name: draw(shape) for name, shape in names.items()}
    weights["lm_head.weight"] = weights["backbone.embedding.weight"].clone()
    return weights


def save(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


PUBLISHED = {
    "mamba": (MAMBA_130M | SMALLER, OF_MAMBA_LAYER),
    "mamba2": (MAMBA2_130M | SMALLER, OF_MAMBA2_LAYER),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_are_read_and_written(name: str, tmp_path: Path) -> None:
    config, layer = PUBLISHED[name]
    weights = published_weights(config, layer)
    model = read_checkpoint(save(tmp_path / "in", config, weights))
    write_checkpoint(model, tmp_path / "out", format="mamba_ssm")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == weights.keys()
    for key, weight in weights.items():
        assert torch.equal(written[key], weight), key
    theirs = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)  # what mamba_ssm opens
    assert theirs.keys() == weights.keys()
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    assert again["vocab_size"] == model.config.n_ids == {"mamba": 40, "mamba2": 48}[name]
    assert read_checkpoint(tmp_path / "out").config == model.config


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_logits_are_those_of_transformers_conversion(name: str, tmp_path: Path) -> None:
    """There the two formats differ in one name."""
    transformers = pytest.importorskip("transformers", reason="the test extra installs it")
    config, layer = PUBLISHED[name]
    weights = published_weights(config, layer)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2}
    if name == "mamba":
        theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, vocab_size=40))
    else:
        sizes |= {"vocab_size": 48, "num_heads": 2, "n_groups": 1}
        theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes))
    theirs.eval()
    theirs.load_state_dict(
        {key.replace("embedding.", "embeddings."): weight for key, weight in weights.items()}
    )
    tokens = torch.randint(37, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        actual, _ = read_checkpoint(save(tmp_path, config, weights))(tokens)
    assert expected.std() > 1e-2
    assert (actual - expected).abs().max() < 1e-5


def test_a_config_that_transformers_converted_is_read_by_its_own_names(tmp_path: Path) -> None:
    """state-spaces/mamba-130m-hf: both projects' fields, transformers' tensors."""
    config = MAMBA_130M | SMALLER | {"pad_vocab_size_multiple": 1}
    weights = published_weights(config, OF_MAMBA_LAYER)
    old = read_checkpoint(save(tmp_path / "old", config, weights))
    both = config | {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2}
    for embedding in ("embedding.", "embeddings."):  # either name is in use
        renamed = {key.replace("embedding.", embedding): weight for key, weight in weights.items()}
        new = read_checkpoint(save(tmp_path / embedding, both, renamed))
        assert new.config == old.config
        assert all(
            torch.equal(a, b)
            for a, b in zip(new.state_dict().values(), old.state_dict().values(), strict=True)
        )


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def naive_attention(x: Tensor, w: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """mamba_ssm's MHA: query, key and value heads out of one projection and its convolution."""
    batch, length, _ = x.shape
    n_heads, n_kv_heads, head_dim = (config[name] for name in ("num_heads", "num_heads_kv", "head_dim"))
    qkv = F.linear(x, w["in_proj.weight"], w["in_proj.bias"])
    if config["d_conv"]:
        taps = F.pad(qkv.transpose(1, 2), (config["d_conv"] - 1, 0))
        qkv = F.conv1d(taps, w["conv1d.weight"], w["conv1d.bias"], groups=qkv.shape[2]).transpose(1, 2)
    q, k, v = (
        qkv.view(batch, length, -1, head_dim).transpose(1, 2).split([n_heads, n_kv_heads, n_kv_heads], dim=1)
    )
    k, v = (t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v))
    if config["rotary_emb_dim"]:
        half = config["rotary_emb_dim"] // 2
        angle = torch.arange(length)[:, None] * config["rotary_emb_base"] ** (-torch.arange(half) / half)
        turn = torch.polar(torch.ones_like(angle), angle)

        def rotate(t: Tensor) -> Tensor:
            turned = torch.complex(t[..., :half].contiguous(), t[..., half : 2 * half].contiguous()) * turn
            return torch.cat([turned.real, turned.imag, t[..., 2 * half :]], dim=-1)

        q, k = rotate(q), rotate(k)
    scores = (q @ k.transpose(-1, -2)) * config.get("softmax_scale", head_dim**-0.5)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return F.linear(y, w["out_proj.weight"], w.get("out_proj.bias"))


@pytest.mark.parametrize(
    ("attention", "out_bias"),
    [
        ({"d_conv": 0, "rotary_emb_dim": 0, "head_dim": 4}, True),
        ({"d_conv": 0, "rotary_emb_dim": 4, "head_dim": 4}, True),
        # as in state-spaces/mamba2attn-2.7b: a convolution, wider heads, and a part of each rotated
        ({"d_conv": 4, "rotary_emb_dim": 4, "head_dim": 6, "softmax_scale": 0.3}, False),
    ],
)
def test_attention_and_mlp_layers(attention: dict[str, Any], out_bias: bool, tmp_path: Path) -> None:
    """Blocks of attention and its gated MLP, whose gate comes second, beside the same in a few lines."""
    attention = attention | {
        "causal": True, "num_heads": 4, "num_heads_kv": 2, "out_proj_bias": out_bias,
        "rotary_emb_base": 100.0 if attention["rotary_emb_dim"] else 10000.0,
    }  # fmt: skip
    config = SMALLER | {
        "d_model": 16, "d_intermediate": 100, "ssm_cfg": {"layer": "Mamba2"}, "attn_layer_idx": [0, 1],
        "attn_cfg": attention, "pad_vocab_size_multiple": 1, "tie_embeddings": False,
    }  # fmt: skip
    wide = 4 * attention["head_dim"]
    shapes = {
        "backbone.embedding.weight": (37, 16),
        "backbone.norm_f.weight": (16,),
        "lm_head.weight": (37, 16),
    }
    of_layer: dict[str, tuple[int, ...]] = {
        "norm.weight": (16,), "norm2.weight": (16,), "mlp.fc1.weight": (256, 16), "mlp.fc2.weight": (16, 128),
        "mixer.in_proj.weight": (2 * wide, 16), "mixer.in_proj.bias": (2 * wide,),
        "mixer.out_proj.weight": (16, wide),
    }  # fmt: skip
    if out_bias:
        of_layer["mixer.out_proj.bias"] = (16,)
    if attention["d_conv"]:
        of_layer |= {"mixer.conv1d.weight": (2 * wide, 1, 4), "mixer.conv1d.bias": (2 * wide,)}
    for i in range(2):
        shapes |= {f"backbone.layers.{i}.{name}": shape for name, shape in of_layer.items()}
    generator = torch.Generator().manual_seed(0)
    w = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model = read_checkpoint(save(tmp_path / "in", config, w))
    tokens = torch.randint(37, (2, 9), generator=generator)
    x = w["backbone.embedding.weight"][tokens]
    for i in range(2):
        layer = f"backbone.layers.{i}."
        mixer = {name.removeprefix(layer + "mixer."): t for name, t in w.items() if layer + "mixer." in name}
        x = x + naive_attention(rms_norm(x, w[layer + "norm.weight"]), mixer, attention)
        up, gate = F.linear(rms_norm(x, w[layer + "norm2.weight"]), w[layer + "mlp.fc1.weight"]).chunk(
            2, dim=-1
        )
        x = x + F.linear(up * F.silu(gate), w[layer + "mlp.fc2.weight"])
    expected = F.linear(rms_norm(x, w["backbone.norm_f.weight"]), w["lm_head.weight"])
    with torch.no_grad():
        actual, _ = model(tokens)
        first, state = model(tokens[:, :8])
        last, _ = model.step(tokens[:, 8], state)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (torch.cat([first, last[:, None]], dim=1) - expected).abs().max() < 1e-5 * expected.abs().max()
    write_checkpoint(model, tmp_path / "out", format="mamba_ssm")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == w.keys()
    assert all(torch.equal(written[name], w[name]) for name in w)
    again = json.loads((tmp_path / "out" / "config.json").read_text())["attn_cfg"]
    assert again == attention | {"qkv_proj_bias": True}


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (["mamba1"], {"mamba1": {"d_state": 3, "dt_rank": 5, "expand": 1.5}}),
        (["mamba1"], {"mamba1": {"conv_bias": False, "bias": True, "d_conv": 2}}),
        (["mamba2"], {"mamba2": {"head_dim": 8, "D_per_channel": True, "norm": False}}),
        (["mamba2"], {"mamba2": {"head_dim": 4, "norm_before_gate": True, "dt_limit": (0.0, 0.5)}}),
        (["mamba2", "mlp"], {"mamba2": {"head_dim": 4, "n_groups": 2}, "mlp": {"d_hidden": 128}}),
        (["mamba1", "attention"], {"attention": {"n_heads": 4, "n_kv_heads": 2, "rope_theta": 7.0}}),
        (["attention"], {"attention": {"n_heads": 4, "rope": False, "bias": True}}),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_changes_nothing(layers: list[str], options: Any, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig(d_model=16, layers=layers, repeat=2, block_options=options)
    first = LanguageModel(LanguageModelConfig(n_ids=11, backbone=backbone, tie_embeddings=tied)).eval()
    write_checkpoint(first, tmp_path, format="mamba_ssm")
    second = read_checkpoint(tmp_path)
    weights = second.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.state_dict().items())
    tokens = torch.randint(11, (2, 7))
    with torch.no_grad():
        assert torch.equal(first(tokens)[0], second(tokens)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm": False}, "rms_norm: False is not supported: the backbone's norms here are RMSNorm"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer: 'Mamba3' is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 64}}, "ssm_cfg.d_ssm: 64 is not supported"),
        ({"ssm_cfg": {"magic": 1}}, "ssm_cfg.magic: is unknown here, and may change what the model computes"),
        ({"ssm_cfg": 3}, "ssm_cfg: expected an object, got 3"),
        ({"ssm_cfg": {"d_state": "16"}}, "ssm_cfg.d_state: expected a whole number, got '16'"),
        ({"d_middle": 1}, "d_middle: is unknown here"),
        ({"attn_layer_idx": [5], "attn_cfg": {"num_heads": 4}}, "attn_layer_idx: 5 is no layer of 2"),
        ({"attn_layer_idx": [0], "attn_cfg": {}}, "has no attn_cfg.num_heads"),
        ({"attn_layer_idx": [0], "attn_cfg": {"num_heads": 4}}, "attn_cfg.causal: False is not supported"),
        (
            {"attn_layer_idx": [0], "attn_cfg": {"num_heads": 4, "causal": True, "mlp_dim": 4}},
            "attn_cfg.mlp_dim: 4 is not supported: attention here has no MLP beside it",
        ),
        (
            {"attn_layer_idx": [0], "attn_cfg": {"num_heads": 4, "causal": True, "rotary_emb_dim": 65}},
            "attn_cfg.rotary_emb_dim: 65 of 16 channels of a head can't be rotated",
        ),
        (
            {"attn_layer_idx": [0], "attn_cfg": {"num_heads": 5, "causal": True}},
            "d_model=64 is not divisible by 5",
        ),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple: expected at least 1, got 0"),
        (
            {"n_layer": 0},
            "describes a model that can't be built: layers, repeat: expected at least one layer",
        ),
        ({"vocab_size": True}, "vocab_size: expected a whole number, got True"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 48}}, "can't be built: head_dim: d_inner=128"),
    ],
)
def test_what_the_blocks_do_not_compute_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = MAMBA_130M | SMALLER | changes
    save(tmp_path, config, published_weights(MAMBA_130M | SMALLER, OF_MAMBA_LAYER))
    with pytest.raises(DataError) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
