"""What a run folder keeps beside the model: which data it was trained on, and how they were split."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from mambakit.core.data import card_names
from mambakit.core.errors import DataError, UsageError
from mambakit.core.folders import read_json_object
from mambakit.core.hub import HubModel
from mambakit.core.training import resolve_device
from mambakit.core.training.run_folder import write_atomically
from mambakit.domains.speech.cards import Task, load_utterances
from mambakit.domains.speech.utterances import Protocol, Split, Utterances, split_utterances

DATA_FILE = "data.json"
Model = TypeVar("Model", bound=HubModel)


@dataclass(frozen=True)
class DataSpec:
    """Data and their split, as the command line named them."""

    task: str
    data: str
    split: Protocol | None = None
    """None: official where the data name parts, else random."""
    seed: int = 0
    test_speaker: str | None = None
    validation_speaker: str | None = None
    unseen: list[str] = field(default_factory=list)
    """Of separation: the two speakers that are heard in the test alone."""

    def load(self) -> tuple[Utterances, Split]:
        """The utterances and their split. Raises as ``load_utterances`` and ``split_utterances`` do."""
        utterances = load_utterances(self.data, cast(Task, self.task))
        by_parts: Protocol = "random" if utterances.parts is None else "official"
        chosen: Protocol = self.split or ("speaker" if self.test_speaker else by_parts)
        return utterances, split_utterances(
            utterances,
            chosen,
            seed=self.seed,
            test_speaker=self.test_speaker,
            validation_speaker=self.validation_speaker,
        )

    def resolved(self) -> DataSpec:
        """With paths in full, so that they serve from another folder; several stand between commas."""
        cards = {name.lower() for name in card_names()}
        names = [
            str(Path(name).resolve()) if name.lower() not in cards and Path(name).exists() else name
            for name in (word.strip() for word in self.data.split(","))
        ]
        return dataclasses.replace(self, data=",".join(names))


def save_spec(folder: Path, spec: DataSpec) -> None:
    """Writes it into a run folder."""
    write_atomically(folder / DATA_FILE, json.dumps(dataclasses.asdict(spec.resolved()), indent=2) + "\n")


def load_spec(folder: Path) -> DataSpec:
    """Reads it.

    Raises:
        DataError: If it is missing, or damaged.
    """
    try:
        return DataSpec(**read_json_object(Path(folder) / DATA_FILE))
    except TypeError as error:
        raise DataError(
            f"{folder / DATA_FILE} says something else than what a model was trained on"
        ) from error


def load_model(kind: type[Model], task: Task, folder: Path, device: str) -> Model:
    """A saved model on a device, in evaluation mode.

    Raises:
        UsageError: If the folder holds a model of another task.
        DataError: If it holds none, or a damaged one.
    """
    if (folder / DATA_FILE).is_file() and (found := load_spec(folder).task) != task:
        raise UsageError(f"model: {folder} holds a model of the task {found}; this takes one of {task}")
    model = kind.from_pretrained(folder)
    assert isinstance(model, nn.Module)
    return model.to(resolve_device(device)).eval()
