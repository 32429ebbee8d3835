"""Output heads: from the backbone's ``(batch, length, d_model)`` to predictions, each with its loss.

A ``mask`` is bool, True where a target counts; padding and missing values are left out of the mean by
it. A loss over no targets at all is zero, with zero gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import check_lengths, padding_mask
from mambakit.core.scoring import pinball

POOLS = ("last", "mean", "max")
REGRESSION_LOSSES = ("mse", "mae", "huber")


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` where ``mask`` holds; zero where it holds nowhere.

    ``mask`` has the leading dimensions of ``values`` and covers the rest, ``(batch, length)`` for
    ``(batch, length, d_output)``. What it leaves out may be NaN.

    Raises:
        ValueError: If its shape is not a prefix of the values'.
        TypeError: If it is not bool.
    """
    if mask is None:
        return values.mean() if values.numel() else values.sum()
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.shape != values.shape[: mask.dim()]:
        raise ValueError(
            f"mask: expected the leading dimensions of {tuple(values.shape)}, got {tuple(mask.shape)}"
        )
    mask = mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim())).expand(values.shape)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def fill_missing(target: Tensor, mask: Tensor | None) -> Tensor:
    """Targets that the mask leaves out become zero: a NaN there would reach gradients as 0 * NaN."""
    if mask is None or mask.shape != target.shape[: mask.dim()] or mask.dtype != torch.bool:
        return target
    mask = mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim()))
    return torch.where(mask, target, 0.0)


def checked_levels(quantiles: Sequence[float]) -> tuple[tuple[float, ...], int]:
    """Levels of quantiles, and the index of the one nearest the median.

    Raises:
        ValueError: If they are outside (0, 1) or not increasing.
    """
    levels = [float(level) for level in quantiles]
    inside = bool(levels) and all(0 < level < 1 for level in levels)
    if not inside or any(a >= b for a, b in pairwise(levels)):
        raise ValueError(f"quantiles: expected increasing levels inside (0, 1), got {levels}")
    return tuple(levels), min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))


class RegressionHead(nn.Module):
    """Linear read-out to real numbers.

    Args:
        d_model: Width of the input.
        d_output: Numbers per token.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        huber_delta: Where Huber's loss turns from square to linear.

    Raises:
        ValueError: On another loss.
    """

    def __init__(
        self, *, d_model: int, d_output: int = 1, loss: str = "mse", huber_delta: float = 1.0
    ) -> None:
        super().__init__()
        if loss not in REGRESSION_LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(REGRESSION_LOSSES)}, got {loss!r}")
        self.loss_name = loss
        self.huber_delta = huber_delta
        self.proj = nn.Linear(d_model, d_output)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., d_output)``."""
        return self.proj(x)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean loss over what ``mask`` counts.

        Raises:
            ValueError: If ``target`` has another shape than ``output``.
        """
        _check_same_shape(target, output)
        target = fill_missing(target, mask)
        if self.loss_name == "mse":
            values = F.mse_loss(output, target, reduction="none")
        elif self.loss_name == "mae":
            values = F.l1_loss(output, target, reduction="none")
        else:
            values = F.huber_loss(output, target, reduction="none", delta=self.huber_delta)
        return masked_mean(values, mask)


