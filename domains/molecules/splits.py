"""Splits of molecules by name; how much of a test set is known from training is said by ``leaks``.

random             a permutation by seed; rows of the same structure stay together
scaffold           Bemis-Murcko scaffolds are never shared between parts; which goes where, by seed
deepchem-scaffold  DeepChem's ScaffoldSplitter: the same without chance, large groups in training
column             a column of the table that says train, validation or test
ibm-split          the files of MoLFormer, SMI-TED and SMI-SSED, where a card has them

A row of several structures goes by its first component, a reaction by its reactants: where the first one is a
solute, no scaffold of a solute is shared, while solvents may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import find_column
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.components import first_component
from mambakit.domains.molecules.molecules import Molecules, Split
from mambakit.domains.molecules.structures import canonical, readable, scaffold

FRACTIONS = (0.8, 0.1, 0.1)
PARTS = ("train", "validation", "test")
_PARTS_CALLED = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)

Indices = NDArray[np.int64]
Three = tuple[Indices, Indices, Indices]


def split_molecules(
    molecules: Molecules,
    protocol: str,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    column: str | None = None,
) -> Split:
    """Which molecules are learned from, which choose, which judge; every molecule is in one part.

    Args:
        molecules: What to split.
        protocol: ``random``, ``scaffold``, ``deepchem-scaffold``, ``column`` or ``ibm-split``.
        seed: Of ``random`` and ``scaffold``.
        fractions: Shares of train, validation and test, of the three that compute a split.
        column: Of ``column``: it says ``train``, ``valid`` (``val``, ``validation``, ``dev``) or ``test``.

    Raises:
        UsageError: On another protocol, fractions that don't add up to 1, or a protocol that the data don't
            have.
        DataError: If there are too few molecules or scaffolds, or the column says something else.
    """
    if protocol == "column":
        return Split(protocol, *_by_column(molecules, column))
    if column is not None:
        raise UsageError(f"column: only the protocol column reads one, got {column!r} with {protocol}")
    if protocol == "ibm-split":
        return Split(protocol, *_given(molecules))
    if protocol not in _COMPUTED:
        raise UsageError(f"split: expected {', '.join(PROTOCOLS)}, got {protocol!r}")
    if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(f"fractions: expected shares of train, validation and test, sum 1, got {fractions}")
    return Split(protocol, *_COMPUTED[protocol](molecules, seed, fractions))


def scaffolds_of(smiles: Sequence[str]) -> NDArray[np.object_]:
    """The Bemis-Murcko scaffold of each, ``(n,)`` strings; of the first component where there are several.

    Raises:
        DataError: If one can't be read.
    """
    mols = readable([first_component(one) for one in smiles])
    return np.array([scaffold(mol) for mol in mols], dtype=object)


def _random(molecules: Molecules, seed: int, fractions: tuple[float, float, float]) -> Three:
    n = len(molecules)
    wanted = _sizes(n, fractions)
    if n < sum(share > 0 for share in fractions):
        _too_few(molecules, "molecules")
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    codes, _ = pd.factorize(np.array([canonical(one) for one in molecules.smiles.tolist()], dtype=object))
    # structures in the order of their first rows: the permutation itself where none comes twice
    _, first, structure_of = np.unique(codes[order], return_index=True, return_inverse=True)
    order = order[np.argsort(first[structure_of], kind="stable")]
    begins = np.flatnonzero(np.diff(codes[order], prepend=codes[order[0]]))

    def end_near(place: int, before: int) -> int:
        """A part ends where a structure does, as near to its share as that allows."""
        there = begins[begins < before]
        if not len(there):
            _too_few(molecules, "different molecules")
        return int(there[np.abs(there - place).argmin()])

    validated = end_near(n - wanted[2], n) if wanted[2] else n
    trained = end_near(wanted[0], validated) if wanted[1] else validated
    return np.sort(order[:trained]), np.sort(order[trained:validated]), np.sort(order[validated:])


def _scaffold(molecules: Molecules, seed: int, fractions: tuple[float, float, float]) -> Three:
    """Groups in an order by seed fill test, then validation, as far as they fit; the others are training.

    A group of more than half of a part that is held out goes to training, so that no part is one scaffold.
    """
    groups = _groups(molecules)
    _, n_validation, n_test = _sizes(len(molecules), fractions)
    held = min((size for size in (n_validation, n_test) if size), default=0)
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    parts: dict[str, list[Indices]] = {part: [] for part in PARTS}
    room = {"test": n_test, "validation": n_validation}
    for group in order:
        fits = [part for part in room if len(group) <= room[part]] if 2 * len(group) <= max(held, 2) else []
        part = fits[0] if fits else "train"
        parts[part].append(group)
        if part in room:
            room[part] -= len(group)
    found = _joined(parts)
    if not len(found[0]) or any(len(one) == 0 < share for one, share in zip(found, fractions, strict=True)):
        _too_few(molecules, "small scaffolds")
    return found


def _deepchem(molecules: Molecules, seed: int, fractions: tuple[float, float, float]) -> Three:
    """DeepChem's ScaffoldSplitter (deepchem/splits/splitters.py): groups from the largest, then the latest.

    A group that would overfill training goes to validation, and one that would overfill that to test.
    """
    groups = sorted(_groups(molecules), key=lambda group: (len(group), group[0]), reverse=True)
    n = len(molecules)
    train_end, validation_end = fractions[0] * n, (fractions[0] + fractions[1]) * n
    parts: dict[str, list[Indices]] = {part: [] for part in PARTS}
    n_train = n_validation = 0
    for group in groups:
        if n_train + len(group) <= train_end:
            parts["train"].append(group)
            n_train += len(group)
        elif n_train + n_validation + len(group) <= validation_end:
            parts["validation"].append(group)
            n_validation += len(group)
        else:
            parts["test"].append(group)
    found = _joined(parts)
    if any(len(one) == 0 < share for one, share in zip(found, fractions, strict=True)):
        _too_few(molecules, "scaffolds")
    return found


def _by_column(molecules: Molecules, column: str | None) -> Three:
    if column is None:
        raise UsageError("column: name the column that says train, valid or test")
    if molecules.table is None:
        raise UsageError(f"column: {molecules.name} has no table")
    name = find_column(column, list(molecules.table.columns), molecules.name, "split column")
    said = molecules.table[name].astype("string").str.strip().str.lower()
    called = said.map(_PARTS_CALLED)
    wrong = np.flatnonzero(called.isna().to_numpy(dtype=bool))
    if len(wrong):
        row, word = molecules.rows[wrong[0]], said.iloc[wrong[0]]
        shown = "nothing" if pd.isna(word) else repr(word)
        raise DataError(
            f"{molecules.name}: column {name!r} says {shown} in row {row} ({len(wrong)} rows in all); "
            f"expected train, valid or test"
        )
    return _of_names(molecules, called.to_numpy(dtype=str))


def _given(molecules: Molecules) -> Three:
    if molecules.parts is None:
        raise UsageError(
            f"split: {molecules.name} was not loaded in the parts of its ibm-split; a card that has them is "
            f"loaded by load_molecules(name, protocol='ibm-split')"
        )
    return _of_names(molecules, molecules.parts)


def _of_names(molecules: Molecules, names: NDArray[np.str_]) -> Three:
    train, validation, test = (np.flatnonzero(names == part).astype(np.int64) for part in PARTS)
    if not len(train):
        raise DataError(f"{molecules.name}: no molecule is in the training part")
    return train, validation, test


def _groups(molecules: Molecules) -> list[Indices]:
    """Molecules of one scaffold each, in the order of their first ones."""
    codes, _ = pd.factorize(scaffolds_of(molecules.smiles.tolist()))
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def _sizes(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """As near to the shares as whole molecules are; one at least where a share is above zero."""
    held = [max(1, round(share * n)) if share > 0 else 0 for share in fractions[1:]]
    return n - sum(held), held[0], held[1]


def _joined(parts: dict[str, list[Indices]]) -> Three:
    none = np.zeros(0, dtype=np.int64)
    train, validation, test = (np.sort(np.concatenate([none, *parts[part]])) for part in PARTS)
    return train, validation, test


def _too_few(molecules: Molecules, what: str) -> NoReturn:
    raise DataError(
        f"{molecules.name}: {len(molecules)} molecules have too few {what} for this split"
        f"{'' if what.endswith('molecules') else '; split at random, or give a column'}"
    )


_COMPUTED: dict[str, Callable[[Molecules, int, tuple[float, float, float]], Three]] = {
    "random": _random,
    "scaffold": _scaffold,
    "deepchem-scaffold": _deepchem,
}
PROTOCOLS = (*_COMPUTED, "column", "ibm-split")
