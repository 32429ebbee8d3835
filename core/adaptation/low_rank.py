"""LoRA (Hu et al. 2021, arXiv:2106.09685) and DoRA (Liu et al. 2024, arXiv:2402.09353) through peft.

y = W x + alpha / rank * B A x, where only A and B learn; in DoRA each row of the sum is scaled to a length
that learns as well.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.errors import UserError


def add_low_rank(model: nn.Module, names: Sequence[str], config: AdaptConfig) -> list[nn.Parameter]:
    """Put a low-rank change beside each of these linear maps; the new parameters, which change nothing yet.

    Raises:
        UserError: If peft is not installed.
    """
    peft = _peft()
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.kind == "dora",
        target_modules="|".join(re.escape(name) for name in names),
    )
    training = model.training
    peft.inject_adapter_in_model(options, model)
    model.train(training)
    return [
        parameter
        for layer in model.modules()
        if _is_adapted(layer)
        for name in layer.adapter_layer_names  # type: ignore[union-attr]
        for parameter in getattr(layer, name).parameters()
    ]


def fold_low_rank(model: nn.Module) -> None:
    """Add every change to the weights it goes with, and put the plain maps back."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_adapted(child):
                child.merge(safe_merge=True)  # type: ignore[operator]
                setattr(parent, name, child.get_base_layer())  # type: ignore[operator]


def _is_adapted(module: nn.Module) -> bool:
    # peft is loaded where there is any such layer
    layers = sys.modules.get("peft.tuners.tuners_utils")
    return layers is not None and isinstance(module, layers.BaseTunerLayer)


def _peft() -> Any:
    try:
        if "peft" in sys.modules:
            return sys.modules["peft"]
        with _hidden_if_broken(
            "torchaudio"
        ):  # which transformers, and so peft, imports where it is installed
            return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise UserError(
            f"adapt.kind: lora and dora need the package {error.name}; "
            "install it with pip install 'mambakit[adapt]'"
        ) from error


@contextmanager
def _hidden_if_broken(name: str) -> Iterator[None]:
    """As if a package that cannot be loaded, for a library that it lacks, were not installed."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        for made in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[made]
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield
