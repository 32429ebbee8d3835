"""A tokenizer of float channels, scaled by what the training split says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mambakit.core.adapters.tokenizer import SampleError, Tokenizer
from mambakit.core.adapters.tokens import Tokens


class ContinuousTokenizer(Tokenizer[Any]):
    """Arrays ``(length, d_input)`` to float32 channels and back; scaling is undone by ``decode``.

    Args:
        scale: ``"standard"`` removes each channel's mean and divides by its standard deviation over
            the training split (a constant channel is only centred); ``"none"`` leaves values alone.

    Raises:
        ValueError: On another ``scale``.
    """

    kind = "continuous"

    def __init__(self, scale: Literal["standard", "none"] = "standard") -> None:
        if scale not in ("standard", "none"):
            raise ValueError(f"scale: expected 'standard' or 'none', got {scale!r}")
        self.scale = scale
        self.mean: NDArray[np.float64] | None = None
        self.deviation: NDArray[np.float64] | None = None

    @property
    def lossy(self) -> str:
        """Digits beyond float32."""
        return "digits beyond float32"

    @property
    def is_fitted(self) -> bool:
        """True once the number of channels (and their scale) is known."""
        return self.mean is not None

    @property
    def d_input(self) -> int:
        """Number of channels.

        Raises:
            NotFittedError: Before ``fit``.
        """
        return len(self._fitted()[0])

    def fit(self, samples: Iterable[ArrayLike]) -> Self:
        """Mean and deviation of each channel over the training split, in one pass in float64.

        Raises:
            SampleError: If a sample isn't a finite ``(length, d_input)`` array, with its index.
        """
        count, mean, squares = 0, None, None
        for index, sample in enumerate(samples):
            try:
                values = _channels(sample, None if mean is None else len(mean))
            except SampleError as error:
                raise SampleError(error.reason, index=index) from None
            if mean is None or squares is None:
                mean, squares = np.zeros(values.shape[1]), np.zeros(values.shape[1])
            if len(values) == 0:
                continue
            # merging two partial variances: Chan, Golub & LeVeque 1979, eq. 1.3
            shift = values.mean(axis=0) - mean
            total = count + len(values)
            squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + shift**2 * count * len(
                values
            ) / total
            mean += shift * len(values) / total
            count = total
        if mean is None or squares is None or count == 0:
            raise SampleError("nothing to fit on: the samples hold no values")
        deviation = np.sqrt(squares / count)
        # rounding leaves a constant channel a deviation of about eps times its size
        constant = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
        if self.scale == "none":
            mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
        self.mean, self.deviation = mean, np.where(constant, 1.0, deviation)
        return self

    def encode(self, sample: ArrayLike) -> Tokens:
        """Scaled channels, ``(length, d_input)`` float32.

        Raises:
            SampleError: If the sample isn't a finite ``(length, d_input)`` array of the fitted width.
            NotFittedError: Before ``fit``.
        """
        mean, deviation = self._fitted()
        values = _channels(sample, len(mean))
        return Tokens(torch.from_numpy(((values - mean) / deviation).astype(np.float32)))

    def decode(self, tokens: Tokens) -> NDArray[np.float64]:
        """The array in its own units, ``(length, d_input)`` float64.

        Raises:
            NotFittedError: Before ``fit``.
        """
        mean, deviation = self._fitted()
        values: NDArray[np.float64] = tokens.values.double().numpy() * deviation + mean
        return values

    def same(self, sample: ArrayLike, other: ArrayLike) -> bool:
        """Equal shapes, and values within float32 rounding of the fitted range."""
        a, b = _channels(sample, None), _channels(other, None)
        mean, deviation = self._fitted()
        eps = float(np.finfo(np.float32).eps)
        return a.shape == b.shape and bool(
            (np.abs(a - b) <= 4 * eps * (np.abs(a) + np.abs(mean) + deviation)).all()
        )

    def state(self) -> dict[str, Any]:
        """Option and scale."""
        return {
            "scale": self.scale,
            "mean": None if self.mean is None else self.mean.tolist(),
            "deviation": None if self.deviation is None else self.deviation.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        tokenizer = cls(state["scale"])
        if state["mean"] is not None:
            tokenizer.mean = np.array(state["mean"], dtype=np.float64)
            tokenizer.deviation = np.array(state["deviation"], dtype=np.float64)
            if tokenizer.mean.ndim != 1 or tokenizer.mean.shape != tokenizer.deviation.shape:
                raise ValueError("mean, deviation: expected two lists of one length")
        return tokenizer

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.require_fitted()
        assert self.mean is not None
        assert self.deviation is not None
        return self.mean, self.deviation


def _channels(sample: ArrayLike | Tensor, d_input: int | None) -> NDArray[np.float64]:
    try:
        values = np.asarray(sample, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SampleError(f"expected numbers of shape (length, d_input): {error}") from None
    if values.ndim != 2 or (d_input is not None and values.shape[1] != d_input):
        wanted = "d_input" if d_input is None else f"d_input={d_input}"
        raise SampleError(f"expected an array of shape (length, {wanted}), got {values.shape}")
    if not np.isfinite(values).all():
        position, channel = np.argwhere(~np.isfinite(values))[0]
        raise SampleError(f"{values[position, channel]} at position {position}, channel {channel}")
    return values
