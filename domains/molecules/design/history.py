"""Every oracle call of a design, on disk as soon as it is made; and the cache that spares repeats."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.domains.molecules.design.objective import Objective, Scores
from mambakit.domains.molecules.structures import scaffold

_FIRST, _LAST = ("call", "smiles", "scaffold", "reward"), ("reason",)


class Called(NamedTuple):
    """One unique molecule that was scored."""

    smiles: str
    scaffold: str
    reward: float
    reason: str
    """Why it has no value, else ''."""


class History:
    """A CSV file with a row a call.

    Its columns: ``call, smiles, scaffold, reward``, of each component its value and what it gives to the
    reward (``NAME``, ``NAME:shaped``), and ``reason``.

    Args:
        path: The file; what it holds is read. A line that was being written when the process was killed is
            cut.
        names: Of the components.

    Raises:
        DataError: If it is of another objective, or damaged.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.columns = [*_FIRST, *(part for name in names for part in (name, f"{name}:shaped")), *_LAST]
        self.calls: list[Called] = []
        self._place: dict[str, int] = {}
        if path.exists():
            self._read()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([self.columns])

    def __len__(self) -> int:
        """Oracle calls made: unique molecules."""
        return len(self.calls)

    def __contains__(self, smiles: str) -> bool:
        return smiles in self._place

    def __getitem__(self, smiles: str) -> Called:
        return self.calls[self._place[smiles]]

    def call(self, smiles: str) -> int:
        """Which call it was, from 1."""
        return self._place[smiles] + 1

    @property
    def rewards(self) -> NDArray[np.float64]:
        """In the order of the calls, ``(n_calls,)``."""
        return np.array([one.reward for one in self.calls])

    def best(self, n: int) -> list[tuple[int, Called]]:
        """The best molecules, each with its call from 1; of equal ones the earlier first."""
        order = np.argsort(-self.rewards, kind="stable")[:n]
        return [(int(i) + 1, self.calls[i]) for i in order]

    def ask(self, objective: Objective, molecules: Mapping[str, Chem.Mol], budget: int) -> int:
        """Score those that are not here yet, in their order, as far as the budget goes, and keep the calls.

        Args:
            objective: What is asked.
            molecules: By canonical SMILES.
            budget: Calls of the whole history at most.

        Returns:
            How many calls it took.
        """
        new = [smiles for smiles in molecules if smiles not in self][: max(budget - len(self), 0)]
        at_once = objective.at_once or len(new) or 1
        for begin in range(0, len(new), at_once):
            part = new[begin : begin + at_once]
            mols = [molecules[smiles] for smiles in part]
            self.append(part, [scaffold(mol) for mol in mols], objective(part, mols))
        return len(new)

    def append(self, smiles: Sequence[str], scaffolds: Sequence[str], scores: Scores) -> None:
        """Keep calls, on disk before this returns."""
        rows = []
        for i, (one, its_scaffold) in enumerate(zip(smiles, scaffolds, strict=True)):
            reason = " ".join(scores.reasons[i].split())
            self._keep(Called(one, its_scaffold, float(scores.reward[i]), reason))
            pairs = zip(scores.values[i], scores.shaped[i], strict=True)
            shown = [_shown(value) for pair in pairs for value in pair]
            rows.append([str(len(self)), one, its_scaffold, _shown(scores.reward[i]), *shown, reason])
        self._write(rows)

    def table(self) -> pd.DataFrame:
        """The file as a table."""
        return pd.read_csv(self.path, keep_default_na=False, dtype={"smiles": str, "scaffold": str})

    def _keep(self, called: Called) -> None:
        self._place[called.smiles] = len(self.calls)
        self.calls.append(called)

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        if whole == 0:
            self.path.unlink()
            return
        rows = csv.reader(content[:whole].decode("utf-8").splitlines())
        head = next(rows)
        if head != self.columns:
            raise DataError(
                f"{self.path} is of another objective: its columns are {', '.join(head)}, expected "
                f"{', '.join(self.columns)}; choose another output or overwrite it"
            )
        for number, row in enumerate(rows, 1):
            try:
                if len(row) != len(head) or int(row[0]) != number:
                    raise ValueError
                self._keep(Called(row[1], row[2], float(row[3]), row[-1]))
            except ValueError:
                raise DataError(f"{self.path}: row {number} is damaged: {','.join(row)[:80]!r}") from None


def _shown(value: float) -> str:
    """A number that reads back as itself, empty for NaN."""
    return "" if np.isnan(value) else repr(float(value))
