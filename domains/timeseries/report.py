"""The report of a training run: numbers beside the baselines, learning curve, forecasts."""

from __future__ import annotations

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.domains.timeseries import plots
from mambakit.domains.timeseries.data import SeriesData, series_in
from mambakit.domains.timeseries.evaluation import Evaluation
from mambakit.domains.timeseries.forecasting import forecast, until
from mambakit.domains.timeseries.table import Series
from mambakit.domains.timeseries.window import WindowForecaster


def write(
    run: RunFolder, model: WindowForecaster, data: SeriesData, result: FitResult, evaluation: Evaluation
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
            "rows, longest": max(len(group.values) for group in data.groups),
            "test windows": evaluation.n_windows,
            "parameters": n_parameters,
            "validation MSE": result.best_score,
            "training seconds": round(result.seconds, 1),
        }
    )
    if evaluation.n_windows:
        report.add_heading("Errors on the test windows")
        report.add_table(
            evaluation.rows,
            "mse, mae: scaled values; smape in per cent; wql: weighted quantile loss; coverage: share inside "
            f"the {round(100 * (model.levels[-1] - model.levels[0]))} % interval.",
        )
        report.add_figure(_kept(run, plots.horizon_figure(evaluation.mse_by_step), "error_by_step"))
        report.add_heading("Forecasts")
        histories, truths = _last_window(data, config.lookback, config.horizon)
        figure = plots.forecast_figure(histories, forecast(model, histories, config.horizon), truths=truths)
        report.add_figure(
            _kept(run, figure, "forecast"), "The last test window: none of it was seen in training."
        )
    report.add_heading("Training")
    report.add_figure(_kept(run, plots.learning_figure(run.metrics_path), "learning_curve"))
    report.add_text(
        f"Stopped by: {result.stopped}, after {result.epochs} epochs and {result.steps} steps. The weights "
        "kept are those of the least validation error; test windows were measured once, at the end."
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)


def _last_window(data: SeriesData, lookback: int, horizon: int) -> tuple[list[Series], list[Series]]:
    """Histories, and the same with what came, of the last test window of every series that has one."""
    ends = {name: group.bounds[2] for group in data.groups for name in group.ids}
    histories, truths = [], []
    for one in series_in(data):
        end = ends[one.unique_id]
        if end - horizon >= lookback:
            histories.append(until(one, end - horizon))
            truths.append(until(one, end))
    return histories, truths


def _kept(run: RunFolder, figure, name: str):  # type: ignore[no-untyped-def]  # matplotlib has no types
    run.save_picture(figure, name)
    return figure
