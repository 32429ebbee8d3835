"""Hidden attention of all the layers of a model, and what it amounts to from first layer to last."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.attribution.hidden_attention import HiddenAttention, hidden_attention, indices
from mambakit.core.attribution.terms import has_hidden_attention
from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block

_FORWARD = inspect.signature(Block.forward)


@torch.no_grad()
def layer_inputs(
    model: nn.Module, backbone: Backbone, *inputs: Any, **options: Any
) -> dict[str, dict[str, Any]]:
    """What each block of ``backbone`` is given while ``model(*inputs, **options)`` runs.

    Returns:
        The arguments ``x``, ``state``, ``seq_idx`` and ``lengths`` of each block's ``forward``, by the
        layer's number and kind, ``"0 Mamba2"``.

    Raises:
        ValueError: If the model does not run every block exactly once.
    """
    seen: dict[str, dict[str, Any]] = {}
    handles = []
    for i, block in enumerate(backbone.blocks):
        name = f"{i} {type(block).__name__}"

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            if name in seen:
                raise ValueError(f"model: it runs layer {name} more than once: which run is meant is unclear")
            bound = _FORWARD.bind(module, *args, **kwargs)
            bound.apply_defaults()
            seen[name] = {key: bound.arguments[key] for key in ("x", "state", "seq_idx", "lengths")}

        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model(*inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) < len(backbone.blocks):
        raise ValueError(f"model: it ran {len(seen)} of the backbone's {len(backbone.blocks)} layers")
    return seen


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
    backbone = find_backbone(model) if backbone is None else backbone
    blocks = list(backbone.blocks)
    if layers is None:
        chosen = [i for i, block in enumerate(blocks) if has_hidden_attention(block)]
        if not chosen:
            kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
            raise ValueError(f"model: no layer has hidden attention; its blocks are {kinds}")
    else:
        chosen = indices("layers", layers, len(blocks))
    given = layer_inputs(model, backbone, *inputs, **options)
    found = {}
    for i, (name, arguments) in enumerate(given.items()):
        if i in chosen:
            try:
                found[name] = hidden_attention(blocks[i], **arguments, **(hidden or {}))  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
    return found


def attention_rollout(layers: Mapping[str, HiddenAttention], *, residual: float = 0.5) -> Tensor:
    """How much of each input token reaches each output, through all layers (Abnar & Zuidema 2020,
    arXiv:2005.00928).

    Each layer's matrix is the mean over its units of magnitudes, its rows scaled to sum to one; the
    residual stream adds the identity, and the layers' matrices are multiplied. A heuristic: values, norms
    and layers without a matrix (MLPs) count for nothing.

    Args:
        layers: From the first to the last, with all positions.
        residual: Share of the identity.

    Returns:
        ``(batch, length, length)``; rows sum to one (to zero at padding).

    Raises:
        ValueError: If there are no layers, or some have chosen positions or a state.
    """
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    result: Tensor | None = None
    for name, found in layers.items():
        n_queries, length = found.matrix.shape[2:]
        if found.positions != list(range(length)) or found.state_matrix is not None:
            raise ValueError(f"layers: {name} has {n_queries} positions or a state; rollout needs whole rows")
        weights = found.average()
        sums = weights.sum(-1, keepdim=True)
        weights = weights / sums.clamp(min=torch.finfo(weights.dtype).tiny)
        identity = torch.eye(length, device=weights.device, dtype=weights.dtype)
        mixed = residual * identity + (1 - residual) * weights
        mixed = torch.where(sums > 0, mixed, identity)
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
