"""A device without float64, such as MPS, forecasts, embeds and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from mambakit.domains.timeseries.anomalies.scoring import anomaly_scores
from mambakit.domains.timeseries.config import StreamConfig, StreamModelConfig
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.embedding import embed
from mambakit.domains.timeseries.forecasting import forecast
from mambakit.domains.timeseries.stream.forecasting import sample_paths
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window import WindowForecaster

SMALL = StreamModelConfig(members=1, context=4, d_model=8, n_layers=1, d_state=4, head_dim=4, d_ahead=4)


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    mode, from_numpy = NoFloat64(), torch.from_numpy

    def on_host(array: np.ndarray) -> Tensor:  # which a mode does not see
        made = from_numpy(array)
        mode.on_host[made] = True
        return made

    monkeypatch.setattr(torch, "from_numpy", on_host)
    return mode


class NoFloat64(TorchFunctionMode):
    """All tensors lay on such a device but those that were made on the host or went there by ``cpu``."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor):
            return made
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        moved = any(isinstance(one, torch.device) for one in tree_leaves((args, kwargs)))
        host = not moved and all(one in self.on_host for one in given)
        if func is Tensor.cpu or moved:
            made = made.clone()  # on the host itself both would return the same tensor
        if func is Tensor.cpu or host:
            self.on_host[made] = True
        elif made.dtype == torch.float64:
            raise TypeError(f"{func.__name__}: this device has no float64")
        return made


def wave() -> Series:
    t = np.arange(80)
    values = np.sin(t / 3) + 0.1 * np.random.default_rng(0).standard_normal(80)
    values[40:43] = np.nan
    return Series("a", pd.date_range("2024-01-01", periods=80, freq="h"), values, "h")


@pytest.mark.parametrize(
    "use",
    [
        lambda model, series: forecast(model, series, 5),
        lambda model, series: sample_paths(model, series, 2, 3),
        lambda model, series: embed(model, series, every=20, pool="mean"),
        lambda model, series: anomaly_scores(model, series, normal=80),
    ],
    ids=["forecast", "paths", "embed", "anomalies"],
)
def test_a_stream_model_needs_no_float64(
    use: Callable[[StreamForecaster, list[Series]], object], no_float64: NoFloat64
) -> None:
    series = [wave()]
    tokenizer = RowTokenizer("h", 12).fit(series)
    sizes = {"lookback": 12, "horizon": 3, "n_series": 1, "n_calendar": 2 * len(tokenizer.cycles)}
    model = StreamForecaster(StreamConfig(**sizes, season_length=12, model=SMALL)).eval()
    model.tokenizer = tokenizer
    with no_float64:
        use(model, series)


def test_a_window_model_needs_no_float64(
    trained: tuple[WindowForecaster, Path], data: SeriesData, no_float64: NoFloat64
) -> None:
    with no_float64:
        forecast(trained[0], data.series, 30)
        embed(trained[0], [dataclasses.replace(data.series[0], unique_id="new")])
