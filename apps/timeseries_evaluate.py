"""Measuring a saved model: what `mambakit timeseries evaluate` does, and `train` at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambakit.apps.shared import refuse_given, some
from mambakit.apps.timeseries_output import print_rows
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.tables.series import Columns, Missing

if TYPE_CHECKING:
    from mambakit.domains.timeseries.data import SeriesData
    from mambakit.domains.timeseries.evaluation import Evaluation
    from mambakit.domains.timeseries.model import Forecasting
    from mambakit.domains.timeseries.stream.data import Store

_NOTE = (
    "mse, mae: of values scaled by the training rows. smape in %. mase: against the seasonal step of the "
    "training rows. wql: weighted quantile loss. coverage: of the interval between the outermost levels, "
    "and of the calibrated one that promises as much."
)


def evaluate(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    train: str | None = None,
    alpha: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved model beside its baselines: over every test window, or on labelled series.

    Args:
        model: Folder of the saved model.
        data: The card or file that a forecaster was trained on; for a classifier a card, whose test series it
            is measured on, or a file of labelled series.
        columns: Which column is what, as in training.
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are.
        missing: What to do about gaps and missing values in a file.
        train: The file that a classifier was trained on, for the baselines; a card has its own.
        alpha: A classifier's sets of classes may miss the right one so often.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries evaluate --model runs/etth1 --data ETTh1 --json
        mambakit timeseries evaluate --model runs/vowels --data JapaneseVowels --json
    """
    given = dict(locals())
    from mambakit.domains.timeseries.classification.network import SeriesClassifier
    from mambakit.domains.timeseries.model import kind_of

    if kind_of(model) is SeriesClassifier:
        from mambakit.apps.timeseries_classify import evaluate_classify

        names = ("columns", "static_table", "irregular", "missing")
        refuse_given(evaluate, given, names, f"{model} holds a classifier, which reads labelled series")
        evaluate_classify(model=model, data=data, train=train, alpha=alpha, device=device, json=json)
        return
    refuse_given(
        evaluate, given, ("train", "alpha"), f"{model} holds a forecaster, and this is a classifier's"
    )
    forecaster, loaded = opened(
        model, data, columns=columns, static_table=static_table, irregular=irregular, missing=missing
    )
    evaluation = measure(forecaster, loaded, device)
    if json:
        print_json({"data": data, "horizon": forecaster.config.horizon, **results_of(evaluation)})
    else:
        print_table(evaluation, loaded.name, forecaster.config.horizon)


def opened(
    model: Path,
    data: str,
    *,
    columns: Columns,
    static_table: Path | None,
    irregular: bool,
    missing: Missing,
) -> tuple[Forecasting, SeriesData]:
    """A saved forecaster and the series that it was trained on.

    Raises:
        DataError: If the data hold other series.
    """
    from mambakit.domains.timeseries.data import load_data, require_aligned
    from mambakit.domains.timeseries.model import load_forecaster
    from mambakit.domains.timeseries.window import WindowForecaster

    forecaster = load_forecaster(model)
    config = forecaster.config
    mixed = isinstance(forecaster, WindowForecaster) and forecaster.config.mix_series
    loaded = load_data(
        data,
        missing=missing,
        season_length=config.season_length,
        mix=True if mixed else None,
        columns=columns,
        irregular=irregular,
        static_table=static_table,
    )
    if sorted(loaded.ids) != sorted(forecaster.tokenizer.ids):
        known = some(list(forecaster.tokenizer.ids))
        raise DataError(
            f"{data} has other series than the model was trained on ({known}); to measure a model on new "
            "series, use backtest"
        )
    loaded = loaded.in_order(list(forecaster.tokenizer.ids))
    if not isinstance(forecaster, WindowForecaster) and forecaster.config.n_mixed > 1:
        require_aligned(loaded.series)
    return forecaster, loaded


def measure(forecaster: Forecasting, data: SeriesData, device: str, store: Store | None = None) -> Evaluation:
    """Errors on the test rows; ``store`` holds the data's rows where they are laid out already."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries import evaluation
    from mambakit.domains.timeseries.stream.network import StreamForecaster

    config = forecaster.config
    chosen = resolve_device(device)
    chosen = "cpu" if chosen.type == "mps" else chosen  # type: ignore[assignment]  # it has no float64
    if isinstance(forecaster, StreamForecaster):
        from mambakit.domains.timeseries.stream.data import make_store
        from mambakit.domains.timeseries.stream.evaluation import evaluate_stream

        if store is None:
            store = make_store(forecaster.tokenizer, data.series, data.bounds)
        result = evaluate_stream(forecaster, store, "test", device=chosen)
    else:
        from mambakit.domains.timeseries.training import make_values

        sizes: dict[str, Any] = {"lookback": config.lookback, "horizon": config.horizon}
        values = make_values(data, forecaster.tokenizer)
        result = evaluation.evaluate(forecaster, data, "test", values=values, device=chosen, **sizes)
    if not result.n_windows:
        print(f"note: {data.name} has no test window of horizon {config.horizon}", file=sys.stderr)
    forecaster.cpu()
    return result


def results_of(evaluation: Evaluation) -> dict[str, object]:
    """As JSON."""
    return {"n_windows": evaluation.n_windows, "results": evaluation.rows}


def print_table(evaluation: Evaluation, name: str, horizon: int) -> None:
    """The table on stdout, and what its columns mean on stderr."""
    print_rows(evaluation.rows, f"{name}: {evaluation.n_windows} test windows, horizon {horizon}")
    print(_NOTE, file=sys.stderr)
