"""A language model of molecules as the beginning of a property model's stack.

The language model reads forwards. In the property model its blocks read forwards and, as copies, backwards;
the copies' output is zero at first, so that training begins with just what the language model knows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import DataError
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.model import Network
from mambakit.domains.molecules.tokenizer import SmilesTokenizer

_BLOCKS = "blocks."


def load_language_model(folder: Path) -> MoleculeModel:
    """The language model in a folder.

    Raises:
        DataError: If there is none, or it is damaged or another kind of model.
    """
    try:
        return MoleculeModel.from_pretrained(folder)
    except DataError as error:
        raise DataError(f"pretrained: {error}") from None


def both_ways(language: MoleculeModel, dropout: float) -> BackboneConfig:
    """A language model's stack, read in both directions."""
    return dataclasses.replace(language.config.backbone, bidirectional=True, dropout=dropout)


@torch.no_grad()
def begin(network: Network, language: MoleculeModel, tokenizer: SmilesTokenizer) -> None:
    """Give a network a language model's weights; tokens that it had not begin as the mean of its own.

    Args:
        network: Built with ``both_ways`` of the language model's stack.
        language: The language model.
        tokenizer: Its tokenizer, extended.

    Raises:
        DataError: If a weight is missing or of another shape.
    """
    network.embedding.weight.copy_(language.grown(tokenizer).embedding.weight)
    known = language.backbone.state_dict()
    made = {}
    for name, tensor in network.backbone.state_dict().items():
        source, back = _source(name)
        weight = known.get(name, known.get(source))
        if weight is None or weight.shape != tensor.shape:
            raise DataError(f"pretrained: the language model has no weight {source} of {tuple(tensor.shape)}")
        made[name] = torch.zeros_like(weight) if back and ".out_proj." in name else weight
    network.backbone.load_state_dict(made)


def _source(name: str) -> tuple[str, bool]:
    """The name of a weight in a stack that reads forwards alone, and whether it is of the way back."""
    for way in ("ahead", "back"):
        head, found, rest = name.partition(f".{way}.")
        if found and head.startswith(_BLOCKS):
            return f"{head}.{rest}", way == "back"
    return name, False
