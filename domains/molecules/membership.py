"""Losses of molecules that a property model learned from, and of those that it was tested on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambakit.core.trust.membership import Attacked
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules
from mambakit.domains.molecules.prediction import inputs_of, predict

_LEAST_P = 1e-6


def attacked(
    model: PropertyModel,
    molecules: Molecules,
    inside: NDArray[np.int64],
    outside: NDArray[np.int64],
    *,
    most: int = 2000,
    seed: int = 0,
    split: str = "",
) -> Attacked:
    """A molecule; its loss is the mean over its labels.

    Of numbers the squared error over the labels' variance, of classes the negative log-probability.

    Args:
        model: Trained; its descriptors, fragments and forest are part of it.
        molecules: With the model's tasks.
        inside, outside: The places of those that it learned from, and of the others.
        most: Molecules of each kind, drawn with ``seed``.
        seed: Of the draws.
        split: The split's name, for a note.
    """
    rng = np.random.default_rng(seed)
    variance = np.nanvar(molecules.labels[inside], axis=0)
    scale = np.where(variance > 0, variance, 1.0)
    losses = [_losses(model, molecules, _some(molecules, one, most, rng), scale) for one in (inside, outside)]
    notes = []
    if "random" not in split:
        notes.append(
            f"the {split} split parts molecules that differ: that tells them apart too, without memory"
        )
    return Attacked(losses[0], losses[1], "a molecule", notes)


def _losses(
    model: PropertyModel, molecules: Molecules, places: NDArray[np.int64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    said = predict(model, inputs_of(model, molecules.smiles[places].tolist())).value
    labels = molecules.labels[places]
    found = np.empty_like(labels)
    for i, task in enumerate(molecules.tasks):
        if task.kind == "regression":
            found[:, i] = (said[:, i] - labels[:, i]) ** 2 / scale[i]
        else:
            p = np.clip(np.where(labels[:, i] == 1, said[:, i], 1 - said[:, i]), _LEAST_P, 1)
            found[:, i] = np.where(np.isnan(labels[:, i]), np.nan, -np.log(p))
    return np.nanmean(found, axis=1)


def _some(
    molecules: Molecules, places: NDArray[np.int64], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    labelled = places[(~np.isnan(molecules.labels[places])).any(1)]
    return labelled if len(labelled) <= most else np.sort(rng.choice(labelled, most, replace=False))
