"""Our blocks' weights under the names that several formats share."""

from __future__ import annotations

import math
from typing import Any

from mambakit.core.blocks import Attention, Block
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.layout import Part, Rule, Table, depthwise, flat, halves, same, whole

MAMBA1: Table = {
    **same("in_proj.weight", "in_proj.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"),
    **same("A_log", "D", "out_proj.weight", "out_proj.bias"),
    "conv_weight": depthwise("conv1d.weight"),
    "conv_bias": whole("conv1d.bias"),
}

MAMBA2: Table = {
    **same("in_proj.weight", "in_proj.bias", "dt_bias", "A_log", "out_proj.weight", "out_proj.bias"),
    "D": flat("D"),
    "conv_weight": depthwise("conv1d.weight"),
    "conv_bias": whole("conv1d.bias"),
    "norm_weight": whole("norm.weight"),
}

GATED_MLP: Table = {
    "in_proj.weight": halves("gate_proj.weight", "up_proj.weight"),
    "in_proj.bias": halves("gate_proj.bias", "up_proj.bias"),
    "out_proj.weight": whole("down_proj.weight"),
    "out_proj.bias": whole("down_proj.bias"),
}


def query_key_value(suffix: str, *, query_scale: float = 1.0) -> Rule:
    """Our one projection of attention, of three."""

    def rule(block: Block, shape: tuple[int, ...]) -> list[Part]:
        assert isinstance(block, Attention)
        kv = block.n_kv_heads * block.head_dim
        return [
            Part(f"q_proj.{suffix}", (shape[0] - 2 * kv, *shape[1:]), query_scale),
            Part(f"k_proj.{suffix}", (kv, *shape[1:])),
            Part(f"v_proj.{suffix}", (kv, *shape[1:])),
        ]

    return rule


def attention(*, query_scale: float = 1.0) -> Table:
    """Attention; ``query_scale`` is what queries are multiplied by to fit our ``head_dim ** -0.5``."""
    return {
        "in_proj.weight": query_key_value("weight", query_scale=query_scale),
        "in_proj.bias": query_key_value("bias", query_scale=query_scale),
        "out_proj.weight": whole("o_proj.weight"),
        "out_proj.bias": whole("o_proj.bias"),
    }


def silu_only(fields: Fields, name: str = "hidden_act") -> None:
    """Our convolutions and gates are SiLU. Raises DataError on another."""
    fields.only(name, "silu", "swish", default="silu", why="the blocks here compute silu")


def read_attention(fields: Fields) -> dict[str, Any]:
    """Heads of an attention block, of the fields that transformers' hybrids share.

    Raises:
        DataError: On heads of another width than ``hidden_size / num_attention_heads``.
    """
    width, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if n_heads < 1 or width % n_heads:
        raise fields.error("num_attention_heads", f"hidden_size={width} is not divisible by {n_heads}")
    fields.only(
        "head_dim", width // n_heads, default=width // n_heads, why="heads here are d_model / n_heads wide"
    )
    return {"n_heads": n_heads, "n_kv_heads": fields.integer("num_key_value_heads", n_heads)}


def read_mamba2(fields: Fields, prefix: str = "mamba_") -> dict[str, Any]:
    """Mamba-2, of the fields that Bamba and Granite share."""
    width, n_heads = fields.integer("hidden_size"), fields.integer("mamba_n_heads", 128)
    d_inner = fields.integer("mamba_expand", 2) * width
    if fields.values.get("mamba_d_head", "auto") == "auto":
        head_dim = d_inner // n_heads
    else:
        head_dim = fields.integer("mamba_d_head")
    if n_heads * head_dim != d_inner:
        raise fields.error(
            "mamba_n_heads", f"{n_heads} heads of {head_dim} channels are not {d_inner} channels"
        )
    return {
        "d_state": fields.integer("mamba_d_state", 256),
        "d_conv": fields.integer("mamba_d_conv", 4),
        "expand": fields.integer("mamba_expand", 2),
        "head_dim": head_dim,
        "n_groups": fields.integer("mamba_n_groups", 1),
        "dt_limit": list(fields.range("time_step_limit", (0.0, math.inf))),
        "conv_bias": fields.flag("mamba_conv_bias", True),
        "bias": fields.flag("mamba_proj_bias", False),
        "norm_eps": fields.number("rms_norm_eps"),
    }


def write_time_step_limit(limit: Any) -> dict[str, Any]:
    """Left out where it limits nothing: infinity is no JSON, and is transformers' default."""
    low, high = limit
    return {} if (low, high) == (0.0, math.inf) else {"time_step_limit": [low, high]}


def no_special_ids() -> dict[str, None]:
    """Our model knows no begin, end or padding, and transformers' defaults would make some id one."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def write_mamba2(options: Options, n_heads: int) -> dict[str, Any]:
    """The inverse of ``read_mamba2``, but for the eps."""
    return {
        "mamba_n_heads": n_heads,
        "mamba_d_head": options.take("head_dim"),
        "mamba_d_state": options.take("d_state"),
        "mamba_d_conv": options.take("d_conv"),
        "mamba_n_groups": options.take("n_groups"),
        "mamba_conv_bias": options.take("conv_bias"),
        "mamba_proj_bias": options.take("bias"),
        **write_time_step_limit(options.take("dt_limit")),
    }
