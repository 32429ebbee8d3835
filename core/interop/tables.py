"""Our blocks' weights under the names that several formats share."""

from __future__ import annotations

import math
from typing import Any

from mambakit.core.blocks import Attention, Block
from mambakit.core.interop.fields import Fields, Options
from mambakit.core.interop.format import whole_expand
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


def query_key_value(suffix: str) -> Rule:
    """Our one projection of attention, of three."""

    def rule(block: Block, shape: tuple[int, ...]) -> list[Part]:
        assert isinstance(block, Attention)
        kv = block.n_kv_heads * block.head_dim
        rows = {"q_proj": shape[0] - 2 * kv, "k_proj": kv, "v_proj": kv}
        return [Part(f"{name}.{suffix}", (n, *shape[1:])) for name, n in rows.items()]

    return rule


ATTENTION: Table = {
    "in_proj.weight": query_key_value("weight"),
    "in_proj.bias": query_key_value("bias"),
    "out_proj.weight": whole("o_proj.weight"),
    "out_proj.bias": whole("o_proj.bias"),
}


def each_expert(*names: str) -> Rule:
    """A stack of all experts' weights, of these of every single one."""

    def rule(block: Block, shape: tuple[int, ...]) -> list[Part]:
        one = (shape[1] // len(names), *shape[2:])
        return [Part(f"experts.{i}.{name}", one) for i in range(shape[0]) for name in names]

    return rule


def silu_only(fields: Fields, name: str = "hidden_act") -> None:
    """Our convolutions and gates are SiLU. Raises DataError on another."""
    fields.only(name, "silu", "swish", default="silu", why="the blocks here compute silu")


def read_attention(fields: Fields) -> dict[str, Any]:
    """Heads of an attention block, of the fields that transformers' hybrids share.

    Raises:
        DataError: If they are missing, or heads would be of no whole width.
    """
    width, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if n_heads < 1 or (width % n_heads and not fields.has("head_dim")):
        raise fields.error("num_attention_heads", f"hidden_size={width} is not divisible by {n_heads}")
    heads = {"n_heads": n_heads, "n_kv_heads": fields.integer("num_key_value_heads", n_heads)}
    head_dim = fields.integer("head_dim", width // n_heads)
    return heads | ({} if head_dim * n_heads == width else {"head_dim": head_dim})


def write_attention(options: Options, width: int) -> dict[str, Any]:
    """The inverse of ``read_attention``."""
    n_heads = options.take("n_heads") or max(1, width // 64)
    theirs = {"num_attention_heads": n_heads, "num_key_value_heads": options.take("n_kv_heads") or n_heads}
    head_dim = options.take("head_dim")
    return theirs | ({} if head_dim is None else {"head_dim": head_dim})


def write_mlp(options: Options, width: int) -> int:
    """The inner width of a gated MLP with SiLU; the bias is left to take."""
    return options.take("d_hidden") or 8 * -(-width // 3)


def fraction(part: int, of: int) -> float:
    """``part / of``, so that ``int(fraction * of)`` is ``part`` again."""
    value = part / of
    return value if int(value * of) == part else math.nextafter(value, math.inf)


def read_rope(fields: Fields, share: float) -> dict[str, Any]:
    """A plain rotation, as newer configs (``rope_parameters``) or older ones (``rope_theta``) have it.

    Args:
        fields: The config's.
        share: Of a head's channels, where the config does not say.

    Raises:
        DataError: On rescaled rotations.
    """
    fields.only("rope_scaling", None, default=None, why="rotations here are not rescaled")
    rope = fields.object("rope_parameters")
    rope.only("rope_type", "default", default="default", why="rotations here are not rescaled")
    return {
        "rope": True,
        "rope_theta": float(rope.number("rope_theta", fields.number("rope_theta", 10000.0))),
        "rope_fraction": float(rope.number("partial_rotary_factor", share)),
    }


def read_mamba2(fields: Fields) -> dict[str, Any]:
    """Mamba-2, of the fields that Bamba and Granite share."""
    width, n_heads = fields.integer("hidden_size"), fields.integer("mamba_n_heads", 128)
    d_inner = fields.integer("mamba_expand", 2) * width
    if fields.values.get("mamba_d_head", "auto") == "auto":
        head_dim = d_inner // max(1, n_heads)
    else:
        head_dim = fields.integer("mamba_d_head")
    if n_heads < 1 or n_heads * head_dim != d_inner:
        raise fields.error(
            "mamba_n_heads", f"{n_heads} heads of {head_dim} channels are not {d_inner} channels"
        )
    return {
        "d_state": fields.integer("mamba_d_state", 256),
        "d_conv": fields.integer("mamba_d_conv", 4),
        "expand": fields.integer("mamba_expand", 2),
        "head_dim": head_dim,
        "n_groups": fields.integer("mamba_n_groups", 1),
        **read_dt_limit(fields, "time_step_limit"),
        "conv_bias": fields.flag("mamba_conv_bias", True),
        "bias": fields.flag("mamba_proj_bias", False),
        "norm_eps": fields.number("rms_norm_eps"),
    }


def read_dt_limit(fields: Fields, name: str) -> dict[str, Any]:
    """``dt_limit``, left out where it limits nothing."""
    low, high = fields.range(name, (0.0, math.inf))
    return {} if (low, high) == (0.0, math.inf) else {"dt_limit": [float(low), float(high)]}


def write_time_step_limit(limit: Any) -> dict[str, Any]:
    """Left out where it limits nothing: infinity is no JSON, and is transformers' default."""
    low, high = limit
    return {} if (low, high) == (0.0, math.inf) else {"time_step_limit": [low, high]}


def no_special_ids() -> dict[str, None]:
    """Our model knows no begin, end or padding, and transformers' defaults would make some id one."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def write_mamba2(options: Options, width: int, target: str) -> dict[str, Any]:
    """The inverse of ``read_mamba2``, but for the eps.

    Raises:
        UserError: If the expansion is no whole number.
    """
    expand, head_dim = whole_expand(options.take("expand"), target), options.take("head_dim")
    return {
        "mamba_expand": expand,
        "mamba_n_heads": expand * width // head_dim,
        "mamba_d_head": head_dim,
        "mamba_d_state": options.take("d_state"),
        "mamba_d_conv": options.take("d_conv"),
        "mamba_n_groups": options.take("n_groups"),
        "mamba_conv_bias": options.take("conv_bias"),
        "mamba_proj_bias": options.take("bias"),
        **write_time_step_limit(options.take("dt_limit")),
    }
