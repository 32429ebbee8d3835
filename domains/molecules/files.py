"""Files of molecules as tables: CSV and Parquet, SMILES files, SD files.

Text that is not UTF-8 is taken for Latin-1: names of substances are often written so.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem

from mambakit.core.data.frames import find_column, read_columns, shortened
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.structures import SEPARATOR, captured, reason_of

Columns = str | Sequence[str] | None
USUAL_COLUMNS = (
    "smiles",
    "canonical_smiles",
    "mol",
    "structure",
    "molecule",
    "rxn_smiles",
    "reaction_smiles",
)


@dataclass(frozen=True, eq=False)
class Source:
    """Rows as they stand in a file.

    Attributes:
        rows: Where each stands, from 1: lines of SMILES files, of tables the rows below the header.
        table: All columns, as read.
        smiles_column: The one of structures, or the first of them.
        others: The other columns of structures, where a row has several.
        names: Columns that name molecules.
        reasons: Why RDKit could not read a record, by place from 0: of SD files, whose SMILES is then empty.
    """

    rows: NDArray[np.int64]
    table: pd.DataFrame
    smiles_column: str
    names: tuple[str, ...] = ()
    reasons: dict[int, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """All columns of structures where there are several."""
        return (self.smiles_column, *self.others) if self.others else ()

    @property
    def smiles(self) -> list[str]:
        """Of each row, unchecked: its structure, or its structures joined by the separator."""
        columns = [self._texts(name) for name in self.components or (self.smiles_column,)]
        return [SEPARATOR.join(one) for one in zip(*columns, strict=True)]

    def _texts(self, name: str) -> list[str]:
        column = self.table[name].astype(object)
        return ["" if one is None or one is pd.NA or one != one else str(one) for one in column]


def read_source(path: Path, smiles_column: Columns = None) -> Source:
    """A file's rows, read by what its name ends in (``.gz`` may follow).

    Args:
        path: The file.
        smiles_column: The column of structures; several, where a row has several structures.

    Raises:
        DataError: If there is no such file, it is empty, can't be read, or has no column of SMILES.
        UsageError: If several columns are named of a file that is no table, or one twice.
    """
    asked = [smiles_column] if isinstance(smiles_column, str) else list(smiles_column or ())
    if not path.exists():
        raise DataError(f"no such file: {path}")
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file of molecules in it")
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = _READERS.get(suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected .csv, .parquet, .smi or .sdf, got {suffix or 'no extension'!r}")
    if len(asked) > 1 and reader is not _table:
        raise UsageError(
            f"smiles_column: {suffix} files have one structure a row; {' and '.join(asked)} need a table "
            f"such as .csv, or structures that are joined by {SEPARATOR!r}"
        )
    found = reader(path, asked)
    if found.table.empty:
        raise DataError(f"{path} has no rows")
    return found


def read_lines(path: Path) -> Source:
    """A file of SMILES, one a line, whatever its name ends in.

    Raises:
        DataError: If it is empty or can't be read.
    """
    return _smi(path, [])


def find_smiles(columns: Sequence[str], path: object, asked: str | None = None) -> str:
    """The column of structures: the one asked for, or the first with a usual name.

    Raises:
        DataError: If there is none.
    """
    if asked is not None:
        return find_column(asked, columns, str(path), "SMILES column")
    lowered = {one.lower(): one for one in reversed(columns)}
    for usual in USUAL_COLUMNS:
        if usual in lowered:
            return lowered[usual]
    raise DataError(
        f"{path}: no column is called smiles (or {', '.join(USUAL_COLUMNS[1:])}); name the column of SMILES; "
        f"found: {shortened(list(columns))}; a file without a header should end in .smi"
    )


def _table(path: Path, asked: list[str]) -> Source:
    found: list[str] = []

    def choose(names: list[str]) -> tuple[list[str], list[str], list[str]]:
        found[:] = [find_smiles(names, path, one) for one in asked] or [find_smiles(names, path)]
        return names, found, []

    frame, _ = read_columns(path, choose)
    texts = [one for one in frame if isinstance(frame[one].dtype, pd.CategoricalDtype)]
    frame = frame.astype(dict.fromkeys(texts, object))
    for one in frame.columns:
        if (
            pd.api.types.is_object_dtype(frame[one].dtype)
            and frame[one].map(lambda held: isinstance(held, bytes)).any()
        ):  # a column that is not UTF-8
            frame[one] = frame[one].map(
                lambda held: held.decode("latin-1") if isinstance(held, bytes) else held
            )
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"smiles_column: {twice!r} is named twice")
    return Source(np.arange(1, len(frame) + 1), frame, found[0], others=tuple(found[1:]))


def _smi(path: Path, asked: list[str]) -> Source:
    """Lines ``SMILES name``: a first line that names its columns is a header."""
    lines = _text(path).splitlines()
    kept = [(row, line.strip()) for row, line in enumerate(lines, 1) if line.strip()]
    if kept and kept[0][1].split()[0].lower() in USUAL_COLUMNS:
        kept = [(row - kept[0][0], line) for row, line in kept[1:]]
    pairs = [[*line.split(maxsplit=1), ""][:2] for _, line in kept]
    frame = pd.DataFrame(pairs, columns=["smiles", "name"], dtype=object)
    if not frame.empty and not frame["name"].any():
        frame = frame.drop(columns="name")
    return Source(np.array([row for row, _ in kept], dtype=np.int64), frame, "smiles", ("name",))


def _sdf(path: Path, asked: list[str]) -> Source:
    """Records of an SD file: the structure drawn there as canonical SMILES, and its fields.

    A record whose structure can't be read keeps its title and fields. Where a field is called like one of our
    columns, ours has another name.
    """
    supplier = Chem.SDMolSupplier()
    supplier.SetData(_text(path))
    records: list[tuple[str, str, dict[str, str]]] = []
    reasons: dict[int, str] = {}
    for place in range(len(supplier)):
        with captured() as log:
            mol = supplier[place]
        if mol is None:
            reasons[place] = reason_of(log)
            records.append(("", *_without_structure(supplier.GetItemText(place))))
        else:
            records.append((str(Chem.MolToSmiles(mol)), *_fields(mol)))
    taken = {name for _, _, fields in records for name in fields}
    smiles, title = (_free(name, taken) for name in ("smiles", "name"))
    titled = any(called for _, called, _ in records)
    frame = pd.DataFrame.from_records(
        [
            ({title: called or None} if titled else {}) | fields | {smiles: drawn}
            for drawn, called, fields in records
        ]
    )
    return Source(np.arange(1, len(frame) + 1), frame, smiles, (title,), reasons)


def _fields(mol: Chem.Mol) -> tuple[str, dict[str, str]]:
    """Title and fields of a record."""
    title = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    return title, {name: mol.GetProp(name) for name in mol.GetPropNames()}


def _without_structure(record: str) -> tuple[str, dict[str, str]]:
    """Title and fields of a record whose structure can't be read: an empty one is put in its place."""
    lines = record.splitlines()
    ends = [i for i, line in enumerate(lines) if line.startswith(("M  END", ">"))]
    fields = lines[ends[0] + lines[ends[0]].startswith("M") :] if ends else []
    supplier = Chem.SDMolSupplier()
    supplier.SetData("\n".join([lines[0] if lines else "", *_NO_STRUCTURE, *fields, ""]))
    with captured():
        mol = supplier[0] if len(supplier) else None
    return ("", {}) if mol is None else _fields(mol)


def _free(name: str, taken: set[str]) -> str:
    """A column's name that no field has."""
    while name in taken:
        name = f"structure_{name}"
    return name


def _text(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read as text ({' '.join(str(error).split())})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


_NO_STRUCTURE = ("", "", "  0  0  0  0  0  0  0  0  0  0999 V2000", "M  END")
_Reader = Callable[[Path, list[str]], Source]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys((".csv", ".txt", ".tsv", ".parquet", ".pq"), _table),
    **dict.fromkeys((".smi", ".smiles", ".ism"), _smi),
    **dict.fromkeys((".sdf", ".sd", ".mol"), _sdf),
}
