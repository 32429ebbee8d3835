"""What the time-series verbs share: checks of flags, tables on paper and in files."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambakit.apps.shared import some
from mambakit.core.cli import format_table
from mambakit.core.errors import UsageError
from mambakit.domains.timeseries.config import ModelConfig

if TYPE_CHECKING:
    from mambakit.domains.timeseries.model import Forecasting
    from mambakit.domains.timeseries.tables.series import Columns, Missing, Series
    from mambakit.domains.timeseries.window import WindowForecaster

COLUMNS = ("forecaster", "mse", "mae", "mase", "smape", "wql", "msis", "coverage", "owa")


def check_window(lookback: int, horizon: int, model: ModelConfig) -> None:
    """Refuse a window that the network cannot have."""
    for name, value in (("horizon", horizon), ("lookback", lookback)):
        if value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    if lookback % model.patch_length:
        raise UsageError(f"lookback: expected a multiple of {model.patch_length}, got {lookback}")


def warn_of_strangers(forecaster: WindowForecaster, series: Sequence[Any]) -> None:
    """Say on stderr which series the model was not trained on."""
    from mambakit.domains.timeseries.forecasting import unknown_series

    strangers = unknown_series(forecaster, series)
    if strangers:
        print(
            f"note: {len(strangers)} series are not read as in training, but each alone, by what the model "
            f"learned of unknown series: {some(strangers)}",
            file=sys.stderr,
        )
    trained, given = forecaster.tokenizer.frequency, series[0].frequency
    if trained and trained != given:
        print(f"note: the model was trained on steps of {trained!r}, these are {given!r}", file=sys.stderr)


def input_of(
    forecaster: Forecasting,
    source: str,
    *,
    columns: Columns | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    future_table: Path | None = None,
    static_table: Path | None = None,
) -> list[Series]:
    """The series that a verb is given, with the covariates that the model was trained with."""
    from mambakit.domains.timeseries.data import load_data, series_in
    from mambakit.domains.timeseries.stream.network import StreamForecaster
    from mambakit.domains.timeseries.tables.series import Columns as Named

    columns = columns or Named()
    if isinstance(forecaster, StreamForecaster):
        known = forecaster.tokenizer
        irregular = irregular or forecaster.config.irregular
        columns = dataclasses.replace(
            columns,
            past=columns.past or tuple(known.past.names),
            future=columns.future or tuple(known.future.names),
            static=() if static_table is not None else columns.static or tuple(known.static.names),
        )
    loaded = load_data(
        source,
        missing=missing,
        columns=columns,
        irregular=irregular,
        future_table=future_table,
        static_table=static_table,
    )
    series = series_in(loaded)
    if not isinstance(forecaster, StreamForecaster):
        warn_of_strangers(forecaster, series)
    return series


def print_rows(rows: Sequence[dict[str, object]], title: str) -> None:
    """A title and a table of forecasters; the columns in one order, ``coverage-80`` after ``coverage``."""
    found = {name for row in rows for name in row}
    order = {name: i for i, name in enumerate(COLUMNS)}
    columns = sorted(found, key=lambda name: (order.get(name.partition("-")[0], len(order)), name))
    print(title)
    print(format_table(rows, columns))
