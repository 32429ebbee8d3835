"""A folder of episodes, each in a file: npz, or Parquet with a row a step."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.robotics.episodes import Episode, Episodes, gathered

SUFFIXES = (".npz", ".parquet")
_ENDS = {"terminations": "terminals", "truncations": "timeouts"}
_NAMES = ("state", "image", "goal")
# What others call the same; the first that is there is taken.
_ALSO = {
    "state": ("state", "observations", "observation", "obs", "observation.state"),
    "image": ("image", "images", "observation.image"),
    "goal": ("goal", "desired_goal"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
}


def read_folder(folder: Path) -> Episodes:
    """All episodes in a folder's .npz and .parquet files, in order of their names.

    Raises:
        DataError: If there are no such files, or none can be used.
    """
    # a hidden one is what a kill left of a file that was being written
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."
    )
    if not paths:
        raise DataError(f"{folder} holds no episodes (files that end in {' or '.join(SUFFIXES)})")
    episodes, names, lost = [], [], []
    for path in paths:
        try:
            episodes.append(read_episode(path))
            names.append(path.name)
        except DataError as error:
            lost.append((path.name, str(error).removeprefix(f"{path}: ")))
    found = gathered(folder.name, episodes, None, (), lost, names)
    if not found.episodes:
        raise DataError(f"{folder}: no episode can be used; the first, {lost[0][0]}: {lost[0][1]}")
    return found


def write_episode(path: Path, episode: Episode) -> None:
    """One episode as npz: ``state``, ``actions``, ``rewards``, ... and further facts as JSON (``about``)."""
    about = {
        name: getattr(episode, name)
        for name in ("terminated", "truncated", "instruction", "seed", "behaviour", "success")
    }
    writing = path.with_name(f".{path.stem}.writing.npz")
    arrays: dict[str, Any] = {"actions": episode.actions, "rewards": episode.rewards, **episode.observations}
    np.savez_compressed(writing, about=np.array(json.dumps(about)), **arrays)
    writing.replace(path)


def read_episode(path: Path) -> Episode:
    """One episode from .npz or .parquet.

    Names that others use are understood (``observations``, ``obs``, ``action``, ``reward``, ``terminals``).
    Missing rewards are zeros.

    Raises:
        DataError: If the file is damaged, holds several episodes, or has no actions.
    """
    try:
        arrays = _npz(path) if path.suffix.lower() == ".npz" else _parquet(path)
        return _episode(path, arrays)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: can't be read ({str(error).splitlines()[0]})") from error


def _episode(path: Path, arrays: dict[str, NDArray[Any]]) -> Episode:
    actions = _first(arrays, "actions")
    if actions is None:
        raise DataError(f"{path}: has no actions (it holds {', '.join(arrays)})")
    observations: dict[str, NDArray[Any]] = {}
    for name in _NAMES:
        found = _first(arrays, name)
        if found is not None and name == "image":
            observations[name] = found.astype(np.uint8)
        elif found is not None:
            observations[name] = found.reshape(len(found), -1).astype(np.float32)
    rewards = _first(arrays, "rewards")
    about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    if not isinstance(about, dict):
        raise ValueError("about is no JSON object")
    ends = {}
    for name, other in _ENDS.items():
        flags = np.ravel(arrays.get(name, arrays.get(other, False)))
        told = np.flatnonzero(flags)
        # some go on for a while once the task is done: flags up to the end are one end
        if len(told) and len(flags) == len(actions) and told[0] + len(told) != len(flags):
            raise DataError(
                f"{path}: holds several episodes, one ends at step {told[0]} of {len(actions)}; "
                "expected a file an episode"
            )
        ends[name] = bool(len(told))
    integers = actions.ndim == 1 and actions.dtype.kind in "iu"
    return Episode(
        observations,
        actions.astype(np.int64) if integers else actions.reshape(len(actions), -1).astype(np.float32),
        np.zeros(len(actions), np.float32) if rewards is None else rewards.astype(np.float32).ravel(),
        about.get("terminated", ends["terminations"]),
        about.get("truncated", ends["truncations"]),
        about.get("instruction"),
        about.get("seed"),
        about.get("behaviour"),
        about.get("success"),
    )


def _first(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any] | None:
    return next((arrays[other] for other in _ALSO[name] if other in arrays), None)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    arrays = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        if values and isinstance(values[0], (list, int, float, bool)):
            arrays[name] = np.asarray(values)
    return arrays
