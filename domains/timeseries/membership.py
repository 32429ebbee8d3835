"""Losses of windows, or of labelled series, that a model learned from, and of those that it was tested on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.core.trust.membership import Attacked
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.model import Forecasting
from mambakit.domains.timeseries.stream.data import forecasts, make_store
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.tables.labelled import LabelledData, require_labels
from mambakit.domains.timeseries.training import make_values
from mambakit.domains.timeseries.window_data import Windows

_LATER = "training rows come before test rows: that the series move on tells them apart too, without memory"
_AT_ONCE = 256
_PARTS = {"train": 0, "test": 2}


@torch.no_grad()
def attacked_windows(model: Forecasting, data: SeriesData, *, most: int = 2000) -> Attacked:
    """A window of the training or of the test rows; its loss is the mean squared error of scaled values.

    Args:
        model: Trained.
        data: Of the training.
        most: Windows of each kind, evenly chosen.

    Raises:
        DataError: If there is none of a kind.
    """
    model.eval()
    if isinstance(model, StreamForecaster):
        losses = [_of_rows(model, data, part, most) for part in ("train", "test")]
    else:
        losses = [_of_windows(model, data, part, most) for part in ("train", "test")]
    if not all(map(len, losses)):
        raise DataError(f"{data.name}: there is no window of the training, or none of the test rows")
    return Attacked(losses[0], losses[1], "a window", [_LATER])


def attacked_series(
    model: SeriesClassifier, known: LabelledData, others: LabelledData, *, most: int = 2000
) -> Attacked:
    """A labelled series; its loss is the negative log-probability of its class.

    Args:
        model: Trained on ``known``.
        known, others: The training's series, and those of the test.
        most: Series of each kind, evenly chosen.
    """
    losses = []
    for data in (known, others):
        chosen = _evenly(len(data.series), most)
        labels = torch.from_numpy(require_labels(data, tuple(model.config.classes)))[chosen]
        p = model.probabilities([data.series[int(i)] for i in chosen])
        losses.append(-p.gather(1, labels[:, None])[:, 0].clamp(min=1e-12).log().numpy())
    return Attacked(losses[0], losses[1], "a series")


def _of_windows(model: Forecasting, data: SeriesData, part: str, most: int) -> NDArray[np.float64]:
    config = model.config
    windows = Windows(data, part, lookback=config.lookback, horizon=config.horizon)
    device = next(model.parameters()).device
    values = make_values(data, model.tokenizer).to(device)  # type: ignore[arg-type]
    found = []
    for chosen in torch.from_numpy(_evenly(len(windows), most)).split(_AT_ONCE):
        starts = windows.starts(chosen.numpy()).to(device)
        batch = values.cut(starts, config.lookback, config.horizon)
        point = model.point(model(batch.history, batch.phase, batch.series))
        found.append((point - batch.future).double().square().flatten(1).mean(1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def _of_rows(model: StreamForecaster, data: SeriesData, part: str, most: int) -> NDArray[np.float64]:
    device = next(model.parameters()).device
    store = make_store(model.tokenizer, data.series, data.bounds).to(device)
    found = []
    for one in forecasts(model, store, _PARTS[part]):
        square = (model.point(one.quantiles) - one.target).double().square()  # [rows, origins, horizon]
        found.append(square.nanmean(-1).flatten().cpu().numpy())
    losses = np.concatenate(found) if found else np.zeros(0)
    losses = losses[np.isfinite(losses)]
    return losses[_evenly(len(losses), most)]


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)
