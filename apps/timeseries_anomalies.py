"""The verb ``anomalies``: how surprising each row of a file was to a saved model."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.shared import check_suffix, write_table
from mambakit.apps.timeseries_output import input_of
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError, UsageError


def anomalies(
    *,
    model: Path,
    input: str,
    output: Path | None = None,
    plot: Path | None = None,
    normal: float = 0.15,
    rate: float = 0.001,
    smooth: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Scores each row of a file by how surprising it was, and flags the anomalous ones.

    Each value is compared with all forecasts made of it, from one row to a whole horizon before, and the
    level and the steps around it with those of the past. The score is about 1 for rows as usual; a row is
    flagged above what the share `rate` of normal rows exceeds. Missing values have no score. A series that
    can't be scored is said, and the rest are scored.

    Args:
        model: Folder of a saved model that reads row by row (train --network stream).
        input: CSV or Parquet (a long table unique_id, ds, y, or a time column and a column a series), or a
            card's name.
        output: CSV or Parquet with unique_id, ds, y, y_hat, lo, hi, score, its parts (forecast, row, level,
            steps), anomaly.
        plot: PNG, PDF or SVG: the series, what was forecast, the score, flagged rows.
        normal: Rows at the beginning of each series that are normal and set the threshold: a share below 1, a
            number of rows above.
        rate: Share of rows like the normal ones that may be flagged falsely; more are as a series drifts.
        smooth: Rows around each row that its score is of; the trained horizon by default.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries anomalies --model runs/taxi --input taxi.csv --output scores.csv --plot scores.png
        mambakit timeseries anomalies --model runs/taxi --input taxi.csv --rate 0.01 --json
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.anomalies.plots import anomaly_figure
    from mambakit.domains.timeseries.anomalies.scoring import alarms, anomaly_scores
    from mambakit.domains.timeseries.model import load_stream

    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    if not 0 < rate < 1:
        raise UsageError(f"rate: expected a share inside (0, 1), got {rate}")
    chosen = resolve_device(device)
    forecaster = load_stream(model, "cpu" if chosen.type == "mps" else chosen, verb="anomalies")
    series = input_of(forecaster, input)
    given, trained = series[0].frequency, forecaster.tokenizer.frequency
    if given != trained:
        raise DataError(f"{input} has the step {given!r}, but the model was trained on {trained!r}")
    left_out: list[tuple[str, str]] = []
    table = anomaly_scores(
        forecaster.eval(), series, normal=normal, rate=rate, smooth=smooth, left_out=left_out
    )
    for _, reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    n_series = len(series) - len(left_out)
    if output is not None:
        write_table(table, output)
        print(f"{n_series} series, {len(table)} rows: {output}", file=sys.stderr)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        anomaly_figure(table).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    found = alarms(table)
    if json:
        print_json(
            {
                "input": input,
                "series": n_series,
                "left_out": dict(left_out),
                "rows": len(table),
                "flagged": int(table["anomaly"].sum()),
                "alarms": found.astype({"begin": str, "end": str}).to_dict(orient="records"),
            }
        )
        return
    print(f"{input}: {int(table['anomaly'].sum())} of {len(table)} rows flagged, in {len(found)} alarms")
    if len(found):
        print(format_table(found.astype({"begin": str, "end": str}).to_dict(orient="records")))
