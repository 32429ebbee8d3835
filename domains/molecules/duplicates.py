"""The same structure in several rows, found by canonical SMILES, and labels that disagree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mambakit.domains.molecules.molecules import Molecules
from mambakit.domains.molecules.structures import canonical


def repeats(molecules: Molecules, names: Sequence[str]) -> dict[str, list[int]]:
    """Structures that stand in several rows, by canonical SMILES: the rows of each."""
    rows: dict[str, list[int]] = {}
    for name, row in zip(names, molecules.rows.tolist(), strict=True):
        rows.setdefault(name, []).append(row)
    return {name: at for name, at in rows.items() if len(at) > 1}


def conflicts(molecules: Molecules, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Structures whose known labels differ between rows.

    Args:
        molecules: With labels.
        names: The canonical SMILES of each, where they are known.

    Returns:
        A row for each structure and task: ``smiles`` (canonical), ``task``, ``rows`` (lists of numbers in the
        source) and ``labels`` (lists, as the rows have them).
    """
    if names is None:
        names = [canonical(one) for one in molecules.smiles.tolist()]
    called = pd.Series(names, dtype=object)
    found = []
    for smiles, group in called[called.duplicated(keep=False)].groupby(called):
        places = group.index.to_numpy()
        for column, task in enumerate(molecules.tasks):
            labels = molecules.labels[places, column]
            known = ~np.isnan(labels)
            if known.any() and not np.allclose(labels[known], labels[known][0], rtol=1e-6, atol=1e-9):
                found.append(
                    (smiles, task.name, molecules.rows[places[known]].tolist(), labels[known].tolist())
                )
    return pd.DataFrame(found, columns=["smiles", "task", "rows", "labels"])
