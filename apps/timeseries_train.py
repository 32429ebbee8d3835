"""Training a forecaster, or a classifier: what `mambakit timeseries train` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.shared import own_defaults, refuse_given, train_config
from mambakit.apps.timeseries_evaluate import measure, print_table, results_of
from mambakit.apps.timeseries_output import check_window
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.timeseries.classification.config import (
    PRESET_AUGMENT,
    PRESET_CLASSIFIER,
    PRESET_CLASSIFIER_TRAIN,
    PRESET_SELECTION,
    AugmentConfig,
    ClassifierModelConfig,
    SelectionConfig,
)
from mambakit.domains.timeseries.config import (
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_STREAM,
    PRESET_STREAM_LOSS,
    PRESET_STREAM_TRAIN,
    PRESET_TRAIN,
    LossConfig,
    ModelConfig,
    StreamLossConfig,
    StreamModelConfig,
)
from mambakit.domains.timeseries.tables.series import Columns, Missing

if TYPE_CHECKING:
    from mambakit.core.training import FitResult, RunFolder
    from mambakit.domains.timeseries.data import SeriesData
    from mambakit.domains.timeseries.model import Forecasting
    from mambakit.domains.timeseries.stream.data import Store

_OF_CLASSIFIERS = ("test", "classify", "classify_augment", "classify_selection")
_OF_FORECASTERS = (
    *("network", "horizon", "lookback", "mix", "columns", "future_table", "static_table", "irregular"),
    *("missing", "season_length", "window", "window_loss", "stream", "stream_loss"),
)


def train(
    *,
    data: str = "co2",
    output: Path = Path("runs/timeseries"),
    task: Literal["forecast", "classify"] = "forecast",
    network: Literal["auto", "window", "stream"] = "auto",
    horizon: int = 24,
    lookback: int | None = None,
    mix: bool | None = None,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    future_table: Path | None = None,
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    season_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    window: ModelConfig = PRESET_MODEL,
    window_loss: LossConfig = PRESET_LOSS,
    stream: StreamModelConfig = PRESET_STREAM,
    stream_loss: StreamLossConfig = PRESET_STREAM_LOSS,
    test: str | None = None,
    classify: ClassifierModelConfig = PRESET_CLASSIFIER,
    classify_augment: AugmentConfig = PRESET_AUGMENT,
    classify_selection: SelectionConfig = PRESET_SELECTION,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a Mamba forecaster and measures it beside naive, seasonal naive and linear forecasts.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model, whose
    intervals are calibrated on the validation rows. A file is split 70/10/20 in time.

    Args:
        data: A card's name (`mambakit data list`), or a CSV or Parquet file: a long table unique_id, ds, y,
            or a time column and a column a series.
        output: Folder for the run and the model; a killed run continues in it.
        task: forecast, or classify for labelled series: a card's, a .ts file, or a long table with a column
            label, measured beside the nearest neighbour and the commonest class.
        network: window reads a fixed lookback of complete series, aligned ones together; stream reads row
            by row with a state of fixed size, missing values, covariates and irregular steps. auto is window
            for several aligned complete series without covariates, stream for all else.
        horizon: Rows to forecast.
        lookback: Rows to forecast from; for stream those of its linear part, as it remembers more. By default
            96, for stream seven seasons up to 336.
        mix: Read aligned series together; by default up to 64 of them with window, none with stream.
        columns: Which column is what; columns.future, columns.past and columns.static are covariates.
        future_table: CSV or Parquet with covariates of the rows to come (unique_id, ds, ...).
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are; gaps drive the step size.
        missing: What to do about gaps and missing values: mask leaves them to the network, interpolate fills
            them, error refuses the series.
        season_length: Rows in a season; by default the card's, or the natural one of the frequency.
        seed: Seed of weights, shuffling and dropout.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        window: The network that reads windows.
        window_loss: What its training minimises.
        stream: The network that reads row by row.
        stream_loss: What its training minimises; mask_share and impute_weight make it fill gaps too.
        test: Labelled series to measure a classifier on, once; a card has its own.
        classify: The network that names the class of a series.
        classify_augment: What is done to its training series.
        classify_selection: How its epochs are chosen and its probabilities calibrated.
        train: The training options; each network has its own defaults for those that are not given.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries train --data ETTh1 --horizon 96 --output runs/etth1
        mambakit timeseries train --data NP --horizon 24 --output runs/np
        mambakit timeseries train --data my.csv --columns.future "[promotion]" --columns.static "[shop]"
        mambakit timeseries train --data my.csv --horizon 24 --max-time 5m --train.lr 5e-4
        mambakit timeseries train --data new.csv --train.adapt.kind lora --train.adapt.base runs/timeseries
        mambakit timeseries train --task classify --data JapaneseVowels --output runs/vowels
        mambakit timeseries train --task classify --data my.ts --test new.ts --classify.d_model 32
    """
    given = dict(locals())
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries.data import load_data

    if task == "classify":
        from mambakit.apps.timeseries_classify import train_classify

        refuse_given(_train, given, _OF_FORECASTERS, "this is for forecasting, and --task is classify")
        common: dict[str, Any] = {"seed": seed, "device": device, "max_time": max_time, "json": json}
        train_classify(
            data=data,
            test=test,
            output=output,
            overwrite=overwrite,
            model=classify,
            augment=classify_augment,
            selection=classify_selection,
            train=own_defaults(train, PRESET_TRAIN, PRESET_CLASSIFIER_TRAIN),
            **common,
        )
        return
    refuse_given(_train, given, _OF_CLASSIFIERS, "this is for --task classify, and --task is forecast")
    if horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    config = train_config(train, seed, device, max_time)
    loaded = load_data(
        data,
        missing=missing,
        season_length=season_length,
        mix=mix,
        columns=columns,
        irregular=irregular,
        future_table=future_table,
        static_table=static_table,
    )
    chosen = choose_network(loaded, network)
    other = ("stream", "stream_loss") if chosen == "window" else ("window", "window_loss")
    refuse_given(_train, given, other, f"what is trained here is --network {chosen}")
    lookback = lookback or default_lookback(loaded, chosen)
    run = RunFolder(output, overwrite=overwrite)
    settings = {"data": data, "network": chosen, "horizon": horizon, "lookback": lookback}
    settings["season_length"] = loaded.season_length
    everything = {**settings, "missing": missing, "mix": mix, "columns": columns, "irregular": irregular}
    forecaster: Forecasting
    store: Store | None = None
    if chosen == "window":
        from mambakit.domains.timeseries.training import train_forecaster

        check_window(lookback, horizon, window)
        run.start({**everything, "model": window, "loss": window_loss, "train": config}, seed=config.seed)
        forecaster, result = train_forecaster(
            loaded, run, lookback=lookback, horizon=horizon, model_config=window, loss_config=window_loss,
            train_config=config,
        )  # fmt: skip
    else:
        from mambakit.domains.timeseries.stream.training import lay_out, train_stream

        config = own_defaults(config, PRESET_TRAIN, PRESET_STREAM_TRAIN)
        run.start({**everything, "model": stream, "loss": stream_loss, "train": config}, seed=config.seed)
        laid_out = lay_out(loaded.series, loaded.bounds, loaded.season_length)
        forecaster, result = train_stream(
            loaded.series,
            loaded.bounds,
            run,
            lookback=lookback,
            horizon=horizon,
            season_length=loaded.season_length,
            mixed=bool(mix),
            model_config=stream,
            loss_config=stream_loss,
            train_config=config,
            laid_out=laid_out,
        )
        store = laid_out.store
    _finish(forecaster, loaded, run, result, settings, store=store, device=device, json=json)


