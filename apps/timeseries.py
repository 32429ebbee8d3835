"""Time-series forecasting.

mambakit timeseries train --data ETTh1 --horizon 96 --output runs/etth1
mambakit timeseries evaluate --model runs/etth1 --data ETTh1 --json
mambakit timeseries forecast --model runs/etth1 --input my.csv --horizon 24 --output forecast.csv --plot f.png
mambakit timeseries backtest --data my.csv --horizon 24 --windows 5
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.timeseries_anomalies import anomalies
from mambakit.apps.timeseries_backtest import backtest
from mambakit.apps.timeseries_classify import classify
from mambakit.apps.timeseries_impute import impute
from mambakit.apps.timeseries_output import (
    check_suffix,
    check_window,
    print_rows,
    some,
    train_config,
    warn_of_strangers,
    write_table,
)
from mambakit.core.cli import print_json, run_app
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.timeseries.config import (
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_TRAIN,
    LossConfig,
    ModelConfig,
)

if TYPE_CHECKING:
    from mambakit.domains.timeseries.data import SeriesData
    from mambakit.domains.timeseries.evaluation import Evaluation
    from mambakit.domains.timeseries.window import WindowForecaster

_NOTE = (
    "mse, mae: of values scaled by the training rows. smape in %. mase: against the seasonal step of the "
    "training rows. wql: weighted quantile loss. coverage: of the interval between the outermost levels."
)


def train(
    *,
    data: str = "co2",
    output: Path = Path("runs/timeseries"),
    horizon: int = 24,
    lookback: int = 96,
    missing: Literal["mask", "error", "interpolate"] = "error",
    season_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: ModelConfig = PRESET_MODEL,
    loss: LossConfig = PRESET_LOSS,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a Mamba forecaster and measures it beside naive, seasonal naive and linear forecasts.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model.

    Args:
        data: A card's name (`mambakit data list`), or a CSV or Parquet file: a long table unique_id, ds, y,
            or a time column and a column a series. A file is split 70/10/20 in time.
        output: Folder for the run and the model; a killed run continues in it.
        horizon: Rows to forecast.
        lookback: Rows to forecast from.
        missing: What to do about gaps and missing values: error, interpolate, or mask (keep them as missing).
        season_length: Rows in a season; by default the card's, or the natural one of the frequency.
        seed: Seed of weights, shuffling and dropout.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        loss: What training minimises.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries train --data ETTh1 --horizon 96 --output runs/etth1
        mambakit timeseries train --data my.csv --horizon 24 --max-time 5m --train.lr 5e-4
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries import report
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.training import train_forecaster

    config = train_config(train, seed, device, max_time)
    check_window(lookback, horizon, model)
    loaded = load_data(data, missing=missing, season_length=season_length)
    run = RunFolder(output, overwrite=overwrite)
    settings = {"data": data, "horizon": horizon, "lookback": lookback, "season_length": loaded.season_length}
    everything = {**settings, "missing": missing, "model": model, "loss": loss, "train": config}
    run.start(everything, seed=seed)
    options = {"model_config": model, "loss_config": loss, "train_config": config}
    forecaster, result = train_forecaster(loaded, run, lookback=lookback, horizon=horizon, **options)  # type: ignore[arg-type]
    forecaster.save_pretrained(output)
    evaluation = _evaluate(forecaster, loaded, device)
    report.write(run, forecaster, loaded, result, evaluation)
    if json:
        print_json({**settings, **_results(evaluation), "validation_mse": result.best_score, "model": output})
    else:
        _print_table(evaluation, loaded.name, horizon)
        print(f"model: {output}\nreport: {run.report_path}")


def evaluate(
    *,
    model: Path,
    data: str,
    missing: Literal["mask", "error", "interpolate"] = "error",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved model over every test window, beside its baselines.

    Args:
        model: Folder of the saved model.
        data: The card or file that it was trained on.
        missing: What to do about gaps and missing values in a file.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries evaluate --model runs/etth1 --data ETTh1 --json
    """
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.window import WindowForecaster

    forecaster = WindowForecaster.from_pretrained(model)
    config = forecaster.config
    loaded = load_data(
        data, missing=missing, season_length=config.season_length, mix=True if config.mix_series else None
    )
    if sorted(loaded.ids) != sorted(forecaster.tokenizer.ids):
        raise DataError(
            f"{data} has other series than the model was trained on ({some(forecaster.tokenizer.ids)}); "
            "to measure a model on new series, use backtest"
        )
    evaluation = _evaluate(forecaster, loaded, device)
    if json:
        print_json({"data": data, "horizon": config.horizon, **_results(evaluation)})
    else:
        _print_table(evaluation, loaded.name, config.horizon)


