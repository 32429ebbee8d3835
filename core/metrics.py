"""Metrics of probabilistic predictions in torchmetrics' form: update, compute, reset, synchronised processes.

NaN targets are missing values and do not count. Sums are float64, so that the order of batches does not
matter. For the calibration error of probabilities (ECE, Naeini et al. 2015) there is torchmetrics'
``MulticlassCalibrationError``, which is above zero by its samples' noise for a perfect model too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mambakit.core.scoring import crps_from_quantiles, crps_from_samples, pinball, winkler


class MeanOfTargets(Metric):
    """The mean of one number for each target that is there; NaN over none."""

    full_state_update = False
    is_differentiable = False

    total: Tensor
    count: Tensor

    def __init__(self, *options: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # a MetricCollection takes metrics whose states are equal after the first batch for one metric, and
        # sums can be by chance: where all targets are inside, the interval score is the width
        own = torch.tensor(options, dtype=torch.float64)
        self.add_state(f"options_of_{type(self).__name__}", own, dist_reduce_fx="max")

    def compute(self) -> Tensor:
        """The mean over all updates, float64."""
        return self.total / self.count

    def _add(self, values: Tensor, counts: Tensor) -> None:
        self.total += torch.where(counts, values.double(), 0.0).sum()
        self.count += counts.sum()


class Coverage(MeanOfTargets):
    """Share of targets inside their intervals."""

    higher_is_better = None

    def update(self, low: Tensor, high: Tensor, target: Tensor) -> None:
        """Three tensors of one shape.

        Raises:
            ValueError: If they are not.
        """
        _same_shapes(low=low, high=high, target=target)
        self._add((low <= target) & (target <= high), ~target.isnan())


class IntervalWidth(MeanOfTargets):
    """Mean width; infinite if one interval is, and an empty one has none."""

    higher_is_better = False

    def update(self, low: Tensor, high: Tensor, target: Tensor | None = None) -> None:
        """Two tensors of one shape; with ``target`` only where there is one.

        Raises:
            ValueError: If the shapes differ.
        """
        target = low if target is None else target
        _same_shapes(low=low, high=high, target=target)
        self._add((high - low).clamp(min=0), ~target.isnan())


class WinklerScore(MeanOfTargets):
    """Mean interval score; see ``scoring.winkler``.

    Args:
        alpha: The intervals are meant to hold ``1 - alpha`` of the targets.
        kwargs: torchmetrics' own.

    Raises:
        ValueError: Unless ``0 < alpha < 1``.
    """

    higher_is_better = False

    def __init__(self, alpha: float, **kwargs: Any) -> None:
        super().__init__(alpha, **kwargs)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected 0 < alpha < 1, got {alpha}")
        self.alpha = alpha

    def update(self, low: Tensor, high: Tensor, target: Tensor) -> None:
        """Three tensors of one shape.

        Raises:
            ValueError: If they are not.
        """
        _same_shapes(low=low, high=high, target=target)
        self._add(winkler(low.double(), high.double(), target.double(), self.alpha), ~target.isnan())


class _OfQuantiles(MeanOfTargets):
    higher_is_better = False

    def __init__(self, levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(*(float(level) for level in levels), **kwargs)
        self.levels = [float(level) for level in levels]
        inside = bool(self.levels) and all(0 < level < 1 for level in self.levels)
        if not inside or sorted(set(self.levels)) != self.levels:
            raise ValueError(f"levels: expected increasing levels inside (0, 1), got {self.levels}")

    def _check(self, quantiles: Tensor, target: Tensor) -> None:
        if quantiles.shape != (*target.shape, len(self.levels)):
            raise ValueError(
                f"quantiles: expected the target's shape and one of each level, "
                f"{(*target.shape, len(self.levels))}, got {tuple(quantiles.shape)}"
            )


class PinballLoss(_OfQuantiles):
    """Mean pinball loss over targets and levels.

    Args:
        levels: Increasing, inside (0, 1).
        kwargs: torchmetrics' own.

    Raises:
        ValueError: On other levels.
    """

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """``(..., n_quantiles)`` and ``(...)``.

        Raises:
            ValueError: On other shapes.
        """
        self._check(quantiles, target)
        self._add(pinball(quantiles.double(), target.double(), self.levels).mean(-1), ~target.isnan())


class QuantileCRPS(_OfQuantiles):
    """Continuous ranked probability score of quantiles; see ``scoring.crps_from_quantiles``.

    Args:
        levels: Increasing, inside (0, 1).
        kwargs: torchmetrics' own.

    Raises:
        ValueError: On other levels.
    """

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """``(..., n_quantiles)`` and ``(...)``.

        Raises:
            ValueError: On other shapes.
        """
        self._check(quantiles, target)
        values = crps_from_quantiles(quantiles.double(), target.double(), self.levels)
        self._add(values, ~target.isnan())


class SampleCRPS(MeanOfTargets):
    """Continuous ranked probability score of samples; see ``scoring.crps_from_samples``.

    torchmetrics' own compares all pairs, takes one dimension of targets and lets NaN through.

    Args:
        fair: Score the distribution that the samples are from, instead of the samples.
        kwargs: torchmetrics' own.
    """

    higher_is_better = False

    def __init__(self, *, fair: bool = False, **kwargs: Any) -> None:
        super().__init__(fair, **kwargs)
        self.fair = fair

    def update(self, samples: Tensor, target: Tensor) -> None:
        """``(..., n_samples)`` and ``(...)``.

        Raises:
            ValueError: On other shapes, or too few samples.
        """
        if samples.shape[:-1] != target.shape:
            raise ValueError(
                f"samples: expected shape {(*target.shape, 'n_samples')}, got {tuple(samples.shape)}"
            )
        self._add(crps_from_samples(samples.double(), target.double(), fair=self.fair), ~target.isnan())


class SetCoverage(MeanOfTargets):
    """Share of targets inside their prediction sets.

    Args:
        ignore_index: Targets that do not count.
        kwargs: torchmetrics' own.
    """

    higher_is_better = None

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.ignore_index = ignore_index

    def update(self, sets: Tensor, target: Tensor) -> None:
        """Sets ``(..., n_classes)`` bool, and targets ``(...)`` int64.

        Raises:
            ValueError: On other shapes, or a target that is no class.
        """
        _check_sets(sets, target)
        counts = target != self.ignore_index
        if bool((counts & ((target < 0) | (target >= sets.shape[-1]))).any()):
            raise ValueError(
                f"target: expected classes in 0..{sets.shape[-1] - 1}, got {target.unique().tolist()}"
            )
        index = target.masked_fill(~counts, 0)[..., None]
        self._add(sets.gather(-1, index).squeeze(-1), counts)


class SetSize(MeanOfTargets):
    """Mean number of classes in a prediction set.

    Args:
        ignore_index: Targets that do not count, where there are targets.
        kwargs: torchmetrics' own.
    """

    higher_is_better = False

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.ignore_index = ignore_index

    def update(self, sets: Tensor, target: Tensor | None = None) -> None:
        """``(..., n_classes)`` bool; with ``target`` ``(...)`` int64 only where there is one.

        Raises:
            ValueError: On other shapes.
        """
        sizes = sets.sum(-1)
        if target is None:
            self._add(sizes, torch.ones_like(sizes, dtype=torch.bool))
            return
        _check_sets(sets, target)
        self._add(sizes, target != self.ignore_index)


def _check_sets(sets: Tensor, target: Tensor) -> None:
    if sets.shape[:-1] != target.shape:
        raise ValueError(f"sets: expected shape {(*target.shape, 'n_classes')}, got {tuple(sets.shape)}")


def _same_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{', '.join(shapes)}: expected one shape, got {said}")
