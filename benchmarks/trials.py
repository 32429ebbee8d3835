"""What benchmarks that train share: presets that are changed for a trial, where runs are kept, their rows."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from processes import add_flags, run_all


def add_trial_flags(parser: argparse.ArgumentParser) -> None:
    """``--seeds``, ``--limit``, ``--set``, ``--keep``, and those of ``processes``."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="learn from so many of each part, to try it out")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; those that are there go on")
    add_flags(parser)


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """Values by their dotted names. Raises SystemExit on a value that is no JSON."""
    changes = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise SystemExit(f"--set {one}: expected PART.FIELD=JSON, a text in double quotes") from error
    return changes


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line of a run that ended."""
    print(json.dumps({**one, "at": round(seconds)}), file=sys.stderr, flush=True)


def measured(
    run_job: Callable[[dict[str, Any]], dict[str, Any]],
    jobs: list[dict[str, Any]],
    arguments: argparse.Namespace,
    rows_of: Callable[[list[dict[str, Any]], str], list[dict[str, Any]]],
    results: str,
    *,
    tell: Callable[[dict[str, Any], float], None] = tell,
    raw: Path | None = None,
    trial: bool | None = None,
) -> int:
    """Runs the jobs and writes the rows that are whole, unless it was a trial; the exit status.

    Args:
        run_job: A job's work, in another process.
        jobs: What to run.
        arguments: Of ``add_trial_flags``, and ``validation_only``; with ``trial`` those of ``processes``.
        rows_of: From the runs that are done and the command to rows.
        results: Name of the file of rows.
        tell: Called with each run that ended, and the seconds since the beginning.
        raw: Where what came of the runs is written too.
        trial: Whether no rows are written; by default as ``is_trial`` says.
    """
    limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
    found = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    done = [one for one in found if "error" not in one]
    if raw is not None:
        raw.write_text(json.dumps(done, indent=1))
    if not (is_trial(arguments) if trial is None else trial):
        from rows import command_line

        publish(results, rows_of(done, command_line()))
    if len(done) < len(jobs):
        print(f"{len(jobs) - len(done)} of {len(jobs)} runs failed or are not done", file=sys.stderr)
    return 1 if len(done) < len(found) else 0


def is_trial(arguments: argparse.Namespace) -> bool:
    """Whether these are no full runs, so that their rows are not written."""
    return bool(arguments.changes or arguments.limit or arguments.validation_only)


def publish(results: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows, where there are any, and shows them."""
    if rows:
        from rows import write_rows

        print(f"{len(rows)} rows written to {write_rows(results, rows)}")
    for one in rows:
        print(one["what"], one["value"], "+-", one["spread"], one["peers"])


def changed(configs: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The configs with some fields, at any depth, set."""

    def within(config: Any, path: Sequence[str], value: Any) -> Any:
        inner = within(getattr(config, path[0]), path[1:], value) if len(path) > 1 else value
        return dataclasses.replace(config, **{path[0]: inner})

    made = dict(configs)
    for name, value in changes.items():
        part, *path = name.split(".")
        made[part] = within(made[part], path, value)
    return made


@contextlib.contextmanager
def folder_of(keep: Path | None) -> Iterator[Path]:
    """Where runs lie: ``keep``, or a folder that is gone afterwards."""
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def run_at(keep: str | None, *names: object) -> Iterator[Path]:
    """A folder for one run: below ``keep``, or one that is gone afterwards."""
    name = "-".join(str(one).replace(" ", "-") for one in names)
    with folder_of(None if keep is None else Path(keep)) as folder:
        yield folder / name


def device_here() -> str:
    """The GPU that this process was given, else the CPU, of which it takes one core."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    torch.set_num_threads(1)
    return "cpu"
