"""A language model of molecules as the beginning of a property model's stack.

The language model reads forwards. In the property model its blocks read forwards and, as copies, backwards;
the copies' output is zero at first, so that training begins with just what the language model knows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import DataError
from mambakit.core.folders import read_json_object
from mambakit.core.hub import CONFIG_FILE, WEIGHTS_FILE
from mambakit.domains.molecules.properties.model import Network
from mambakit.domains.molecules.tokenizer import SmilesTokenizer, load_tokenizer

_EMBEDDING, _BACKBONE, _BLOCKS = "embedding.weight", "backbone.", "blocks."


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A saved language model.

    Attributes:
        backbone: Its stack.
        tokenizer: Its tokenizer.
        weights: By name; what is no part of embedding and stack is not among them.
    """

    backbone: BackboneConfig
    tokenizer: SmilesTokenizer
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> Pretrained:
        """The language model in a folder.

        Raises:
            DataError: If there is none, or it is damaged or another kind of model.
        """
        if not folder.is_dir():
            raise DataError(f"pretrained: no saved model at {folder}: the folder does not exist")
        config = read_json_object(folder / CONFIG_FILE)
        try:
            weights = load_file(str(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError) as error:
            raise DataError(f"pretrained: {folder / WEIGHTS_FILE} can't be read ({error})") from None
        prefix = next((n[: -len(_EMBEDDING)] for n in weights if n.endswith(_EMBEDDING)), None)
        stack = _found(config, "backbone")
        if prefix is None or not isinstance(stack, dict):
            raise DataError(f"pretrained: {folder} holds no language model of molecules")
        own = {n.removeprefix(prefix): tensor for n, tensor in weights.items() if n.startswith(prefix)}
        try:
            backbone = BackboneConfig.from_dict(stack)
        except (TypeError, ValueError) as error:
            raise DataError(f"pretrained: {folder / CONFIG_FILE} doesn't fit: {error}") from None
        kept = {n: t for n, t in own.items() if n == _EMBEDDING or n.startswith(_BACKBONE)}
        return cls(backbone, load_tokenizer(folder), kept)

    def both_ways(self, dropout: float) -> BackboneConfig:
        """Its stack, read in both directions."""
        return dataclasses.replace(self.backbone, bidirectional=True, dropout=dropout)

    @torch.no_grad()
    def begin(self, network: Network) -> None:
        """Give a network the language model's weights; ids that it had not keep their random vectors.

        Raises:
            DataError: If the stacks don't fit.
        """
        table = self.weights[_EMBEDDING]
        network.embedding.weight[: len(table)] = table
        wanted = network.backbone.state_dict()
        made = {}
        for name, tensor in wanted.items():
            source, back = _source(name)
            known = self.weights.get(_BACKBONE + name, self.weights.get(_BACKBONE + source))
            if known is None or known.shape != tensor.shape:
                raise DataError(
                    f"pretrained: the language model has no weight {source} of {tuple(tensor.shape)}"
                )
            silent = back and ".out_proj." in name
            made[name] = torch.zeros_like(known) if silent else known
        network.backbone.load_state_dict(made)


def _source(name: str) -> tuple[str, bool]:
    """The name of a weight in a stack that reads forwards alone, and whether it is of the way back."""
    head, dot, rest = name.partition(".ahead.")
    if dot and head.startswith(_BLOCKS):
        return f"{head}.{rest}", False
    head, dot, rest = name.partition(".back.")
    if dot and head.startswith(_BLOCKS):
        return f"{head}.{rest}", True
    return name, False


def _found(config: object, key: str) -> object:
    """The value of a key, at whatever depth of a config."""
    if not isinstance(config, dict):
        return None
    if key in config:
        return config[key]
    return next((found for value in config.values() if (found := _found(value, key)) is not None), None)
