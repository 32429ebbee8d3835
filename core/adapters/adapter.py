"""The model side of an adapter: a batch of tokens embedded, ``(batch, length, d_model)``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mambakit.core.adapters.token_checks import first_place
from mambakit.core.adapters.tokens import TokenBatch


class Adapter(nn.Module, ABC):
    """Embeds token batches; the counterpart of a ``Tokenizer``.

    Subclass it and write ``embed_tokens`` and ``config``. The base class checks the batch, zeroes the
    padding and checks the result, so that what an adapter makes of a sequence depends on neither
    padding nor neighbours.

    Args:
        d_model: Width of the embedding.

    Raises:
        ValueError: If ``d_model`` is below 1.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model: expected at least 1, got {d_model}")
        self.d_model = d_model

    @abstractmethod
    def embed_tokens(self, batch: TokenBatch) -> Tensor:
        """Embed every position, ``(batch, length, d_model)``; what the padding gets doesn't matter."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's keyword arguments as JSON-able values."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A fresh adapter like the one whose ``config()`` this is."""
        return cls(**config)

    def embed(self, batch: TokenBatch) -> Tensor:
        """Embed a batch.

        Args:
            batch: Padded or packed, on the adapter's device.

        Returns:
            ``(batch, length, d_model)`` in the adapter's dtype; zeros in the padding.

        Raises:
            TypeError: If ``batch`` is no TokenBatch, or its values have the wrong dtype for this adapter.
            ValueError: If it is on another device, or its values don't fit this adapter.
        """
        embedded: Tensor = self(batch)
        return embedded

    def forward(self, batch: TokenBatch) -> Tensor:
        """The same as ``embed`` (which calls this, so that module hooks and wrappers see it)."""
        if not isinstance(batch, TokenBatch):
            raise TypeError(
                f"batch: expected a TokenBatch, got {type(batch).__name__}; see pad_batch and pack_batch"
            )
        device = self.device
        if device is not None and batch.device != device:
            raise ValueError(
                f"batch: is on {batch.device}, but the adapter is on {device}; move one with .to(...)"
            )
        embedded = self.embed_tokens(batch)
        wanted = (batch.batch_size, batch.length, self.d_model)
        if tuple(embedded.shape) != wanted:
            raise ValueError(
                f"{type(self).__name__}.embed_tokens: expected to return shape {wanted}, "
                f"got {tuple(embedded.shape)}"
            )
        return embedded.masked_fill(~batch.mask[..., None], 0.0)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are, or None without any."""
        return next((parameter.device for parameter in self.parameters()), None)


class TimeFeatures(nn.Module):
    """Embeds when tokens happened: the gap to the one before, and the place in given periods.

    Features are ``log1p(gap / scale)`` and, for each period, the sine and cosine of
    ``2 pi time / period`` (computed in float64, where Unix seconds still have room for the phase).

    Args:
        d_model: Width of the embedding.
        scale: Size of a usual gap, in the tokenizer's unit of time.
        periods: Periods in the same unit, such as a day and a week.
    """

    def __init__(self, d_model: int, *, scale: float, periods: Sequence[float] = ()) -> None:
        super().__init__()
        if not scale > 0 or not all(period > 0 for period in periods):
            raise ValueError(f"scale and periods: expected positive numbers, got {scale} and {list(periods)}")
        self.scale = float(scale)
        self.periods = tuple(float(period) for period in periods)
        self.linear = nn.Linear(1 + 2 * len(self.periods), d_model, bias=False)

    def forward(self, batch: TokenBatch) -> Tensor:
        """``(batch, length, d_model)``.

        Raises:
            ValueError: If the batch has no time.
        """
        features = [torch.log1p(batch.gaps / self.scale)]
        assert batch.time is not None  # gaps raised otherwise
        for period in self.periods:
            phase = batch.time.remainder(period) * (2 * math.pi / period)
            features += [phase.sin(), phase.cos()]
        return self.linear(torch.stack(features, dim=-1).to(self.linear.weight.dtype))


class IdAdapter(Adapter):
    """Embeds ids by table; several fields a token (item, category, ...) are summed.

    Args:
        n_ids: Size of the vocabulary; a list of sizes for ``(length, n_fields)`` values.
        d_model: Width of the embedding.
        time_scale: Adds ``TimeFeatures`` of this scale; None leaves time out.
        time_periods: Its periods.
    """

    def __init__(
        self,
        n_ids: int | Sequence[int],
        d_model: int,
        *,
        time_scale: float | None = None,
        time_periods: Sequence[float] = (),
    ) -> None:
        super().__init__(d_model)
        self.sizes = [n_ids] if isinstance(n_ids, int) else list(n_ids)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"n_ids: expected sizes of at least 1, got {n_ids}")
        self.has_fields = not isinstance(n_ids, int)
        self.tables = nn.ModuleList()
        for size in self.sizes:
            table = nn.Embedding(size, d_model)
            nn.init.normal_(table.weight, std=0.02)
            self.tables.append(table)
        self.time = _time_features(d_model, time_scale, time_periods)

    def embed_tokens(self, batch: TokenBatch) -> Tensor:
        """Sum of the fields' table rows, and of the time's embedding.

        Raises:
            TypeError: If the values are no ids.
            ValueError: If they have another number of fields, or (checked on the CPU) an id lies
                outside its table.
        """
        if batch.values.dtype != torch.int64:
            raise TypeError(f"batch.values: IdAdapter takes int64 ids, got {batch.values.dtype}")
        ids = batch.values if self.has_fields else batch.values[..., None]
        if ids.dim() != 3 or ids.shape[2] != len(self.sizes):
            wanted = f"(batch, length, n_fields={len(self.sizes)})" if self.has_fields else "(batch, length)"
            raise ValueError(f"batch.values: expected shape {wanted}, got {tuple(batch.values.shape)}")
        ids = ids.masked_fill(~batch.mask[..., None], 0)
        if ids.device.type == "cpu":
            self._check_range(ids)
        embedded = sum(table(ids[..., field]) for field, table in enumerate(self.tables))
        assert isinstance(embedded, Tensor)
        return embedded if self.time is None else embedded + self.time(batch)

    def config(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""
        n_ids = self.sizes if self.has_fields else self.sizes[0]
        return {"n_ids": n_ids, "d_model": self.d_model, **_time_config(self.time)}

    def _check_range(self, ids: Tensor) -> None:
        outside = ids >= torch.tensor(self.sizes)
        if bool(outside.any()):
            row, position, field = first_place(outside)
            raise ValueError(
                f"batch.values: id {ids[row, position, field].item()} at row {row}, position {position} is "
                f"outside the table of n_ids={self.sizes[field]}; build the adapter with the tokenizer's "
                "vocabulary size"
            )


class ContinuousAdapter(Adapter):
    """Embeds float channels by a linear map.

    Args:
        d_input: Number of channels.
        d_model: Width of the embedding.
        bias: Adds a learned offset.
        time_scale: Adds ``TimeFeatures`` of this scale; None leaves time out.
        time_periods: Its periods.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        *,
        bias: bool = True,
        time_scale: float | None = None,
        time_periods: Sequence[float] = (),
    ) -> None:
        super().__init__(d_model)
        if d_input < 1:
            raise ValueError(f"d_input: expected at least 1, got {d_input}")
        self.d_input = d_input
        self.linear = nn.Linear(d_input, d_model, bias=bias)
        self.time = _time_features(d_model, time_scale, time_periods)

    def embed_tokens(self, batch: TokenBatch) -> Tensor:
        """Linear map of the channels, plus the time's embedding.

        Raises:
            TypeError: If the values are ids.
            ValueError: If they have another number of channels.
        """
        if not batch.values.is_floating_point():
            raise TypeError(
                f"batch.values: ContinuousAdapter takes float32 channels, got {batch.values.dtype}"
            )
        if batch.values.shape[2] != self.d_input:
            raise ValueError(
                f"batch.values: expected shape (batch, length, d_input={self.d_input}), "
                f"got {tuple(batch.values.shape)}"
            )
        embedded: Tensor = self.linear(batch.values.to(self.linear.weight.dtype))
        return embedded if self.time is None else embedded + self.time(batch)

    def config(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""
        return {
            "d_input": self.d_input,
            "d_model": self.d_model,
            "bias": self.linear.bias is not None,
            **_time_config(self.time),
        }


def _time_features(d_model: int, scale: float | None, periods: Sequence[float]) -> TimeFeatures | None:
    if scale is None:
        if periods:
            raise ValueError(f"time_periods: need time_scale too, got time_periods={list(periods)} alone")
        return None
    return TimeFeatures(d_model, scale=scale, periods=periods)


def _time_config(time: TimeFeatures | None) -> dict[str, Any]:
    if time is None:
        return {"time_scale": None, "time_periods": []}
    return {"time_scale": time.scale, "time_periods": list(time.periods)}
