"""The classifier of series: Mamba-2 both ways over the rows, pooled to one vector, averaged over members.

standardise each channel by the training series                (missing: zero, and a channel that says so)
+ each channel's change since the row before
-> linear map -> Mamba-2 layers, both directions -> pool the real rows -> logits
average the members' probabilities: such networks begun and trained apart  (Lakshminarayanan et al. 2017)
divide by a temperature, and turn into sets of classes, by what was held out     (core.calibration)

One or two state-space layers suffice for sets of this kind: MambaSL (ICLR 2026), a single-layer Mamba.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.backbone_config import sizes_of_heads
from mambakit.core.calibration import ConformalSets, TemperatureScaling
from mambakit.core.errors import DataError
from mambakit.core.heads import ClassificationHead, pool_tokens
from mambakit.core.hub import HubModel
from mambakit.domains.timeseries.about import CLASSIFIER
from mambakit.domains.timeseries.classification.config import ClassifierConfig
from mambakit.domains.timeseries.tables.labelled import LabelledSeries

TEMPERATURE, SETS = "temperature", "sets"
_BATCH = 256


class Padded(NamedTuple):
    """Series of several lengths in one tensor.

    Attributes:
        values: Standardised, ``(n, longest, n_channels)`` float32; NaN where missing, 0 at padding.
        lengths: Rows of each, ``(n,)`` int64.
    """

    values: Tensor
    lengths: Tensor


class Network(nn.Module):
    """One member of a classifier.

    Args:
        config: The network and the series it is for.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        model = config.model
        self.changes = model.changes
        self.embed = nn.Linear((3 if model.changes else 2) * len(config.channels), model.d_model)
        self.backbone = Backbone(
            BackboneConfig(
                d_model=model.d_model,
                layers=list(model.blocks),
                block_options=sizes_of_heads(model.blocks, d_state=model.d_state, head_dim=model.head_dim),
                bidirectional=model.bidirectional,
                dropout=model.dropout,
            )
        )
        self.dropout = nn.Dropout(model.dropout)
        self.head = ClassificationHead(
            d_model=model.d_model,
            n_classes=len(config.classes),
            pool=model.pool,
            label_smoothing=model.label_smoothing,
        )

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)``; see ``SeriesClassifier.forward``."""
        return self.head.proj(self.pooled(values, lengths))

    def pooled(self, values: Tensor, lengths: Tensor) -> Tensor:
        """The vector that the logits are read from, ``(batch, d_model)``; arguments as ``forward``'s."""
        tokens = self.embed(features(values, changes=self.changes))
        read, _ = self.backbone(self.dropout(tokens), lengths=lengths)
        return pool_tokens(self.dropout(read), self.head.pool, lengths)


class SeriesClassifier(nn.Module, HubModel):
    """Probabilities of classes for whole series: the mean of the members'.

    Args:
        config: The network and the series it is for.
    """

    about = CLASSIFIER

    members: Sequence[Network]

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(  # type: ignore[assignment]
            Network(config) for _ in range(config.model.members)
        )

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Logarithms of the members' mean probabilities, before any calibration.

        Args:
            values: Standardised, ``(batch, length, n_channels)``; NaN where missing.
            lengths: Rows of each series, ``(batch,)`` int64; what is behind them is not read.

        Returns:
            ``(batch, n_classes)``.
        """
        logits = torch.stack([member(values, lengths) for member in self.members])
        return mean_log_probability(logits)

    def pad(self, series: Sequence[LabelledSeries]) -> Padded:
        """Series as tensors, each channel standardised by the training series.

        Raises:
            DataError: If a series has another number of channels, or not one row.
        """
        mean, deviation = np.array(self.config.mean), np.array(self.config.deviation)
        for one in series:
            if one.values.ndim != 2 or one.values.shape[1] != len(mean) or not len(one.values):
                raise DataError(
                    f"series {one.unique_id!r}: expected one row or more of {len(mean)} channels "
                    f"({', '.join(self.config.channels[:5])}{', ...' if len(mean) > 5 else ''}), "
                    f"got an array of shape {one.values.shape}"
                )
        lengths = [len(one.values) for one in series]
        values = np.zeros((len(series), max(lengths, default=0), len(mean)), dtype=np.float32)
        for row, one in zip(values, series, strict=True):
            row[: len(one.values)] = (one.values - mean) / deviation
        return Padded(torch.from_numpy(values), torch.tensor(lengths, dtype=torch.int64))

    @torch.no_grad()
    def probabilities(self, series: Sequence[LabelledSeries]) -> Tensor:
        """Calibrated probabilities of each series, ``(n_series, n_classes)`` float64 on the CPU.

        Raises:
            DataError: If a series has another number of channels, or not one row.
        """
        logits = self._in_batches(series, self)
        temperature: TemperatureScaling | None = self.calibrators.get(TEMPERATURE)
        return (logits if temperature is None else temperature(logits)).softmax(-1)

    @torch.no_grad()
    def embed(self, series: Sequence[LabelledSeries]) -> Tensor:
        """The members' pooled rows, one behind the other, ``(n_series, members * d_model)`` float64.

        Raises:
            DataError: If a series has another number of channels, or not one row.
        """
        members = self.members
        return self._in_batches(series, lambda *padded: torch.cat([m.pooled(*padded) for m in members], -1))

    def _in_batches(
        self, series: Sequence[LabelledSeries], read: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """``read`` of values and lengths for all series, ``(n_series, ...)`` float64 on the CPU."""
        self.eval()
        device = next(self.parameters()).device
        padded = self.pad(series)
        # of like lengths together, so that little is padding
        order = padded.lengths.argsort(stable=True)
        made = []
        for rows in order.split(_BATCH):
            lengths = padded.lengths[rows]
            values = padded.values[rows, : int(lengths.max())]
            made.append(read(values.to(device), lengths.to(device)).double().cpu())
        return torch.cat(made)[order.argsort()]


def features(values: Tensor, *, changes: bool) -> Tensor:
    """What a network reads of each row: values, which of them are there, and their changes.

    Args:
        values: ``(batch, length, n_channels)``; NaN where missing.
        changes: With the changes since the row before; zero where either is missing, and in the first row.

    Returns:
        ``(batch, length, 2 * n_channels)``, or 3 with changes; finite.
    """
    there = ~values.isnan()
    parts = [torch.where(there, values, 0.0), there.to(values)]
    if changes:
        steps = torch.diff(values, dim=1, prepend=values[:, :1])
        parts.append(torch.where(steps.isnan(), 0.0, steps))
    return torch.cat(parts, dim=-1)


def mean_log_probability(logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """Logarithm of the members' mean probability, ``(batch, n_classes)``.

    Args:
        logits: ``(members, batch, n_classes)``.
        weight: How much each member counts, ``(members, batch)`` bool; all of them without.
    """
    logs = logits.log_softmax(-1)
    if weight is None:
        return logs.logsumexp(0) - np.log(len(logits))
    logs = logs.masked_fill(~weight[..., None], -torch.inf)
    return logs.logsumexp(0) - weight.sum(0)[:, None].log()


def scale_of(series: Sequence[LabelledSeries]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel over all rows that are there, ``(n_channels,)`` each.

    A channel without any value has mean 0; one that is constant or without value has deviation 1.
    """
    rows = np.concatenate([one.values for one in series])
    there = ~np.isnan(rows)
    count = there.sum(0).clip(min=1)
    mean = np.where(there, rows, 0.0).sum(0) / count
    deviation = np.sqrt((np.where(there, rows - mean, 0.0) ** 2).sum(0) / count)
    # rounding leaves a constant channel a deviation of about eps times its size
    constant = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    return mean, np.where(constant, 1.0, deviation)


