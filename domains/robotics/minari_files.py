"""Minari data sets, HDF5 and Arrow, by their folder; written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.actions import action_space_of, numbered
from mambakit.domains.robotics.episodes import (
    ActionSpace,
    EnvironmentRecord,
    Episode,
    Episodes,
    gathered,
    record_from,
)
from mambakit.domains.robotics.observations import Parts, named_rows, parts_of, vector_of
from mambakit.domains.robotics.scores import Reference, reference_of

Format = Literal["hdf5", "arrow"]
_OURS = "mambakit"


def is_minari(folder: Path) -> bool:
    """Whether a folder, or its ``data``, holds a Minari data set, be it a damaged one."""
    parts = ("data/metadata.json", "data/main_data.hdf5", "main_data.hdf5")
    return _data_folder(folder) is not None or any((folder / part).is_file() for part in parts)


def read_minari(folder: Path) -> Episodes:
    """The episodes of a Minari data set; damaged or unusable ones are left out and listed.

    Raises:
        DataError: If the data set as a whole can't be read: no metadata, a truncated file.
    """
    from minari.dataset.minari_storage import MinariStorage

    data = _data_folder(folder)
    if data is None:
        raise DataError(f"{folder} is no whole Minari data set: its metadata.json is missing or damaged")
    try:
        metadata = MinariStorage.read_raw_metadata(data)
        storage = MinariStorage.read(data)
        parts = parts_of(storage.observation_space)
        record = _record(metadata, parts, action_space_of(storage.action_space))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{data}: its metadata can't be read ({_line(error)})") from error
    except UsageError as error:
        raise DataError(f"{data}: {error}") from error
    episodes, names, lost = [], [], []
    for place in range(int(metadata["total_episodes"])):
        try:
            (found,) = storage.get_episodes([place])
            (about,) = storage.get_episode_metadata([place])
            episodes.append(_episode(found, about, parts, storage.action_space))
            names.append(f"episode {place}")
        except (OSError, LookupError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            if "truncated" in str(error) or "file signature not found" in str(error):
                raise DataError(
                    f"{data}: the file is damaged ({_line(error)}); fetch or collect it again"
                ) from error
            lost.append((f"episode {place}", f"damaged: {_line(error)}"))
    return gathered(folder.name, episodes, record, (), lost, names)


def write_minari(
    folder: Path,
    episodes: Iterable[Episode],
    record: EnvironmentRecord,
    *,
    env_spec: Any = None,
    data_format: Format = "hdf5",
    algorithm: str = "",
    description: str = "",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes episodes as the Minari data set ``folder/data``, in place only once all of them are there.

    Observations that are a state alone are written as a plain array, others as a dictionary. Inside are the
    environment's spec and ours, the versions it needs, the reference returns, and each episode's seed,
    behaviour, return and instruction.

    Args:
        episodes: Taken one by one; there must be at least one, and each needs T + 1 observations.
        env_spec: gymnasium's spec, for ``recover_environment``.
        extra: Further facts, kept under ``mambakit`` in the metadata.

    Raises:
        UsageError: If there is already a data set.
        DataError: If there are no episodes.
    """
    from minari import __version__ as minari_version
    from minari.dataset.minari_storage import MinariStorage

    target = folder / "data"
    if target.exists():
        raise UsageError(f"output: {target} is already there; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    # resolved: minari measures relative paths twice over
    staging = folder.resolve() / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    storage = None
    facts: list[dict[str, Any]] = []
    for episode in episodes:
        if storage is None:
            spaces = _spaces(episode, record.action_space)
            spec = env_spec if _can_be_written(env_spec) else None
            storage = MinariStorage.new(staging, *spaces, env_spec=spec, data_format=data_format)
        storage.update_episodes([_buffer(episode)])
        about = {"mambakit_return": episode.total, "behaviour": episode.behaviour}
        about |= {"instruction": episode.instruction, "success": episode.success}
        facts.append({name: value for name, value in about.items() if value is not None})
    if storage is None:
        raise DataError(f"{folder}: there are no episodes to write")
    storage.update_episode_metadata(facts)
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in folder.resolve().name)
    known = {
        "dataset_id": name if "-v" in name and name.rpartition("-v")[2].isdigit() else f"{name}-v0",
        "minari_version": minari_version,
        "algorithm_name": algorithm,
        "author": {"mambakit"},
        "author_email": set(),
        "code_permalink": "",
        "description": description,
        "requirements": [
            f"{package}=={version}"
            for package, version in (
                ("mujoco", record.mujoco_version),
                ("gymnasium", record.gymnasium_version),
            )
            if version is not None
        ],
        "num_episodes_average_score": 100,
        _OURS: {"environment": asdict(record), **(extra or {})},
    }
    if record.reference_random is not None and record.reference_expert is not None:
        known["ref_min_score"], known["ref_max_score"] = record.reference_random, record.reference_expert
    storage.update_metadata(known)
    staging.rename(target)


