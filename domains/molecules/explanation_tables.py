"""Explanations of many molecules as tables: every row of the input in its order, bad ones with why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mambakit.core.training.run_folder import write_atomically
from mambakit.domains.molecules.explaining import Explanation, Method, explain
from mambakit.domains.molecules.files import Source
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.structures import is_reaction, structure
from mambakit.domains.molecules.tables import ERROR


@dataclass(frozen=True, eq=False)
class Explained:
    """What became of a row.

    Attributes:
        row: Where it stands in its source, from 1.
        smiles: As it stands there.
        explanations: One of each property; none of a bad row.
        error: Why there are none; empty otherwise.
    """

    row: int
    smiles: str
    explanations: list[Explanation]
    error: str = ""


def one_molecule(smiles: str) -> Source:
    """A molecule as if it stood in a file alone."""
    return Source(np.array([1]), pd.DataFrame({"smiles": [smiles]}), "smiles")


def explain_all(
    model: PropertyModel,
    source: Source,
    *,
    tasks: Sequence[str] | None = None,
    method: Method = "gradients",
    randomised: int | None = None,
    seed: int = 0,
) -> list[Explained]:
    """Explains every row that can be; arguments as ``explain``.

    Raises:
        UsageError: As ``explain``.
    """
    found = []
    for place, (row, smiles) in enumerate(zip(source.rows.tolist(), source.smiles, strict=True)):
        reason = source.reasons.get(place) or structure(smiles)[1]
        if not reason and is_reaction(smiles):
            reason = "it is a reaction; explain its molecules one by one"
        made = []
        if not reason:
            made = explain(model, smiles, tasks=tasks, method=method, randomised=randomised, seed=seed)
        found.append(Explained(row, smiles, made, reason))
    return found


def atom_table(found: Sequence[Explained]) -> pd.DataFrame:
    """A row an atom and property: ``row, smiles, task, unit, atom, symbol, contribution``, then of the
    molecule (in the same unit) ``explained``, ``base``, ``descriptors`` and ``residual``, and ``error``.

    Atoms are counted from 0 in the order of the SMILES. A bad row is one row with its error.
    """
    rows: list[dict[str, Any]] = []
    for one in found:
        head = {"row": one.row, "smiles": one.smiles}
        for made in one.explanations:
            whole = {
                "explained": made.value,
                "base": made.base,
                "descriptors": made.descriptors,
                "residual": made.residual,
                ERROR: "",
            }
            rows += [
                {**head, "task": made.task.name, "unit": made.unit, **atom, **whole} for atom in _atoms(made)
            ]
        if one.error:
            rows.append({**head, ERROR: one.error})
    columns = ["row", "smiles", "task", "unit", "atom", "symbol", "contribution"]
    columns += ["explained", "base", "descriptors", "residual", ERROR]
    return pd.DataFrame(rows, columns=columns).astype({"atom": "Int64"})


def records(found: Sequence[Explained]) -> list[dict[str, Any]]:
    """The same for JSON: an entry a row and property, with its atoms inside."""
    entries: list[dict[str, Any]] = []
    for one in found:
        head = {"row": one.row, "smiles": one.smiles}
        for made in one.explanations:
            entry: dict[str, Any] = {
                **head,
                "task": made.task.name,
                "unit": made.unit,
                "method": made.method,
                "ways_of_writing": made.n_written,
                "explained": made.value,
                "base": made.base,
                "descriptors": made.descriptors,
                "residual": made.residual,
                "atoms": _atoms(made),
            }
            entry["probability" if made.task.kind == "classification" else "prediction"] = made.predicted
            if made.forest is not None:
                entry |= {"forest": made.forest, "trust": made.trust}
            if made.by_descriptor:
                entry["by_descriptor"] = made.by_descriptor
            entries.append(entry)
        if one.error:
            entries.append({**head, ERROR: one.error})
    return entries


def write_json(found: Sequence[Explained], path: Path) -> None:
    """Writes ``records``, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(records(found), indent=1) + "\n")


def _atoms(made: Explanation) -> list[dict[str, Any]]:
    symbols = [atom.GetSymbol() for atom in made.mol.GetAtoms()]
    return [
        {"atom": i, "symbol": symbol, "contribution": part}
        for i, (symbol, part) in enumerate(zip(symbols, made.atoms.tolist(), strict=True))
    ]
