"""Folders that hold a saved model: reading their JSON, saying what they hold, replacing them in one move."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mambakit.core.errors import DataError, UserError

_STAGING = ".saving"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a saved model.

    Raises:
        DataError: If the file is missing, is no JSON, or holds something else than an object.
    """
    if not path.is_file():
        raise DataError(
            f"{path.parent} is no saved model: {path.name} is missing (it holds {listing(path.parent)})"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold a JSON object, got {type(content).__name__}")
    return content


@contextmanager
def replaced(folder: Path, rank: Mapping[str, int]) -> Iterator[Path]:
    """A hidden folder to write into, whose files are moved to ``folder`` once all of them are there.

    Args:
        folder: Where to; made if missing. Other files in it stay.
        rank: The order in which files are moved, by name; a name that is not in it has rank 1.

    Raises:
        UserError: If the path is a file, or can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"can't save a model to {folder}: a file is in the way")
    # on the folder's own file system, so that the moves are renames
    beside = folder if folder.is_dir() else folder.absolute().parent
    staging = beside / f"{_STAGING}-{os.getpid()}"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed process of the same number
        staging.mkdir(parents=True)
        yield staging
        _publish(staging, folder, rank)
    except OSError as error:
        raise UserError(f"can't save a model to {folder}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path, rank: Mapping[str, int]) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: (rank.get(str(name), 1), name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)


def listing(folder: Path) -> str:
    """The names in a folder, for a message."""
    return (
        some(sorted(path.name for path in folder.iterdir() if not path.name.startswith(_STAGING)))
        or "nothing"
    )


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of these names, for a message."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
