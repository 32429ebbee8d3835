"""Perturbation: what changes in the output when tokens are taken away, and how well an attribution
foretells it.

Occlusion: Zeiler & Fergus 2014, arXiv:1311.2901. Deletion and insertion: Petsiuk, Das & Saenko 2018 (RISE),
arXiv:1806.07421, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mambakit.core.attribution.gradients import Function, baseline_like, evaluate


@torch.no_grad()
def perturbation(
    function: Function,
    inputs: Tensor,
    baseline: Tensor | float = 0.0,
    *,
    window: int = 1,
    stride: int = 1,
    mode: Literal["replace", "drop"] = "replace",
    rows_per_call: int = 32,
) -> Tensor:
    """By how much the function falls when a token is taken away, averaged over the windows that hold it.

    Args:
        function: ``(rows, length, ...)`` to ``(rows,)``, each row on its own.
        inputs: ``(batch, length, ...)``: ids, embeddings or channels.
        baseline: What a token is replaced by, a number or broadcast to the inputs' shape.
        window: Neighbouring tokens taken away together.
        stride: From one window's start to the next one's; a last window ends at the last token.
        mode: ``"replace"`` by the baseline, or ``"drop"``: the function gets rows of ``length - window``.
        rows_per_call: Rows that the function gets at once.

    Returns:
        ``(batch, length)``; positive where the token speaks for a high value.

    Raises:
        ValueError: On inputs without a length, a window outside ``1..length`` (``1..length - 1`` to drop),
            a stride outside ``1..window``, another mode, or as ``integrated_gradients``.
    """
    _check(inputs, rows_per_call)
    batch, length = inputs.shape[:2]
    if mode not in ("replace", "drop"):
        raise ValueError(f"mode: expected 'replace' or 'drop', got {mode!r}")
    most = length if mode == "replace" else length - 1
    if not 1 <= window <= most:
        raise ValueError(f"window: expected 1..{most} for {length} tokens to {mode}, got {window}")
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride: expected 1..{window} (the window), so that no token is left out, got {stride}"
        )
    nothing = baseline_like(inputs, baseline)
    starts = torch.arange(0, length - window + stride, stride, device=inputs.device).clamp(
        max=length - window
    )
    inside = torch.arange(length, device=inputs.device) - starts[:, None]  # [windows, l]
    inside = (inside >= 0) & (inside < window)
    pairs = torch.arange(len(starts) * batch, device=inputs.device)
    falls = evaluate(function, inputs).repeat(len(starts))
    for chunk in pairs.split(rows_per_call):
        mask, row = inside[chunk // batch], chunk % batch
        if mode == "drop":
            changed = inputs[row][~mask].unflatten(0, (len(chunk), length - window))
        else:
            changed = torch.where(_spread(mask, inputs), nothing[row], inputs[row])
        falls[chunk] -= evaluate(function, changed)
    share = inside.to(falls.dtype) / inside.sum(0)
    return falls.view(len(starts), batch).T @ share


@dataclass(frozen=True, eq=False)
class DeletionInsertion:
    """How the function falls as the tokens with the highest scores go first, and rises as they come first.

    A good attribution has a smaller area under deletion and a larger one under insertion than a random
    order.

    Attributes:
        shares: Share of the tokens deleted or inserted, ``(points,)``, from 0 to 1.
        deletion, insertion: The function's values, ``(batch, points)``.
        random_deletion, random_insertion: The same in random orders, ``(n_random, batch, points)``.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor

    def areas(self) -> dict[str, Tensor]:
        """Area under each curve (trapezoids), by the attribute's name: ``(batch,)`` or ``(n_random,
        batch)``."""
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        return {name: torch.trapezoid(getattr(self, name), self.shares, dim=-1) for name in names}


@torch.no_grad()
def deletion_insertion(
    function: Function,
    inputs: Tensor,
    scores: Tensor,
    baseline: Tensor | float = 0.0,
    *,
    points: int = 11,
    n_random: int = 10,
    seed: int = 0,
    rows_per_call: int = 32,
) -> DeletionInsertion:
    """Delete and insert tokens in the order of their scores, beside random orders.

    Args:
        function, inputs, baseline, rows_per_call: As in ``perturbation``. Best a bounded function, such as
            a probability: an area is swayed by how far a logit falls once it has fallen.
        scores: ``(batch, length)``; the highest go first.
        points: Points on a curve, from nothing to everything.
        n_random: Random orders to compare with.
        seed: Of the random orders.

    Raises:
        ValueError: If the scores are not ``(batch, length)``, ``points`` is below 2, ``n_random`` is
            negative, or as ``perturbation``.
    """
    _check(inputs, rows_per_call)
    batch, length = inputs.shape[:2]
    if scores.shape != (batch, length):
        raise ValueError(
            f"scores: expected shape (batch={batch}, length={length}), one a token, got {tuple(scores.shape)}"
        )
    if points < 2 or n_random < 0:
        raise ValueError(f"points, n_random: expected at least 2 and 0, got {points} and {n_random}")
    nothing = baseline_like(inputs, baseline)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(n_random, batch, length, generator=generator).to(inputs.device)
    orders = torch.cat([scores.to(chance)[None], chance])
    ranks = orders.argsort(-1, descending=True).argsort(-1)  # [1 + n_random, b, l]
    shares = torch.linspace(0, 1, points, device=inputs.device, dtype=torch.float64)
    first = ranks[:, :, None] < (shares * length).round()[:, None]  # [1 + n_random, b, points, l]
    curves = []
    for gone in (first, ~first):
        masks = gone.flatten(0, 2)
        row = torch.arange(batch, device=inputs.device).repeat_interleave(points).repeat(1 + n_random)
        values = [
            evaluate(function, torch.where(_spread(mask, inputs), nothing[at], inputs[at]))
            for mask, at in zip(masks.split(rows_per_call), row.split(rows_per_call), strict=True)
        ]
        curves.append(torch.cat(values).view(1 + n_random, batch, points))
    deletion, insertion = curves
    return DeletionInsertion(
        shares.to(deletion.dtype), deletion[0], insertion[0], deletion[1:], insertion[1:]
    )


def _spread(mask: Tensor, inputs: Tensor) -> Tensor:
    """``(rows, length)`` with a dimension for each that the inputs have beyond."""
    return mask.view(*mask.shape, *(1 for _ in inputs.shape[2:]))


def _check(inputs: Tensor, rows_per_call: int) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() < 2 or inputs.shape[1] == 0:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs: expected shape (batch, length, ...) with at least one token, got {got}")
    if rows_per_call < 1:
        raise ValueError(f"rows_per_call: expected at least 1, got {rows_per_call}")
