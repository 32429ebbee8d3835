"""What tells one trained model from another, for states kept apart from it that mean nothing to any other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import nn


def fingerprint(model: nn.Module, config: Any = None) -> str:
    """32 hexadecimal digits of a model's weights and buffers, and of what else decides what its states mean.

    Args:
        model: Anything with a ``state_dict`` of tensors.
        config: A dataclass or what JSON holds: a model's config, its vocabulary.
    """
    digest = hashlib.sha256()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # as bytes: numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