def classify(
    model: SeriesClassifier,
    series: Sequence[LabelledSeries],
    *,
    alpha: float = 0.1,
    channels: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The class of each series, how probable it is, and which classes can't be ruled out.

    Args:
        model: Trained.
        series: Their labels, if any, are not read.
        alpha: The share of series whose set may miss their class.
        channels: Names of the series' channels, where they have any: those of a table, in any order.

    Returns:
        ``unique_id``, ``label``, ``probability``; a column for each class, its name behind ``p_``; and
        ``set``, the classes of the conformal set, likeliest first, apart by blanks (all of them where the
        model was not calibrated on enough series).

    Raises:
        DataError: If a series has other channels than the model.
    """
    classes = model.config.classes
    series = in_order(model, series, channels)
    p = model.probabilities(series)
    inside = class_sets(model, p, alpha)
    best = p.argmax(-1)
    order = p.argsort(dim=-1, descending=True, stable=True)
    frame = pd.DataFrame(
        {
            "unique_id": [one.unique_id for one in series],
            "label": [classes[i] for i in best.tolist()],
            "probability": p.gather(1, best[:, None]).squeeze(1).numpy(),
        }
    )
    for i, name in enumerate(classes):
        frame[f"p_{name}"] = p[:, i].numpy()
    frame["set"] = [
        " ".join(classes[i] for i in row if here[i])
        for row, here in zip(order.tolist(), inside.tolist(), strict=True)
    ]
    return frame


def class_sets(model: SeriesClassifier, p: Tensor, alpha: float) -> Tensor:
    """Which classes can't be ruled out, bool like ``p``; all of them where the model was not calibrated.

    The likeliest class is always in. Sets made for so many misses alone would leave some series without any
    class, where the model is right more often than that.

    Args:
        model: Trained.
        p: Its probabilities, ``(n_series, n_classes)``.
        alpha: The share of series whose set may miss their class.
    """
    sets: ConformalSets | None = model.calibrators.get(SETS)
    if sets is None:
        return torch.ones_like(p, dtype=torch.bool)
    return sets.sets(p, alpha) | (p == p.amax(-1, keepdim=True))


def in_order(
    model: SeriesClassifier, series: Sequence[LabelledSeries], channels: Sequence[str] | None
) -> Sequence[LabelledSeries]:
    """The channels as the model has them; as they stand where not one name is the model's (a .ts file's).

    Raises:
        DataError: If some are the model's and others not.
    """
    wanted = model.config.channels
    if channels is None or list(channels) == wanted or not set(channels) & set(wanted):
        return series
    if set(channels) != set(wanted):
        raise DataError(f"expected the channels {', '.join(wanted)}, got {', '.join(channels)}")
    index = [list(channels).index(name) for name in wanted]
    return [dataclasses.replace(one, values=one.values[:, index]) for one in series]
