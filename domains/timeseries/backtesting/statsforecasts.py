"""AutoETS and AutoARIMA with their prediction intervals, from statsforecast: ``mambakit[baselines]``.

Fitted to each history anew, as is their use. They cannot read missing values (AutoARIMA forecasts zeros
without a word): gaps inside a history are filled on straight lines for them alone, and missing rows at its
beginning cut off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mambakit.core.errors import UserError
from mambakit.domains.timeseries.backtesting.local_forecasts import interpolated, stamps_after
from mambakit.domains.timeseries.forecasting import Forecast, Predictor
from mambakit.domains.timeseries.tables.table import Series

MODELS = {"AutoETS": "AutoETS", "AutoARIMA": "AutoARIMA"}


def predictor(name: str, *, season_length: int, levels: Sequence[float]) -> Predictor:
    """``AutoETS`` or ``AutoARIMA`` as forecasts with quantiles.

    Args:
        name: Of ``MODELS``.
        season_length: Rows in a season. ETS has none above 24 (statsforecast's own limit), which makes it
            seasonless there.
        levels: Quantile levels, symmetric around 0.5, increasing.

    Raises:
        UserError: If statsforecast isn't installed, or fails on a series; the message names it.
    """
    models = require(name)
    make = getattr(models, MODELS[name])

    def predict(histories: Sequence[Series], horizon: int) -> list[Forecast]:
        return [_predict(make(season_length=season_length), name, one, horizon, levels) for one in histories]

    return predict


def require(name: str) -> Any:
    """statsforecast's models.

    Raises:
        UserError: If it isn't installed.
    """
    try:
        from statsforecast import models
    except ImportError:
        raise UserError(f'{name} comes with statsforecast: pip install "mambakit[baselines]"') from None
    return models


def _predict(model: Any, name: str, one: Series, horizon: int, levels: Sequence[float]) -> Forecast:
    values = one.values[int(np.isfinite(one.values).argmax()) :]
    wanted = sorted({round(100 * abs(2 * level - 1), 6) for level in levels} - {0})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tests it falls back from
            found = model.forecast(y=np.ascontiguousarray(interpolated(values)), h=horizon, level=wanted)
    except Exception as error:  # whatever a library raises on a series, it is named
        raise UserError(
            f"{name} fails on series {one.unique_id!r}: {' '.join(str(error).split())}"
        ) from error
    columns = []
    for level in levels:
        share = round(100 * abs(2 * level - 1), 6)
        key = "mean" if share == 0 else f"{'lo' if level < 0.5 else 'hi'}-{share:g}"
        key = key if key in found else f"{key.partition('-')[0]}-{share}"
        columns.append(np.asarray(found[key], dtype=np.float64))
    point = np.asarray(found["mean"], dtype=np.float64)
    return Forecast(
        one.unique_id, stamps_after(one, horizon), point, np.stack(columns, axis=1), tuple(levels)
    )
