"""transformers' ``bamba`` and ``granitemoehybrid``: Mamba-2 or attention, then an MLP or experts, a layer.

Granite multiplies embeddings, residual branches, attention scores and logits by constants of its config. Ours
has the branches' and the scores'; the other two go into the weights as they are read, and are written as one.
"""

from __future__ import annotations

from typing import Any

from mambakit.core.errors import UserError
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import Format, check_eps, check_kinds, check_pairs, kinds_of, stack
from mambakit.core.interop.layout import Layout, Slot, Table, whole
from mambakit.core.interop.tables import (
    ATTENTION,
    GATED_MLP,
    MAMBA2,
    no_special_ids,
    read_attention,
    read_mamba2,
    read_rope,
    silu_only,
    write_attention,
    write_mamba2,
    write_mlp,
)
from mambakit.core.language_model import LanguageModelConfig

_MIXERS = {
    "linear_attention": "mamba2",
    "full_attention": "attention",
    "mamba": "mamba2",  # before transformers 5
    "attention": "attention",
}
# Share of a head that is rotated, unless ``rope_parameters`` says another.
_BAMBA_ROTATED = 0.5

_SHARED_EXPERT: Table = {
    "in_proj.weight": whole("shared_mlp.input_linear.weight"),
    "out_proj.weight": whole("shared_mlp.output_linear.weight"),
}
_EXPERTS: Table = {
    "router.weight": whole("block_sparse_moe.router.layer.weight"),
    "in_proj.weight": whole("block_sparse_moe.input_linear.weight"),
    "out_proj.weight": whole("block_sparse_moe.output_linear.weight"),
    **{f"shared.{name}": rule for name, rule in _SHARED_EXPERT.items()},
}


def _read_bamba(fields: Fields) -> LanguageModelConfig:
    silu_only(fields)
    n_layers = fields.integer("num_hidden_layers")
    places = set(fields.items("attn_layer_indices", int, []))
    attention = read_attention(fields) | read_rope(fields, _BAMBA_ROTATED) if places else {}
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(
            [kind for i in range(n_layers) for kind in ("attention" if i in places else "mamba2", "mlp")],
            {
                "mamba2": read_mamba2(fields),
                "attention": attention | {"bias": fields.flag("attention_bias", False)},
                "mlp": {
                    "d_hidden": fields.integer("intermediate_size", 14336),
                    "bias": fields.flag("mlp_bias", False),
                },
            },
            d_model=fields.integer("hidden_size"),
            norm_eps=fields.number("rms_norm_eps", 1e-5),
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _write_bamba(config: LanguageModelConfig) -> dict[str, Any]:
    kinds = check_kinds(config, "bamba", {"mamba2", "attention", "mlp"})
    check_pairs(kinds, "bamba", {"mamba2", "attention"}, {"mlp"})
    mlp = Options(config.backbone, "mlp", "bamba")
    theirs = {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "intermediate_size": write_mlp(mlp, config.backbone.d_model),
        "mlp_bias": mlp.take("bias"),
        "attn_layer_indices": [i for i, kind in enumerate(kinds[::2]) if kind == "attention"],
        **_shared(config, kinds, "bamba"),
    }
    mlp.nothing_else()
    if "attention" in kinds:
        options = Options(config.backbone, "attention", "bamba")
        theirs |= {
            **write_attention(options, config.backbone.d_model),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": options.take("rope_theta"),
                "partial_rotary_factor": options.take("rope_fraction"),
            },
            "attention_bias": options.take("bias"),
        }
        options.nothing_else(rope=True)
    return theirs


def _layout_bamba(config: LanguageModelConfig, fields: Fields) -> Layout:
    places: dict[str, tuple[str, Table]] = {
        "mamba2": ("input_layernorm.weight", MAMBA2),
        "attention": ("input_layernorm.weight", ATTENTION),
        "mlp": ("pre_ff_layernorm.weight", GATED_MLP),
    }
    prefixes = {"mamba2": "mamba.", "attention": "self_attn.", "mlp": "feed_forward."}
    return Layout(
        embedding="model.embed_tokens.weight",
        final_norm="model.final_layernorm.weight",
        head="lm_head.weight",
        slots=_slots(config, places, prefixes),
    )


