"""Several modalities on one time line: state, image, instruction and action tokens in one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambakit.core.adapters.adapter import Adapter
from mambakit.core.adapters.tokens import NO_MODALITY, Padding, TokenBatch


class Embedded(NamedTuple):
    """Tokens of one modality that are embedded already, for ``Interleave.merge``."""

    x: Tensor
    """``(batch, length, d_model)``; at one moment ``(batch, d_model)``."""
    there: Tensor | None = None
    """Which of them there are, bool, in the leading shape of ``x``; None: all."""


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
        seq_idx: Of packed rows, the sequence each token belongs to, ``(batch, length)`` int32; padding has
            an index of its own.
        whole: Whether it is known that no row is padded.
    """

    lengths: Tensor
    time: Tensor
    modality: Tensor
    positions: dict[str, Tensor]
    padding: Padding
    seq_idx: Tensor | None = None
    whole: bool = False

    @property
    def mask(self) -> Tensor:
        """``(batch, length)`` bool, True at real tokens."""
        return self.modality != NO_MODALITY

    def layout(self) -> dict[str, Any]:
        """What a backbone must know about the rows: ``backbone(x, **line.layout())``."""
        if self.seq_idx is not None:
            return {"seq_idx": self.seq_idx}
        return {} if self.whole else {"lengths": self.lengths, "padding": self.padding}

    def read_out(self, output: Tensor, *names: str) -> Tensor:
        """The outputs at one modality's tokens, for its head.

        Args:
            output: ``(batch, length, ...)``, what the backbone made of the merged rows.
            names: The modality; or several whose tokens go together, of which at each place the last one
                there is is read.

        Returns:
            ``(batch, its length, ...)``, laid out (and padded) as the modality's own batch was; zeros
            in its padding.

        Raises:
            ValueError: If the modality wasn't there, or ``output`` isn't of these rows.
        """
        for name in names:
            if name not in self.positions:
                there = ", ".join(self.positions)
                raise ValueError(f"name: no modality {name!r} on this time line; there are: {there}")
        places = [self.positions[name] for name in names]
        if not places or len({one.shape for one in places}) > 1:
            given = {name: tuple(self.positions[name].shape) for name in names}
            raise ValueError(f"names: expected one, or several of one shape, got {given}")
        if output.shape[:2] != self.modality.shape:
            wanted = tuple(self.modality.shape)
            raise ValueError(f"output: expected shape {wanted} + (...), got {tuple(output.shape)}")
        positions = places[0] if len(places) == 1 else torch.stack(places).amax(0)
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

    Three ways in: ``forward`` takes token batches with times, ``merge`` what is embedded already and has a
    token of each modality at every step (or none, where it is missing), and ``step`` the tokens of one such
    step, for a model that goes on from a state.

    Args:
        adapters: One a modality, all of one ``d_model``: ``Adapter``, or for ``merge`` and ``step`` any
            module that says its ``d_model``.

    Raises:
        ValueError: If there is none, or their widths differ.
    """

    def __init__(self, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        widths = {name: int(adapter.d_model) for name, adapter in adapters.items()}  # type: ignore[arg-type]
        if not widths:
            raise ValueError("adapters: expected at least one modality, got none")
        if len(set(widths.values())) > 1:
            raise ValueError(f"adapters: expected one d_model for all, got {widths}")
        self.names = tuple(widths)
        self.d_model = next(iter(widths.values()))
        self.adapters = nn.ModuleDict(dict(adapters))
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
        names = [name for name in self.names if name in given]
        tokens = [Embedded(self.adapters[name](given[name]), given[name].mask) for name in names]
        return self._sorted(names, tokens, [given[name].time for name in names], None, padding)  # type: ignore[misc]

    def merge(
        self, tokens: Mapping[str, Embedded], *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, TimeLine]:
        """Merge modalities that go step by step: token ``i`` of each happens at step ``i``.

        Where all tokens are there, nothing is sorted and no length is waited for.

        Args:
            tokens: Embedded tokens by modality, all ``(batch, n_steps, d_model)``. A modality that is not
                there has no tokens; one that is missing at some steps has none at these.
            seq_idx: Of packed rows, which sequence each step belongs to, ``(batch, n_steps)`` int32,
                non-decreasing in a row.

        Returns:
            As ``forward``, padded on the right; times are the steps' numbers in their row.

        Raises:
            ValueError: If no modality is given or an unknown one, or shapes differ.
        """
        names = self._known(tokens)
        shapes = {name: tuple(tokens[name].x.shape) for name in names}
        if len(set(shapes.values())) > 1 or len(shapes[names[0]]) != 3:
            raise ValueError(f"tokens: expected one shape (batch, n_steps, d_model) for all, got {shapes}")
        first = tokens[names[0]].x
        (batch, n_steps, _), device = first.shape, first.device
        stamps = torch.float32 if device.type == "mps" else torch.float64
        steps = torch.arange(n_steps, device=device, dtype=stamps).expand(batch, -1)
        if any(tokens[name].there is not None for name in names):
            given = [tokens[name] for name in names]
            return self._sorted(names, given, [steps] * len(names), seq_idx, "right")
        k = len(names)
        numbers = torch.tensor([self.names.index(name) for name in names], device=device)
        places = torch.arange(n_steps * k, device=device).view(n_steps, k).expand(batch, -1, -1)
        x = torch.stack([tokens[name].x for name in names], dim=2) + self.modality.weight[numbers]
        return x.flatten(1, 2), TimeLine(
            lengths=torch.full((batch,), n_steps * k, device=device),
            time=steps.repeat_interleave(k, dim=1),
            modality=numbers.repeat(n_steps).expand(batch, -1),
            positions={name: places[..., i] for i, name in enumerate(names)},
            padding="right",
            seq_idx=None if seq_idx is None else seq_idx.repeat_interleave(k, dim=1),
            whole=True,
        )

    def step(self, tokens: Mapping[str, Embedded]) -> list[Embedded]:
        """The tokens of one step in their order, as ``merge`` has them there.

        To go on from a state, take one after the other: rows without a token keep the state they have
        (``State.where_rows``).

        Args:
            tokens: ``(batch, d_model)`` by modality.

        Raises:
            ValueError: If no modality is given or an unknown one.
        """
        return [
            Embedded(tokens[name].x + self.modality.weight[self.names.index(name)], tokens[name].there)
            for name in self._known(tokens)
        ]

    def _sorted(
        self,
        names: Sequence[str],
        tokens: Sequence[Embedded],
        times: Sequence[Tensor],
        seq_idx: Tensor | None,
        padding: Padding,
    ) -> tuple[Tensor, TimeLine]:
        """Merged by time, and inside packed rows by sequence (whose steps do not go back in time)."""
        masks, embedded, modality = [], [], []
        for name, (x, there) in zip(names, tokens, strict=True):
            number = self.names.index(name)
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if there is None else there
            embedded.append((x + self.modality.weight[number]).masked_fill(~mask[..., None], 0.0))
            masks.append(mask)
            modality.append(torch.full(mask.shape, number, device=mask.device))
        mask, time = torch.cat(masks, dim=1), torch.cat(list(times), dim=1)
        lengths = mask.sum(dim=1)
        length = int(lengths.max()) if len(lengths) else 0
        # padding sorts behind every stamp; stable, so that ties keep the order of the adapters
        order = torch.sort(time.masked_fill(~mask, torch.inf), dim=1, stable=True).indices
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
        places = place.masked_fill(~mask, -1).split([one.shape[1] for one in masks], dim=1)
        if seq_idx is not None:
            of_all = seq_idx.repeat(1, len(names)).gather(1, order)
            behind = seq_idx[:, -1:] + 1 if seq_idx.shape[1] else seq_idx
            seq_idx = torch.where(real, of_all, behind) if length else of_all
        line = TimeLine(
            lengths=lengths,
            time=_filled(time.gather(1, order), lengths, padding),
            modality=merged.masked_fill(~real, NO_MODALITY),
            positions=dict(zip(names, places, strict=True)),
            padding=padding,
            seq_idx=seq_idx,
        )
        return x.masked_fill(~real[..., None], 0.0), line

    def _known(self, given: Mapping[str, object]) -> list[str]:
        """The names given, in the order of the adapters."""
        unknown = [name for name in given if name not in self.names]
        if unknown:
            raise ValueError(
                f"batches: no adapter for {', '.join(unknown)}; there are: {', '.join(self.names)}"
            )
        if not given:
            raise ValueError(f"batches: expected at least one of {', '.join(self.names)}, got none")
        return [name for name in self.names if name in given]

    def _check(self, batches: Mapping[str, TokenBatch], padding: Padding) -> Mapping[str, TokenBatch]:
        if padding not in ("left", "right"):
            raise ValueError(f"padding: expected 'left' or 'right', got {padding!r}")
        self._known(batches)
        for name in batches:
            if not isinstance(self.adapters[name], Adapter):
                raise ValueError(f"batches[{name!r}]: its module takes no TokenBatch; embed it, then merge")
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
