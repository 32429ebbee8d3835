"""An enhancement model beside log-MMSE and beside doing nothing, on pairs of noisy and clean speech."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mambakit.core.errors import DataError
from mambakit.domains.speech.enhance.baseline import log_mmse
from mambakit.domains.speech.enhance.metrics import Scores, has_pesq, scores
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.noises import Signal

NOISY, LOG_MMSE, OURS = "noisy", "log-MMSE", "this model"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of each signal."""

    table: pd.DataFrame
    """A row a signal and model: ``name``, ``model``, ``pesq``, ``stoi``, ``si_sdr``."""
    notes: list[str]
    """What a person should know."""

    def means(self) -> list[dict[str, object]]:
        """A row a model: the mean of each score over the signals that have it, and their number."""
        rows = []
        for model in (NOISY, LOG_MMSE, OURS):
            of_model = self.table[self.table["model"] == model]
            if len(of_model):
                means = {name: float(of_model[name].mean()) for name in Scores._fields}
                shown = {name: value for name, value in means.items() if not np.isnan(value)}
                rows.append({"model": model, **shown, "n": len(of_model)})
        return rows


@torch.no_grad()
def evaluate(model: Enhancer, pairs: Iterable[tuple[str, Signal, Signal]]) -> Evaluation:
    """Scores of the noisy signals, of log-MMSE and of the model.

    Args:
        model: Trained.
        pairs: Name, noisy and clean signal ``(n,)`` at the model's rate.

    Raises:
        DataError: If there are none.
    """
    device, rate = next(model.parameters()).device, model.config.rate_hz
    rows, notes, with_pesq = [], [], has_pesq()
    for name, noisy, clean in pairs:
        heard, reference = torch.from_numpy(noisy), torch.from_numpy(clean)
        said = {
            NOISY: heard,
            LOG_MMSE: log_mmse(heard, rate),
            OURS: model(heard[None].to(device))[0].cpu(),
        }
        for who, samples in said.items():
            got = scores(samples, reference, rate, pesq=with_pesq)
            rows.append({"name": name, "model": who, **got._asdict()})
    if not rows:
        raise DataError("there are no pairs to measure")
    if not with_pesq:
        notes.append("no PESQ: its package is not installed (pip install 'mambakit[speech-metrics]')")
    return Evaluation(pd.DataFrame(rows), notes)
