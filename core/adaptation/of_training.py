"""Adapting within a training run: the base before it, the difference and the plain model after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mambakit.core.adaptation.adapting import adapt, merge
from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.adaptation.record import Learning
from mambakit.core.errors import DataError, UsageError
from mambakit.core.hub import WEIGHTS_FILE, HubModel, load_weights


def begin_adapting(task: nn.Module, config: AdaptConfig) -> tuple[Learning, Callable[[], None]]:
    """Give the model of a task the weights of its base and adapt it.

    Args:
        task: Holds one model that is saved as a folder.
        config: With a kind and a base.

    Returns:
        How much learns, and what makes the model plain again.

    Raises:
        UsageError: If the base is not named, the kind has no place in the model, or the task has no model.
        DataError: If there is no base, or it does not fit the model.
        UserError: If peft is missing, for lora and dora.
    """
    if config.base is None:
        raise UsageError(f"adapt.base: name the folder of the saved model that {config.kind} adapts")
    model = load_base(task, config.base, "adapt.base")
    return adapt(model, config), lambda: merge(model)


def load_base(task: nn.Module, base: str, name: str) -> nn.Module:
    """Give the model of a task a saved model's weights and buffers; that model.

    Args:
        task: Holds one model that is saved as a folder.
        base: The folder of the saved one.
        name: The option that names it, for errors.

    Raises:
        UsageError: If the task has no model.
        DataError: If there is no base, or it does not fit the model.
    """
    model = next((module for module in task.modules() if isinstance(module, HubModel)), None)
    if model is None:
        raise UsageError(f"{name}: {type(task).__name__} trains no model that could go on from a saved one")
    assert isinstance(model, nn.Module)
    try:
        saved = type(model).from_pretrained(base)
        _check_vocabulary(saved, model, base)
        load_weights(model, Path(base) / WEIGHTS_FILE)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return model


def _check_vocabulary(base: Any, model: Any, folder: str) -> None:
    """Rows of an embedding must mean what they meant: as many words need not be the same ones."""
    before, now = getattr(base, "tokenizer", None), getattr(model, "tokenizer", None)
    if before is None or now is None or not any(hasattr(now, name) for name in ("n_ids", "items")):
        return
    if before.state() != now.state():
        raise DataError(
            f"the vocabulary of {folder} is not that of the data to train on; choose data with the same one"
        )
