"""transformers' ``granitemoehybrid`` without experts: Mamba-2 or attention, then an MLP, in every layer.

Granite multiplies embeddings, residual branches, attention scores and logits by constants of the config. They
are folded into the weights as they are read, and written as one.
"""

from __future__ import annotations

from typing import Any

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
    MAMBA2,
    attention,
    no_special_ids,
    read_attention,
    read_mamba2,
    silu_only,
    write_mamba2,
)
from mambakit.core.language_model import LanguageModelConfig

_KINDS = {
    "linear_attention": "mamba2",
    "mamba": "mamba2",
    "full_attention": "attention",
    "attention": "attention",
}


def _read_granite(fields: Fields) -> LanguageModelConfig:
    silu_only(fields)
    fields.only(
        "num_local_experts", 0, default=8, why="its experts have no counterpart here; dense ones are read"
    )
    n_layers = fields.integer("num_hidden_layers")
    types = fields.items(
        "layer_types" if fields.has("layer_types") else "layers_block_type", ["linear_attention"] * n_layers
    )
    for name in types:
        if name not in _KINDS:
            raise fields.error("layer_types", f"{name!r} is none of {', '.join(_KINDS)}")
    if len(types) != n_layers:
        raise fields.error("layer_types", f"{len(types)} layers, but num_hidden_layers={n_layers}")
    fields.only(
        "position_embedding_type",
        None,
        "nope",
        "rope",
        default=None,
        why="attention here is rotary or has none",
    )
    rotary = fields.values.get("position_embedding_type") == "rope"
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(
            [kind for name in types for kind in (_KINDS[name], "mlp")],
            {
                "mamba2": read_mamba2(fields),
                "attention": {
                    **read_attention(fields),
                    "rope": rotary,
                    "rope_theta": read_rope(fields) if rotary else 10000.0,
                    "bias": fields.flag("attention_bias", False),
                },
                "mlp": {"d_hidden": fields.integer("shared_intermediate_size", 1024)},
            },
            d_model=fields.integer("hidden_size"),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def read_rope(fields: Fields) -> float:
    """The base of a plain rotation of whole heads, as newer or older configs have it.

    Raises:
        DataError: On scaled or partial rotations.
    """
    fields.only("rope_scaling", None, default=None, why="rotations here are not rescaled")
    rope = fields.object("rope_parameters")
    rope.only("rope_type", "default", default="default", why="rotations here are not rescaled")
    rope.only("partial_rotary_factor", 1, 1.0, default=1.0, why="attention here rotates whole heads")
    return rope.number("rope_theta", fields.number("rope_theta", 10000.0))


def _write_granite(config: LanguageModelConfig) -> dict[str, Any]:
    target, backbone = "granitemoehybrid", config.backbone
    kinds = check_kinds(config, target, {"mamba2", "attention", "mlp"})
    check_pairs(kinds, target, {"mamba2", "attention"}, {"mlp"})
    theirs: dict[str, Any] = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": target,
        "vocab_size": config.n_ids,
        "hidden_size": backbone.d_model,
        "num_hidden_layers": len(kinds) // 2,
        "layer_types": [
            "full_attention" if kind == "attention" else "linear_attention" for kind in kinds[::2]
        ],
        "rms_norm_eps": backbone.norm_eps,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        # its config wants heads that fit even where there is no such layer
        "num_attention_heads": 1,
        "mamba_n_heads": 1,
        "mamba_expand": 1,
        **no_special_ids(),
    }
    mlp = Options(backbone, "mlp", target)
    d_hidden = mlp.take("d_hidden") or 8 * -(-backbone.d_model // 3)
    theirs |= {"shared_intermediate_size": d_hidden, "intermediate_size": d_hidden}
    mlp.nothing_else()
    if "mamba2" in kinds:
        options = Options(backbone, "mamba2", target)
        check_eps(options.take("norm_eps"), config, target, "mamba2's norm_eps")
        expand = whole_expand(options.take("expand"), target)
        theirs["mamba_expand"] = expand
        theirs |= write_mamba2(options, expand * backbone.d_model)
        theirs["mamba_n_heads"] //= theirs["mamba_d_head"]
        options.nothing_else(norm=True, norm_before_gate=False, D_per_channel=False)
    if "attention" in kinds:
        options = Options(backbone, "attention", target)
        n_heads = options.take("n_heads") or max(1, backbone.d_model // 64)
        theirs |= {
            "num_attention_heads": n_heads,
            "num_key_value_heads": options.take("n_kv_heads") or n_heads,
            "position_embedding_type": "rope" if options.take("rope") else None,
            "rope_parameters": {"rope_type": "default", "rope_theta": options.take("rope_theta")},
            "attention_bias": options.take("bias"),
            "attention_multiplier": (backbone.d_model // n_heads) ** -0.5,
        }
        options.nothing_else(causal=True)
    return theirs


def _layout_granite(config: LanguageModelConfig, fields: Fields) -> Layout:
    embedding = fields.number("embedding_multiplier", 1.0)
    residual = fields.number("residual_multiplier", 1.0)
    logits = 1.0 / fields.number("logits_scaling", 1.0)
    head_dim = fields.integer("hidden_size") // fields.integer("num_attention_heads")
    score = fields.number("attention_multiplier", 1.0) * head_dim**0.5
    tables: dict[str, tuple[str, Table]] = {
        "mamba2": ("mamba.", _branch(MAMBA2, residual)),
        "attention": (
            "self_attn.",
            _branch(attention(query_scale=1.0 if abs(score - 1.0) < 1e-12 else score), residual, "o_proj"),
        ),
        "mlp": (
            "shared_mlp.",
            _branch({"in_proj.weight": whole("input_linear.weight")}, residual, "output_linear"),
        ),
    }
    slots = []
    for i, kind in enumerate(kinds_of(config)):
        prefix = f"model.layers.{i // 2}."
        norm = "post_attention_layernorm.weight" if kind == "mlp" else "input_layernorm.weight"
        part, table = tables[kind]
        slots.append(Slot(prefix + norm, prefix + part, table))
    return Layout(
        embedding="model.embed_tokens.weight",
        final_norm="model.norm.weight",
        head="lm_head.weight",
        slots=slots,
        embedding_scale=embedding,
        # a tied head carries the embedding's factor too; the norm before it takes it away
        final_norm_scale=logits / embedding if config.tie_embeddings else logits,
    )


def _branch(table: Table, residual: float, out: str = "out_proj") -> Table:
    """The table with its last projection rescaled."""
    return {
        **table,
        "out_proj.weight": whole(f"{out}.weight", scale=residual),
        "out_proj.bias": whole(f"{out}.bias", scale=residual),
    }


GRANITE = Format(_read_granite, _write_granite, _layout_granite)
