"""Molecules by a card's name or a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mambakit.core.data import Card, card_names, fetch, load_card
from mambakit.core.data.frames import shortened
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules import embedded
from mambakit.domains.molecules.files import Columns, Source, read_lines, read_source
from mambakit.domains.molecules.molecules import Molecules, TaskKind
from mambakit.domains.molecules.reading import assemble, read_molecules


def molecule_cards() -> list[str]:
    """Names of the cards of this domain."""
    return [name for name in card_names() if load_card(name).domain == "molecules"]


def load_molecules(
    source: Path | str,
    *,
    protocol: str | None = None,
    smiles_column: Columns = None,
    tasks: Sequence[str] | None = None,
    kinds: Mapping[str, TaskKind] | None = None,
    units: Mapping[str, str] | None = None,
    largest: bool = False,
) -> Molecules:
    """The molecules of a card or a file; of a card where both have that name.

    Args:
        source: A card's name, or a path.
        protocol: How they will be split. ``ibm-split`` reads the files of a card's second protocol, one after
            the other (rows are counted through), and fills ``parts``; any other reads the original file.
        smiles_column, kinds, units: Of files, as ``reading.read_molecules`` has them; a card knows its own.
        tasks: Label columns; of a card, some of its labels (by default its main one, or all), or ``()``.
        largest: Keep only the largest component of salts and mixtures.

    Raises:
        UsageError: If there is neither such a card nor such a path, a card is told what it knows, or a
            protocol or label is asked for that it doesn't have.
        DataError: If files can't be fetched or read, or don't hold what the card promises.
    """
    text = str(source)
    if text.lower() in {name.lower() for name in card_names()} and "/" not in text:
        card = load_card(text)
        if card.domain == "molecules":
            if smiles_column is not None or kinds is not None or units is not None:
                raise UsageError(f"data: {card.name} has a card, which says its columns, kinds and units")
            return _of_card(card, protocol, tasks, largest)
    if not Path(source).exists():
        raise _neither(text)
    if protocol == "ibm-split":
        raise UsageError(f"split: {text} is a file; only cards have an ibm-split")
    return read_molecules(
        source, smiles_column=smiles_column, tasks=tasks, kinds=kinds, units=units, largest=largest
    )


def _of_card(card: Card, protocol: str | None, tasks: Sequence[str] | None, largest: bool) -> Molecules:
    if protocol == "ibm-split":
        return _of_protocol(card, protocol, tasks, largest)
    asked = _asked(card.name, card.labels, tasks, card.target)
    if card.embedded:
        source = embedded.load(card.embedded)
    else:
        others = {name for own in card.protocols.values() for name in own.files.values()}
        (path,) = _fetched(card, [file.name for file in card.files if file.name not in others])
        source = read_lines(path) if card.layout == "lines" else read_source(path, card.sample_column)
    _check_rows(card.name, len(source.rows), card.rows)
    # files of bare lines are long; their sha256 says that they are the ones found readable
    check = card.layout != "lines" or card.unreadable > 0
    kinds = _kinds(card.labels, asked)
    units = {name: card.units[name] for name in asked if name in card.units}
    return assemble(source, card.name, tasks=asked, kinds=kinds, units=units, largest=largest, check=check)


def _of_protocol(card: Card, protocol: str, tasks: Sequence[str] | None, largest: bool) -> Molecules:
    own = card.protocols.get(protocol)
    if own is None:
        raise UsageError(f"split: {card.name} has no {protocol}")
    target = card.target if card.target in own.labels else None
    asked = _asked(f"{card.name}, {protocol}", own.labels, tasks, target)
    sources = []
    for part, path in zip(own.files, _fetched(card, list(own.files.values())), strict=True):
        sources.append(read_source(path, card.sample_column))
        _check_rows(f"{card.name}, {part} of {protocol}", len(sources[-1].rows), own.rows[part])
    table = pd.concat([one.table for one in sources], ignore_index=True)
    source = Source(np.arange(1, len(table) + 1), table, sources[0].smiles_column)
    parts = np.repeat(np.array(list(own.files), dtype=str), [len(one.rows) for one in sources])
    units = {name: own.units[name] for name in asked if name in own.units}
    kinds = _kinds(own.labels, asked)
    return assemble(source, card.name, tasks=asked, kinds=kinds, units=units, largest=largest, parts=parts)


def _asked(where: str, labels: dict[str, str], tasks: Sequence[str] | None, target: str | None) -> list[str]:
    if tasks is None:
        return [target] if target is not None else list(labels)
    known = {name.lower(): name for name in labels}
    wrong = [one for one in tasks if one.lower() not in known]
    if wrong:
        there = shortened(list(labels)) or "none"
        raise UsageError(f"tasks: {wrong[0]!r} is no label of {where}; its labels: {there}")
    return list(dict.fromkeys(known[one.lower()] for one in tasks))


def _kinds(labels: dict[str, str], asked: list[str]) -> dict[str, TaskKind]:
    return {name: "classification" if labels[name] == "classification" else "regression" for name in asked}


def _fetched(card: Card, names: list[str]) -> list[Path]:
    """Only the files that are read: a protocol's, or the original."""
    wanted = dataclasses.replace(card, files=tuple(file for file in card.files if file.name in names))
    paths = fetch(wanted)
    return [paths[name] for name in names]


def _check_rows(where: str, found: int, promised: int | None) -> None:
    if promised is not None and found != promised:
        raise DataError(f"{where}: its card promises {promised:,} rows, its file holds {found:,}")


def _neither(source: str) -> Exception:
    if "/" in source or Path(source).suffix:
        return DataError(f"no such file: {source}")
    other = load_card(source)  # raises, with close names, if there is none
    return UsageError(f"data: {other.name} is a data set of {other.domain}, not of molecules")
