"""LeRobotDataset v3.0 folders, read and written with pyarrow alone (v2 folders are read too).

Layout: ``meta/info.json`` (features, fps, path templates), ``meta/tasks.parquet``, ``meta/episodes/``,
``data/chunk-000/file-000.parquet`` with a row a step, ``videos/KEY/chunk-000/file-000.mp4``. A row holds what
was seen before its action; what was seen after the last one is not stored.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.episodes import (
    EnvironmentRecord,
    Episode,
    Episodes,
    gathered,
    record_from,
    seen_actions,
)

_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
_FILE_BYTES = 100_000_000
_CHUNK = 1000
# What LeRobot has no place for, of each episode.
_OURS = ("truncated", "seed", "behaviour", "success")
_STEP_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def is_lerobot(folder: Path) -> bool:
    """Whether a folder holds a LeRobot data set."""
    return (folder / "meta/info.json").is_file()


def read_lerobot(folder: Path, *, pictures: bool = True) -> Episodes:
    """The episodes of a LeRobot data set: ``observation.state``, a camera, ``action``, tasks, and of our own
    ``observation.goal``. Episodes that its head promises and that are not there, or not whole, are left out.

    Rewards are ``next.reward``, zeros where there are none. Of several cameras the first by name is read.

    Args:
        pictures: Whether to read the camera; decoding video takes far longer than all else.

    Raises:
        DataError: If the folder is of another version, incomplete or damaged.
    """
    info = _info(folder)
    features: Mapping[str, Any] = info["features"]
    cameras = sorted(name for name, about in features.items() if about.get("dtype") in ("image", "video"))
    camera = cameras[0] if cameras and pictures else None
    if "action" not in features:
        raise DataError(f"{folder}: has no action (features: {', '.join(features)})")
    steps = _steps(folder, features, camera)
    tasks = _tasks(folder)
    videos = _Videos(folder, info, camera) if camera and features[camera]["dtype"] == "video" else None
    ours = _ours(folder)
    about = dict(enumerate(ours["episodes"]))
    episodes, names, lost = [], [], []
    for number, rows in steps.groupby("episode_index", sort=True):
        try:
            episode = _episode(rows.sort_values("frame_index"), int(number), camera, tasks, videos)
            episodes.append(replace(episode, **about.get(int(number), {})))
            names.append(f"episode {number}")
        except (ValueError, KeyError, OSError, StopIteration, TypeError) as error:
            lost.append((f"episode {number}", f"damaged: {error}"))
    there = set(steps["episode_index"])
    promised = range(int(info.get("total_episodes") or 0))
    lost += [(f"episode {number}", "has no rows") for number in promised if number not in there]
    notes = [f"of the cameras {', '.join(cameras)}, {camera} is used"] if camera and len(cameras) > 1 else []
    found = gathered(folder.name, episodes, None, notes, lost, names)
    first = found.episodes[0].observations if found.episodes else {}
    kept = ours["environment"]
    record = (
        record_from(kept)
        if kept is not None
        else EnvironmentRecord(
            id=str(info.get("robot_type") or "unknown robot"),
            state_dim=first["state"].shape[1] if "state" in first else 0,
            action_space=seen_actions(found.episodes),
            control_hz=float(info["fps"]),
        )
    )
    return Episodes(found.name, found.episodes, record, found.notes, found.left_out)


def write_lerobot(folder: Path, episodes: Episodes, *, fps: int | None = None) -> None:
    """Writes a LeRobotDataset v3.0 folder; pictures go into the rows as PNG.

    Args:
        fps: Steps a second; by default the environment's.

    Raises:
        UsageError: If the folder holds something already, no rate is known, or actions are choices.
        DataError: If there are no episodes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (folder / "meta").exists() or (folder / "data").exists():
        raise UsageError(f"output: {folder} holds a data set already; choose another folder or remove it")
    if not episodes.episodes:
        raise DataError(f"{episodes.name}: there are no episodes to write")
    environment = episodes.environment
    rate = fps or (max(1, round(environment.control_hz)) if environment and environment.control_hz else None)
    if rate is None:
        raise UsageError(f"fps: {episodes.name} does not say how many steps a second there are; pass it")
    tasks = list(dict.fromkeys(episode.instruction or "" for episode in episodes.episodes))
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    start, size, place, waiting, rows = 0, 0, 0, [], []
    for number, episode in enumerate(episodes.episodes):
        waiting.append(_rows(episode, number, start, tasks, rate))
        size += sum(values.nbytes for values in (*episode.observations.values(), episode.actions))
        rows.append(_about(episode, number, start, place))
        start += len(episode)
        if size > _FILE_BYTES or number == len(episodes) - 1:
            path = folder / _DATA_PATH.format(chunk_index=place // _CHUNK, file_index=place % _CHUNK)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(waiting), path)
            waiting, size, place = [], 0, place + 1
    pq.write_table(pa.Table.from_pylist(rows), folder / _EPISODES_PATH)
    named = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    named.to_parquet(folder / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": environment.id if environment else None,
        "total_episodes": len(episodes),
        "total_frames": start,
        "total_tasks": len(tasks),
        "chunks_size": _CHUNK,
        "data_files_size_in_mb": _FILE_BYTES // 1_000_000,
        "fps": rate,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _DATA_PATH,
        "video_path": None,
        "features": _features(episodes.episodes[0]),
    }
    (folder / "meta/stats.json").write_text(json.dumps(_stats(episodes), indent=1), "utf-8")
    ours = {
        "environment": None if environment is None else asdict(environment),
        "episodes": [{name: getattr(episode, name) for name in _OURS} for episode in episodes.episodes],
    }
    (folder / "meta/mambakit.json").write_text(json.dumps(ours), "utf-8")
    # last: a folder without it is no data set
    (folder / "meta/info.json").write_text(json.dumps(info, indent=1), "utf-8")


def _info(folder: Path) -> dict[str, Any]:
    path = folder / "meta/info.json"
    try:
        info = json.loads(path.read_text("utf-8"))
        version, features, _ = str(info["codebase_version"]), info["features"], float(info["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error
    if not version.startswith(("v2", "v3")):
        raise DataError(f"{path}: is of version {version}; v3.0 (and v2) are read")
    if not isinstance(features, dict) or not all(isinstance(about, dict) for about in features.values()):
        raise DataError(f"{path}: features: expected an object of objects, got {str(features)[:60]}")
    return info


def _ours(folder: Path) -> dict[str, Any]:
    path = folder / "meta/mambakit.json"
    if not path.is_file():
        return {"environment": None, "episodes": []}
    try:
        found = json.loads(path.read_text("utf-8"))
        told = [{name: row.get(name) for name in _OURS} for row in found["episodes"]]
        return {"environment": found["environment"], "episodes": told}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error


def _steps(folder: Path, features: Mapping[str, Any], camera: str | None) -> pd.DataFrame:
    import pyarrow.parquet as pq

    wanted = [
        "episode_index",
        "frame_index",
        "task_index",
        "observation.state",
        "observation.goal",
        "action",
        "next.reward",
        "next.done",
    ]
    if camera is not None and features[camera]["dtype"] == "image":
        wanted.append(camera)
    paths = sorted((folder / "data").rglob("*.parquet"))
    if not paths:
        raise DataError(f"{folder}: has no Parquet files under data")
    tables = []
    for path in paths:
        try:
            there = set(pq.read_schema(path).names)
            tables.append(pq.read_table(path, columns=[name for name in wanted if name in there]).to_pandas())
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
            raise DataError(f"{path}: can't be read ({str(error).splitlines()[0]})") from error
    found = pd.concat(tables, ignore_index=True)
    missing = {"episode_index", "frame_index", "action"} - set(found)
    if missing:
        raise DataError(f"{folder}: its rows lack {', '.join(sorted(missing))}")
    for name in ("episode_index", "frame_index"):
        if not pd.api.types.is_integer_dtype(found[name]):
            raise DataError(f"{folder}: {name}: expected integers in all rows, got {found[name].dtype}")
    return found


def _tasks(folder: Path) -> dict[int, str]:
    path = folder / "meta/tasks.parquet"
    lines = folder / "meta/tasks.jsonl"
    try:
        if path.is_file():
            found = pd.read_parquet(path)
            texts = found.get("task", found.index)
            return {int(number): str(text) for number, text in zip(found["task_index"], texts, strict=True)}
        if lines.is_file():
            rows = [json.loads(line) for line in lines.read_text("utf-8").splitlines() if line.strip()]
            return {int(row["task_index"]): str(row["task"]) for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: its tasks can't be read ({error})") from error
    return {}


def _episode(
    rows: pd.DataFrame, number: int, camera: str | None, tasks: Mapping[int, str], videos: _Videos | None
) -> Episode:
    if not np.array_equal(rows["frame_index"], np.arange(len(rows))):
        raise ValueError(f"its {len(rows)} rows are not the frames 0 to {len(rows) - 1}, each once")
    seen: dict[str, NDArray[Any]] = {}
    for name in ("state", "goal"):
        if f"observation.{name}" in rows:
            seen[name] = _stacked(rows[f"observation.{name}"])
    if videos is not None:
        seen["image"] = videos.frames(number, len(rows))
    elif camera is not None and camera in rows:
        seen["image"] = np.stack([_picture(cell) for cell in rows[camera]])
    actions = rows["action"].to_numpy()
    whole = actions.dtype.kind in "iu"
    rewards = rows["next.reward"] if "next.reward" in rows else pd.Series(np.zeros(len(rows)))
    ended = bool(rows["next.done"].iloc[-1]) if "next.done" in rows else False
    task = tasks.get(int(rows["task_index"].iloc[0]), "") if "task_index" in rows else ""
    return Episode(
        seen,
        actions.astype(np.int64) if whole else _stacked(rows["action"]),
        np.stack(rewards.to_numpy()).astype(np.float32).ravel(),
        terminated=ended,
        truncated=not ended,
        instruction=task or None,
    )


def _stacked(column: pd.Series) -> NDArray[np.float32]:
    values = np.stack([np.asarray(cell, dtype=np.float32) for cell in column])
    return values.reshape(len(values), -1)


def _picture(cell: Mapping[str, Any]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"), dtype=np.uint8)


class _Videos:
    """Frames of episodes, each a stretch of an MP4 that holds many: read on from where the last one ended."""

    def __init__(self, folder: Path, info: Mapping[str, Any], camera: str) -> None:
        self._folder, self._info, self._camera = folder, info, camera
        paths = sorted((folder / "meta/episodes").rglob("*.parquet"))
        rows = [pd.read_parquet(path) for path in paths]
        self._about = pd.concat(rows).set_index("episode_index") if rows else None
        self._path, self._place = "", 0
        self._frames: Iterator[NDArray[Any]] = iter(())

    def frames(self, number: int, count: int) -> NDArray[np.uint8]:
        """The frames of one episode, (count, h, w, 3)."""
        import imageio.v3 as iio

        template, first = self._info["video_path"], 0
        if self._about is None:  # v2: a file an episode
            chunk = number // int(self._info.get("chunks_size", _CHUNK))
            path = template.format(video_key=self._camera, episode_chunk=chunk, episode_index=number)
        else:
            about, key = self._about.loc[number], f"videos/{self._camera}"
            places = {f"{part}_index": int(about[f"{key}/{part}_index"]) for part in ("chunk", "file")}
            path = template.format(video_key=self._camera, **places)
            first = round(float(about[f"{key}/from_timestamp"]) * float(self._info["fps"]))
        if path != self._path or first < self._place:
            self._path, self._place = path, 0
            self._frames = iio.imiter(self._folder / path, plugin="FFMPEG")
        skipped = sum(1 for _ in islice(self._frames, first - self._place))
        found = list(islice(self._frames, count))
        self._place += skipped + len(found)
        if len(found) < count:
            raise ValueError(f"{path} ends after {len(found)} of {count} frames")
        return np.stack(found)


def _rows(episode: Episode, number: int, start: int, tasks: list[str], fps: int) -> Any:
    import pyarrow as pa

    steps = len(episode)
    columns: dict[str, Any] = {}
    for name in ("state", "goal"):
        if name in episode.observations:
            columns[f"observation.{name}"] = _cells(episode.observations[name][:steps])
    if episode.image is not None:
        columns["observation.image"] = [{"bytes": _png(frame), "path": None} for frame in episode.image]
    columns["action"] = _cells(episode.actions)
    columns["next.reward"] = episode.rewards
    columns["next.done"] = np.arange(steps) == (steps - 1 if episode.terminated else -1)
    columns["timestamp"] = (np.arange(steps) / fps).astype(np.float32)
    columns["frame_index"] = np.arange(steps)
    columns["episode_index"] = np.full(steps, number)
    columns["index"] = start + np.arange(steps)
    columns["task_index"] = np.full(steps, tasks.index(episode.instruction or ""))
    return pa.table(columns)


def _cells(values: NDArray[Any]) -> Any:
    """A list a row; of a single number the number alone, as LeRobot wants it."""
    return list(values) if values.ndim == 2 and values.shape[1] != 1 else values.ravel()


def _png(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(frame).save(written, format="PNG")
    return written.getvalue()


def _about(episode: Episode, number: int, start: int, place: int) -> dict[str, Any]:
    return {
        "episode_index": number,
        "tasks": [episode.instruction or ""],
        "length": len(episode),
        "data/chunk_index": place // _CHUNK,
        "data/file_index": place % _CHUNK,
        "dataset_from_index": start,
        "dataset_to_index": start + len(episode),
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _features(episode: Episode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("state", "goal"):
        if name in episode.observations:
            found[f"observation.{name}"] = _feature("float32", episode.observations[name].shape[1:])
    if episode.image is not None:
        found["observation.image"] = _feature(
            "image", episode.image.shape[1:], ["height", "width", "channel"]
        )
    vector = episode.actions.ndim == 2
    found["action"] = _feature("float32" if vector else "int64", episode.actions.shape[1:] or (1,))
    found["next.reward"] = _feature("float32", (1,))
    found["next.done"] = _feature("bool", (1,))
    for name in _STEP_COLUMNS:
        found[name] = _feature("float32" if name == "timestamp" else "int64", (1,))
    return found


def _feature(dtype: str, shape: tuple[int, ...], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def _stats(episodes: Episodes) -> dict[str, Any]:
    columns = {"action": [episode.actions for episode in episodes.episodes]}
    if all("state" in episode.observations for episode in episodes.episodes):
        columns["observation.state"] = [episode.state for episode in episodes.episodes]
    found = {}
    for name, parts in columns.items():
        values = np.concatenate(parts).reshape(sum(map(len, parts)), -1).astype(np.float64)
        measures = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        found[name] = {key: value.tolist() for key, value in measures.items()} | {"count": [len(values)]}
    return found
