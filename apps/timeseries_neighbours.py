"""Neighbours for a saved forecaster: what `mambakit timeseries neighbours` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.shared import print_neighbours
from mambakit.domains.timeseries.tables.series import Columns, Missing


def neighbours(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    missing: Missing = "mask",
    most_keys: int = 50_000,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Lets a saved forecaster look up what followed similar windows (mambakit[ann]).

    What the network makes of training windows is kept beside the model, in a folder neighbours; how many
    neighbours are asked, how sharply they are weighed and what they count is chosen by the squared error of
    validation windows, none of which is kept. From then on evaluate, forecast and backtest use them; remove
    the folder to be without. For models that read a window, not those of --network stream.

    Args:
        model: Folder of the saved model.
        data: The card or file that it was trained on.
        columns: Which column is what, as in training.
        missing: What to do about gaps and missing values in a file.
        most_keys: Series in windows to keep at most.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries neighbours --model runs/etth1 --data ETTh1
    """
    from mambakit.core.errors import DataError
    from mambakit.core.retrieval.neighbours import FOLDER
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.model import load_forecaster
    from mambakit.domains.timeseries.retrieval import add_neighbours
    from mambakit.domains.timeseries.window import WindowForecaster

    forecaster = load_forecaster(model)
    if not isinstance(forecaster, WindowForecaster):
        raise DataError(f"{model} reads row by row; neighbours are of models that read a window")
    config = forecaster.config
    options = {"missing": missing, "season_length": config.season_length, "columns": columns}
    loaded = load_data(data, mix=True if config.mix_series else None, **options)  # type: ignore[arg-type]
    if sorted(loaded.ids) != sorted(forecaster.tokenizer.ids):
        raise DataError(f"{data} has other series than {model} was trained on")
    loaded = loaded.in_order(list(forecaster.tokenizer.ids))
    tried = add_neighbours(forecaster.to(resolve_device(device)), loaded, most_keys=most_keys)
    assert forecaster.neighbours is not None
    forecaster.neighbours.save(model / FOLDER, forecaster)
    print_neighbours(forecaster.neighbours, tried, "validation mse", json=json)
    print(f"neighbours: {model / FOLDER}", file=sys.stderr)
