"""The checkpoints of mamba_ssm, which state-spaces/mamba-* and mamba2-* are.

``ssm_cfg`` and ``attn_cfg`` are keyword arguments of its ``Mamba``, ``Mamba2`` and ``MHA`` classes.
``residual_in_fp32`` and ``fused_add_norm`` change roundings only. The vocabulary is padded to a multiple,
and so are the logits.
"""

from __future__ import annotations

import math
from typing import Any

from mambakit.core.errors import UserError
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import Format, check_kinds, kinds_of, stack
from mambakit.core.interop.layout import Layout, Slot, Table, depthwise, same, swapped_halves, whole
from mambakit.core.interop.tables import MAMBA1, MAMBA2, fraction, read_dt_limit
from mambakit.core.language_model import LanguageModelConfig

_NORM_EPS = 1e-5
_MLP_MULTIPLE = 128

# Keyword arguments of its classes that say how weights start, or which kernel computes the same.
_HARMLESS = {
    "A_init_range", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "chunk_size",
    "use_fast_path", "use_mem_eff_path", "device", "dtype", "process_group", "sequence_parallel",
}  # fmt: skip
_HARMLESS_OF_MODEL = {
    "residual_in_fp32", "fused_add_norm", "architectures", "model_type", "torch_dtype", "dtype",
    "transformers_version", "initializer_cfg",
}  # fmt: skip

