"""Predictions as a table: every row of the input in its order, bad ones with RDKit's reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.domains.molecules.files import Source
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.prediction import (
    ALPHA,
    Predictions,
    inputs_of,
    predict,
    refusal,
    unseen_tokens,
)
from mambakit.domains.molecules.structures import structure

SIMILARITY, ERROR = "nearest_train_similarity", "error"
# Descriptors and token ids of so many molecules are held at once.
_AT_ONCE = 4096
# From so many molecules on the descriptors' milliseconds are worth other processes' seconds of starting.
_MANY = 1000


@dataclass(frozen=True, eq=False)
class PredictedTable:
    """What was made of a file.

    Attributes:
        table: Columns of the input, then for each regression ``NAME_predicted``, ``NAME_low``, ``NAME_high``,
            ``NAME_uncertainty``; for each classification ``NAME_probability``, ``NAME_predicted``,
            ``NAME_set``, ``NAME_uncertainty``; then ``nearest_train_similarity`` and ``error``.
        bad: How many rows have an error.
        cut: Rows of molecules that are longer than the sequence model reads.
        unseen: Tokens that the model doesn't know, as the SMILES' canonical forms have them, and their rows.
        replaced: Columns of the input that had one of these names, and were replaced.
        embeddings: ``row`` and ``e0``, ``e1``, ... of the rows without error, where they were asked for.
    """

    table: pd.DataFrame
    bad: int
    cut: tuple[int, ...]
    unseen: dict[str, list[int]]
    replaced: tuple[str, ...]
    embeddings: pd.DataFrame | None


def predicted_table(
    model: PropertyModel,
    source: Source,
    *,
    alpha: float = ALPHA,
    embed: bool = False,
    n_jobs: int | None = None,
) -> PredictedTable:
    """Predicts every row of a file that RDKit and the model can read.

    Args:
        model: Trained.
        source: The rows.
        alpha: The share of labels that may lie outside the intervals and sets.
        embed: With the embeddings.
        n_jobs: Processes that compute descriptors; by default one, or one a core for a thousand molecules.
    """
    smiles = source.smiles
    reasons = np.array([""] * len(smiles), dtype=object)
    for place, one in enumerate(smiles):
        reasons[place] = (
            source.reasons.get(place) or structure(one, source.components)[1] or refusal(model, one)
        )
    good = np.flatnonzero(reasons == "")
    made: dict[str, NDArray[np.generic]] = {}
    vectors, cut = [], []
    if n_jobs is None:
        n_jobs = -1 if len(good) >= _MANY else 1
    for places, said in _in_pieces(model, smiles, good, alpha, embed, n_jobs):
        for name, values in _columns(model, said).items():
            if name not in made:
                blank = "" if values.dtype == object else np.nan
                made[name] = np.full(len(smiles), blank, dtype=values.dtype)
            made[name][places] = values
        cut += [int(source.rows[places[i]]) for i in said.cut]
        if said.embeddings is not None:
            vectors.append(said.embeddings)
    table = source.table.copy()
    replaced = tuple(name for name in (*made, ERROR) if name in table.columns)
    table = table.drop(columns=list(replaced)).assign(**made)
    table[ERROR] = reasons
    embeddings = None
    if embed:
        stacked = np.concatenate(vectors) if vectors else np.zeros((0, 0))
        names = [f"e{i}" for i in range(stacked.shape[1])]
        embeddings = pd.DataFrame(stacked.astype(np.float32), columns=names)
        embeddings.insert(0, "row", source.rows[good])
    unseen = unseen_tokens(model, [smiles[i] for i in good], source.rows[good].tolist())
    return PredictedTable(table, len(smiles) - len(good), tuple(cut), unseen, replaced, embeddings)


def _in_pieces(
    model: PropertyModel,
    smiles: list[str],
    good: NDArray[np.int64],
    alpha: float,
    embed: bool,
    n_jobs: int,
) -> Iterator[tuple[NDArray[np.int64], Predictions]]:
    for begin in range(0, len(good), _AT_ONCE):
        places = good[begin : begin + _AT_ONCE]
        inputs = inputs_of(model, [smiles[i] for i in places], n_jobs=n_jobs)
        yield places, predict(model, inputs, alpha=alpha, embed=embed)


def _columns(model: PropertyModel, said: Predictions) -> dict[str, NDArray[np.generic]]:
    found: dict[str, NDArray[np.generic]] = {}
    for i, task in enumerate(model.config.tasks):
        value = said.value[:, i]
        if task.kind == "regression":
            found[f"{task.name}_predicted"] = value
            found[f"{task.name}_low"] = said.low[:, i]
            found[f"{task.name}_high"] = said.high[:, i]
        else:
            found[f"{task.name}_probability"] = value
            found[f"{task.name}_predicted"] = (value >= 0.5).astype(float)
            names = np.array(["", "0", "1", "0 1"], dtype=object)
            found[f"{task.name}_set"] = names[said.sets[:, i, 0] + 2 * said.sets[:, i, 1]]
        found[f"{task.name}_uncertainty"] = said.spread[:, i]
    found[SIMILARITY] = said.similarity
    return found
