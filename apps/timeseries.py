"""Time-series forecasting.

mambakit timeseries train --data ETTh1 --horizon 96 --output runs/etth1
mambakit timeseries evaluate --model runs/etth1 --data ETTh1 --json
mambakit timeseries forecast --model runs/etth1 --input my.csv --horizon 24 --output forecast.csv --plot f.png
mambakit timeseries backtest --data my.csv --horizon 24 --windows 5
tail -f rows.csv | mambakit timeseries stream --model runs/np --state live
mambakit timeseries anomalies --model runs/np --input my.csv --plot anomalies.png
mambakit timeseries impute --model runs/np --input gaps.csv --output whole.csv
mambakit timeseries embed --model runs/np --input my.csv --output embeddings.parquet
mambakit timeseries neighbours --model runs/etth1 --data ETTh1
mambakit timeseries train --task classify --data JapaneseVowels --output runs/vowels
mambakit timeseries classify --model runs/vowels --input new.ts
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mambakit.apps.shared import check_suffix, numbers_of, write_table
from mambakit.apps.timeseries_anomalies import anomalies
from mambakit.apps.timeseries_backtest import backtest
from mambakit.apps.timeseries_classify import classify
from mambakit.apps.timeseries_embed import embed
from mambakit.apps.timeseries_evaluate import evaluate
from mambakit.apps.timeseries_impute import impute
from mambakit.apps.timeseries_neighbours import neighbours
from mambakit.apps.timeseries_output import input_of
from mambakit.apps.timeseries_probe import probe
from mambakit.apps.timeseries_stream import stream
from mambakit.apps.timeseries_train import train
from mambakit.core.cli import print_json, run_app
from mambakit.core.errors import UsageError
from mambakit.domains.timeseries.tables.series import Columns, Missing


def forecast(
    *,
    model: Path,
    input: str,
    horizon: int | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    levels: str | None = None,
    paths: int = 0,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    future_table: Path | None = None,
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Forecasts what comes after the last row of each series in a file.

    A series that can't be forecast is said, and the rest are forecast.

    Args:
        model: Folder of the saved model; nothing else is needed.
        input: CSV or Parquet (a long table unique_id, ds, y, or a time column and a column a series), or a
            card's name.
        horizon: Rows to forecast; the trained horizon by default. More is forecast by rolling on.
        output: CSV or Parquet with unique_id, ds, y_hat and the quantiles; standard output by default.
        plot: PNG, PDF or SVG with history, forecast and intervals.
        levels: Calibrated central intervals in per cent, such as 80,95: columns lo-80 and hi-80.
        paths: Possible futures of each series in place of quantiles: unique_id, ds, path, y.
        columns: Which column is what; covariates are found by the names they had in training.
        future_table: CSV or Parquet with covariates of the rows to come (unique_id, ds, ...); rows of the
            input that have covariates and no y serve as well.
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are.
        missing: What to do about gaps and missing values.
        seed: Seed of the paths.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries forecast --model runs/etth1 --input my.csv --horizon 24 --output forecast.csv
        mambakit timeseries forecast --model runs/np --input my.csv --future-table tomorrow.csv --levels 80,95
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries import forecasting, plots
    from mambakit.domains.timeseries.model import load_forecaster
    from mambakit.domains.timeseries.stream.forecasting import paths_frame
    from mambakit.domains.timeseries.stream.network import StreamForecaster

    if horizon is not None and horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    if paths < 0:
        raise UsageError(f"paths: expected at least 0, got {paths}")
    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    intervals = numbers_of("levels", levels or "")
    forecaster = load_forecaster(model, resolve_device(device))
    given: dict[str, Any] = {"columns": columns, "irregular": irregular, "missing": missing}
    tables: dict[str, Any] = {"future_table": future_table, "static_table": static_table}
    series = input_of(forecaster, input, **given, **tables)
    n = horizon or forecaster.config.horizon
    left_out: list[tuple[str, str]] = []
    if paths:
        if not isinstance(forecaster, StreamForecaster):
            raise UsageError("paths: sample paths need a model trained with --network stream")
        frame = paths_frame(forecaster, series, n, paths, seed=seed)
    else:
        made = forecasting.forecast(forecaster, series, n, left_out=left_out)
        made = forecasting.with_intervals(forecaster, made, intervals) if intervals else made
        frame = forecasting.to_frame(made)
    for _, reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if plot is not None and not paths:
        drawn = {one.unique_id for one in made}
        plot.parent.mkdir(parents=True, exist_ok=True)
        histories = [one for one in series if one.unique_id in drawn]
        plots.forecast_figure(histories, made).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        print_json(frame.astype({"ds": str}).to_dict(orient="records"))
    if output is not None:
        write_table(frame, output)
        print(f"{frame['unique_id'].nunique()} series x {n} rows: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit timeseries ...``; returns the exit status."""
    verbs: dict[str, Callable[..., object]] = {
        "train": train,
        "evaluate": evaluate,
        "forecast": forecast,
        "backtest": backtest,
        "stream": stream,
        "impute": impute,
        "anomalies": anomalies,
        "classify": classify,
        "embed": embed,
        "probe": probe,
        "neighbours": neighbours,
    }
    text = __doc__ or ""
    description, _, examples = text.partition("\n\n")
    return run_app("mambakit timeseries", verbs, argv, description, examples)


if __name__ == "__main__":
    sys.exit(main())