class QuantileHead(nn.Module):
    """Quantiles that never cross: the middle one is linear, the others lie softplus steps away from it.

    Args:
        d_model: Width of the input.
        quantiles: Levels, increasing, inside (0, 1).
        d_output: Numbers per token.

    Raises:
        ValueError: On levels outside (0, 1) or not increasing.
    """

    levels: Tensor

    def __init__(
        self, *, d_model: int, quantiles: Sequence[float] = (0.1, 0.5, 0.9), d_output: int = 1
    ) -> None:
        super().__init__()
        self.quantiles, self.anchor = checked_levels(quantiles)
        self.d_output = d_output
        self.register_buffer("levels", torch.tensor(self.quantiles), persistent=False)
        self.proj = nn.Linear(d_model, d_output * len(self.quantiles))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., d_output, n_quantiles)``, increasing along the last dimension."""
        # the levels come first: a GPU sums along a first dimension much faster than along a short last one
        raw = self.proj(x).unflatten(-1, (self.d_output, len(self.quantiles))).movedim(-1, 0)
        a = self.anchor
        centre = raw[a : a + 1]
        below = centre - F.softplus(raw[:a]).flip(0).cumsum(0).flip(0)
        above = centre + F.softplus(raw[a + 1 :]).cumsum(0)
        return torch.cat([below, centre, above]).movedim(0, -1)

    def to_quantiles(self, output: Tensor) -> Tensor:
        """The output itself: what a head of another kind has to make of its own."""
        return output

    def moved(self, output: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
        """The output for ``scale * y + shift`` where ``output`` is for ``y``; both ``(...)``, scale > 0."""
        return (output if scale is None else output * scale[..., None]) + shift[..., None]

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Twice the pinball loss of each level, ``(..., n_quantiles)``: of the median the absolute error."""
        return 2 * pinball(output, target, self.levels)

    @torch.no_grad()
    def begin_at_normal(self, spread: float) -> None:
        """Set the biases to the quantiles of a normal distribution around zero with this deviation."""
        gaps = torch.special.ndtri(self.levels.double()).diff() * spread
        raw = torch.log(torch.expm1(gaps)).to(self.proj.bias)  # softplus undone
        bias = self.proj.bias.new_zeros(self.d_output, len(self.quantiles))
        bias[:, : self.anchor], bias[:, self.anchor + 1 :] = raw[: self.anchor], raw[self.anchor :]
        self.proj.bias.copy_(bias.flatten())

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean pinball loss (Koenker & Bassett 1978) over levels and what ``mask`` counts.

        Args:
            output: ``(..., d_output, n_quantiles)``.
            target: ``(..., d_output)``.
            mask: Leading dimensions of ``target``.

        Raises:
            ValueError: If ``target`` has another shape.
        """
        if target.shape != output.shape[:-1]:
            raise ValueError(f"target: expected shape {tuple(output.shape[:-1])}, got {tuple(target.shape)}")
        return masked_mean(pinball(output, fill_missing(target, mask), self.levels), mask)


class ClassificationHead(nn.Module):
    """One class for each sequence: pool its real tokens, then a linear read-out.

    Args:
        d_model: Width of the input.
        n_classes: Number of classes.
        pool: ``"last"`` real token, ``"mean"`` or ``"max"`` of the real tokens.
        label_smoothing: Probability mass spread over all classes (Szegedy et al. 2016, section 7).

    Raises:
        ValueError: On another pool.
    """

    def __init__(
        self, *, d_model: int, n_classes: int, pool: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool: expected one of {', '.join(POOLS)}, got {pool!r}")
        self.pool = pool
        self.label_smoothing = label_smoothing
        self.proj = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None, padding: str = "right") -> Tensor:
        """Logits ``(batch, n_classes)`` of ``x`` ``(batch, length, d_model)``.

        A row of no tokens pools to zero.

        Raises:
            ValueError: On lengths outside ``0..length``, or a padding other than ``"right"`` or ``"left"``.
        """
        return self.proj(pool_tokens(x, self.pool, lengths, padding))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits ``(batch, n_classes)`` and classes ``(batch,)`` int64."""
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)


def pool_tokens(x: Tensor, pool: str, lengths: Tensor | None = None, padding: str = "right") -> Tensor:
    """One vector a row, ``(batch, d_model)``, from its real tokens; zero for a row of none.

    Args:
        x: ``(batch, length, d_model)``.
        pool: ``"last"``, ``"mean"`` or ``"max"``.
        lengths: ``(batch,)`` numbers of real tokens; all of them without.
        padding: The side of the padding.
    """
    batch, length, d_model = x.shape
    if padding not in ("right", "left"):
        raise ValueError(f"padding: expected 'right' or 'left', got {padding!r}")
    if lengths is None:
        if length == 0:
            return x.new_zeros(batch, d_model)
        return {"last": lambda: x[:, -1], "mean": lambda: x.mean(1), "max": lambda: x.amax(1)}[pool]()
    lengths = check_lengths(lengths, batch, length).to(x.device)
    if length == 0:
        return x.new_zeros(batch, d_model)
    pads = padding_mask(lengths, length)
    if padding == "left":
        pads = pads.flip(1)
    if pool == "mean":
        return x.masked_fill(pads[..., None], 0.0).sum(1) / lengths.clamp(min=1)[:, None]
    if pool == "max":
        pooled = x.masked_fill(pads[..., None], -math.inf).amax(1)
    elif padding == "left":
        pooled = x[:, -1]
    else:
        index = (lengths - 1).clamp(min=0)
        pooled = x.gather(1, index[:, None, None].expand(-1, 1, d_model)).squeeze(1)
    return pooled.masked_fill((lengths == 0)[:, None], 0.0)


