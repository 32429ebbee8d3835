"""The data of a training run: loaded, split and recorded, so that an evaluation finds the same molecules.

Beside the model lie ``split.json``, which says how the data were read and which rows each part had, and
``training_molecules.csv``, the molecules and labels that baselines are fitted on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data import card_names
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training.run_folder import write_atomically
from mambakit.domains.molecules.cards import load_molecules, molecule_cards
from mambakit.domains.molecules.config import Notation
from mambakit.domains.molecules.leaks import leaks
from mambakit.domains.molecules.molecules import Molecules, Split, Task, TaskKind
from mambakit.domains.molecules.reading import without
from mambakit.domains.molecules.splits import split_molecules
from mambakit.domains.molecules.tokenizer import TOKENIZERS

SPLIT_FILE, TRAINING_FILE = "split.json", "training_molecules.csv"
_DEFAULT = "scaffold"
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSpec:
    """What a user said of the data.

    Attributes:
        data: A card's name, or a path.
        split: The protocol; None for the default.
        split_column: Of ``column``.
        smiles_column: Of files; several, where a row has several structures.
        tasks: Label columns; None for the default.
        units: Of some tasks, ``TASK=UNIT`` each.
        kinds: Of some tasks, ``TASK=regression`` or ``TASK=classification`` each.
        largest_component: Whether salts lose their small components.
        seed: Of the split.
        tokenizer: How the model reads structures; those that it can't hold are left out.
    """

    data: str
    split: str | None = None
    split_column: str | None = None
    smiles_column: list[str] | None = None
    tasks: list[str] | None = None
    units: list[str] | None = None
    kinds: list[str] | None = None
    largest_component: bool = False
    seed: int = 0
    tokenizer: Notation | None = None

    @property
    def protocol(self) -> str:
        """The one asked for; column where a split column is named; scaffold."""
        return self.split or ("column" if self.split_column else _DEFAULT)


def load(spec: DataSpec) -> tuple[Molecules, Split]:
    """The molecules and their split.

    Raises:
        UsageError, DataError: As ``load_molecules`` and ``split_molecules``; or on units or kinds that are
            none.
    """
    molecules = _read(spec)
    return molecules, split_molecules(molecules, spec.protocol, seed=spec.seed, column=spec.split_column)


def _read(spec: DataSpec) -> Molecules:
    units = _by_task("units", spec.units, "TASK=UNIT, such as 'logS=log mol/L'")
    kinds = _by_task("kinds", spec.kinds, "TASK=regression or TASK=classification")
    molecules = load_molecules(
        spec.data,
        protocol=spec.protocol,
        smiles_column=spec.smiles_column,
        tasks=spec.tasks,
        kinds=cast("dict[str, TaskKind] | None", kinds),  # other words are refused by name
        units=units,
        largest=spec.largest_component,
    )
    return held(molecules, spec.tokenizer)


def _by_task(what: str, given: Sequence[str] | None, expected: str) -> dict[str, str] | None:
    """``TASK=VALUE`` words as a mapping."""
    if given is None:
        return None
    pairs = [one.rpartition("=") for one in given]
    wrong = next((one for one, (name, _, _) in zip(given, pairs, strict=True) if not name), None)
    if wrong is not None:
        raise UsageError(f"{what}: expected {expected}, got {wrong!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def resolved(data: str) -> str:
    """The card's own name, or the file's absolute path: the same however the data were called."""
    if "/" not in data:
        for name in card_names():
            if name.lower() == data.lower():
                return name
    return str(Path(data).resolve())


def content(molecules: Molecules, split: Split) -> str:
    """What a run learns from, in short: another text if a structure, a label or a part is another."""
    digest = hashlib.sha256(json.dumps(molecules.smiles.tolist()).encode())
    digest.update(json.dumps([dataclasses.asdict(task) for task in molecules.tasks]).encode())
    digest.update(np.where(np.isnan(molecules.labels), np.nan, molecules.labels).astype("<f8").tobytes())
    for part in (molecules.rows, *(getattr(split, part) for part in _PARTS)):
        digest.update(b"%d " % len(part) + part.astype("<i8").tobytes())
    return f"{len(molecules)} molecules, sha256 {digest.hexdigest()[:16]}"


def held(molecules: Molecules, tokenizer: Notation | None) -> Molecules:
    """Molecules without those that a tokenizer can't hold."""
    if tokenizer not in TOKENIZERS:
        return molecules
    refused = TOKENIZERS[tokenizer]().refusal
    said = {place: refused(one) for place, one in enumerate(molecules.smiles.tolist())}
    return without(molecules, {place: reason for place, reason in said.items() if reason})


def leak_sentence(molecules: Molecules, split: Split) -> str:
    """What test shares with training, or nothing without a test part."""
    return leaks(molecules, split).sentence() if len(split.test) else ""


def counted(molecules: Molecules) -> list[str]:
    """What was read and what could not be, a line each."""
    lost = molecules.left_out
    if not len(lost):
        return []
    first = lost.iloc[0]
    return [
        f"{molecules.name}: {len(molecules)} molecules; {len(lost)} rows can't be read and are left out (the "
        f"first, row {first['row']}: {first['reason']})"
    ]


