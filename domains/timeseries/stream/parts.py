"""What the network that reads row by row takes in and hands on, and what its stacks are made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mambakit.core.backbone_config import BackboneConfig, sizes_of_heads
from mambakit.core.state import State
from mambakit.domains.timeseries.config import StreamConfig
from mambakit.domains.timeseries.stream.running import Level


class Read(NamedTuple):
    """A piece of several series that is read; ``rows`` counts series, or windows x series.

    Attributes:
        values: ``(rows, length)`` float32, NaN where missing.
        past: ``(rows, length, n_past)``.
        known: ``(rows, length, n_known)``.
        elapsed: ``(rows, length)``, steps since the row before; 0 in padding.
        static: ``(rows, n_static)``.
        series: ``(rows,)`` int64, the place of each series among those learned of.
    """

    values: Tensor
    past: Tensor
    known: Tensor
    elapsed: Tensor
    static: Tensor
    series: Tensor


class Origin(NamedTuple):
    """All that a forecast takes from the past, for ``(rows, origins)``.

    Attributes:
        hidden: Of each member, ``(rows, origins, d_model)``.
        mean, deviation: ``(rows, origins)``.
        recent: The last ``lookback`` values less the mean, zero where missing, ``(rows, origins, lookback)``.
        known: Covariates of those rows, ``(rows, origins, lookback, n_future)``.
    """

    hidden: list[Tensor]
    mean: Tensor
    deviation: Tensor
    recent: Tensor
    known: Tensor


class Passed(NamedTuple):
    """What is known at every row of a piece, and the state behind it.

    Attributes:
        level: Running level and deviation, ``(rows, length)`` each.
        hidden: Of each member, ``(rows, length, d_model)``.
        state: Sums, last features and the members' layers.
    """

    level: Level
    hidden: list[Tensor]
    state: State


def backbone_config(config: StreamConfig, *, both_ways: bool = False) -> BackboneConfig:
    """Of a stack over time, or across the series of a row."""
    model = config.model
    return BackboneConfig(
        d_model=model.d_model,
        layers=list(model.blocks),
        block_options=sizes_of_heads(model.blocks, d_state=model.d_state, head_dim=model.head_dim),
        bidirectional=both_ways,
        dropout=model.dropout,
    )
