"""What is spoilt to probe a model of time series: values that are noisy, missing, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mambakit.core.blocks.base import padding_mask
from mambakit.core.trust.perturbations import held, intercepted, lost, noisy, shuffled
from mambakit.core.trust.probe import Perturbation, Subject
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.model import Forecasting
from mambakit.domains.timeseries.stream.network import StreamForecaster

NOISE, SHARES, WINDOWS = (0.1, 0.3, 1.0), (0.05, 0.2, 0.5), (2.0, 4.0, 16.0)
# Changes values (batch, length, ...) of which some are real, by a level and a generator.
Change = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


def forecasting_subject(
    model: Forecasting, measure: Callable[[], Mapping[str, float]], about: str
) -> Subject:
    """A forecaster. Only what it reads is spoilt: targets, and the scales of errors, are as they were.

    Args:
        model: Either network. To the one that reads a window a missing row shows the row before it, as it
            knows no missing values.
        measure: Its errors on the test rows.
        about: What is measured, in a few words.
    """
    if isinstance(model, StreamForecaster):
        # of series (rows, length): the piece that is read, as its first argument
        def spoil(change: Change, level: float, generator: torch.Generator) -> Any:
            def read(piece: Any, *args: Any) -> tuple[Any, ...]:
                there = torch.ones(piece.values.shape, dtype=torch.bool, device=piece.values.device)
                return piece._replace(values=change(piece.values, there, level, generator)), *args

            return intercepted(model, "read", read)

        return _subject(model, measure, about, _missing, spoil, "mse", "min")

    def spoil_window(change: Change, level: float, generator: torch.Generator) -> Any:
        def history(values: Tensor, *args: Any) -> tuple[Any, ...]:
            there = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
            return change(values, there, level, generator), *args

        return intercepted(model, "forward", history)

    return _subject(model, measure, about, _frozen, spoil_window, "mse", "min")


def classifying_subject(
    model: SeriesClassifier, measure: Callable[[], Mapping[str, float]], about: str
) -> Subject:
    """A classifier of whole series; ``measure`` gives its accuracy."""

    def spoil(change: Change, level: float, generator: torch.Generator) -> Any:
        def series(values: Tensor, lengths: Tensor) -> tuple[Any, ...]:
            return change(values, ~padding_mask(lengths, values.shape[1]), level, generator), lengths

        return intercepted(model, "forward", series)

    return _subject(model, measure, about, _missing, spoil, "accuracy", "max")


def _subject(
    model: Any,
    measure: Callable[[], Mapping[str, float]],
    about: str,
    missing: Change,
    spoil: Callable[[Change, float, torch.Generator], Any],
    metric: str,
    better: Any,
) -> Subject:
    ways = {
        "noise": (NOISE, "training deviations", _noise),
        "missing": (SHARES, "share of rows", missing),
        "shuffle": (WINDOWS, "rows in a window", _shuffle),
    }

    def perturbation(change: Change) -> Callable[[float, torch.Generator], Any]:
        return lambda level, generator: spoil(change, level, generator)

    made = {name: Perturbation(levels, unit, perturbation(do)) for name, (levels, unit, do) in ways.items()}
    return Subject(model, measure, metric, better, made, about)


def _noise(values: Tensor, there: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return noisy(values, level, generator)


def _missing(values: Tensor, there: Tensor, level: float, generator: torch.Generator) -> Tensor:
    gone = lost(there, level, generator)
    return values.masked_fill(gone.reshape(*gone.shape, *[1] * (values.dim() - 2)), torch.nan)


def _frozen(values: Tensor, there: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return held(values, lost(there, level, generator))


def _shuffle(values: Tensor, there: Tensor, level: float, generator: torch.Generator) -> Tensor:
    order = shuffled(there, int(level), generator)
    return values.gather(1, order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(values.shape))
