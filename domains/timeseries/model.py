"""The model of a saved folder, whichever network it is."""

from __future__ import annotations

from pathlib import Path

import torch

from mambakit.core.errors import DataError
from mambakit.core.folders import read_json_object
from mambakit.core.hub import CONFIG_FILE
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.window import WindowForecaster

Forecasting = StreamForecaster | WindowForecaster


def load_forecaster(folder: Path | str, device: torch.device | str = "cpu") -> Forecasting:
    """The forecaster that was saved in a folder, in evaluation mode.

    Raises:
        DataError: If the folder holds none, or is damaged.
    """
    cls = kind_of(folder)
    if cls is SeriesClassifier:
        raise DataError(f"{folder} holds a classifier of series: classify, evaluate and embed use it")
    return cls.from_pretrained(folder, map_location=device)  # type: ignore[return-value]


def kind_of(folder: Path | str) -> type[StreamForecaster] | type[WindowForecaster] | type[SeriesClassifier]:
    """The network that was saved in a folder.

    Raises:
        DataError: If there is none.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"no saved model at {path}: the folder does not exist")
    config = read_json_object(path / CONFIG_FILE)
    if "classes" in config:
        return SeriesClassifier
    return StreamForecaster if "n_mixed" in config else WindowForecaster


def load_stream(
    folder: Path | str, device: torch.device | str = "cpu", *, verb: str = "this"
) -> StreamForecaster:
    """As ``load_forecaster``, for what the network that reads a window can't do.

    Raises:
        DataError: If the folder holds another network, too.
    """
    model = load_forecaster(folder, device)
    if not isinstance(model, StreamForecaster):
        raise DataError(
            f"{folder} reads windows of {model.config.lookback} rows; {verb} needs a model trained with "
            "--network stream"
        )
    return model