_train = train  # inside it the name is that of the training options


def choose_network(data: SeriesData, network: str) -> str:
    """The network that fits the data, and why on stderr where nobody has said."""
    if network != "auto":
        return network
    import numpy as np

    first = data.series[0]
    reason = ""
    if any(one.past is not None or one.future is not None or one.static for one in data.series):
        reason = "there are covariates"
    elif not data.frequency:
        reason = "the stamps have no common step"
    elif any(not np.isfinite(one.values).all() for one in data.series):
        reason = "values are missing"
    elif len(data.series) == 1 or any(not one.stamps.equals(first.stamps) for one in data.series):
        reason = "the series are not read together"
    elif not data.mixed:
        reason = "there are too many series to read together"
    if reason:
        print(f"network: stream ({reason})", file=sys.stderr)
        return "stream"
    print("network: window (complete series with the same stamps)", file=sys.stderr)
    return "window"


def default_lookback(data: SeriesData, network: str) -> int:
    """Rows to forecast from, where nobody says: 96, or some seasons for the network that reads row by row."""
    if network == "window":
        return 96
    season = data.season_length
    shortest = min(len(one.values) for one in data.series)
    wanted = 7 * season if 1 < season <= 48 else max(96, season)
    return max(season, min(wanted, 336, shortest // 3), 2)


def _finish(
    forecaster: Forecasting,
    data: SeriesData,
    run: RunFolder,
    result: FitResult,
    settings: dict[str, Any],
    *,
    store: Store | None,
    device: str,
    json: bool,
) -> None:
    """Calibrate, save, measure on the test rows, report; a network that reads row by row needs its store."""
    from mambakit.domains.timeseries import report
    from mambakit.domains.timeseries.calibration import calibrate_model, calibrate_stream, validation_rows
    from mambakit.domains.timeseries.evaluation import OURS
    from mambakit.domains.timeseries.stream.network import StreamForecaster

    try:
        if isinstance(forecaster, StreamForecaster):
            assert store is not None
            calibrate_stream(forecaster, store)
        else:
            held_out, sizes = validation_rows(data, settings["horizon"])
            rows: dict[str, Any] = {"held_out": max(1, min(sizes)), "least": forecaster.config.lookback}
            calibrate_model(forecaster, held_out, horizon=settings["horizon"], **rows)
    except DataError as error:
        print(f"note: the intervals are not calibrated: {error}", file=sys.stderr)
    run.save(forecaster)
    evaluation = measure(forecaster, data, device, store)
    if evaluation.n_windows:
        run.measured(forecaster, evaluation.rows, data=data.name, ours={"forecaster": OURS})
    report.write(run, forecaster, data, result, evaluation)
    if json:
        made = {"validation_score": result.best_score, "model": run.path}
        print_json({**settings, **results_of(evaluation), **made})
    else:
        print_table(evaluation, data.name, settings["horizon"])
        print(f"model: {run.path}\nreport: {run.report_path}")
