"""A saved property model as an oracle: its value, or the probability of 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit.Chem import Mol

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.design.objective import Scorer


def predictor_scorer(folder: Path, task: Any, at: str) -> tuple[Scorer, bool]:
    """Predictions of one task of the model in a folder, and whether they are probabilities.

    Args:
        folder: Of `mambakit molecules train`.
        task: The name of a property; None where the model has one.
        at: Where the component stands, for messages.

    Raises:
        UsageError: If the model has no such task, several and none is named, or reads several structures.
        DataError: If the folder holds no property model.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{at}.model: {folder} holds no property model (mambakit molecules train): it has no config.json"
        )
    # not before it is asked for: most designs need none of it
    from mambakit.core.training import resolve_device
    from mambakit.domains.molecules.components import ONE_MOLECULE, in_words
    from mambakit.domains.molecules.model import PropertyModel
    from mambakit.domains.molecules.prediction import inputs_of, predict, refusal

    model = PropertyModel.from_pretrained(folder).to(resolve_device("auto")).eval()
    names = [one.name for one in model.config.tasks]
    if task is None and len(names) > 1:
        raise UsageError(f"{at}.task: {folder} predicts several, name one of {', '.join(names)}")
    if task is not None and task not in names:
        raise UsageError(f"{at}.task: {folder} predicts {', '.join(names)}, got {task!r}")
    if model.config.form != ONE_MOLECULE:
        reads = in_words(model.config.form, model.config.components)
        raise UsageError(f"{at}: {folder} reads {reads}, and a design is one molecule")
    column = 0 if task is None else names.index(task)

    def score(smiles: Sequence[str], mols: Sequence[Mol]) -> tuple[NDArray[np.float64], list[str]]:
        reasons = [refusal(model, one) for one in smiles]
        values = np.full(len(smiles), np.nan)
        good = [i for i, reason in enumerate(reasons) if not reason]
        if good:
            values[good] = predict(model, inputs_of(model, [smiles[i] for i in good])).value[:, column]
        return values, reasons

    return score, model.config.tasks[column].kind == "classification"
