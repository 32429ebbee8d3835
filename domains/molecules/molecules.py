"""Molecules with labels, and how they are split: what every part of the domain reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TaskKind = Literal["regression", "classification"]
LEFT_OUT = ("row", "smiles", "reason")


def _none_left_out() -> pd.DataFrame:
    import pandas as pd  # not above: help of flags reads this file too, and waits for nothing else

    return pd.DataFrame(columns=list(LEFT_OUT))


@dataclass(frozen=True)
class Task:
    """One property.

    Attributes:
        name: Its column.
        kind: Whether labels are numbers or 0 and 1.
        unit: Of the numbers, as errors are printed; empty if none is known.
    """

    name: str
    kind: TaskKind
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Molecules:
    """Rows that RDKit can read, and what became of the others.

    Attributes:
        name: The card's name, or the file's.
        rows: Where each stands in its source, from 1, ``(n,)``.
        smiles: As given, ``(n,)`` strings; several components or a reaction are one string.
        labels: ``(n, n_tasks)`` float64, NaN where unknown.
        tasks: What the columns of ``labels`` are.
        left_out: Rows that could not be read: ``row, smiles, reason``.
        table: All columns of the source for the rows kept, as they were read.
        components: Columns of the structures of a row, where several hold them.
        parts: Of a source that is split already: ``train``, ``validation`` or ``test`` of each, ``(n,)``.
        notes: What is not wrong but worth knowing, in sentences.
        largest: Whether only the largest component of salts and mixtures was kept.
    """

    name: str
    rows: NDArray[np.int64]
    smiles: NDArray[np.str_]
    labels: NDArray[np.float64]
    tasks: tuple[Task, ...]
    left_out: pd.DataFrame = field(default_factory=_none_left_out)
    table: pd.DataFrame | None = None
    parts: NDArray[np.str_] | None = None
    notes: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    largest: bool = False

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.smiles), len(self.tasks)):
            raise DataError(
                f"labels: expected shape ({len(self.smiles)}, {len(self.tasks)}), got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.smiles)


@dataclass(frozen=True, eq=False)
class Split:
    """Which molecules are learned from, which choose, which judge: indices into ``Molecules``.

    Attributes:
        name: The protocol: ``random``, ``scaffold``, ``deepchem-scaffold``, ``column``, ``ibm-split``.
        train, validation, test: ``(n,)`` int64 each, disjoint.
    """

    name: str
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
