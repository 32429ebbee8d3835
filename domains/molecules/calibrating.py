"""Temperatures, conformal intervals and sets from the validation molecules, saved with the model.

These molecules also chose when training stopped, so that the promise is a little too bright; the coverage on
test molecules stands beside it in every evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mambakit.core.calibration import Calibrator, ConformalSets, SplitConformal, TemperatureScaling
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import PropertyModel, combined
from mambakit.domains.molecules.prediction import (
    INTERVAL,
    SETS,
    TEMPERATURE,
    in_units,
    outputs_of,
    scale_of,
    tasks_by_kind,
)


def calibrate(model: PropertyModel, inputs: MoleculeInputs, labels: NDArray[np.float64]) -> None:
    """Fit the calibrators of a trained model, and its trust in the networks beside the forest.

    Tasks without labels of both kinds get no temperature.

    Args:
        model: Its ``calibrators`` and its forest's trust are replaced.
        inputs: Validation molecules, written in as many ways as predictions will be.
        labels: In their own units, ``(n, n_tasks)``; NaN where unknown.
    """
    model.calibrators = {}
    output, _ = outputs_of(model, inputs)
    target = torch.from_numpy(labels)
    numbers, classes = tasks_by_kind(model)
    fitted: dict[str, Calibrator] = {}
    is_class = torch.tensor([task.kind == "classification" for task in model.config.tasks])
    logits = combined(output, is_class)
    for task in classes:
        there = ~target[:, task].isnan()
        known = target[there, task].long()
        if len(known.unique()) < 2:
            continue
        z = logits[there, task]
        fitted[TEMPERATURE.format(task)] = TemperatureScaling().fit(torch.stack([0 * z, z], -1), known)
    model.calibrators = fitted
    if model.forest is not None and output.forest is not None:
        alone, _ = in_units(model, output._replace(forest=None))
        model.forest = model.forest.trusting(alone, output.forest, labels, model.config.tasks)
    value = torch.from_numpy(in_units(model, output)[0])
    if numbers:
        fitted[INTERVAL] = SplitConformal().fit(
            value[:, numbers], target[:, numbers], scale=scale_of(model, output, numbers)
        )
    for task in classes:
        there = ~target[:, task].isnan()
        if there.any():
            p = value[there, task]
            sets = ConformalSets("lac").fit(torch.stack([1 - p, p], -1), target[there, task].long())
            fitted[SETS.format(task)] = sets
    model.calibrators = fitted
