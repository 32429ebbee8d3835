"""Checkpoints of transformers: random weights there, read here, the same logits; written here, read there.

Its plain PyTorch path runs, an implementation nobody here wrote.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import UserError
from mambakit.core.interop import read_checkpoint, write_checkpoint
from mambakit.core.language_model import LanguageModel, LanguageModelConfig

transformers = pytest.importorskip("transformers", reason="the test extra installs it")

N_IDS = 23
SMALL = {"vocab_size": N_IDS, "hidden_size": 16, "num_hidden_layers": 2}
MAMBA2 = SMALL | {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 5, "chunk_size": 4}
GRANITE = SMALL | {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_n_heads": 4,
    "mamba_d_state": 5,
    "mamba_chunk_size": 4,
}

JAMBA = SMALL | {
    "num_hidden_layers": 4,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "num_experts": 5,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_d_state": 5,
}
BAMBA = SMALL | {
    "num_hidden_layers": 3,
    "attn_layer_indices": [1],
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mamba_n_heads": 4,
    "mamba_d_state": 5,
    "mamba_chunk_size": 4,
}
NEMOTRON = {
    "vocab_size": N_IDS,
    "hidden_size": 16,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "mamba_num_heads": 6,
    "mamba_head_dim": 4,
    "n_groups": 2,
    "ssm_state_size": 5,
    "chunk_size": 4,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", SMALL),
    "mamba-biases": ("mamba", SMALL | {"use_bias": True, "use_conv_bias": False, "time_step_rank": 3}),
    "mamba-sizes": ("mamba", SMALL | {"state_size": 3, "conv_kernel": 2, "expand": 3, "hidden_act": "swish"}),
    "mamba-untied": ("mamba", SMALL | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}),
    "mamba-half-residual": ("mamba", SMALL | {"residual_in_fp32": False, "num_hidden_layers": 1}),
    "mamba2": ("mamba2", MAMBA2),
    "mamba2-groups": ("mamba2", MAMBA2 | {"n_groups": 2, "tie_word_embeddings": True}),
    "mamba2-biases": ("mamba2", MAMBA2 | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "mamba2-eps": ("mamba2", MAMBA2 | {"layer_norm_epsilon": 1e-2, "expand": 1, "head_dim": 4}),
    "mamba2-dt-limit": ("mamba2", MAMBA2 | {"time_step_limit": (0.01, 0.05)}),
    "falcon": ("falcon_mamba", SMALL),
    "falcon-untied": ("falcon_mamba", SMALL | {"tie_word_embeddings": False, "mixer_rms_eps": 1e-2}),
    "jamba": ("jamba", JAMBA),
    "jamba-dense": ("jamba", JAMBA | {"num_experts": 1, "tie_word_embeddings": True, "head_dim": 8}),
    "jamba-biases": (
        "jamba",
        JAMBA | {"mamba_proj_bias": True, "mamba_conv_bias": False, "rms_norm_eps": 1e-2},
    ),
    "bamba": ("bamba", BAMBA),
    "bamba-biases": ("bamba", BAMBA | {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
    "bamba-sizes": (
        "bamba",
        BAMBA
        | {
            "mamba_expand": 3,
            "mamba_d_head": 12,
            "mamba_n_groups": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        },
    ),
    "nemotron": ("nemotron_h", NEMOTRON),
    "nemotron-biases": (
        "nemotron_h",
        NEMOTRON | {"use_bias": True, "mlp_bias": True, "mlp_hidden_act": "silu", "time_step_min": 0.7},
    ),
    "granite": ("granitemoehybrid", GRANITE),
    "granite-experts": (
        "granitemoehybrid",
        GRANITE | {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 8},
    ),
    "granite-rope": (
        "granitemoehybrid",
        GRANITE | {"position_embedding_type": "rope", "attention_bias": True},
    ),
    "granite-multipliers": (
        "granitemoehybrid",
        GRANITE
        | {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.3,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
        },
    ),
}
# Its step leaves the limit out.
WITHOUT_STEP = {"mamba2-dt-limit", "nemotron-biases"}
# Under padding its convolution sees the input projection's bias, where a sequence alone sees zeros.
WITHOUT_PADDING = {"mamba-biases", "mamba2-biases", "jamba-biases", "bamba-biases", "nemotron-biases"}


# By name: the Auto classes import every model there is, which takes half a minute.
CLASSES = {
    "mamba": "Mamba",
    "mamba2": "Mamba2",
    "falcon_mamba": "FalconMamba",
    "jamba": "Jamba",
    "bamba": "Bamba",
    "nemotron_h": "NemotronH",
    "granitemoehybrid": "GraniteMoeHybrid",
}


def model_class(kind: str) -> Any:
    return getattr(transformers, f"{CLASSES[kind]}ForCausalLM")


def config_class(kind: str) -> Any:
    return getattr(transformers, f"{CLASSES[kind]}Config")


@functools.cache
def original(name: str) -> nn.Module:
    """transformers' model, all parameters moved off their start: ones would hide mistakes."""
    kind, options = CASES[name]
    torch.manual_seed(0)
    model = model_class(kind)(config_class(kind)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@functools.cache
def saved(name: str) -> Path:
    folder = Path(tempfile.mkdtemp())
    original(name).save_pretrained(folder)  # type: ignore[operator]
    return folder


def ids(length: int = 13) -> Tensor:
    return torch.randint(N_IDS, (3, length), generator=torch.Generator().manual_seed(1))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-2, "logits that say nothing would hide mistakes"
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_originals(name: str) -> None:
    with torch.no_grad():
        expected = original(name)(ids()).logits
        assert_close(read_checkpoint(saved(name))(ids())[0], expected)


@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_STEP])
def test_cached_decoding_is_the_originals(name: str) -> None:
    theirs, ours = original(name), read_checkpoint(saved(name))
    tokens, prompt = ids(), 7
    cache = "cache_params" if CASES[name][0] in ("mamba", "mamba2", "falcon_mamba") else "past_key_values"
    with torch.no_grad():
        output = theirs(tokens[:, :prompt], use_cache=True)
        expected = [output.logits]
        for t in range(prompt, tokens.shape[1]):
            places = {} if cache == "cache_params" else {"position_ids": torch.full((3, 1), t)}
            output = theirs(tokens[:, t : t + 1], use_cache=True, **{cache: output[cache]}, **places)
            expected.append(output.logits)
        logits, state = ours(tokens[:, :prompt])
        actual = [logits]
        for t in range(prompt, tokens.shape[1]):
            logits, state = ours.step(tokens[:, t], state)
            actual.append(logits[:, None])
    assert_close(torch.cat(actual, dim=1), torch.cat(expected, dim=1))


