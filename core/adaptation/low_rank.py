"""LoRA (Hu et al. 2021, arXiv:2106.09685) and DoRA (Liu et al. 2024, arXiv:2402.09353) through peft.

y = W x + alpha / rank * B A x, where only A and B learn; in DoRA each row of the sum is scaled to a length
that learns as well.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn

from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.errors import UserError
from mambakit.core.torchaudio_parts import torchaudio


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
    model.__dict__.pop("peft_config", None)


def _is_adapted(module: nn.Module) -> bool:
    # peft is loaded where there is any such layer
    layers = sys.modules.get("peft.tuners.tuners_utils")
    return layers is not None and isinstance(module, layers.BaseTunerLayer)


def _peft() -> Any:
    try:
        if "peft" not in sys.modules and find_spec("torchaudio") is not None:
            torchaudio()  # transformers, and so peft, imports it where it is, and fails where it does
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise UserError(
            "adapt.kind: lora and dora need peft; install it with pip install 'mambakit[adapt]'"
        ) from error
