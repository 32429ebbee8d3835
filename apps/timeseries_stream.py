"""``mambakit timeseries stream``: rows in one at a time, forecasts out at any moment."""

from __future__ import annotations

import csv
import json as jsonlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mambakit.core.errors import DataError, UsageError


def stream(
    *,
    model: Path,
    input: str = "-",
    state: Path | None = None,
    every: int = 1,
    horizon: int | None = None,
    future: Path | None = None,
    device: str = "auto",
) -> None:
    """Reads rows as they come and forecasts from a state of fixed size; a bad row is said, and left out.

    One JSON object a forecast goes to standard output: unique_id, cutoff, rows read, and ds, y_hat and the
    quantiles of each step. What was read is said on standard error at the end.

    Args:
        model: Folder of a model trained with --network stream.
        input: CSV with a header (unique_id, ds, y and the model's covariates), or JSON lines; - is standard
            input. A name that ends in .jsonl, or a first line that begins with {, is JSON lines.
        state: Folder of the state: read if it is there, written at the end and after Ctrl-C.
        every: Forecast after so many rows of a series; 0 only after the last.
        horizon: Rows to forecast; the trained horizon by default.
        future: CSV or Parquet with the covariates that are known ahead (unique_id, ds, ...).
        device: auto, cpu, cuda or mps.

    Examples:
        tail -f prices.csv | mambakit timeseries stream --model runs/np --state live --horizon 24
        mambakit timeseries stream --model runs/co2 --input co2.csv --every 0
    """
    from mambakit.core.data.frames import read_frame
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.model import load_stream
    from mambakit.domains.timeseries.stream.live import LiveSeries

    if every < 0:
        raise UsageError(f"every: expected 0 or more, got {every}")
    if horizon is not None and horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    forecaster = load_stream(model, resolve_device(device), verb="stream")
    ahead = None if future is None else read_frame(future)
    known = state is not None and (state / "stream.json").exists()
    live = LiveSeries.load(state, forecaster) if known and state is not None else LiveSeries(forecaster)
    n_read = n_bad = 0
    since: dict[str, int] = {}

    def say(name: str) -> None:
        for one in live.forecast(horizon, ids=[name], future=ahead):
            levels = [f"q{level * 100:g}" for level in one.levels]
            columns = dict(zip(levels, one.quantiles.T.tolist(), strict=True))
            said = {"unique_id": name, "cutoff": str(live.last(name)), "rows": live.n_rows(name)}
            steps = {"ds": [str(stamp) for stamp in one.stamps], "y_hat": one.point.tolist(), **columns}
            print(jsonlib.dumps({**said, **steps}), flush=True)
        since[name] = 0

    try:
        for number, row in _rows(input):
            try:
                name = live.update(row)[0]
            except DataError as error:
                n_bad += 1
                print(f"row {number} left out: {error}", file=sys.stderr)
                continue
            n_read += 1
            since[name] = since.get(name, 0) + 1
            if every and since[name] >= every:
                say(name)
        for name, n in list(since.items()):
            if n:
                say(name)
    finally:
        if state is not None:
            live.save(state)
    print(
        f"{n_read} rows of {len(live.ids)} series read, {n_bad} left out; "
        f"the state takes {live.nbytes / 2**10:.0f} KiB" + (f": {state}" if state else ""),
        file=sys.stderr,
    )


def _rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of a CSV or of JSON lines, each as soon as its line is there."""
    if source == "-":
        yield from _parsed(sys.stdin, "")
        return
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _parsed(file, path.suffix.lower())


def _parsed(file: TextIO, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = file.readline()
    if not first.strip():
        raise DataError("there is no row to read; the first line of a CSV names the columns")
    if suffix in (".jsonl", ".ndjson") or first.lstrip().startswith("{"):
        number, line = 1, first
        while line:
            if line.strip():
                yield number, _json_row(line, number)
            number, line = number + 1, file.readline()
        return
    header = [name.strip() for name in next(csv.reader([first]))]
    number = 1
    # iter(readline) hands a line on at once, where iterating a pipe would wait for a block of them
    for fields in csv.reader(iter(file.readline, "")):
        number += 1
        if fields:
            yield number, {name: _value(name, text) for name, text in zip(header, fields, strict=False)}


def _json_row(line: str, number: int) -> dict[str, Any]:
    try:
        row = jsonlib.loads(line)
    except ValueError as error:
        return {"ds": f"line {number} is not JSON ({error})", "y": None}
    return row if isinstance(row, dict) else {"ds": f"line {number} is no JSON object", "y": None}


def _value(name: str, text: str) -> Any:
    """A field of a CSV: a number where it is one, None where it is empty."""
    text = text.strip()
    if name == "unique_id":
        return text
    if not text or text.lower() in ("nan", "na", "null"):
        return None
    try:
        return int(text) if name == "ds" else float(text)
    except ValueError:
        return text
