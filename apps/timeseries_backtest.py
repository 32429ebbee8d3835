"""``mambakit timeseries backtest``: what would have been forecast at several moments of the past."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.shared import (
    check_suffix,
    numbers_of,
    own_defaults,
    some,
    train_config,
    words_of,
    write_table,
)
from mambakit.apps.timeseries_output import check_window, print_rows, warn_of_strangers
from mambakit.apps.timeseries_train import choose_network, default_lookback
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.timeseries.config import (
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_STREAM,
    PRESET_STREAM_LOSS,
    PRESET_STREAM_TRAIN,
    PRESET_TRAIN,
)
from mambakit.domains.timeseries.tables.series import Columns, Missing

if TYPE_CHECKING:
    from mambakit.domains.timeseries.backtesting.backtest import Backtest
    from mambakit.domains.timeseries.model import Forecasting
    from mambakit.domains.timeseries.tables.table import Series
    from mambakit.domains.timeseries.window import WindowForecaster

_LISTED = 5


def backtest(
    *,
    data: str,
    horizon: int = 24,
    windows: int = 5,
    step_size: int | None = None,
    refit: int = 0,
    input_size: int | None = None,
    model: Path | None = None,
    lookback: int | None = None,
    levels: str = "80,95",
    baselines: str = "linear,seasonal naive,naive",
    average: Literal["series", "pooled"] = "series",
    output: Path | None = None,
    errors: Path | None = None,
    plot: Path | None = None,
    report: Path | None = None,
    network: Literal["auto", "window", "stream"] = "auto",
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    season_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Forecasts from several past origins and compares with what came, beside the baselines.

    Without a model one is trained on the rows before the first origin, and its intervals are calibrated on
    the last eighth of them, which chose its weights but moved none. Errors are in the data's own units. A
    series too short for some origins takes part in the others.

    Args:
        data: A card's name, or a CSV or Parquet file.
        horizon: Rows to forecast from each origin.
        windows: Origins.
        step_size: Rows from one origin to the next; the horizon by default.
        refit: Train anew at every so many origins; 0 trains once, before the first.
        input_size: Let each training and forecast see only so many rows before its origin.
        model: Folder of a saved model; it should not have seen the rows that are forecast.
        lookback: Rows to forecast from, for a model trained here and for the linear baseline; as in train.
        levels: Central intervals in per cent, as 80,95; msis is of the widest.
        baselines: Some of linear, seasonal naive, naive, drift, naive2, AutoETS, AutoARIMA; the last two come
            with mambakit[baselines]. With naive2 there is owa, as in M4.
        average: series gives each series the same weight, pooled gives it to each row.
        output: CSV or Parquet with every forecast beside what came: unique_id, cutoff, ds, y, and for each
            forecaster NAME, NAME-lo-80, NAME-hi-80.
        errors: CSV or Parquet with the errors of each series and forecaster.
        plot: PNG, PDF or SVG of the best, the median and the worst series.
        report: HTML file with tables, pictures, errors by step and the calibration.
        network: Which network is trained here: window, stream, or auto, as in train.
        columns: Which column is what; columns.future, columns.past and columns.static are covariates.
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are.
        missing: What to do about gaps and missing values: mask leaves them to the network.
        season_length: Rows in a season.
        seed: Seed of a model trained here.
        device: auto, cpu, cuda or mps.
        max_time: Stop each training after so long.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries backtest --data my.csv --horizon 24 --windows 5
        mambakit timeseries backtest --data my.csv --horizon 24 --windows 8 --step-size 12 --refit 4
        mambakit timeseries backtest --data co2 --horizon 12 --baselines "naive2,AutoETS" --report report.html
    """
    from mambakit.domains.timeseries import report as reports
    from mambakit.domains.timeseries.backtesting import plots as backtest_plots
    from mambakit.domains.timeseries.backtesting.backtest import backtest as run
    from mambakit.domains.timeseries.data import load_data, series_in
    from mambakit.domains.timeseries.model import load_forecaster
    from mambakit.domains.timeseries.window import WindowForecaster

    for flag, path in (("output", output), ("errors", errors)):
        check_suffix(flag, path, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    check_suffix("report", report, (".html",))
    intervals, names = numbers_of("levels", levels), words_of(baselines)
    more: dict[str, Any] = {"columns": columns, "irregular": irregular, "static_table": static_table}
    loaded = load_data(data, missing=missing, season_length=season_length, **more)
    series = series_in(loaded)
    if model is not None:
        if refit:
            raise UsageError("refit: a saved model is not trained again; leave --model or --refit out")
        forecaster = load_forecaster(model)
        rows = forecaster.config.lookback
        if isinstance(forecaster, WindowForecaster):
            warn_of_strangers(forecaster, series)
        chosen = "window" if isinstance(forecaster, WindowForecaster) else "stream"
    else:
        config = train_config(train, seed, device, max_time)
        chosen = choose_network(loaded, network)
        rows = lookback or default_lookback(loaded, chosen)
        if chosen == "window":
            check_window(rows, horizon, PRESET_MODEL)

    def make_model(histories: list[Series]) -> Forecasting:
        if model is not None:
            return forecaster
        facts: dict[str, Any] = {"frequency": loaded.frequency, "season_length": loaded.season_length}
        sizes = {"lookback": rows, "horizon": horizon}
        make = _trained if chosen == "window" else _trained_stream
        return make(histories, config, name=loaded.name, facts=facts, sizes=sizes, calibrate=bool(intervals))

    result = run(
        make_model,
        series,
        horizon=horizon,
        windows=windows,
        step_size=step_size,
        refit=refit,
        input_size=input_size,
        least=rows if chosen == "window" else 2,
        lookback=rows,
        season_length=loaded.season_length,
        baselines=names,
        levels=intervals,
        average=average,
    )
    title = (
        f"{loaded.name}: {len(series) - len(result.left_out)} series, {windows} origins, horizon {horizon}"
    )
    _tell_of(result, windows)
    for table, path in ((result.table, output), (result.by_series, errors)):
        if path is not None:
            write_table(table, path)
            print(f"{len(table)} rows: {path}", file=sys.stderr)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        backtest_plots.extremes_figure(result, series).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    settings = {"data": data, "horizon": horizon, "windows": windows, "step_size": step_size or horizon}
    settings |= {"refit": refit, "series": len(series) - len(result.left_out), "average": average}
    if report is not None:
        reports.write_backtest(report, result, series, title=f"Backtest of {title}", settings=settings)
        print(f"report: {report}", file=sys.stderr)
    if json:
        settings |= {"left_out": result.left_out, "units": "own"}
        print_json({**settings, "results": result.rows})
    else:
        print_rows(result.rows, title)
        print(reports.BACKTEST_NOTE, file=sys.stderr)


def _trained(
    histories: list[Series],
    config: TrainConfig,
    *,
    name: str,
    facts: dict[str, Any],
    sizes: dict[str, int],
    calibrate: bool,
) -> WindowForecaster:
    """A model of the histories alone, its intervals calibrated on the rows that validated it."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries import evaluation, training
    from mambakit.domains.timeseries.calibration import calibrate_model

    before = evaluation.data_before(histories, name=name, **facts)
    options: dict[str, Any] = {
        **sizes,
        "model_config": PRESET_MODEL,
        "loss_config": PRESET_LOSS,
        "train_config": config,
    }
    with tempfile.TemporaryDirectory() as folder:
        model, _ = training.train_forecaster(before, RunFolder(folder), **options)
    if calibrate:
        try:
            calibrate_model(model, histories, horizon=sizes["horizon"], least=sizes["lookback"])
        except DataError as error:
            print(f"note: the intervals are not calibrated: {error}", file=sys.stderr)
    return model


def _trained_stream(
    histories: list[Series],
    config: TrainConfig,
    *,
    name: str,
    facts: dict[str, Any],
    sizes: dict[str, int],
    calibrate: bool,
) -> Forecasting:
    """As ``_trained``, of the network that reads row by row."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries.calibration import calibrate_stream
    from mambakit.domains.timeseries.evaluation import data_before
    from mambakit.domains.timeseries.stream.training import lay_out, train_stream

    before = data_before(histories, name=name, **facts)
    laid_out = lay_out(before.series, before.bounds, before.season_length)
    options: dict[str, Any] = {
        **sizes,
        "laid_out": laid_out,
        "season_length": before.season_length,
        "mixed": False,
        "model_config": PRESET_STREAM,
        "loss_config": PRESET_STREAM_LOSS,
        "train_config": own_defaults(config, PRESET_TRAIN, PRESET_STREAM_TRAIN),
    }
    with tempfile.TemporaryDirectory() as folder:
        model, _ = train_stream(before.series, before.bounds, RunFolder(folder), **options)
    if calibrate:
        try:
            calibrate_stream(model, laid_out.store)
        except DataError as error:
            print(f"note: the intervals are not calibrated: {error}", file=sys.stderr)
    return model


def _tell_of(result: Backtest, windows: int) -> None:
    if result.left_out:
        shown = [f"{name} ({why})" for name, why in list(result.left_out.items())[:_LISTED]]
        print(f"note: {len(result.left_out)} series are left out: {some(shown)}", file=sys.stderr)
    if result.partly:
        print(
            f"note: {len(result.partly)} series take part in fewer than {windows} origins: "
            f"{some(list(result.partly))}",
            file=sys.stderr,
        )
