"""The small difference between an adapted model and its base, as a folder.

``adapter_config.json`` names the base and holds the options; ``adapter_model.safetensors`` holds what was
learned, and the buffers that are no longer the base's. The files are named as peft names its own; what is in
them is not peft's, as it knows no initial states, and no base that is no transformers model.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mambakit.core.adaptation.adapting import adapt, learned
from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.adaptation.record import buffers_of, record_of
from mambakit.core.errors import DataError, UsageError
from mambakit.core.fingerprint import fingerprint
from mambakit.core.folders import listing, read_json_object, replaced, some
from mambakit.core.from_json import from_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_BASE = "base_fingerprint"
_MODEL = "model"


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], *, base: str | None = None) -> None:
    """Write what an adapted model, merged or not, has beyond its base.

    Args:
        model: After ``adapt``.
        folder: Made if missing.
        base: Name or folder of the base, for whoever reads the file; by default as in the config.

    Raises:
        UsageError: If the model is not adapted.
        UserError: If the folder cannot be written.
    """
    record = record_of(model)
    if record is None:
        raise UsageError("save_adapter: the model is not adapted; call adapt first, or save it whole")
    tensors = learned(model)
    for name, tensor in buffers_of(model).items():
        # of two NaN none equals the other: bytes do
        before = record.buffers.get(name)
        if before is None or not torch.equal(_bytes(tensor), _bytes(before)):
            tensors[name] = tensor.detach().cpu().clone()
    content: dict[str, Any] = dataclasses.asdict(record.config)
    content |= {"base": base or record.config.base, _BASE: record.base_fingerprint}
    content[_MODEL] = type(model).__name__
    with replaced(Path(folder), {WEIGHTS_FILE: 0, CONFIG_FILE: 2}) as staging:
        save_file(tensors, str(staging / WEIGHTS_FILE), {"format": "pt"})
        (staging / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def remove_adapter(folder: Path) -> None:
    """Remove what ``save_adapter`` wrote, and nothing else."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if (folder / name).is_file():
            (folder / name).unlink()


def load_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> AdaptConfig:
    """Adapt a base in place as the model was that ``save_adapter`` saved; ``merge`` makes it plain.

    Args:
        model: The base, as it was before it was adapted.
        folder: Where to read.

    Raises:
        DataError: If a file is missing or damaged, or the model is not the base.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"no saved adapter at {path}: the folder does not exist")
    content = read_json_object(path / CONFIG_FILE)
    base, kind = content.pop(_BASE, None), content.pop(_MODEL, None)
    try:
        config = from_json(AdaptConfig, content)
    except (TypeError, ValueError, UsageError) as error:
        raise DataError(f"{path / CONFIG_FILE} is no adapter's: {error}") from error
    if fingerprint(model) != base:
        raise DataError(
            f"{path} was learned on another base ({config.base or kind}): the weights of this "
            f"{type(model).__name__} are not those it was adapted from"
        )
    if not (path / WEIGHTS_FILE).is_file():
        raise DataError(f"{path} is no saved adapter: {WEIGHTS_FILE} is missing (it holds {listing(path)})")
    try:
        tensors = load_file(str(path / WEIGHTS_FILE))
    except SafetensorError as error:
        raise DataError(
            f"{path / WEIGHTS_FILE} is damaged or no safetensors file ({error}); save the adapter again"
        ) from error
    adapt(model, config)
    record = record_of(model)
    assert record is not None
    wanted = model.state_dict()
    missing = [name for name in record.learns if name not in tensors]
    wrong = [name for name, one in tensors.items() if name not in wanted or one.shape != wanted[name].shape]
    if missing or wrong:
        raise DataError(f"{path / WEIGHTS_FILE} doesn't fit {type(model).__name__}: {some(missing + wrong)}")
    model.load_state_dict(tensors, strict=False)
    return config


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
