"""Filling missing values: what `mambakit timeseries impute` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.shared import check_suffix, write_table
from mambakit.apps.timeseries_output import input_of
from mambakit.core.cli import print_json


def impute(
    *,
    model: Path,
    input: str,
    output: Path | None = None,
    plot: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Fills the missing values of each series in a file; observed ones stay as they are.

    Rows that a regular series lacks are filled too. A series without any value is reported, and left out.

    Args:
        model: Folder of a saved model that reads row by row and was trained to impute (loss.mask_share and
            loss.impute_weight above 0).
        input: CSV or Parquet (a long table unique_id, ds, y, or a time column and a column a series), or a
            card's name.
        output: CSV or Parquet with unique_id, ds, y, y_hat, the quantiles and whether the row was filled;
            standard output by default.
        plot: PNG, PDF or SVG of the stretches with most missing values.
        device: auto, cpu or cuda.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries impute --model runs/etth1 --input gaps.csv --output whole.csv --plot whole.png
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.imputation import imputing as imputation
    from mambakit.domains.timeseries.model import load_stream

    for flag, path, allowed in (
        ("output", output, (".csv", ".parquet")),
        ("plot", plot, (".png", ".pdf", ".svg")),
    ):
        check_suffix(flag, path, allowed)
    chosen = resolve_device(device)
    place = "cpu" if chosen.type == "mps" else chosen  # which has no float64
    forecaster = load_stream(model, place, verb="impute")
    series = input_of(forecaster, input)
    left_out: list[tuple[str, str]] = []
    frame = imputation.impute(forecaster, series, left_out=left_out)
    for _, reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if plot is not None:
        from mambakit.domains.timeseries.imputation import plots as imputation_plot

        plot.parent.mkdir(parents=True, exist_ok=True)
        imputation_plot.imputation_figure(frame).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        plain = frame.astype({"ds": str}).astype(object).where(frame.notna(), None)
        print_json(plain.to_dict(orient="records"))
    if output is not None:
        write_table(frame, output)
        n = int(frame["filled"].sum())
        print(f"{n} of {len(frame)} values filled: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")