def _read_granite(fields: Fields) -> LanguageModelConfig:
    silu_only(fields)
    n_layers = fields.integer("num_hidden_layers")
    listed = "layer_types" if fields.has("layer_types") else "layers_block_type"
    types = fields.items(listed, str, ["linear_attention"] * n_layers)
    for name in types:
        if name not in _MIXERS:
            raise fields.error(listed, f"{name!r} is none of {', '.join(_MIXERS)}")
    if len(types) != n_layers:
        raise fields.error(listed, f"{len(types)} layers, but num_hidden_layers={n_layers}")
    n_experts = fields.integer("num_local_experts", 8)
    feed_forward = "moe" if n_experts > 0 else "mlp"
    residual = float(fields.number("residual_multiplier", 1.0))
    kinds = [kind for name in types for kind in (_MIXERS[name], feed_forward)]
    d_shared = fields.integer("shared_intermediate_size", 1024)
    return LanguageModelConfig(
        n_ids=fields.integer("vocab_size"),
        backbone=stack(
            kinds,
            {
                "mamba2": read_mamba2(fields),
                "attention": _read_granite_attention(fields) if "attention" in kinds else {},
                "mlp": {"d_hidden": d_shared},
                "moe": {
                    "n_experts": n_experts,
                    "top_k": fields.integer("num_experts_per_tok", 2),
                    "d_hidden": fields.integer("intermediate_size", 11008),
                    "d_shared": d_shared,
                },
            },
            d_model=fields.integer("hidden_size"),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            residual_scale={} if residual == 1.0 else dict.fromkeys(sorted(set(kinds)), residual),
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _read_granite_attention(fields: Fields) -> dict[str, Any]:
    options = read_attention(fields)
    position = fields.values.get("position_embedding_type")
    fields.only(
        "position_embedding_type",
        None,
        "nope",
        "rope",
        default=None,
        why="attention here rotates or does not",
    )
    options |= read_rope(fields, 1.0) if position == "rope" else {"rope": False}
    return options | {
        "scale": float(fields.number("attention_multiplier", 1.0)),
        "bias": fields.flag("attention_bias", False),
    }


def _write_granite(config: LanguageModelConfig) -> dict[str, Any]:
    target, backbone = "granitemoehybrid", config.backbone
    kinds = check_kinds(config, target, {"mamba2", "attention", "mlp", "moe"}, frozenset({"residual_scale"}))
    feed_forward = "moe" if "moe" in kinds else "mlp"
    check_pairs(kinds, target, {"mamba2", "attention"}, {feed_forward})
    theirs: dict[str, Any] = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": target,
        "layer_types": [
            "full_attention" if kind == "attention" else "linear_attention" for kind in kinds[::2]
        ],
        "embedding_multiplier": 1.0,
        "residual_multiplier": _one_residual_scale(config, kinds, target),
        "logits_scaling": 1.0,
        "num_attention_heads": 1,  # it wants some even without such layers
        **_shared(config, kinds, target),
    }
    options = Options(backbone, feed_forward, target)
    d_hidden = write_mlp(options, backbone.d_model)
    theirs |= {"intermediate_size": d_hidden, "shared_intermediate_size": d_hidden, "num_local_experts": 0}
    if feed_forward == "moe":
        theirs |= {
            "shared_intermediate_size": options.take("d_shared"),
            "num_local_experts": options.take("n_experts"),
            "num_experts_per_tok": options.take("top_k"),
        }
        if theirs["shared_intermediate_size"] == 0:
            raise UserError(f"model: a {target} checkpoint needs a shared expert, got moe with d_shared=0")
    options.nothing_else()
    if "attention" in kinds:
        options = Options(backbone, "attention", target)
        theirs |= write_attention(options, backbone.d_model)
        rotation = {
            "rope_theta": options.take("rope_theta"),
            "partial_rotary_factor": options.take("rope_fraction"),
        }
        scale = options.take("scale")
        head_dim = theirs.get("head_dim") or backbone.d_model // theirs["num_attention_heads"]
        theirs |= {
            "position_embedding_type": "rope" if options.take("rope") else None,
            "rope_parameters": {"rope_type": "default", **rotation},
            "attention_multiplier": head_dim**-0.5 if scale is None else scale,
            "attention_bias": options.take("bias"),
        }
        options.nothing_else()
    return theirs


def _one_residual_scale(config: LanguageModelConfig, kinds: list[str], target: str) -> float:
    """The factor of every layer's output.

    Raises:
        UserError: If layers have different ones.
    """
    scales = {kind: config.backbone.scale_of(kind) for kind in kinds}
    if len(set(scales.values())) > 1:
        raise UserError(f"model: a {target} checkpoint has one residual_scale for all layers, got {scales}")
    return next(iter(scales.values()))


def _layout_granite(config: LanguageModelConfig, fields: Fields) -> Layout:
    embedding = float(fields.number("embedding_multiplier", 1.0))
    logits = 1.0 / fields.number("logits_scaling", 1.0)
    places: dict[str, tuple[str, Table]] = {
        "mamba2": ("input_layernorm.weight", MAMBA2),
        "attention": ("input_layernorm.weight", ATTENTION),
        "mlp": ("post_attention_layernorm.weight", _SHARED_EXPERT),
        "moe": ("post_attention_layernorm.weight", _EXPERTS),
    }
    prefixes = {"mamba2": "mamba.", "attention": "self_attn.", "mlp": "", "moe": ""}
    return Layout(
        embedding="model.embed_tokens.weight",
        final_norm="model.norm.weight",
        head="lm_head.weight",
        slots=_slots(config, places, prefixes),
        embedding_scale=embedding,
        # a tied head carries the embedding's factor too; the norm before it takes it away
        final_norm_scale=logits / embedding if config.tie_embeddings else logits,
    )


def _slots(
    config: LanguageModelConfig, places: dict[str, tuple[str, Table]], prefixes: dict[str, str]
) -> list[Slot]:
    slots = []
    for i, kind in enumerate(kinds_of(config)):
        layer = f"model.layers.{i // 2}."
        norm, table = places[kind]
        slots.append(Slot(layer + norm, layer + prefixes[kind], table))
    return slots


def _shared(config: LanguageModelConfig, kinds: list[str], target: str) -> dict[str, Any]:
    """What Bamba and Granite have in common."""
    theirs = {
        "vocab_size": config.n_ids,
        "hidden_size": config.backbone.d_model,
        "num_hidden_layers": len(kinds) // 2,
        "rms_norm_eps": config.backbone.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "mamba_n_heads": 1,  # it wants some even without such layers
        "mamba_expand": 1,
        **no_special_ids(),
    }
    if "mamba2" in kinds:
        options = Options(config.backbone, "mamba2", target)
        check_eps(options.take("norm_eps"), config, target, "mamba2's norm_eps")
        theirs |= write_mamba2(options, config.backbone.d_model, target)
        options.nothing_else(norm=True, norm_before_gate=False, D_per_channel=False)
    return theirs


BAMBA = Format(_read_bamba, _write_bamba, _layout_bamba)
GRANITE = Format(_read_granite, _write_granite, _layout_granite)
