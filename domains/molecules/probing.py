"""What is spoilt to probe a property model: tokens that are lost, changed, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mambakit.core.adapters.vocabulary import N_SPECIAL
from mambakit.core.trust.perturbations import intercepted, lost, replaced, shortened, shuffled
from mambakit.core.trust.probe import Perturbation, Subject
from mambakit.domains.molecules.evaluation import OURS, evaluate
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules

SHARES, WINDOWS = (0.02, 0.05, 0.2), (2.0, 4.0, 16.0)
_METRICS = {"regression": ("rmse", "mae", "r2"), "classification": ("roc_auc", "pr_auc")}


def subject(model: PropertyModel, molecules: Molecules, places: Any, about: str) -> Subject:
    """A property model on labelled molecules.

    Args:
        model: Trained.
        molecules: With the model's tasks.
        places: Which of them.
        about: What is measured, in a few words.
    """
    kind = "regression" if any(task.kind == "regression" for task in molecules.tasks) else "classification"

    def measure() -> Mapping[str, float]:
        found = evaluate(model, molecules, places, {})
        return {name: found.figure(OURS, name) for name in _METRICS[kind]}

    def spoil(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[float, torch.Generator], Any]:
        def of_batch(level: float, generator: torch.Generator) -> Any:
            def read(batch: Any) -> tuple[Any]:
                at = torch.arange(batch.ids.shape[1], device=batch.ids.device)
                inside = (at > 0) & (
                    at < batch.lengths[:, None] - 1
                )  # START and END are no part of a molecule
                ids, lengths = change(batch.ids, batch.lengths, inside, level, generator)
                return (batch._replace(ids=ids, lengths=lengths),)

            return intercepted(model, "read", read)

        return of_batch

    n_ids = model.config.n_ids
    ways = {}
    notes = []
    if model.config.model.sequence:

        def replace(ids: Tensor, lengths: Tensor, inside: Tensor, level: float, g: torch.Generator) -> Any:
            return replaced(ids, lost(inside, level, g), N_SPECIAL, n_ids, g), lengths

        ways["replace"] = Perturbation(SHARES, "share of tokens", spoil(replace))
        if model.config.tokenizer == "graph":
            notes.append("drop, shuffle: not of graphs, whose bonds are between atoms at their places")
        else:
            ways["drop"] = Perturbation(SHARES, "share of tokens", spoil(_drop))
            ways["shuffle"] = Perturbation(WINDOWS, "tokens in a window", spoil(_shuffle))
    else:
        notes.append("this model reads no tokens")
    if model.config.n_descriptors or model.config.n_ecfp:
        notes.append(
            "descriptors, fragments and the forest on them are read as they are: tokens are spoilt alone"
        )
    name = _METRICS[kind][0]
    return Subject(model, measure, name, "min" if kind == "regression" else "max", ways, about, notes)


def _drop(ids: Tensor, lengths: Tensor, inside: Tensor, level: float, g: torch.Generator) -> Any:
    return shortened(ids, lengths, lost(inside, level, g))


def _shuffle(ids: Tensor, lengths: Tensor, inside: Tensor, level: float, g: torch.Generator) -> Any:
    return ids.gather(1, shuffled(inside, int(level), g)), lengths
