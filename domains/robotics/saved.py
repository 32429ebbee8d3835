"""What a run folder keeps beside the policy: its data and their changes, and the target return chosen."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mambakit.core.data import card_names
from mambakit.core.errors import DataError
from mambakit.core.folders import read_json_object
from mambakit.core.training.run_folder import write_atomically

DATA_FILE = "data.json"
TARGET_FILE = "target_return.json"


@dataclass(frozen=True)
class DataSpec:
    """Data, as the command line named them."""

    data: str
    seed: int = 0
    """Of the split."""
    wrappers: dict[str, Any] = field(default_factory=dict)
    """What the episodes were changed by, and environments are when they are evaluated."""

    def resolved(self) -> DataSpec:
        """With the path in full, so that it serves from another folder."""
        if self.data.lower() in {name.lower() for name in card_names()} or not Path(self.data).exists():
            return self
        return dataclasses.replace(self, data=str(Path(self.data).resolve()))


def save_spec(folder: Path, spec: DataSpec) -> None:
    """Writes it into a run folder."""
    write_atomically(folder / DATA_FILE, json.dumps(dataclasses.asdict(spec.resolved()), indent=2) + "\n")


def load_spec(folder: Path) -> DataSpec | None:
    """Reads it; None where there is none, as of a policy that was saved by itself.

    Raises:
        DataError: If it is damaged.
    """
    if not (folder / DATA_FILE).is_file():
        return None
    try:
        return DataSpec(**read_json_object(folder / DATA_FILE))
    except TypeError as error:
        raise DataError(
            f"{folder / DATA_FILE} says something else than what a policy learned from"
        ) from error


def save_target(folder: Path, environment_id: str, value: float) -> None:
    """Keeps the target return that validation seeds chose, for later rollouts."""
    content = {"environment": environment_id, "target_return": value}
    write_atomically(folder / TARGET_FILE, json.dumps(content, indent=2) + "\n")


def load_target(folder: Path, environment_id: str) -> float | None:
    """The target return that was chosen in this environment; None where none was."""
    if not (folder / TARGET_FILE).is_file():
        return None
    kept = read_json_object(folder / TARGET_FILE)
    return float(kept["target_return"]) if kept.get("environment") == environment_id else None
