"""The tokenizer-adapter of time series: a window of one series, scaled, cut into patches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mambakit.core.adapters import ContinuousAdapter, SampleError, Tokenizer, Tokens, register_adapter


@dataclass(frozen=True)
class Window:
    """A stretch of one series.

    Attributes:
        unique_id: The series' name.
        values: ``(length,)``, in their own units.
    """

    unique_id: str
    values: ArrayLike


class PatchTokenizer(Tokenizer[Window]):
    """Windows to patches of neighbouring values, scaled by the series' training rows, and back.

    ``fit`` learns each series' mean and population standard deviation from its training rows; a
    constant series is only centred. A series it has not seen is scaled by the window itself, which
    ``decode`` could not undo: ``encode`` refuses it, ``add`` makes it known.

    Args:
        patch_length: Values in a token.
        frequency: The series' step, kept for forecasts from a saved model.

    Raises:
        ValueError: If ``patch_length`` is below 1.
    """

    kind = "timeseries-patches"

    def __init__(self, patch_length: int = 16, frequency: str = "") -> None:
        if patch_length < 1:
            raise ValueError(f"patch_length: expected at least 1, got {patch_length}")
        self.patch_length = patch_length
        self.frequency = frequency
        self.ids: list[str] = []
        self.mean = np.zeros(0)
        self.deviation = np.ones(0)

    @property
    def lossy(self) -> str:
        """Digits beyond float32."""
        return "digits beyond float32"

    @property
    def is_fitted(self) -> bool:
        """True once a series is known."""
        return bool(self.ids)

    def fit(self, samples: Iterable[Window]) -> Self:
        """Learn every series' scale from its training rows, one sample a series.

        Raises:
            SampleError: If a sample is no finite one-dimensional array, or a series comes twice.
        """
        self.ids, self.mean, self.deviation = [], np.zeros(0), np.ones(0)
        for index, sample in enumerate(samples):
            if sample.unique_id in self.ids:
                raise SampleError(f"series {sample.unique_id!r} comes twice", index=index)
            self.add(sample)
        return self

    def add(self, sample: Window) -> None:
        """Learn the scale of one more series.

        Raises:
            SampleError: If its values are not finite, or there are none.
        """
        values = _values(sample)
        if not len(values):
            raise SampleError(f"series {sample.unique_id!r} has no values to learn a scale from")
        mean, deviation = scale_of(values[:, None])
        self.ids.append(sample.unique_id)
        self.mean = np.append(self.mean, mean)
        self.deviation = np.append(self.deviation, deviation)

    def encode(self, sample: Window) -> Tokens:
        """Scaled patches, ``(length / patch_length, patch_length)`` float32; time is the patch's number.

        The sample's series stands in ``modality`` as its index.

        Raises:
            SampleError: On an unknown series, values that are not finite, or a length that is no
                multiple of ``patch_length``.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        if not isinstance(sample, Window):
            raise SampleError(f"expected a Window, got {type(sample).__name__}")
        if sample.unique_id not in self.ids:
            raise SampleError(f"series {sample.unique_id!r} is unknown; fit or add it first")
        values = _values(sample)
        if len(values) % self.patch_length:
            raise SampleError(
                f"series {sample.unique_id!r}: expected a multiple of {self.patch_length} values, "
                f"got {len(values)}"
            )
        index = self.ids.index(sample.unique_id)
        scaled = (values - self.mean[index]) / self.deviation[index]
        patches = torch.from_numpy(scaled.astype(np.float32)).reshape(-1, self.patch_length)
        return Tokens(
            patches,
            time=torch.arange(len(patches), dtype=torch.float64),
            modality=torch.full((len(patches),), index, dtype=torch.int64),
        )

    def decode(self, tokens: Tokens) -> Window:
        """The window in its own units; an empty one is of the first series.

        Raises:
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        index = int(tokens.modality[0]) if tokens.modality is not None and len(tokens) else 0
        values = tokens.values.double().numpy().reshape(-1) * self.deviation[index] + self.mean[index]
        return Window(self.ids[index], values)

    def same(self, sample: Window, other: Window) -> bool:
        """One series, and values within float32 rounding of its range."""
        if sample.unique_id != other.unique_id or sample.unique_id not in self.ids:
            return False
        index, eps = self.ids.index(sample.unique_id), float(np.finfo(np.float32).eps)
        a, b = _values(sample), _values(other)
        room = 4 * eps * (np.abs(a) + abs(self.mean[index]) + self.deviation[index])
        return a.shape == b.shape and bool((np.abs(a - b) <= room).all())

    def scale(self, ids: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of some known series, each ``(n_series,)``."""
        rows = [self.ids.index(name) for name in ids]
        return self.mean[rows], self.deviation[rows]

    def state(self) -> dict[str, Any]:
        """Options and scales."""
        return {
            "patch_length": self.patch_length,
            "frequency": self.frequency,
            "ids": list(self.ids),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        tokenizer = cls(state["patch_length"], state["frequency"])
        tokenizer.ids = [str(name) for name in state["ids"]]
        tokenizer.mean = np.array(state["mean"], dtype=np.float64)
        tokenizer.deviation = np.array(state["deviation"], dtype=np.float64)
        if not len(tokenizer.ids) == len(tokenizer.mean) == len(tokenizer.deviation):
            raise ValueError("ids, mean, deviation: expected three lists of one length")
        return tokenizer


@register_adapter("timeseries-patches", tokenizer=PatchTokenizer)
class PatchAdapter(ContinuousAdapter):
    """Embeds patches by a linear map; a ``ContinuousAdapter`` whose channels are a patch's values.

    Args:
        patch_length: Values in a token.
        d_model: Width of the embedding.
    """

    def __init__(self, patch_length: int, d_model: int) -> None:
        super().__init__(patch_length, d_model)

    def config(self) -> dict[str, Any]:
        """The constructor's keyword arguments."""
        return {"patch_length": self.d_input, "d_model": self.d_model}


def scale_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of each column; 1 for a column that never changes."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    constant = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)  # rounding leaves a constant about this
    return mean, np.where(constant, 1.0, deviation)


def _values(sample: Window) -> NDArray[np.float64]:
    try:
        values = np.asarray(sample.values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SampleError(f"series {sample.unique_id!r}: expected numbers ({error})") from None
    if values.ndim != 1:
        raise SampleError(f"series {sample.unique_id!r}: expected shape (length,), got {values.shape}")
    if not np.isfinite(values).all():
        position = int(np.flatnonzero(~np.isfinite(values))[0])
        raise SampleError(f"series {sample.unique_id!r}: {values[position]} at position {position}")
    return values
