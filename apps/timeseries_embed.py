"""What a network has made of each series, as numbers: what `mambakit timeseries embed` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from mambakit.apps.shared import check_suffix, refuse_given, write_table
from mambakit.apps.timeseries_output import input_of
from mambakit.core.cli import print_json
from mambakit.domains.timeseries.tables.series import Columns, Missing


def embed(
    *,
    model: Path,
    input: str,
    output: Path | None = None,
    every: int | None = None,
    pool: Literal["last", "mean"] = "last",
    unnamed: bool = False,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    static_table: Path | None = None,
    irregular: bool = False,
    missing: Missing = "mask",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Writes a vector for each series: what the model reads in it after its last row.

    Of a stream model it is the hidden state that forecasts are made from, of a window model what it makes of
    the last window, of a classifier the pooled rows; the members' vectors stand one behind the other. A
    series that can't be read is said, and the rest are embedded.

    Args:
        model: Folder of a saved forecaster or classifier; nothing else is needed.
        input: As for forecast, or for a classifier as for classify.
        output: CSV or Parquet with unique_id, ds of the row and e0, e1, ...; standard output by default.
        every: Embed after every so many rows too, counted back from the last: no row sees a later one. A
            window model passes over windows with a gap, of all series where it reads them together; a stream
            model reads on through gaps, and remembers what was before.
        pool: Of a stream model: last is the state after the row, mean the mean of the states since the
            embedding before, those in a gap among them.
        unnamed: Read every series as one unknown so far, so that its name says nothing.
        columns: Which column is what; covariates are found by the names they had in training.
        static_table: CSV or Parquet with a row a series.
        irregular: Take stamps as they are.
        missing: What to do about gaps and missing values.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries embed --model runs/np --input my.csv --output embeddings.parquet
        mambakit timeseries embed --model runs/np --input my.csv --every 24 --unnamed --output days.parquet
        mambakit timeseries embed --model runs/vowels --input JapaneseVowels --output vowels.csv
    """
    values = dict(locals())
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.classification.network import SeriesClassifier
    from mambakit.domains.timeseries.embedding import embed as of_series
    from mambakit.domains.timeseries.embedding import embed_labelled
    from mambakit.domains.timeseries.model import kind_of, load_forecaster
    from mambakit.domains.timeseries.tables.labelled import load_labelled

    check_suffix("output", output, (".csv", ".parquet"))
    chosen = resolve_device(device)
    left_out: list[tuple[str, str]] = []
    if kind_of(model) is SeriesClassifier:
        names = ("every", "pool", "unnamed", "columns", "static_table", "irregular", "missing")
        refuse_given(
            embed, values, names, f"{model} holds a classifier, which reads whole series as they are"
        )
        classifier = SeriesClassifier.from_pretrained(model, map_location=chosen)
        data = load_labelled(input, "test")
        frame = embed_labelled(classifier, data.series, channels=data.channels)
    else:
        forecaster = load_forecaster(model, chosen)
        series = input_of(
            forecaster,
            input,
            columns=columns,
            irregular=irregular,
            missing=missing,
            static_table=static_table,
        )
        frame = of_series(forecaster, series, every=every, pool=pool, unnamed=unnamed, left_out=left_out)
    for _, reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if json:
        print_json(frame.astype({"ds": str}).to_dict(orient="records"))
    if output is not None:
        write_table(frame, output)
        print(f"{len(frame)} embeddings of {frame.shape[1] - 2} numbers: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")
