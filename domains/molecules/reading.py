"""Molecules in: CSV, Parquet, SMILES (``.smi``) and SD files, with labels and with what could not be read.

What each kind of bad input does
--------------------------------
Rows whose structure RDKit can't read are left out of the molecules and kept in ``left_out`` with their row
and RDKit's reason: a syntax error, a broken valence, rings that can't be kekulised, nothing given.

Errors are: an empty file, a column that is missing, text or infinity among labels that were asked for, a
label column without any label, classes that are not 0 and 1, labels beyond 1e100, no readable row at all.

Not bad, but worth knowing (``Molecules.notes``): labels that never change, one class only, columns of two
different values, which may be classes or numbers, the same structure in several rows, numeric columns that
are not taken for labels.

Rows of several structures (in several columns, or joined by ``;`` in one) and reactions are read structure by
structure, and the reason names the one that can't be read. All rows of a source with labels have one form:
those of another than most are left out too.

Salts and mixtures stay as given (``largest`` keeps the largest component), and so does each SMILES: blanks
around it are taken off, nothing is made canonical.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.domains.molecules.components import commonest_form, form_of, in_words
from mambakit.domains.molecules.duplicates import conflicts, repeats
from mambakit.domains.molecules.files import Columns, Source, read_source
from mambakit.domains.molecules.labels import read_labels
from mambakit.domains.molecules.molecules import LEFT_OUT, Molecules, TaskKind
from mambakit.domains.molecules.structures import canonical, kept_component, leaves, shown, structure


def read_molecules(
    path: Path | str,
    *,
    smiles_column: Columns = None,
    tasks: Sequence[str] | None = None,
    kinds: Mapping[str, TaskKind] | None = None,
    units: Mapping[str, str] | None = None,
    largest: bool = False,
    name: str | None = None,
) -> Molecules:
    """The molecules of a file; the module's docstring says what bad input does.

    Args:
        path: ``.csv`` (commas, semicolons, tabs or bars), ``.parquet``, ``.smi`` or ``.sdf``; ``.gz`` may
            follow, except on Parquet.
        smiles_column: The column of structures; by default the one called smiles, or one of its usual names.
            Several, such as a solute's and its solvent's, make each row the structures of them all.
        tasks: Columns of labels; None takes all that hold numbers, ``()`` none: for structures alone.
        kinds: ``regression`` or ``classification`` of some tasks; of the others told from their values.
        units: Of some tasks, for printing.
        largest: Keep only the largest component of salts and mixtures, written anew as SMILES.
        name: What to call the file in sentences; its path by default.

    Raises:
        DataError: If the file or its labels can't be used.
        UsageError: If an option contradicts another.
    """
    source = read_source(Path(path), smiles_column)
    return assemble(
        source, name or str(path), tasks=tasks, kinds=kinds, units=units, largest=largest, check=True
    )


def assemble(
    source: Source,
    name: str,
    *,
    tasks: Sequence[str] | None,
    kinds: Mapping[str, TaskKind] | None = None,
    units: Mapping[str, str] | None = None,
    largest: bool = False,
    check: bool = True,
    parts: NDArray[np.str_] | None = None,
) -> Molecules:
    """Rows of a file as molecules.

    Args:
        source: The rows.
        name: What to call them.
        tasks, kinds, units, largest: As ``read_molecules`` has them.
        check: Whether to let RDKit read each structure; False for files that are known to be readable.
        parts: ``train``, ``validation`` or ``test`` of each row.

    Raises:
        DataError: If no row can be read, or the labels can't be used.
    """
    given = [one.strip() for one in source.smiles]
    written: dict[int, str] = {}  # canonical, to find structures that stand in several rows
    reasons = dict(source.reasons)
    if check:
        for place, one in enumerate(given):
            mol, reason = structure(one, source.components)
            if mol is None:
                reasons.setdefault(place, reason)
            elif tasks is None or tasks:
                written[place] = canonical(one) if leaves(one)[1] else str(Chem.MolToSmiles(mol))
        reasons |= _unlike({place: given[place] for place in written})
    kept = np.array([place not in reasons for place in range(len(given))], dtype=bool)
    places = np.flatnonzero(kept)
    lost = [(int(source.rows[i]), given[i], reasons[i]) for i in sorted(reasons)]
    if not len(places):
        row, text, reason = lost[0]
        raise DataError(
            f"{name}: none of its {len(lost)} structures can be read; the first, row {row}, {shown(text)}: "
            f"{reason}"
        )
    rows = source.rows[places]
    table = source.table.iloc[places].reset_index(drop=True)
    column, skip = source.smiles_column, (*source.names, *source.others)
    labels, found, notes = read_labels(table, rows, name, tasks, column, skip, kinds, units)
    smiles = [given[i] for i in places]
    if largest:
        shorter = [kept_component(one) for one in smiles]
        changed = sum(one != before for one, before in zip(shorter, smiles, strict=True))
        smiles = shorter
        notes += [f"{name}: of {changed} salts and mixtures only the largest component is kept"] * bool(
            changed
        )
    molecules = Molecules(
        name=name,
        rows=rows,
        smiles=np.array(smiles, dtype=str),
        labels=labels,
        tasks=found,
        left_out=pd.DataFrame(lost, columns=list(LEFT_OUT)),
        table=table,
        parts=None if parts is None else parts[places],
        notes=tuple(notes),
        components=source.components,
        largest=largest,
    )
    names = [written[i] for i in places.tolist()] if written else None
    return _with_repeats(molecules, None if largest else names) if found and check else molecules


def _unlike(given: dict[int, str]) -> dict[int, str]:
    """What is said of rows whose structures are of another form than those of most."""
    usual = commonest_form(list(given.values()))
    return {
        place: f"it is {in_words(form)}, where most rows are {in_words(usual)}"
        for place, one in given.items()
        if (form := form_of(one)) != usual
    }


def without(molecules: Molecules, reasons: Mapping[int, str]) -> Molecules:
    """Molecules without some of them, which are left out for a reason.

    Args:
        molecules: All.
        reasons: By place from 0.

    Raises:
        DataError: If none is left.
    """
    if not reasons:
        return molecules
    kept = np.array([place for place in range(len(molecules)) if place not in reasons], dtype=np.int64)
    lost = [(int(molecules.rows[i]), str(molecules.smiles[i]), reasons[i]) for i in sorted(reasons)]
    if not len(kept):
        raise DataError(f"{molecules.name}: no molecule is left; the first, row {lost[0][0]}: {lost[0][2]}")
    left_out = [one for one in (molecules.left_out, pd.DataFrame(lost, columns=list(LEFT_OUT))) if len(one)]
    return dataclasses.replace(
        molecules,
        rows=molecules.rows[kept],
        smiles=molecules.smiles[kept],
        labels=molecules.labels[kept],
        left_out=pd.concat(left_out).sort_values("row", kind="stable", ignore_index=True),
        table=None if molecules.table is None else molecules.table.iloc[kept].reset_index(drop=True),
        parts=None if molecules.parts is None else molecules.parts[kept],
    )


def _with_repeats(molecules: Molecules, names: list[str] | None) -> Molecules:
    """With what is to say of structures that stand in several rows."""
    if names is None:
        names = [canonical(one) for one in molecules.smiles.tolist()]
    several = repeats(molecules, names)
    if not several:
        return molecules
    found, notes = conflicts(molecules, names), []
    if not found.empty:
        first = found.iloc[0]
        rows = ", ".join(str(row) for row in first["rows"])
        values = ", ".join(f"{value:g}" for value in first["labels"])
        notes.append(
            f"{molecules.name}: {found['smiles'].nunique()} structures stand in several rows with different "
            f"labels, as {shown(first['smiles'])} in rows {rows} ({first['task']}: {values})"
        )
    alike = {smiles: at for smiles, at in several.items() if smiles not in set(found["smiles"])}
    if alike:
        smiles, at = next(iter(alike.items()))
        notes.append(
            f"{molecules.name}: {len(alike)} structures stand in several rows without labels that differ, as "
            f"{shown(smiles)} in rows {', '.join(map(str, at[:3]))}{', ...' if len(at) > 3 else ''}"
        )
    return dataclasses.replace(molecules, notes=(*molecules.notes, *notes))
