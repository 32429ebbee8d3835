"""transformers' ``jamba``: in every layer Mamba-1 or attention, then an MLP or experts."""

from __future__ import annotations

from typing import Any

from mambakit.core.errors import UserError
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import (
    Format,
    check_eps,
    check_kinds,
    check_pairs,
    kinds_of,
    stack,
    whole_expand,
)
from mambakit.core.interop.layout import Layout, Slot, Table, whole
from mambakit.core.interop.tables import (
    ATTENTION,
    GATED_MLP,
    MAMBA1,
    each_expert,
    no_special_ids,
    read_attention,
    silu_only,
    write_attention,
    write_mlp,
)
from mambakit.core.language_model import LanguageModelConfig

_PLACES: dict[str, tuple[str, str, Table]] = {
    "mamba1": (
        "input_layernorm.weight",
        "mamba.",
        {
            **MAMBA1,
            "dt_norm.weight": whole("dt_layernorm.weight"),
            "B_norm.weight": whole("b_layernorm.weight"),
            "C_norm.weight": whole("c_layernorm.weight"),
        },
    ),
    "attention": ("input_layernorm.weight", "self_attn.", ATTENTION),
    "mlp": ("pre_ff_layernorm.weight", "feed_forward.", GATED_MLP),
    "moe": (
        "pre_ff_layernorm.weight",
        "feed_forward.",
        {
            "router.weight": whole("router.weight"),
            "in_proj.weight": each_expert("gate_proj.weight", "up_proj.weight"),
            "out_proj.weight": each_expert("down_proj.weight"),
        },
    ),
}


def _read(fields: Fields) -> LanguageModelConfig:
    silu_only(fields)
    n_layers = fields.integer("num_hidden_layers")
    n_experts = fields.integer("num_experts", 16)
    attends = _places(fields, "attn_layer", 8, 4)
    routes = _places(fields, "expert_layer", 2, 1)
    kinds = []
    for i in range(n_layers):
        kinds.append("attention" if i % attends[0] == attends[1] else "mamba1")
        kinds.append("moe" if n_experts > 1 and i % routes[0] == routes[1] else "mlp")
    rank = fields.values.get("mamba_dt_rank", "auto")
    d_hidden = fields.integer("intermediate_size", 14336)
    eps = fields.number("rms_norm_eps", 1e-6)
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(
            kinds,
            {
                "mamba1": {
                    "d_state": fields.integer("mamba_d_state", 16),
                    "d_conv": fields.integer("mamba_d_conv", 4),
                    "expand": fields.integer("mamba_expand", 2),
                    "dt_rank": rank if rank == "auto" else fields.integer("mamba_dt_rank"),
                    "conv_bias": fields.flag("mamba_conv_bias", True),
                    "bias": fields.flag("mamba_proj_bias", False),
                    "inner_norm": "learned",
                    "inner_norm_eps": eps,
                },
                "attention": {**(read_attention(fields) if "attention" in kinds else {}), "rope": False},
                "mlp": {"d_hidden": d_hidden},
                "moe": {
                    "d_hidden": d_hidden,
                    "n_experts": n_experts,
                    "top_k": fields.integer("num_experts_per_tok", 2),
                    "normalize_gates": False,
                },
            },
            d_model=fields.integer("hidden_size"),
            norm_eps=eps,
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _places(fields: Fields, name: str, period: int, offset: int) -> tuple[int, int]:
    period, offset = fields.integer(f"{name}_period", period), fields.integer(f"{name}_offset", offset)
    if period < 1:
        raise fields.error(f"{name}_period", f"expected at least 1, got {period}")
    return period, offset


def _write(config: LanguageModelConfig) -> dict[str, Any]:
    backbone = config.backbone
    kinds = check_kinds(config, "jamba", set(_PLACES))
    check_pairs(kinds, "jamba", {"mamba1", "attention"}, {"mlp", "moe"})
    theirs: dict[str, Any] = {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "vocab_size": config.n_ids,
        "hidden_size": backbone.d_model,
        "num_hidden_layers": len(kinds) // 2,
        "rms_norm_eps": backbone.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "num_experts": 1,
        **_regular(kinds[::2], "attention", "attn_layer"),
        **_regular(kinds[1::2], "moe", "expert_layer"),
        **no_special_ids(),
    }
    widths = set()
    if "mamba1" in kinds:
        options = Options(backbone, "mamba1", "jamba")
        check_eps(options.take("inner_norm_eps"), config, "jamba", "mamba1's inner_norm_eps")
        theirs |= {
            "mamba_d_state": options.take("d_state"),
            "mamba_d_conv": options.take("d_conv"),
            "mamba_expand": whole_expand(options.take("expand"), "jamba"),
            "mamba_dt_rank": options.take("dt_rank"),
            "mamba_conv_bias": options.take("conv_bias"),
            "mamba_proj_bias": options.take("bias"),
        }
        options.nothing_else(inner_norm="learned")
    if "attention" in kinds:
        options = Options(backbone, "attention", "jamba")
        theirs |= write_attention(options, backbone.d_model)
        options.take("rope_theta"), options.take("rope_fraction")  # nothing rotates
        options.nothing_else(rope=False)
    if "mlp" in kinds:
        options = Options(backbone, "mlp", "jamba")
        widths.add(write_mlp(options, backbone.d_model))
        options.nothing_else()
    if "moe" in kinds:
        options = Options(backbone, "moe", "jamba")
        widths.add(write_mlp(options, backbone.d_model))
        theirs |= {"num_experts": options.take("n_experts"), "num_experts_per_tok": options.take("top_k")}
        options.nothing_else(normalize_gates=False)
    if len(widths) > 1:
        raise UserError(f"model: a jamba checkpoint has one d_hidden for mlp and moe, got {sorted(widths)}")
    return theirs | {"intermediate_size": widths.pop()}


def _regular(kinds: list[str], kind: str, name: str) -> dict[str, int]:
    """The period and offset at which a kind of layer comes.

    Raises:
        UserError: If it comes otherwise.
    """
    n = len(kinds)
    at = [i for i, other in enumerate(kinds) if other == kind]
    for period in range(1, n + 2):  # the last: never
        for offset in range(period):
            if at == [i for i in range(n) if i % period == offset]:
                return {f"{name}_period": period, f"{name}_offset": offset}
    raise UserError(
        f"model: in a jamba checkpoint every n-th layer has {kind}, and here layers {at} of {n} have"
    )


def _layout(config: LanguageModelConfig, fields: Fields) -> Layout:
    slots = []
    for i, kind in enumerate(kinds_of(config)):
        norm, prefix, table = _PLACES[kind]
        layer = f"model.layers.{i // 2}."
        slots.append(Slot(layer + norm, layer + prefix, table))
    return Layout(
        embedding="model.embed_tokens.weight",
        final_norm="model.final_layernorm.weight",
        head="lm_head.weight",
        slots=slots,
    )


JAMBA = Format(_read, _write, _layout)
