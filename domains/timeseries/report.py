"""Reports: of a training run (numbers beside the baselines, learning curve, forecasts) and of a backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.timeseries import plots
from mambakit.domains.timeseries.backtesting import plots as backtest_plots
from mambakit.domains.timeseries.backtesting.backtest import Backtest
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.evaluation import Evaluation
from mambakit.domains.timeseries.forecasting import forecast, until
from mambakit.domains.timeseries.model import Forecasting
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window import WindowForecaster

_MOST_SERIES = 20
_MOST_DRAWN = 64
BACKTEST_NOTE = (
    "mse, mae: in the series' own units. smape in %. mase, msis: over the seasonal step of the history; msis "
    "is of the widest interval. wql: weighted quantile loss. coverage-80: share of targets inside the 80 % "
    "interval. owa: smape and mase over those of naive2."
)


def write(
    run: RunFolder, model: Forecasting, data: SeriesData, result: FitResult, evaluation: Evaluation
) -> None:
    """Writes ``report.html`` and the pictures of a run.

    Args:
        run: Its folder.
        model: The trained forecaster.
        data: The series.
        result: How training went.
        evaluation: Its errors on the test windows.
    """
    config = model.config
    report = Report(f"Forecasting {data.name}, {config.horizon} steps ahead")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    report.add_metrics(
        {
            "series": len(data.ids),
            "rows, longest": max(len(one.values) for one in data.series),
            "test windows": evaluation.n_windows,
            "parameters": n_parameters,
            "validation score": result.best_score,
            "training seconds": round(result.seconds, 1),
        }
    )
    if evaluation.n_windows:
        report.add_heading("Errors on the test windows")
        report.add_table(
            evaluation.rows,
            "mse, mae: scaled values; smape in per cent; wql: weighted quantile loss; coverage: share inside "
            f"the {round(100 * (model.levels[-1] - model.levels[0]))} % interval, and calibrated.",
        )
        report.add_figure(run.save_picture(plots.horizon_figure(evaluation.mse_by_step), "error_by_step"))
        honest = backtest_plots.calibration_figure(evaluation.ranks, model.levels)
        report.add_figure(
            run.save_picture(honest, "calibration"), "Whether the quantiles hold what they say."
        )
        report.add_heading("Forecasts")
        least = config.lookback if isinstance(model, WindowForecaster) else 2
        histories, truths = _last_window(data, least, config.horizon)
        figure = plots.forecast_figure(histories, forecast(model, histories, config.horizon), truths=truths)
        report.add_figure(
            run.save_picture(figure, "forecast"), "The last test window: none of it was seen in training."
        )
    loss = Panel("pinball loss", ("train/loss", "val/loss"))
    add_training(
        report,
        run,
        result,
        (loss, Panel("validation MSE, scaled values", ("val/mse",), "min")),
        "the least validation error; test windows were measured once, at the end.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)


def write_backtest(
    path: Path, result: Backtest, series: Sequence[Series], *, title: str, settings: Mapping[str, object]
) -> None:
    """Writes the report of a backtest as one HTML file.

    Args:
        path: The file.
        result: The backtest.
        series: What was backtested.
        title: Its heading.
        settings: What it was run with.
    """
    ours = str(result.rows[0]["forecaster"])
    report = Report(title)
    report.add_metrics(settings)
    report.add_heading("Errors beside the baselines")
    report.add_table(
        result.rows,
        BACKTEST_NOTE,
    )
    report.add_figure(plots.horizon_figure(result.mse_by_step, "own units"))
    report.add_heading("The best, the median and the worst")
    report.add_figure(backtest_plots.extremes_figure(result, series), f"By MASE of {ours}.")
    report.add_heading("Are the quantiles honest?")
    first: Mapping[str, Any] = result.rows[0]
    measured = {level: float(first.get(f"coverage-{level:g}", nan)) for level in result.intervals}
    report.add_figure(
        backtest_plots.calibration_figure(result.ranks[ours], result.levels, measured),
        "found: of the quantiles as they are forecast; intervals: of those in the table, calibrated "
        "where the model is.",
    )
    report.add_heading(f"Series, the worst of {ours} first")
    own = result.by_series[result.by_series.forecaster == ours].sort_values("mase", ascending=False)
    report.add_table(own.drop(columns="forecaster").head(_MOST_SERIES))
    for name, why in list(result.left_out.items())[:_MOST_SERIES]:
        report.add_text(f"left out: {name}: {why}")
    for name, n in list(result.partly.items())[:_MOST_SERIES]:
        report.add_text(f"{name}: too short for the first origins, took part in {n}")
    report.write(path)


def _last_window(data: SeriesData, lookback: int, horizon: int) -> tuple[list[Series], list[Series]]:
    """Histories, and the same with what came, of the last test window of every series that has one."""
    histories: list[Series] = []
    truths: list[Series] = []
    for one, bounds in zip(data.series, data.bounds, strict=True):
        end = bounds[2]
        if end - horizon >= lookback and len(histories) < _MOST_DRAWN:
            histories.append(until(one, end - horizon, horizon))
            truths.append(until(one, end))
    return histories, truths
