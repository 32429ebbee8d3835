"""Several modalities on one time line: state, image, instruction and action tokens in one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.adapters.adapter import Adapter
from mambakit.core.adapters.tokens import NO_MODALITY, Padding, TokenBatch


@dataclass(frozen=True, eq=False)
class TimeLine:
    """Where the tokens of each modality are in the merged rows.

    Attributes:
        lengths: Real tokens in each row, ``(batch,)`` int64.
        time: Stamps, ``(batch, length)`` float64; padding repeats the row's nearest stamp.
        modality: Each token's place among the adapters' names, ``(batch, length)`` int64;
            ``NO_MODALITY`` in the padding.
        positions: For each modality given, the merged position of each of its tokens,
            ``(batch, its length)`` int64; -1 in its padding.
        padding: The side the padding is on.
    """

    lengths: Tensor
    time: Tensor
    modality: Tensor
    positions: dict[str, Tensor]
    padding: Padding

    @property
    def mask(self) -> Tensor:
        """``(batch, length)`` bool, True at real tokens."""
        return self.modality != NO_MODALITY

    def layout(self) -> dict[str, Any]:
        """What a backbone must know about the rows: ``backbone(x, **line.layout())``."""
        return {"lengths": self.lengths, "padding": self.padding}

    def read_out(self, output: Tensor, name: str) -> Tensor:
        """The outputs at one modality's tokens, for its head.

        Args:
            output: ``(batch, length, ...)``, what the backbone made of the merged rows.
            name: The modality.

        Returns:
            ``(batch, its length, ...)``, laid out (and padded) as the modality's own batch was; zeros
            in its padding.

        Raises:
            ValueError: If the modality wasn't there, or ``output`` isn't of these rows.
        """
        if name not in self.positions:
            there = ", ".join(self.positions)
            raise ValueError(f"name: no modality {name!r} on this time line; there are: {there}")
        if output.shape[:2] != self.modality.shape:
            wanted = tuple(self.modality.shape)
            raise ValueError(f"output: expected shape {wanted} + (...), got {tuple(output.shape)}")
        positions = self.positions[name]
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        if output.shape[1] == 0:
            return output.new_zeros(*positions.shape, *output.shape[2:])
        picked = output[rows, positions.clamp(min=0)]
        absent = (positions < 0).view(*positions.shape, *(1,) * (output.dim() - 2))
        return picked.masked_fill(absent, 0)


class Interleave(nn.Module):
    """Merges modalities by time and embeds each token with its own adapter and a learned modality vector.

    Tokens at the same time keep the order of ``adapters`` (say return, state, action), and inside a
    modality their own. A modality may be missing from a batch, or (with length 0) from a row.

    Args:
        adapters: One adapter a modality, all of one ``d_model``.

    Raises:
        ValueError: If there is none, or their widths differ.
    """

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        widths = {name: adapter.d_model for name, adapter in adapters.items()}
        if not widths:
            raise ValueError("adapters: expected at least one modality, got none")
        if len(set(widths.values())) > 1:
            raise ValueError(f"adapters: expected one d_model for all, got {widths}")
        self.names = tuple(widths)
        self.d_model = next(iter(widths.values()))
        self.adapters = nn.ModuleDict(adapters)
        self.modality = nn.Embedding(len(widths), self.d_model)
        nn.init.normal_(self.modality.weight, std=0.02)

    def forward(
        self, batches: Mapping[str, TokenBatch], *, padding: Padding = "right"
    ) -> tuple[Tensor, TimeLine]:
        """Embed and merge.

        Args:
            batches: Batches with time, by modality, row for row of the same samples; padded on either
                side, not packed.
            padding: The side of the merged rows to pad.

        Returns:
            ``(batch, length, d_model)``, zeros in the padding, and where each token is.

        Raises:
            ValueError: If no modality is given or an unknown one, batches differ in size, one is
                packed, or one has no time.
        """
        given = self._check(batches, padding)
        times, masks, embedded, modality = [], [], [], []
        for number, name in enumerate(self.names):
            if name not in given:
                continue
            batch = given[name]
            assert batch.time is not None  # _check
            mask = batch.mask
            x = self.adapters[name](batch) + self.modality.weight[number]
            embedded.append(x.masked_fill(~mask[..., None], 0.0))
            times.append(batch.time)
            masks.append(mask)
            modality.append(torch.full(mask.shape, number, device=mask.device))
        mask = torch.cat(masks, dim=1)
        lengths = mask.sum(dim=1)
        length = int(lengths.max()) if len(lengths) else 0
        # padding sorts behind every stamp; stable, so that ties keep the order of the adapters
        stamps = torch.cat(times, dim=1).masked_fill(~mask, torch.inf)
        order = torch.sort(stamps, dim=1, stable=True).indices
        place = torch.empty_like(order).scatter_(1, order, _numbers(order))
        if padding == "left":
            shift = (length - lengths)[:, None]
            place = place + shift
            # position p takes the token of rank p - shift; ranks below 0 are the left padding
            source = (_numbers(order)[:, :length] - shift).clamp(min=0)
            order = order.gather(1, source)
            real = _numbers(order) >= shift
        else:
            order = order[:, :length]
            real = _numbers(order) < lengths[:, None]
        x = torch.cat(embedded, dim=1).gather(1, order[..., None].expand(-1, -1, self.d_model))
        merged = torch.cat(modality, dim=1).gather(1, order)
        line = TimeLine(
            lengths=lengths,
            time=_filled(torch.cat(times, dim=1).gather(1, order), lengths, padding),
            modality=merged.masked_fill(~real, NO_MODALITY),
            positions=self._positions(given, place.masked_fill(~mask, -1)),
            padding=padding,
        )
        return x.masked_fill(~real[..., None], 0.0), line

    def _positions(self, given: Mapping[str, TokenBatch], place: Tensor) -> dict[str, Tensor]:
        names = [name for name in self.names if name in given]
        return dict(zip(names, place.split([given[name].length for name in names], dim=1), strict=True))

    def _check(self, batches: Mapping[str, TokenBatch], padding: Padding) -> Mapping[str, TokenBatch]:
        if padding not in ("left", "right"):
            raise ValueError(f"padding: expected 'left' or 'right', got {padding!r}")
        unknown = [name for name in batches if name not in self.names]
        if unknown:
            raise ValueError(
                f"batches: no adapter for {', '.join(unknown)}; there are: {', '.join(self.names)}"
            )
        if not batches:
            raise ValueError(f"batches: expected at least one of {', '.join(self.names)}, got none")
        sizes = {name: batch.batch_size for name, batch in batches.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"batches: expected the same rows in each, got {sizes}; give a sample without a modality "
                "an empty row there"
            )
        for name, batch in batches.items():
            if batch.is_packed:
                raise ValueError(f"batches[{name!r}]: packed rows can't be interleaved; pad them (pad_batch)")
            if batch.time is None:
                raise ValueError(
                    f"batches[{name!r}]: has no time to merge by; let its tokenizer set Tokens.time"
                )
        return batches


def _numbers(like: Tensor) -> Tensor:
    """0, 1, 2, ... in each row, in the shape of ``like``."""
    return torch.arange(like.shape[1], device=like.device).expand_as(like)


def _filled(time: Tensor, lengths: Tensor, padding: Padding) -> Tensor:
    """``time`` with each row's nearest real stamp in its padding (0 in an empty row)."""
    if time.shape[1] == 0:
        return time
    length = time.shape[1]
    first, last = (length - lengths, None) if padding == "left" else (None, lengths - 1)
    at = _numbers(time)
    at = at if first is None else torch.maximum(at, first.clamp(max=length - 1)[:, None])
    at = at if last is None else torch.minimum(at, last.clamp(min=0)[:, None])
    return time.gather(1, at).masked_fill(lengths[:, None] == 0, 0.0)
