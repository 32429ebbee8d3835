"""transformers' ``nemotron_h`` without experts: one of Mamba-2, attention and MLP a layer, in any order."""

from __future__ import annotations

import math
from typing import Any

from mambakit.core.errors import UserError
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import Format, check_eps, check_kinds, kinds_of, stack
from mambakit.core.interop.layout import Layout, Slot, Table, whole
from mambakit.core.interop.tables import (
    ATTENTION,
    MAMBA2,
    fraction,
    no_special_ids,
    read_attention,
    silu_only,
    write_attention,
)
from mambakit.core.language_model import LanguageModelConfig

_LETTERS = {"M": "mamba2", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {"linear_attention": "mamba2", "full_attention": "attention", "mlp": "mlp", "moe": "moe"}
_OLD_NAMES = {"mamba": "mamba2", "attention": "attention"}

_TABLES: dict[str, Table] = {
    "mamba2": MAMBA2,
    "attention": ATTENTION,
    "mlp": {
        "in_proj.weight": whole("up_proj.weight"),
        "in_proj.bias": whole("up_proj.bias"),
        "out_proj.weight": whole("down_proj.weight"),
        "out_proj.bias": whole("down_proj.bias"),
    },
}


def _read(fields: Fields) -> LanguageModelConfig:
    kinds = _kinds(fields)
    width = fields.integer("hidden_size")
    options: dict[str, Any] = {}
    if "mamba2" in kinds:
        options["mamba2"] = _read_mamba2(fields, width)
    if "attention" in kinds:
        options["attention"] = {**read_attention(fields), "rope": False}
    if "mlp" in kinds:
        options["mlp"] = {
            "d_hidden": fields.integer("intermediate_size", 21504),
            "gated": False,
            "activation": fields.values.get("mlp_hidden_act", "relu2"),
            "bias": fields.flag("mlp_bias", False),
        }
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(kinds, options, d_model=width, norm_eps=fields.number("layer_norm_epsilon", 1e-5)),
        tie_embeddings=False,  # whatever the config says
    )


def _kinds(fields: Fields) -> list[str]:
    if fields.has("layers_block_type"):
        kinds = [(_NAMES | _OLD_NAMES).get(name) for name in fields.items("layers_block_type", str)]
        where = "layers_block_type"
    else:
        where = "hybrid_override_pattern"
        pattern = fields.values.get(where)
        if not isinstance(pattern, str):
            raise fields.error(where, f"expected letters out of {' '.join(_LETTERS)}, got {pattern!r}")
        kinds = [_LETTERS.get(letter) for letter in pattern]
    if None in kinds:
        raise fields.error(where, f"layer {kinds.index(None)} is none of {', '.join(_NAMES)}")
    if "moe" in kinds:
        raise fields.error(
            where, "its experts (ungated, routed by sigmoids with a correction) have no counterpart here"
        )
    return [kind for kind in kinds if kind]


def _read_mamba2(fields: Fields, width: int) -> dict[str, Any]:
    silu_only(fields, "mamba_hidden_act")
    head_dim = fields.integer("mamba_head_dim", 64)
    d_inner = fields.integer("mamba_num_heads", 128) * head_dim
    return {
        "d_state": fields.integer("ssm_state_size", 128),
        "d_conv": fields.integer("conv_kernel", 4),
        "expand": fraction(d_inner, width),
        "head_dim": head_dim,
        "n_groups": fields.integer("n_groups", 8),
        "dt_limit": [fields.number("time_step_min", 0.001), math.inf],  # it has no use for time_step_limit
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "conv_bias": fields.flag("use_conv_bias", True),
        "bias": fields.flag("use_bias", False),
    }


def _write(config: LanguageModelConfig) -> dict[str, Any]:
    target, backbone = "nemotron_h", config.backbone
    kinds = check_kinds(config, target, set(_TABLES))
    if config.tie_embeddings:
        raise UserError("model: a nemotron_h checkpoint has a head of its own, got tie_embeddings=True")
    names = {kind: name for name, kind in _NAMES.items()}
    theirs: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": target,
        "vocab_size": config.n_ids,
        "hidden_size": backbone.d_model,
        "layers_block_type": [names[kind] for kind in kinds],
        "layer_norm_epsilon": backbone.norm_eps,
        "tie_word_embeddings": False,
        **no_special_ids(),
    }
    if "mamba2" in kinds:
        options = Options(backbone, "mamba2", target)
        check_eps(options.take("norm_eps"), config, target, "mamba2's norm_eps")
        low, high = options.take("dt_limit")
        if high != math.inf:
            raise UserError(f"model: a nemotron_h checkpoint has no upper dt_limit, got {high!r}")
        head_dim = options.take("head_dim")
        theirs |= {
            "ssm_state_size": options.take("d_state"),
            "conv_kernel": options.take("d_conv"),
            "mamba_num_heads": int(options.take("expand") * backbone.d_model) // head_dim,
            "mamba_head_dim": head_dim,
            "n_groups": options.take("n_groups"),
            "time_step_min": low,
            "use_conv_bias": options.take("conv_bias"),
            "use_bias": options.take("bias"),
        }
        options.nothing_else(norm=True, norm_before_gate=False, D_per_channel=False)
    if "attention" in kinds:
        options = Options(backbone, "attention", target)
        theirs |= write_attention(options, backbone.d_model)
        theirs.setdefault("head_dim", backbone.d_model // theirs["num_attention_heads"])
        options.take("rope_theta"), options.take("rope_fraction")  # nothing rotates
        options.nothing_else(rope=False)
    if "mlp" in kinds:
        options = Options(backbone, "mlp", target)
        theirs |= {
            "intermediate_size": options.take("d_hidden") or 4 * backbone.d_model,
            "mlp_hidden_act": options.take("activation"),
            "mlp_bias": options.take("bias"),
        }
        options.nothing_else(gated=False)
    return theirs


def _layout(config: LanguageModelConfig, fields: Fields) -> Layout:
    slots = [
        Slot(f"backbone.layers.{i}.norm.weight", f"backbone.layers.{i}.mixer.", _TABLES[kind])
        for i, kind in enumerate(kinds_of(config))
    ]
    return Layout(
        embedding="backbone.embeddings.weight",
        final_norm="backbone.norm_f.weight",
        head="lm_head.weight",
        slots=slots,
        ignored=("mtp.",),  # a second head that predicts further tokens
    )


NEMOTRON_H = Format(_read, _write, _layout)