def facts_of(folder: Path) -> dict[str, Any]:
    """What ``write_minari`` was given as ``extra``; empty for others' data sets."""
    data = _data_folder(folder)
    return {} if data is None else dict(_metadata(data).get(_OURS, {}))


def _data_folder(folder: Path) -> Path | None:
    for place in (folder / "data", folder):
        if (place / "metadata.json").is_file() and "total_episodes" in _metadata(place):
            return place
    return None


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "metadata.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(metadata: Mapping[str, Any], parts: Parts, actions: ActionSpace) -> EnvironmentRecord | None:
    ours = metadata.get(_OURS, {}).get("environment") if isinstance(metadata.get(_OURS), dict) else None
    if ours is not None:
        return record_from(ours)
    # read as JSON: gymnasium's own reader fails on the specs of other versions
    spec = json.loads(metadata["env_spec"]) if isinstance(metadata.get("env_spec"), str) else None
    if not isinstance(spec, dict) or "id" not in spec:
        return None
    needs = [text.partition("==") for text in metadata.get("requirements", []) if isinstance(text, str)]
    versions = {name.strip(): version.strip() for name, _, version in needs if version}
    reference = reference_of(spec["id"])
    return EnvironmentRecord(
        id=spec["id"],
        kwargs={name: value for name, value in (spec.get("kwargs") or {}).items() if name != "render_mode"},
        mujoco_version=versions.get("mujoco"),
        gymnasium_version=versions.get("gymnasium"),
        state_dim=int(vector_of(parts["state"][1]).shape[0]) if "state" in parts else 0,
        action_space=actions,
        reference_random=metadata.get("ref_min_score", None if reference is None else reference.random),
        reference_expert=metadata.get("ref_max_score", None if reference is None else reference.expert),
        reference_source=_source(metadata, reference),
    )


def _source(metadata: Mapping[str, Any], reference: Reference | None) -> str | None:
    if "ref_min_score" in metadata:
        return "the data set"
    return None if reference is None else reference.source


def _episode(
    found: Mapping[str, Any], about: Mapping[str, Any], parts: Parts, action_space: spaces.Space[Any]
) -> Episode:
    seed = about.get("seed")
    return Episode(
        observations=named_rows(parts, found["observations"]),
        actions=numbered(action_space, found["actions"]),
        rewards=np.asarray(found["rewards"], dtype=np.float32),
        terminated=bool(np.any(found["terminations"])),
        truncated=bool(np.any(found["truncations"])),
        instruction=_text(about.get("instruction")),
        seed=None if seed is None else int(seed),
        behaviour=_text(about.get("behaviour")),
        success=None if about.get("success") is None else bool(about["success"]),
    )


def _can_be_written(env_spec: Any) -> bool:
    """Not so where an environment is registered by its class instead of by a name."""
    try:
        return env_spec is not None and bool(env_spec.to_json())
    except (TypeError, ValueError):
        return False


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def _spaces(episode: Episode, actions: ActionSpace) -> tuple[Any, Any]:
    named: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(0, 255, values.shape[1:], np.uint8)
        if values.dtype == np.uint8
        else spaces.Box(-np.inf, np.inf, values.shape[1:], np.float32)
        for name, values in episode.observations.items()
    }
    seen: Any = named["state"] if set(named) == {"state"} else spaces.Dict(named)
    if actions.n is not None:
        return seen, spaces.Discrete(actions.n)
    low, high = (np.asarray(side, dtype=np.float32) for side in (actions.low, actions.high))
    return seen, spaces.Box(low, high, dtype=np.float32)


def _buffer(episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    ends = np.zeros((2, len(episode)), dtype=bool)
    ends[0, -1], ends[1, -1] = episode.terminated, episode.truncated
    seen = episode.observations
    return EpisodeBuffer(
        seed=episode.seed,
        observations=seen["state"] if set(seen) == {"state"} else dict(seen),
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=ends[0],
        truncations=ends[1],
    )


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