def forecast(
    *,
    model: Path,
    input: str,
    horizon: int | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    missing: Literal["mask", "error", "interpolate"] = "error",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Forecasts what comes after the last row of each series in a file.

    Args:
        model: Folder of the saved model; nothing else is needed.
        input: CSV or Parquet (a long table unique_id, ds, y, or a time column and a column a series), or a
            card's name.
        horizon: Rows to forecast; the trained horizon by default. More is forecast by rolling on.
        output: CSV or Parquet with unique_id, ds, y_hat and the quantiles; standard output by default.
        plot: PNG, PDF or SVG with history, forecast and intervals.
        missing: What to do about gaps and missing values.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries forecast --model runs/etth1 --input my.csv --horizon 24 --output forecast.csv
        mambakit timeseries forecast --model runs/etth1 --input my.csv --plot forecast.png
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries import forecasting, plots
    from mambakit.domains.timeseries.data import load_data, series_in
    from mambakit.domains.timeseries.window import WindowForecaster

    if horizon is not None and horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    forecaster = WindowForecaster.from_pretrained(model, map_location=resolve_device(device))
    series = series_in(load_data(input, missing=missing))
    warn_of_strangers(forecaster, series)
    made = forecasting.forecast(forecaster, series, horizon or forecaster.config.horizon)
    frame = forecasting.to_frame(made)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plots.forecast_figure(series, made).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        print_json(frame.astype({"ds": str}).to_dict(orient="records"))
    if output is not None:
        write_table(frame, output)
        print(f"{len(made)} series x {len(made[0].point)} rows: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit timeseries ...``; returns the exit status."""
    verbs: dict[str, Callable[..., object]] = {
        "train": train,
        "evaluate": evaluate,
        "forecast": forecast,
        "backtest": backtest,
        "classify": classify,
        "impute": impute,
        "anomalies": anomalies,
    }
    text = __doc__ or ""
    description, _, examples = text.partition("\n\n")
    return run_app("mambakit timeseries", verbs, argv, description, examples)


def _evaluate(forecaster: WindowForecaster, data: SeriesData, device: str) -> Evaluation:
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries import evaluation
    from mambakit.domains.timeseries.training import make_values

    config = forecaster.config
    sizes: dict[str, Any] = {"lookback": config.lookback, "horizon": config.horizon}
    chosen = resolve_device(device)
    chosen = "cpu" if chosen.type == "mps" else chosen  # type: ignore[assignment]  # it has no float64
    values = make_values(data, forecaster.tokenizer)
    result = evaluation.evaluate(forecaster, data, "test", values=values, device=chosen, **sizes)
    if not result.n_windows:
        print(f"note: {data.name} has no test window of horizon {config.horizon}", file=sys.stderr)
    forecaster.cpu()
    return result


def _results(evaluation: Evaluation) -> dict[str, object]:
    return {"n_windows": evaluation.n_windows, "results": evaluation.rows}


def _print_table(evaluation: Evaluation, name: str, horizon: int) -> None:
    print_rows(evaluation.rows, f"{name}: {evaluation.n_windows} test windows, horizon {horizon}")
    print(_NOTE, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