@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_PADDING])
def test_left_padded_rows_are_the_originals(name: str) -> None:
    lengths = torch.tensor([13, 5, 9])
    real = torch.arange(13) >= 13 - lengths[:, None]
    with torch.no_grad():
        expected = original(name)(ids(), attention_mask=real.long()).logits
        actual, _ = read_checkpoint(saved(name))(ids(), lengths=lengths, padding="left")
    assert_close(actual[real], expected[real])


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_loads_there(name: str, tmp_path: Path) -> None:
    ours = read_checkpoint(saved(name))
    write_checkpoint(ours, tmp_path, format=CASES[name][0])
    theirs, report = model_class(CASES[name][0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert_close(theirs.eval()(ids()).logits, original(name)(ids()).logits)


@pytest.mark.parametrize("name", CASES)
def test_round_trip_changes_nothing(name: str, tmp_path: Path) -> None:
    first = read_checkpoint(saved(name))
    write_checkpoint(first, tmp_path)
    second = read_checkpoint(tmp_path)
    assert_same_model(first, second)


@pytest.mark.parametrize("name", ["mamba", "mamba2-dt-limit", "jamba", "granite-multipliers"])
def test_what_was_read_is_saved_as_any_model_of_ours(name: str, tmp_path: Path) -> None:
    first = read_checkpoint(saved(name))
    first.save_pretrained(tmp_path)
    assert_same_model(first, LanguageModel.from_pretrained(tmp_path))


def assert_same_model(first: LanguageModel, second: LanguageModel) -> None:
    assert first.config == second.config
    weights = second.state_dict()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba", "bamba"])
def test_greedy_generation_is_the_originals(name: str) -> None:
    prompt = ids(4)
    expected = original(name).generate(  # type: ignore[operator]
        prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    ours = read_checkpoint(saved(name))
    forbidden = original(name).generation_config.eos_token_id  # type: ignore[union-attr]
    tokens = prompt
    with torch.no_grad():
        logits, state = ours(prompt)
        logits = logits[:, -1]
        for _ in range(6):
            logits[:, forbidden] = -torch.inf  # min_new_tokens keeps it from ending
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
            logits, state = ours.step(tokens[:, -1], state)
    assert tokens.tolist() == expected.tolist()


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    original("mamba2").save_pretrained(tmp_path, max_shard_size="8KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_model(read_checkpoint(tmp_path), read_checkpoint(saved("mamba2")))


def test_half_precision_is_read_as_float32_unless_asked(tmp_path: Path) -> None:
    model = read_checkpoint(saved("mamba")).to(torch.bfloat16)
    write_checkpoint(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16):
        again = read_checkpoint(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in again.parameters()} == {dtype}
        for name, weight in again.state_dict().items():
            assert torch.equal(weight, model.state_dict()[name].to(dtype))
    assert again.head.weight is again.embedding.weight


def test_reading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    model = read_checkpoint(saved("mamba"))
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_of_ours_goes_there(tmp_path: Path) -> None:
    """One that was never a checkpoint, from the defaults of a config."""
    torch.manual_seed(0)
    options = {"mamba1": {}, "mamba2": {"head_dim": 16, "d_state": 8}}
    for kind, theirs in (
        ("mamba1", transformers.MambaForCausalLM),
        ("mamba2", transformers.Mamba2ForCausalLM),
    ):
        model = small_model([kind], {kind: options[kind]}).eval()
        write_checkpoint(model, tmp_path / kind)
        theirs = theirs.from_pretrained(tmp_path / kind).eval()
        with torch.no_grad():
            assert_close(theirs(ids()).logits, model(ids())[0])


def small_model(layers: list[str], options: dict[str, dict[str, Any]], **others: Any) -> LanguageModel:
    backbone = BackboneConfig(d_model=16, layers=layers, block_options=options, **others)
    return LanguageModel(LanguageModelConfig(n_ids=N_IDS, backbone=backbone))


@pytest.mark.parametrize(
    ("layers", "options", "others", "format", "message"),
    [
        (["mamba1"], {}, {}, "mamba2", "a mamba2 checkpoint has no place for mamba1"),
        (["mamba1"], {"mamba1": {"dt_limit": (0.0, 0.1)}}, {}, "mamba", r"mamba1 with dt_limit=\(0.0, 0.1\)"),
        (["mamba1"], {"mamba1": {"expand": 1.5}}, {}, "mamba", "needs a whole expand, got 1.5"),
        (["mamba2"], {"mamba2": {"head_dim": 8, "norm": False}}, {}, "mamba2", "norm=False, only with True"),
        (["mamba2"], {"mamba2": {"head_dim": 8}}, {"norm_eps": 1e-3}, "mamba2", "one eps for all norms"),
        (["mamba2", "mamba1"], {"mamba2": {"head_dim": 8}}, {}, "mamba_ssm", "mamba1 or mamba2, not both"),
        (["mamba1"], {}, {"norm_eps": 1e-3}, "mamba_ssm", "norms have eps=1e-05, got norm_eps=0.001"),
        (["mamba1", "mlp"], {}, {}, "mamba_ssm", "multiple of 128 for d_hidden, got 48"),
        (["mlp", "mamba1"], {}, {}, "mamba_ssm", "an MLP after every mixer or none"),
        (["mamba2", "mlp", "mlp"], {"mamba2": {"head_dim": 8}}, {}, "granitemoehybrid", "layer 2 should be"),
        (
            ["mlp"],
            {},
            {},
            "transformers",
            "no format of transformers holds it: a mamba checkpoint has no place",
        ),
    ],
)
def test_what_a_format_has_no_place_for_is_named(
    layers: list[str], options: Any, others: Any, format: str, message: str, tmp_path: Path
) -> None:
    model = small_model(layers, options, **others)
    with pytest.raises(UserError, match=message):
        write_checkpoint(model, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_what_was_added_to_a_model_has_no_place(tmp_path: Path) -> None:
    model = small_model(["mamba1"], {})
    model.backbone.blocks[0].learn_initial_state()
    with pytest.raises(UserError, match=r"no place for the weight backbone\.blocks\.0\.initial\.conv"):
        write_checkpoint(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TypeError, match="model: expected a LanguageModel, got Backbone"):
        write_checkpoint(model.backbone, tmp_path / "out")  # type: ignore[arg-type]


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"format: expected 'transformers' or one of mamba_ssm, .*, got 'gguf'"
    ):
        write_checkpoint(small_model(["mamba1"], {}), tmp_path, format="gguf")
