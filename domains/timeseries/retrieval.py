"""What followed windows like this one, mixed into a forecast; see ``core.retrieval``.

A key is what the members' heads read of one series in a training window, its value what followed there, by
the window's own mean and deviation. Validation and test rows are in no key and no value.
"""

from __future__ import annotations

import math

import torch

from mambakit.core.retrieval import Mix, Neighbours, grid
from mambakit.core.retrieval.neighbours import weights_of
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.training import make_values
from mambakit.domains.timeseries.window import WindowForecaster, followed, level_and_spread
from mambakit.domains.timeseries.window_data import Windows

_AT_ONCE = 256
_MOST_VALIDATION = 1024


@torch.no_grad()
def add_neighbours(
    model: WindowForecaster, data: SeriesData, *, most_keys: int = 50_000
) -> list[tuple[Mix, float]]:
    """Give a forecaster its neighbours, mixed in as serves the mean squared error of validation windows best.

    Args:
        model: Trained on these data.
        data: The series.
        most_keys: Series in windows that are kept at most; of more, every so many windows is.

    Returns:
        What was tried and its error, best first; that the model forecasts alone is among it.

    Raises:
        UserError: If FAISS isn't installed.
    """
    model.neighbours = None
    model.eval()
    config, device = model.config, model.trust.device
    values = make_values(data, model.tokenizer).to(device)
    n_series = values.rows.shape[1]

    def windows(split: str, most: int) -> Windows:
        sizes = {"lookback": config.lookback, "horizon": config.horizon}
        stride = max(1, math.ceil(len(Windows(data, split, **sizes)) / most))
        return Windows(data, split, stride=stride, **sizes)

    keys, futures = [], []
    for starts in windows("train", max(1, most_keys // n_series)).batches(_AT_ONCE):
        batch = values.cut(starts.to(device), config.lookback, config.horizon)
        mean, deviation = level_and_spread(batch.history)
        keys.append(model.embed(batch.history, batch.phase, batch.series).flatten(0, 1).cpu())
        normalised = (batch.future - mean) / deviation
        futures.append(normalised.transpose(1, 2).flatten(0, 1).cpu())
    store = Neighbours(torch.cat(keys), torch.cat(futures))
    errors, n = dict.fromkeys(grid(len(store)), 0.0), 0
    for starts in windows("validation", _MOST_VALIDATION).batches(_AT_ONCE):
        batch = values.cut(starts.to(device), config.lookback, config.horizon)
        point = model.point(model(batch.history, batch.phase, batch.series))
        embedded = model.embed(batch.history, batch.phase, batch.series)
        distance, place = store.search(embedded, max(mix.k for mix in errors))
        said: dict[tuple[int, float], torch.Tensor] = {}
        for mix in errors:
            key = mix.k, mix.temperature
            if key not in said:
                said[key] = followed(
                    weights_of(distance, mix), store.values[place[..., : mix.k]], batch.history
                )
            mixed = point + mix.share * (said[key] - point)
            errors[mix] += float((mixed - batch.future).square().double().sum())
        n += batch.future.numel()
    tried = sorted(((mix, error / n) for mix, error in errors.items()), key=lambda one: one[1])
    model.neighbours = store.with_mix(tried[0][0])
    return tried