class LanguageModelHead(nn.Module):
    """Logits over a vocabulary.

    Args:
        d_model: Width of the input.
        vocab_size: Number of symbols.
        embedding: The input embedding, ``(vocab_size, d_model)``, to share its weight with.
        bias: Add a learned bias.
        ignore_index: Targets that do not count.

    Raises:
        ValueError: If the embedding has another shape.
    """

    def __init__(
        self,
        *,
        d_model: int,
        vocab_size: int,
        embedding: nn.Embedding | None = None,
        bias: bool = False,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.proj = nn.Linear(d_model, vocab_size, bias=bias)
        if embedding is not None:
            if embedding.weight.shape != self.proj.weight.shape:
                raise ValueError(
                    f"embedding: expected a weight of shape (vocab_size={vocab_size}, d_model={d_model}), "
                    f"got {tuple(embedding.weight.shape)}"
                )
            self.proj.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to ``(..., vocab_size)``."""
        return self.proj(x)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy; ``target`` ``(batch, length)`` is what each position should predict.

        No shift happens here: for next-token prediction pass ``output[:, :-1]`` and ``ids[:, 1:]``.

        Raises:
            ValueError: If ``target`` is not ``output`` without its last dimension.
        """
        if target.shape != output.shape[:-1]:
            raise ValueError(f"target: expected shape {tuple(output.shape[:-1])}, got {tuple(target.shape)}")
        total = F.cross_entropy(
            output.flatten(0, -2), target.flatten(), ignore_index=self.ignore_index, reduction="sum"
        )
        return total / (target != self.ignore_index).sum().clamp(min=1)


class CTCHead(nn.Module):
    """Connectionist temporal classification (Graves et al. 2006): labels without an alignment.

    Args:
        d_model: Width of the input.
        n_classes: Number of symbols, the blank among them.
        blank: Index of the blank.

    Raises:
        ValueError: If the blank is not among the classes.
    """

    def __init__(self, *, d_model: int, n_classes: int, blank: int = 0) -> None:
        super().__init__()
        if not 0 <= blank < n_classes:
            raise ValueError(f"blank: expected an index in 0..{n_classes - 1}, got {blank}")
        self.blank = blank
        self.proj = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(batch, length, n_classes)``, float32 at least."""
        logits = self.proj(x)
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def loss(self, output: Tensor, target: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """Mean over the batch of each row's loss divided by its label's length.

        Args:
            output: Log-probabilities ``(batch, length, n_classes)``.
            target: ``(batch, max_target_length)`` int64, right-padded, without blanks.
            lengths: ``(batch,)`` frames of each row.
            target_lengths: ``(batch,)`` symbols of each label.

        Raises:
            ValueError: If a label cannot fit into its row's frames (a repeated symbol needs a blank
                between), or contains the blank or no known symbol.
        """
        batch, length, n_classes = output.shape
        if target.dim() != 2 or target.shape[0] != batch:
            raise ValueError(f"target: expected shape (batch={batch}, symbols), got {tuple(target.shape)}")
        lengths = check_lengths(lengths, batch, length, synchronize=True).to(output.device)
        target = target.to(output.device)
        if not isinstance(target_lengths, Tensor) or target_lengths.shape != (batch,):
            raise ValueError(f"target_lengths: expected a tensor of shape (batch={batch},)")
        target_lengths = target_lengths.to(output.device)
        if bool(((target_lengths < 0) | (target_lengths > target.shape[1])).any()):
            raise ValueError(
                f"target_lengths: values must be in 0..{target.shape[1]}, got {target_lengths.tolist()}"
            )
        real = ~padding_mask(target_lengths, target.shape[1])
        if bool((((target < 0) | (target >= n_classes) | (target == self.blank)) & real).any()):
            raise ValueError(
                f"target: symbols must be in 0..{n_classes - 1} and not the blank ({self.blank})"
            )
        repeats = ((target[:, 1:] == target[:, :-1]) & real[:, 1:]).sum(1)
        needed = target_lengths + repeats
        if bool((needed > lengths).any()):
            row = int((needed > lengths).nonzero()[0])
            raise ValueError(
                f"target: the label of row {row} needs {int(needed[row])} frames ({int(target_lengths[row])} "
                f"symbols and a blank in each of {int(repeats[row])} repeats), but it has "
                f"{int(lengths[row])}; use less downsampling, or leave the row out"
            )
        if batch == 0:
            return output.sum()
        return F.ctc_loss(
            output.transpose(0, 1),
            target.masked_fill(~real, 0 if self.blank else min(1, n_classes - 1)),
            lengths,
            target_lengths,
            blank=self.blank,
        )

    def best_path(self, output: Tensor, lengths: Tensor | None = None) -> list[list[int]]:
        """Greedy labels: the likeliest symbol of every frame, repeats merged, blanks dropped."""
        batch, length, _ = output.shape
        if lengths is None:
            lengths = torch.full((batch,), length)
        lengths = check_lengths(lengths, batch, length)
        labels = []
        for row, n_frames in zip(output.argmax(-1), lengths.tolist(), strict=True):
            merged = torch.unique_consecutive(row[:n_frames])
            labels.append(merged[merged != self.blank].tolist())
        return labels


def _check_same_shape(target: Tensor, output: Tensor) -> None:
    if target.shape != output.shape:
        raise ValueError(
            f"target: expected the output's shape {tuple(output.shape)}, got {tuple(target.shape)}"
        )
