"""Naming recordings: files and folders to a table, bad files marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.domains.speech.audio import read_audio
from mambakit.domains.speech.classify.data import check_clip, padded
from mambakit.domains.speech.classify.model import Classifier

_BATCH_SECONDS = 120.0


@torch.no_grad()
def probabilities(model: Classifier, samples: Sequence[Tensor]) -> Tensor:
    """Of each class, ``(n, n_classes)`` on the CPU, for recordings ``(n_samples,)`` at the model's rate.

    Recordings of like length are computed together; how, changes nothing.
    """
    device = next(model.parameters()).device
    most = int(_BATCH_SECONDS * model.config.model.front_end.rate_hz)
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    found = torch.zeros(len(samples), len(model.config.classes))
    batch: list[int] = []
    for at, i in enumerate(order):
        batch.append(i)
        following = order[at + 1] if at + 1 < len(order) else None
        if following is None or len(samples[following]) * (len(batch) + 1) > most:
            x, lengths = padded([samples[j] for j in batch])
            found[batch] = model(x.to(device), lengths.to(device)).softmax(1).float().cpu()
            batch = []
    return found


def classify_files(model: Classifier, paths: Sequence[Path]) -> pd.DataFrame:
    """A row a file in their order: ``path``, ``label``, ``probability``, ``p_CLASS`` each, ``error``.

    A file that can't be read, or is too short or silent, has the reason in ``error`` and the rest empty.
    """
    rate_hz, classes = model.config.model.front_end.rate_hz, model.config.classes
    read: list[Tensor] = []
    errors: list[str] = []
    for path in paths:
        try:
            samples = read_audio(path, rate_hz=rate_hz).samples
            check_clip(samples, model.least_samples, rate_hz, str(path))
        except DataError as refused:
            errors.append(str(refused).removeprefix(f"{path}: "))
            continue
        read.append(samples)
        errors.append("")
    of_good = iter(probabilities(model, read).double().numpy())
    rows = []
    for path, error in zip(paths, errors, strict=True):
        row: dict[str, object] = {"path": str(path), "label": None, "probability": None}
        if error:
            row |= dict.fromkeys((f"p_{name}" for name in classes), None)
        else:
            p = next(of_good)
            row |= {"label": classes[int(p.argmax())], "probability": round(float(p.max()), 6)}
            row |= {f"p_{name}": round(float(value), 6) for name, value in zip(classes, p, strict=True)}
        rows.append({**row, "error": error})
    return pd.DataFrame(rows)