_ATTENTION: Table = same("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
_TABLES: dict[str, Table] = {
    "mamba1": MAMBA1,
    "mamba2": MAMBA2,
    "attention": _ATTENTION,
    "conv_attention": {
        **_ATTENTION,
        "conv_weight": depthwise("conv1d.weight"),
        "conv_bias": whole("conv1d.bias"),
    },
    # it puts the gate second
    "mlp": {"in_proj.weight": swapped_halves("fc1.weight"), "out_proj.weight": whole("fc2.weight")},
}


def _read(fields: Fields) -> LanguageModelConfig:
    width, n_layers = fields.integer("d_model"), fields.integer("n_layer")
    fields.only("rms_norm", True, default=True, why="the backbone's norms here are RMSNorm, not LayerNorm")
    fields.only("bidirectional", False, default=False, why="a language model here reads one way")
    ssm = fields.object("ssm_cfg")
    attention_at = fields.items("attn_layer_idx", int, [])
    for i in attention_at:
        if not 0 <= i < n_layers:
            raise fields.error("attn_layer_idx", f"{i!r} is no layer of {n_layers}")
    ssm.only(
        "layer",
        "Mamba1",
        "Mamba2",
        default="Mamba1",
        # the released code has made A in two ways
        why="the layers here are Mamba1 and Mamba2; a Mamba3's config does not say how its decay is made",
    )
    kind = "mamba2" if ssm.values.get("layer") == "Mamba2" else "mamba1"
    options = {kind: _read_mamba2(ssm) if kind == "mamba2" else _read_mamba1(ssm)}
    ssm.nothing_else(_HARMLESS)
    attention = fields.object("attn_cfg")
    attending = "conv_attention" if attention.integer("d_conv", 0) > 0 else "attention"
    mixers = [attending if i in attention_at else kind for i in range(n_layers)]
    if attention_at:
        options[attending] = _read_attention(attention, width)
        attention.nothing_else(_HARMLESS)
    d_hidden = fields.integer("d_intermediate", 0)
    kinds = mixers
    if d_hidden:
        kinds = [kind for mixer in mixers for kind in (mixer, "mlp")]
        options["mlp"] = {"d_hidden": math.ceil(d_hidden / _MLP_MULTIPLE) * _MLP_MULTIPLE}
    multiple = fields.integer("pad_vocab_size_multiple", 8)
    if multiple < 1:
        raise fields.error("pad_vocab_size_multiple", f"expected at least 1, got {multiple}")
    config = LanguageModelConfig(
        n_ids=math.ceil(fields.integer("vocab_size") / multiple) * multiple,
        backbone=stack(kinds, options, d_model=width, norm_eps=fields.number("norm_epsilon", _NORM_EPS)),
        tie_embeddings=fields.flag("tie_embeddings", True),
    )
    fields.nothing_else(_HARMLESS_OF_MODEL)
    return config


def _read_mamba1(ssm: Fields) -> dict[str, Any]:
    rank = ssm.values.get("dt_rank", "auto")
    ssm.has("dt_rank")
    return {
        "d_state": ssm.integer("d_state", 16),
        "d_conv": ssm.integer("d_conv", 4),
        "expand": ssm.number("expand", 2),
        "dt_rank": rank if rank == "auto" else ssm.integer("dt_rank"),
        "conv_bias": ssm.flag("conv_bias", True),
        "bias": ssm.flag("bias", False),
    }


def _read_mamba2(ssm: Fields) -> dict[str, Any]:
    ssm.only("d_ssm", None, default=None, why="the whole inner width goes through the state-space model here")
    ssm.only("activation", "silu", "swish", default="swish", why="the blocks here compute silu")
    return {
        "d_state": ssm.integer("d_state", 128),
        "d_conv": ssm.integer("d_conv", 4),
        "expand": ssm.number("expand", 2),
        "head_dim": ssm.integer("headdim", 64),
        "n_groups": ssm.integer("ngroups", 1),
        "D_per_channel": ssm.flag("D_has_hdim", False),
        "norm": ssm.flag("rmsnorm", True),
        "norm_before_gate": ssm.flag("norm_before_gate", False),
        **read_dt_limit(ssm, "dt_limit"),
        "conv_bias": ssm.flag("conv_bias", True),
        "bias": ssm.flag("bias", False),
    }


def _read_attention(attention: Fields, width: int) -> dict[str, Any]:
    n_heads = attention.integer("num_heads")
    if n_heads < 1 or (width % n_heads and not attention.has("head_dim")):
        raise attention.error("num_heads", f"d_model={width} is not divisible by {n_heads}")
    head_dim = attention.integer("head_dim", width // n_heads)
    attention.only("causal", True, default=False, why="a language model needs causal layers")
    attention.only("mlp_dim", 0, default=0, why="attention here has no MLP beside it")
    options: dict[str, Any] = {
        "n_heads": n_heads,
        "n_kv_heads": attention.integer("num_heads_kv", n_heads),
        "bias": attention.flag("qkv_proj_bias", True),
        "out_bias": attention.flag("out_proj_bias", True),
    }
    if attention.integer("d_conv", 0) > 0:
        options["d_conv"] = attention.integer("d_conv")
    if head_dim * n_heads != width:
        options["head_dim"] = head_dim
    if attention.has("softmax_scale"):
        options["scale"] = float(attention.number("softmax_scale"))
    rotated = attention.integer("rotary_emb_dim", 0)
    attention.only(
        "rotary_emb_interleaved",
        False,
        default=False,
        why="channels i and i + half of the rotated rotate here",
    )
    theta = float(attention.number("rotary_emb_base", 10000.0))
    if rotated == 0:
        return options | {"rope": False}
    if not 0 < rotated <= head_dim:
        raise attention.error(
            "rotary_emb_dim", f"{rotated} of {head_dim} channels of a head can't be rotated"
        )
    return options | {"rope_theta": theta, "rope_fraction": fraction(rotated, head_dim)}


def _write(config: LanguageModelConfig) -> dict[str, Any]:
    kinds = check_kinds(config, "mamba_ssm", set(_TABLES))
    if config.backbone.norm_eps != _NORM_EPS:
        raise UserError(
            f"model: mamba_ssm's norms have eps={_NORM_EPS}, got norm_eps={config.backbone.norm_eps!r}"
        )
    with_mlp = "mlp" in kinds
    if with_mlp and (len(kinds) % 2 or set(kinds[1::2]) != {"mlp"} or "mlp" in kinds[::2]):
        raise UserError("model: mamba_ssm has an MLP after every mixer or none, and here it is otherwise")
    mixers = kinds[::2] if with_mlp else kinds
    recurrent = {"mamba1", "mamba2"} & set(mixers)
    if len(recurrent) == 2:
        raise UserError("model: a mamba_ssm checkpoint holds mamba1 or mamba2, not both")
    attending = sorted({"attention", "conv_attention"} & set(mixers))
    if len(attending) == 2:
        raise UserError("model: a mamba_ssm checkpoint holds attention or conv_attention, not both")
    ssm = {}
    for kind in recurrent:
        ssm = _write_mamba2(config) if kind == "mamba2" else _write_mamba1(config)
    return {
        "d_model": config.backbone.d_model,
        "d_intermediate": _write_mlp(config) if with_mlp else 0,
        "n_layer": len(mixers),
        "vocab_size": config.n_ids,
        "ssm_cfg": ssm,
        "attn_layer_idx": [i for i, kind in enumerate(mixers) if kind in attending],
        "attn_cfg": _write_attention(config, attending[0]) if attending else {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": config.tie_embeddings,
    }


def _write_mamba1(config: LanguageModelConfig) -> dict[str, Any]:
    options = Options(config.backbone, "mamba1", "mamba_ssm")
    names = ("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias")
    ssm = {"layer": "Mamba1"} | {name: options.take(name) for name in names}
    options.nothing_else()
    return ssm


def _write_mamba2(config: LanguageModelConfig) -> dict[str, Any]:
    options = Options(config.backbone, "mamba2", "mamba_ssm")
    ssm = {
        "layer": "Mamba2",
        "headdim": options.take("head_dim"),
        "ngroups": options.take("n_groups"),
        "D_has_hdim": options.take("D_per_channel"),
        "rmsnorm": options.take("norm"),
    }
    limit = list(options.take("dt_limit"))
    if limit != [0.0, math.inf]:  # its default, and infinity is no JSON
        ssm["dt_limit"] = limit
    ssm |= {
        name: options.take(name)
        for name in ("d_state", "d_conv", "expand", "norm_before_gate", "conv_bias", "bias")
    }
    options.nothing_else(norm_eps=_NORM_EPS)
    return ssm


def _write_attention(config: LanguageModelConfig, kind: str) -> dict[str, Any]:
    options = Options(config.backbone, kind, "mamba_ssm")
    width = config.backbone.d_model
    n_heads = options.take("n_heads") or max(1, width // 64)
    head_dim = options.take("head_dim") or width // n_heads
    bias, out_bias = options.take("bias"), options.take("out_bias")
    share, scale = options.take("rope_fraction"), options.take("scale")
    attention = {
        "causal": True,
        "d_conv": options.take("d_conv") if kind == "conv_attention" else 0,
        "num_heads": n_heads,
        "num_heads_kv": options.take("n_kv_heads") or n_heads,
        "head_dim": head_dim,
        "rotary_emb_dim": int(head_dim * share) if options.take("rope") else 0,
        "rotary_emb_base": options.take("rope_theta"),
        "qkv_proj_bias": bias,
        "out_proj_bias": bias if out_bias is None else out_bias,
    }
    options.nothing_else()
    return attention | ({} if scale is None else {"softmax_scale": scale})


def _write_mlp(config: LanguageModelConfig) -> int:
    options = Options(config.backbone, "mlp", "mamba_ssm")
    d_hidden = options.take("d_hidden") or 8 * -(-config.backbone.d_model // 3)
    if d_hidden % _MLP_MULTIPLE:
        raise UserError(
            f"model: mamba_ssm's MLP needs a multiple of {_MLP_MULTIPLE} for d_hidden, got {d_hidden}"
        )
    options.nothing_else()
    return d_hidden


def _layout(config: LanguageModelConfig, fields: Fields) -> Layout:
    slots = []
    layer = -1
    for kind in kinds_of(config):
        part, norm = ("mlp.", "norm2.weight") if kind == "mlp" else ("mixer.", "norm.weight")
        layer += kind != "mlp"
        prefix = f"backbone.layers.{layer}."
        slots.append(Slot(prefix + norm, prefix + part, _TABLES[kind]))
    return Layout(
        embedding="backbone.embedding.weight",
        final_norm="backbone.norm_f.weight",
        head="lm_head.weight",
        slots=slots,
        head_if_tied=True,  # it loads strictly, with the head by name
    )


MAMBA_SSM = Format(_read, _write, _layout)
