"""Checkpoints that cannot be read: one clear sentence each, and no code runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import DataError
from mambakit.core.interop import read_checkpoint, write_checkpoint
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

Weights = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        d_model=16, layers=["mamba1"], repeat=2, block_options={"mamba1": {"d_state": 4}}
    )
    write_checkpoint(LanguageModel(LanguageModelConfig(n_ids=11, backbone=backbone)), tmp_path)
    return tmp_path


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_checkpoint(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not Ellipsis}))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_missing_weights_are_named(folder: Path) -> None:
    change_weights(folder, lambda w: [w.pop(f"backbone.layers.{i}.mixer.D") for i in range(2)])
    assert "2 weights are missing: backbone.layers.0.mixer.D, backbone.layers.1.mixer.D" in refusal(folder)


def test_extra_weights_are_named(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"backbone.layers.1.mixer.in_proj.bias": torch.zeros(64)}))
    assert "1 weights are not in the model: backbone.layers.1.mixer.in_proj.bias" in refusal(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"backbone.norm_f.weight": torch.zeros(15)}))
    assert "1 weights are of another shape: backbone.norm_f.weight (15,) instead of (16,)" in refusal(folder)


def test_a_squeezed_convolution_is_of_another_shape(folder: Path) -> None:
    name = "backbone.layers.0.mixer.conv1d.weight"
    change_weights(folder, lambda w: w.update({name: w[name].squeeze(1)}))
    assert f"{name} (32, 4) instead of (32, 1, 4)" in refusal(folder)


def test_integers_are_no_weights(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"backbone.norm_f.weight": torch.zeros(16, dtype=torch.int8)}))
    assert "backbone.norm_f.weight holds torch.int8" in refusal(folder)


def test_a_head_that_is_tied_and_differs(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(11, 16)}))
    message = refusal(folder)
    assert "lm_head.weight differs from backbone.embeddings.weight" in message
    assert "tied" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "config.json has no hidden_size, which the model's shape depends on"),
        ({"vocab_size": ...}, "config.json has no vocab_size"),
        ({"num_hidden_layers": ...}, "config.json has no num_hidden_layers"),
        ({"hidden_size": "big"}, "hidden_size: expected a whole number, got 'big'"),
        ({"use_bias": 1}, "use_bias: expected true or false, got 1"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported: the blocks here compute silu"),
        ({"model_type": "llama"}, "its model_type is 'llama'; known are transformers' mamba, mamba2,"),
        ({"model_type": ...}, "it has no model_type; known are"),
        ({"quantization_config": {"bits": 4}}, "quantized checkpoints can't be read"),
        ({"state_size": 0}, "describes a model that can't be built: d_state: expected at least 1, got 0"),
    ],
)
def test_a_config_that_cannot_be_followed(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bamba", {"attn_layer_indices": [[0]]}, "attn_layer_indices: expected a list of whole numbers"),
        ("bamba", {"mamba_n_heads": 3}, "mamba_n_heads: 3 heads of 10 channels are not 32 channels"),
        (
            "bamba",
            {"num_attention_heads": 3, "attn_layer_indices": [0]},
            "hidden_size=16 is not divisible by 3",
        ),
        ("bamba", {"rope_scaling": {"factor": 2}}, "rope_scaling: {'factor': 2} is not supported"),
        (
            "bamba",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_parameters.rope_type: 'yarn' is not supported",
        ),
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "convolution"]},
            "layer_types: 'convolution' is none of",
        ),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "layer_types: 1 layers, but num_hidden_layers=2"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "attention here rotates or does not"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period: expected at least 1, got 0"),
        ("jamba", {"num_experts_per_tok": 99}, "can't be built: top_k: expected 1 <= top_k <= n_experts=16"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "layer 1 is none of linear_attention"),
        ("nemotron_h", {"hybrid_override_pattern": 3}, "expected letters out of M * - E, got 3"),
        ("nemotron_h", {"layers_block_type": ["moe"]}, "routed by sigmoids"),
        (
            "nemotron_h",
            {"hybrid_override_pattern": "-", "mlp_hidden_act": "tanh"},
            "can't be built: activation",
        ),
        (
            "mamba2",
            {"num_heads": 3, "head_dim": 8},
            "3 heads of 8 channels are not expand * hidden_size = 32",
        ),
    ],
)
def test_a_hybrid_that_cannot_be_followed(
    folder: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    base = {"num_attention_heads": 4, "attn_layer_indices": [0], "mamba_n_heads": 4, "rms_norm_eps": 1e-5}
    layers = {"layer_types": ["mamba", "attention"]} if kind == "granitemoehybrid" else {}
    change_config(folder, model_type=kind, **(base | layers | changes))
    assert message in refusal(folder)


def test_files_that_are_missing_or_damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        assert "model.safetensors is damaged or no safetensors file" in refusal(folder)
    weights.unlink()
    assert "holds no weights: expected model.safetensors" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)
    assert "expected a folder" in refusal(folder / "nowhere")


def test_shards_and_their_index(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard)
    index = folder / "model.safetensors.index.json"

    def write_index(**changes: Any) -> None:
        weight_map = {name: shard for shard, held in shards.items() for name in held} | changes
        index.write_text(json.dumps({"weight_map": weight_map}))

    write_index()
    assert torch.equal(read_checkpoint(folder).embedding.weight, weights["backbone.embeddings.weight"])
    write_index(more="c.safetensors")
    assert "the shard c.safetensors, which model.safetensors.index.json names, is missing" in refusal(folder)
    write_index(more="a.safetensors")
    assert "a.safetensors lacks weights" in refusal(folder)
    write_index(more="../outside.safetensors")
    assert "not in '../outside.safetensors'" in refusal(folder)
    save_file({name: weights[name] for name in names[:6]}, folder / "a.safetensors")
    write_index()
    assert f"{names[5]} is in two shards" in refusal(folder)
    index.write_text("[]")
    assert "should hold a JSON object" in refusal(folder)


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_a_pickle_is_read_only_on_demand_and_only_for_its_tensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    weights = load_file(folder / "model.safetensors")
    expected = read_checkpoint(folder).state_dict()
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path)
    assert "pass pickled=True" in refusal(folder)
    actual = read_checkpoint(folder, pickled=True).state_dict()
    assert all(torch.equal(weight, actual[name]) for name, weight in expected.items())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is damaged or no file of torch.save" in refusal(folder, pickled=True)
    torch.save({"a": Harm()}, path)
    assert "holds more than tensors, and was not loaded" in refusal(folder, pickled=True)
    assert not (folder / "harmed").exists()
    torch.save([torch.zeros(2)], path)
    assert "should hold a mapping from names to tensors" in refusal(folder, pickled=True)
