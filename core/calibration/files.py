"""Calibrators inside a model's folder: ``calibration.json`` and ``calibration.safetensors``, never a pickle.

model.calibrators["interval"] = SplitConformal().fit(model(x_held_out), y_held_out)
model.save_pretrained("runs/etth1")
low, high = Forecaster.from_pretrained("runs/etth1").calibrators["interval"].interval(prediction, alpha=0.1)

Any model with ``HubModel`` does so. Beside another model, and into the folder of one that is saved already,
``save_calibration(folder, calibrators)`` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import safetensors
import safetensors.torch
from torch import Tensor

from mambakit.core.calibration.adaptive import AdaptiveConformal
from mambakit.core.calibration.intervals import SplitConformal
from mambakit.core.calibration.sets import ConformalSets
from mambakit.core.calibration.temperature import TemperatureScaling
from mambakit.core.errors import DataError, UserError

JSON_FILE = "calibration.json"
TENSORS_FILE = "calibration.safetensors"


class Calibrator(Protocol):
    """What can be saved: plain options and tensors."""

    def options(self) -> dict[str, Any]:
        """JSON values."""

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted."""

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of both."""


KINDS: dict[str, type[Calibrator]] = {
    "adaptive_conformal": AdaptiveConformal,
    "conformal_sets": ConformalSets,
    "split_conformal": SplitConformal,
    "temperature_scaling": TemperatureScaling,
}


def save_calibration(folder: str | os.PathLike[str], calibrators: Mapping[str, Calibrator]) -> None:
    """Write fitted calibrators under their names, in the place of those that were there.

    Save without any too: the scores of a model that was trained further are not those of the old one.

    Args:
        folder: An existing folder.
        calibrators: By names of the caller's, without dots.

    Raises:
        ValueError: On a name with a dot.
        TypeError: On an object of another class.
        RuntimeError: On one that was not fitted.
        UserError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"can't save a calibration to {folder}: it is no folder; save the model first")
    kinds = {cls: kind for kind, cls in KINDS.items()}
    content: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, calibrator in calibrators.items():
        if "." in name or not name:
            raise ValueError(f"calibrators: a name must be non-empty and without dots, got {name!r}")
        if type(calibrator) not in kinds:
            known = ", ".join(cls.__name__ for cls in KINDS.values())
            raise TypeError(
                f"calibrators: {name!r} is a {type(calibrator).__name__}; expected one of {known}"
            )
        content[name] = {"kind": kinds[type(calibrator)], "options": calibrator.options()}
        for key, tensor in calibrator.tensors().items():
            tensors[f"{name}.{key}"] = tensor.detach().cpu().contiguous()
    safetensors.torch.save_file(tensors, str(folder / TENSORS_FILE))
    (folder / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_calibration(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The calibrators by name; none where none were saved.

    Raises:
        DataError: If a file is missing or damaged, or of another version.
    """
    folder = Path(folder)
    path = folder / JSON_FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(str(folder / TENSORS_FILE))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(
            f"the calibration in {folder} is damaged ({error}); calibrate and save again"
        ) from error
    found: dict[str, Any] = {}
    try:
        for name, entry in content.items():
            own = {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{name}.")
            }
            found[name] = KINDS[entry["kind"]].from_saved(entry["options"], own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} doesn't fit this version ({type(error).__name__}: {error}); calibrate and save again"
        ) from error
    return found