def save(folder: Path, spec: DataSpec, molecules: Molecules, split: Split) -> None:
    """Record how to make the split again, and what was learned from."""
    record = {
        **dataclasses.asdict(spec),
        "data": resolved(spec.data),
        "split": split.name,
        "content": content(molecules, split),
        "rows": {part: molecules.rows[getattr(split, part)].tolist() for part in _PARTS},
    }
    write_atomically(folder / SPLIT_FILE, json.dumps(record) + "\n")
    frame = pd.DataFrame(molecules.labels[split.train], columns=[task.name for task in molecules.tasks])
    frame.insert(0, "smiles", molecules.smiles[split.train])
    write_atomically(folder / TRAINING_FILE, frame.to_csv(index=False))


def training_molecules(folder: Path, tasks: Sequence[Task]) -> tuple[list[str], NDArray[np.float64]]:
    """SMILES and labels ``(n, n_tasks)`` that a model was trained on.

    Raises:
        DataError: If the folder doesn't have them.
    """
    try:
        frame = pd.read_csv(folder / TRAINING_FILE, dtype={"smiles": str}, keep_default_na=True)
        return frame["smiles"].tolist(), frame[[task.name for task in tasks]].to_numpy(np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder}: {TRAINING_FILE} is missing or damaged ({error}), so no baseline can be fitted"
        ) from None


def to_evaluate(
    folder: Path, tasks: Sequence[Task], data: str | None, part: str | None, smiles_column: list[str] | None
) -> tuple[Molecules, NDArray[np.int64], str]:
    """The molecules to measure a saved model on, which of them, and what these are called.

    Args:
        folder: Of the model.
        tasks: Of the model.
        data: A card or file; None, or the training's, for the data of the training.
        part: Of the training's split; None for test, or for all of other data.
        smiles_column: Of other data; where the training's had several columns, these by default.

    Raises:
        DataError: If the data of the training have changed, or others lack the labels.
        UsageError: If a part is asked for of other data.
    """
    record = _recorded(folder)
    spec = record.spec
    if data is None or resolved(data) == spec.data:
        molecules, split = _as_trained(record, tasks)
        which = part or "test"
        places = np.arange(len(molecules)) if which == "all" else getattr(split, which)
        if not len(places):
            raise DataError(f"part: the {spec.protocol} split of {spec.data} has no {which} part")
        return molecules, places, f"{which} part of the {split.name} split" if which != "all" else "all"
    if part not in (None, "all"):
        raise UsageError(f"part: {data} was not split in training; it is measured as a whole")
    names = [task.name for task in tasks]
    if data.lower() in {name.lower() for name in molecule_cards()}:
        molecules = load_molecules(data, tasks=names, largest=spec.largest_component)
    else:
        usual = spec.smiles_column if spec.smiles_column and len(spec.smiles_column) > 1 else None
        kinds = {task.name: task.kind for task in tasks}
        units = {task.name: task.unit for task in tasks if task.unit}
        molecules = load_molecules(
            data, smiles_column=smiles_column or usual, tasks=names, kinds=kinds, units=units,
            largest=spec.largest_component,
        )  # fmt: skip
    molecules = held(molecules, spec.tokenizer)
    return molecules, np.arange(len(molecules)), "all"


@dataclass(frozen=True)
class _Record:
    """What ``save`` wrote: how the data were read, what they held, and the rows of each part."""

    spec: DataSpec
    content: str
    rows: dict[str, list[int]]


def _recorded(folder: Path) -> _Record:
    try:
        found: dict[str, Any] = json.loads((folder / SPLIT_FILE).read_text("utf-8"))
        spec = DataSpec(**{field.name: found[field.name] for field in dataclasses.fields(DataSpec)})
        return _Record(spec, str(found["content"]), {part: list(found["rows"][part]) for part in _PARTS})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: {SPLIT_FILE} is missing or damaged ({error}); train it anew") from None


def _as_trained(record: _Record, tasks: Sequence[Task]) -> tuple[Molecules, Split]:
    """The molecules with the tasks that the model learned, in the parts that they had then."""
    spec = record.spec
    molecules = _read(spec)
    names = [task.name for task in molecules.tasks]
    place = {row: i for i, row in enumerate(molecules.rows.tolist())}
    if {task.name for task in tasks} <= set(names) and set().union(*record.rows.values()) <= set(place):
        kept = [names.index(task.name) for task in tasks]
        own = tuple(molecules.tasks[i] for i in kept)
        molecules = dataclasses.replace(molecules, tasks=own, labels=molecules.labels[:, kept])
        parts = [np.array([place[row] for row in record.rows[part]], dtype=np.int64) for part in _PARTS]
        split = Split(spec.protocol, *parts)
        if content(molecules, split) == record.content:
            return molecules, split
    raise DataError(
        f"data: the structures or labels of {spec.data} are no longer those that the model was trained on, "
        "so its parts can't be found again; copy the file to another name to measure the model on all of it"
    )
