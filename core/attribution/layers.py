"""Hidden attention of all the layers of a model, and what it amounts to from first layer to last."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.attribution.hidden_attention import HiddenAttention, hidden_attention, indices
from mambakit.core.attribution.of_block import has_hidden_attention, n_heads_of, width_of
from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block

_FORWARD = inspect.signature(Block.forward)
_NUMBERS_AT_ONCE = 1 << 24


@torch.no_grad()
def layer_inputs(
    model: nn.Module, backbone: Backbone, *inputs: Any, **options: Any
) -> dict[str, dict[str, Any]]:
    """What each block of ``backbone`` is given while ``model(*inputs, **options)`` runs.

    Returns:
        The arguments ``x``, ``state``, ``seq_idx`` and ``lengths`` of each block's ``forward``, and the
        ``elapsed`` of its context, by the layer's number and kind, ``"0 Mamba2"``.

    Raises:
        ValueError: If the model does not run every layer exactly once.
    """
    calls: dict[int, list[dict[str, Any]]] = {id(block): [] for block in backbone.blocks}

    def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = _FORWARD.bind(block, *args, **kwargs)
        bound.apply_defaults()
        given = {key: bound.arguments[key] for key in ("x", "state", "seq_idx", "lengths")}
        context = bound.arguments["context"]
        calls[id(block)].append({**given, "elapsed": None if context is None else context.elapsed})

    unique = {id(block): block for block in backbone.blocks}.values()  # one may be in several places
    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in unique]
    try:
        model(*inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    n_calls = sum(map(len, calls.values()))
    if n_calls != len(backbone.blocks):
        raise ValueError(
            f"model: expected it to run the backbone's {len(backbone.blocks)} layers once each, "
            f"got {n_calls} runs of a layer"
        )
    return {_layer_name(i, block): calls[id(block)].pop(0) for i, block in enumerate(backbone.blocks)}


def hidden_attention_of_layers(
    model: nn.Module,
    *inputs: Any,
    layers: Sequence[int] | None = None,
    backbone: Backbone | None = None,
    hidden: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, HiddenAttention]:
    """``hidden_attention`` of every layer that has it, while ``model(*inputs, **options)`` runs.

    Args:
        model: A ``Backbone``, or a model that holds one.
        inputs, options: What the model is called with, for instance ``ids`` and ``lengths=``.
        layers: Only these; by default all that mix tokens.
        backbone: Which, where the model holds several.
        hidden: Options of ``hidden_attention``, such as ``{"positions": [-1], "fold_gate": True}``.

    Returns:
        By the layer's number and kind, ``{"0 Mamba2": ..., "2 Attention": ...}``. Positions are those of
        the backbone's rows, right-padded.

    Raises:
        ValueError: If there is no backbone or more than one, a layer is not there or has no hidden
            attention, or as ``hidden_attention``.
    """
    found = {}
    for name, block, arguments in _chosen_layers(model, inputs, options, layers, backbone):
        with _naming(name):
            found[name] = hidden_attention(block, **arguments, **(hidden or {}))
    return found


def contributions_of_layers(
    model: nn.Module,
    *inputs: Any,
    layers: Sequence[int] | None = None,
    backbone: Backbone | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """``HiddenAttention.contributions`` of every layer that has them, ``(batch, length, length)`` each.

    Convolution and gate are folded in, so that columns are the tokens that the block is given: behind the
    convolution a token's values are its neighbours' too. As many rows at a time as keep the matrices, one a
    channel, small. Arguments and errors as in ``hidden_attention_of_layers``; given a state, there is a
    last column for it. What a learned start wrote is no token's, and has none.
    """
    found = {}
    for name, block, arguments in _chosen_layers(model, inputs, options, layers, backbone):
        batch, length, _ = arguments["x"].shape
        units = n_heads_of(block) * width_of(block) * 2
        rows = max(1, _NUMBERS_AT_ONCE // max(1, batch * units * length))
        with _naming(name):
            parts = [
                hidden_attention(
                    block, **arguments, positions=at, fold_gate=True, fold_convolution=True
                ).contributions()
                for at in (range(i, min(i + rows, length)) for i in range(0, length, rows))
            ]
        columns = length if arguments["state"] is None else None
        found[name] = torch.cat(parts, dim=1)[..., :columns]
    return found


def _chosen_layers(
    model: nn.Module,
    inputs: tuple[Any, ...],
    options: dict[str, Any],
    layers: Sequence[int] | None,
    backbone: Backbone | None,
) -> Iterator[tuple[str, Block, dict[str, Any]]]:
    """Name, block and arguments of the layers asked for, or of all with hidden attention."""
    backbone = find_backbone(model) if backbone is None else backbone
    blocks: list[Block] = list(backbone.blocks)  # type: ignore[arg-type]
    if layers is None:
        chosen = [i for i, block in enumerate(blocks) if has_hidden_attention(block)]
        if not chosen:
            kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
            raise ValueError(f"model: no layer has hidden attention; its blocks are {kinds}")
    else:
        chosen = indices("layers", layers, len(blocks))
    given = layer_inputs(model, backbone, *inputs, **options)
    for i in sorted(chosen):
        name = _layer_name(i, blocks[i])
        yield name, blocks[i], given[name]


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from error


def attention_rollout(layers: Mapping[str, Tensor], *, residual: float = 0.5) -> Tensor:
    """How much of each input token reaches each output through all layers (Abnar & Zuidema 2020).

    arXiv:2005.00928, section 3: rows scaled to sum to one, the identity added for the residual stream, and
    the layers' matrices multiplied. A heuristic: signs count for nothing, nor do layers without a matrix
    (MLPs).

    Args:
        layers: A matrix for each layer, from the first to the last, ``(batch, length, length)``, not
            negative: ``contributions_of_layers``, or ``average()`` of each layer's hidden attention.
        residual: Share of the identity.

    Returns:
        ``(batch, length, length)``; rows sum to one.

    Raises:
        ValueError: If there are no layers, or a matrix is not square (from chosen positions, or with a
            state's column) or negative.
    """
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    result: Tensor | None = None
    for name, weights in layers.items():
        if weights.dim() != 3 or weights.shape[1] != weights.shape[2]:
            raise ValueError(f"layers: expected (batch, length, length), {name} has {tuple(weights.shape)}")
        if bool((weights < 0).any()):
            raise ValueError(f"layers: {name} has negative numbers; take magnitudes, as average() does")
        sums = weights.sum(-1, keepdim=True)
        identity = torch.eye(weights.shape[1], device=weights.device, dtype=weights.dtype)
        # a row of nothing (padding) passes on what the residual stream holds
        scaled = torch.where(sums > 0, weights / sums.clamp(min=torch.finfo(weights.dtype).tiny), identity)
        mixed = residual * identity + (1 - residual) * scaled
        result = mixed if result is None else mixed @ result
    assert result is not None
    return result


def find_backbone(model: nn.Module) -> Backbone:
    """The one backbone that a model is or holds.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, Backbone)]
    if len(found) != 1:
        raise ValueError(
            f"model: expected one Backbone in {type(model).__name__}, found {len(found)}; "
            "give it as backbone="
        )
    return found[0]


def _layer_name(i: int, block: nn.Module) -> str:
    return f"{i} {type(block).__name__}"
