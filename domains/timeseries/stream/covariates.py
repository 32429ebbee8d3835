"""Covariates as float channels: numbers scaled, categories one-hot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.adapters import SampleError
from mambakit.domains.timeseries.tokenizer import scale_of

# No covariate counts for more than so many deviations, however it goes beyond its training range.
_FARTHEST = 10.0


class Columns:
    """Columns of one kind (past, future or static) as float channels: numbers scaled, categories one-hot.

    A number gives two channels where training rows lack some: the value (zero if missing) and whether it is
    there. A category unknown in training is none of them.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, tuple[float, float, bool]] = {}
        self.categories: dict[str, list[str]] = {}

    def fit(self, frames: Sequence[pd.DataFrame]) -> Self:
        """Learn from training rows."""
        if not frames:
            return self
        frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
        for name in frame.columns:
            column = frame[name]
            if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
                there = np.isfinite(numbers)
                mean, deviation = scale_of(numbers[there]) if there.any() else (0.0, 1.0)
                self.numbers[str(name)] = (float(mean), float(deviation), bool(there.all()))
            else:
                self.categories[str(name)] = sorted(column.dropna().astype(str).unique())
        return self

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [*self.numbers, *self.categories]

    @property
    def width(self) -> int:
        """Number of channels."""
        ones = sum(1 if whole else 2 for _, _, whole in self.numbers.values())
        return ones + sum(len(levels) for levels in self.categories.values())

    def encode(self, frame: pd.DataFrame | None, length: int, where: str) -> NDArray[np.float32]:
        """``(length, width)`` float32, finite.

        Raises:
            SampleError: If a column or row is missing, or a number is one no longer.
        """
        if not self.names:
            return np.zeros((length, 0), dtype=np.float32)
        absent = [name for name in self.names if frame is None or name not in frame.columns]
        if frame is None or absent:
            raise SampleError(f"{where} lacks the covariate {absent[0]!r} that the model was trained with")
        if len(frame) < length:
            raise SampleError(f"{where} has {len(frame)} rows of covariates, but {length} are needed")
        channels: list[NDArray[Any]] = []
        for name, (mean, deviation, whole) in self.numbers.items():
            try:
                numbers = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)[:length]
            except (TypeError, ValueError):
                raise SampleError(f"{where}: covariate {name!r} was a number in training") from None
            there = np.isfinite(numbers)
            scaled = np.where(there, (np.where(there, numbers, mean) - mean) / deviation, 0.0)
            channels.append(scaled.clip(-_FARTHEST, _FARTHEST))
            if not whole:
                channels.append(there)
        for name, levels in self.categories.items():
            found = frame[name].astype(str).to_numpy()[:length]
            channels.extend(found == level for level in levels)
        return np.stack(channels, axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "numbers": {name: list(one) for name, one in self.numbers.items()},
            "categories": self.categories,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of ``state``."""
        made = cls()
        made.numbers = {name: (float(a), float(b), bool(c)) for name, (a, b, c) in state["numbers"].items()}
        made.categories = {name: [str(one) for one in levels] for name, levels in state["categories"].items()}
        return made
