"""transformers' ``mamba``, ``falcon_mamba`` and ``mamba2``: one mixer a layer, an RMSNorm before each.

Its ``residual_in_fp32`` and ``use_mambapy`` change roundings only, the former not in float32;
``rescale_prenorm_residual``, the ``time_step_*`` but for ``time_step_limit`` and ``time_step_rank``, and
``initializer_range`` are about the start of training.
"""

from __future__ import annotations

from typing import Any

from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import (
    Format,
    check_eps,
    check_kinds,
    kinds_of,
    stack,
    whole_expand,
)
from mambakit.core.interop.layout import Layout, Slot, Table
from mambakit.core.interop.tables import (
    MAMBA1,
    MAMBA2,
    no_special_ids,
    read_dt_limit,
    silu_only,
    write_time_step_limit,
)
from mambakit.core.language_model import LanguageModelConfig


def _layout(table: Table) -> Any:
    def layout(config: LanguageModelConfig, fields: Fields) -> Layout:
        layers = [f"backbone.layers.{i}." for i in range(len(kinds_of(config)))]
        return Layout(
            embedding="backbone.embeddings.weight",
            final_norm="backbone.norm_f.weight",
            head="lm_head.weight",
            slots=[Slot(layer + "norm.weight", layer + "mixer.", table) for layer in layers],
            aliases={
                "backbone.embedding.weight": "backbone.embeddings.weight"
            },  # of its first converted ones
        )

    return layout


def _read_mamba(fields: Fields) -> LanguageModelConfig:
    return _model(fields, "mamba1", _read_mamba1(fields), tied=True)


def _read_falcon(fields: Fields) -> LanguageModelConfig:
    """The same with norms of dt, B and C that have no weights."""
    norms = {"inner_norm": "plain", "inner_norm_eps": fields.number("mixer_rms_eps", 1e-6)}
    return _model(fields, "mamba1", _read_mamba1(fields) | norms, tied=True)


def _read_mamba1(fields: Fields) -> dict[str, Any]:
    silu_only(fields)
    rank = fields.values.get("time_step_rank", "auto")
    return {
        "d_state": fields.integer("state_size", 16),
        "d_conv": fields.integer("conv_kernel", 4),
        "expand": fields.number("expand", 2),
        "dt_rank": rank if rank == "auto" else fields.integer("time_step_rank"),
        "conv_bias": fields.flag("use_conv_bias", True),
        "bias": fields.flag("use_bias", False),
    }


def _read_mamba2(fields: Fields) -> LanguageModelConfig:
    silu_only(fields)
    width, expand = fields.integer("hidden_size"), fields.number("expand", 2)
    n_heads, head_dim = fields.integer("num_heads"), fields.integer("head_dim")
    if n_heads * head_dim != width * expand:
        raise fields.error(
            "num_heads",
            f"{n_heads} heads of {head_dim} channels are not expand * hidden_size = {width * expand}",
        )
    return _model(
        fields,
        "mamba2",
        {
            "d_state": fields.integer("state_size", 128),
            "d_conv": fields.integer("conv_kernel", 4),
            "expand": expand,
            "head_dim": head_dim,
            "n_groups": fields.integer("n_groups", 8),
            **read_dt_limit(fields, "time_step_limit"),
            "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
            "conv_bias": fields.flag("use_conv_bias", True),
            "bias": fields.flag("use_bias", False),
        },
        tied=False,
    )


def _model(fields: Fields, kind: str, options: dict[str, Any], *, tied: bool) -> LanguageModelConfig:
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(
            [kind] * fields.integer("num_hidden_layers"),
            {kind: options},
            d_model=fields.integer("hidden_size"),
            norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", tied),
    )


def _write_mamba(config: LanguageModelConfig) -> dict[str, Any]:
    check_kinds(config, "mamba", {"mamba1"})
    options = Options(config.backbone, "mamba1", "mamba")
    theirs = {"architectures": ["MambaForCausalLM"], "model_type": "mamba"} | _write_mamba1(options, config)
    options.nothing_else()
    return theirs | _shared(config)


def _write_falcon(config: LanguageModelConfig) -> dict[str, Any]:
    check_kinds(config, "falcon_mamba", {"mamba1"})
    options = Options(config.backbone, "mamba1", "falcon_mamba")
    theirs = {
        "architectures": ["FalconMambaForCausalLM"],
        "model_type": "falcon_mamba",
        "mixer_rms_eps": options.take("inner_norm_eps"),
        **_write_mamba1(options, config),
    }
    options.nothing_else(inner_norm="plain")
    return theirs | _shared(config)


def _write_mamba1(options: Options, config: LanguageModelConfig) -> dict[str, Any]:
    expand = whole_expand(options.take("expand"), "transformers")
    return {
        "state_size": options.take("d_state"),
        "conv_kernel": options.take("d_conv"),
        "expand": expand,
        "intermediate_size": expand * config.backbone.d_model,
        "time_step_rank": options.take("dt_rank"),
        "use_conv_bias": options.take("conv_bias"),
        "use_bias": options.take("bias"),
    }


def _write_mamba2(config: LanguageModelConfig) -> dict[str, Any]:
    check_kinds(config, "mamba2", {"mamba2"})
    options = Options(config.backbone, "mamba2", "mamba2")
    check_eps(options.take("norm_eps"), config, "mamba2", "mamba2's norm_eps")
    expand, head_dim = whole_expand(options.take("expand"), "mamba2"), options.take("head_dim")
    theirs = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "num_heads": expand * config.backbone.d_model // head_dim,
        "head_dim": head_dim,
        "state_size": options.take("d_state"),
        "conv_kernel": options.take("d_conv"),
        "expand": expand,
        "n_groups": options.take("n_groups"),
        "use_conv_bias": options.take("conv_bias"),
        "use_bias": options.take("bias"),
        **write_time_step_limit(options.take("dt_limit")),
    }
    options.nothing_else(norm=True, norm_before_gate=False, D_per_channel=False)
    return theirs | _shared(config)


def _shared(config: LanguageModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.n_ids,
        "hidden_size": config.backbone.d_model,
        "num_hidden_layers": len(kinds_of(config)),
        "layer_norm_epsilon": config.backbone.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        **no_special_ids(),
    }


MAMBA = Format(_read_mamba, _write_mamba, _layout(MAMBA1))
FALCON_MAMBA = Format(_read_falcon, _write_falcon, _layout(MAMBA1))
MAMBA2_MODEL = Format(_read_mamba2, _write_mamba2, _layout(MAMBA2))
