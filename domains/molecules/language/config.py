"""What a language model of molecules is made of, and the preset that it is trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.blocks import block_options
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

Notation = Literal["smiles", "selfies"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network; the defaults are the preset, of about 5 million parameters."""

    d_model: int = 256
    """Width of the stack and of the tokens' vectors."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2"])
    """Kinds of block in a layer; recurrent ones make a sampling step cost the same at any length."""
    n_layers: int = 12
    """How many times they are stacked."""
    d_state: int = 32
    """State size of the Mamba blocks."""
    head_dim: int = 32
    """Channels a head of the Mamba blocks."""
    dropout: float = 0.1
    """Share of each block's output that is dropped while training."""

    def __post_init__(self) -> None:
        check_least(self, 1, "d_model", "n_layers", "d_state", "head_dim")
        check_shares(self, "dropout", below_one=True)

    def backbone(self) -> BackboneConfig:
        """The stack that this describes.

        Raises:
            ValueError: If there is no such block, or sizes don't go together.
        """
        wanted = {"d_state": self.d_state, "head_dim": self.head_dim}
        options: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(self.blocks):
            if kind.startswith("mamba"):
                options[kind] = {name: wanted[name] for name in block_options(kind) if name in wanted}
        return BackboneConfig(
            d_model=self.d_model,
            layers=list(self.blocks),
            repeat=self.n_layers,
            block_options=options,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class CorpusConfig:
    """Which molecules are learned from, and how they are written."""

    notation: Notation = "smiles"
    """smiles, or selfies, whose every string is a molecule."""
    randomize: float = 1.0
    """Share of training molecules whose SMILES is written anew, starting at another atom, each time that it
    is read; validation molecules are read as canonical SMILES. Between 0 and 1, canonical and rewritten
    molecules begin with different tokens: `generate` draws canonical ones, and rewritten ones where a prefix
    or a scaffold is given; `optimize` draws rewritten ones."""
    max_length: int = 512
    """Tokens of a molecule at most; longer ones are left out, and listed."""
    row_length: int = 512
    """Positions of a row into which molecules are packed."""
    held_out: float = 0.05
    """Share of the molecules for validation, and again for comparison with samples; of data without parts."""
    max_held_out: int = 10_000
    """At most so many of each."""
    n_reference: int = 10_000
    """Training molecules that are kept in the model's folder, to compare samples with; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.notation not in ("smiles", "selfies"):
            raise UsageError(f"notation: expected smiles or selfies, got {self.notation!r}")
        check_shares(self, "randomize")
        if not 0 < self.held_out < 0.5:
            raise UsageError(f"held_out: expected a share above 0 and below 0.5, got {self.held_out}")
        least = {"max_length": 3, "row_length": 3, "max_held_out": 1, "n_reference": 0}
        for name, value in least.items():
            check_least(self, value, name)


PRESET_MODEL = ModelConfig()
PRESET_CORPUS = CorpusConfig()
PRESET_TRAIN = TrainConfig(
    max_epochs=30,
    batch_size=256,
    lr=2e-3,
    weight_decay=0.1,
    warmup_fraction=0.02,
    ema_decay=0.999,
    num_workers=None,
)
