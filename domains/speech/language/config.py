"""What a language model of characters is made of, and the preset."""

from __future__ import annotations

from dataclasses import dataclass

from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.blocks import block_sizes, check_block


@dataclass(frozen=True)
class TextModelConfig:
    """The shape of the network; the defaults are the preset."""

    block: str = "mamba2"
    """Kind of the layers; a causal one."""
    d_model: int = 96
    """Width."""
    n_layers: int = 2
    """Layers."""
    d_state: int = 32
    """State size of Mamba blocks."""
    head_dim: int = 32
    """Channels a head of Mamba-2 blocks."""
    dropout: float = 0.1
    """Share of each block's output that is dropped while training."""

    def __post_init__(self) -> None:
        check_least(self, 1, "d_model", "n_layers", "d_state", "head_dim")
        check_shares(self, "dropout", below_one=True)
        check_block(self.block, causal=True)

    def backbone(self) -> BackboneConfig:
        """The stack between embedding and logits."""
        sizes = block_sizes(self.block, d_state=self.d_state, head_dim=self.head_dim)
        return BackboneConfig(
            d_model=self.d_model,
            layers=[self.block],
            repeat=self.n_layers,
            block_options={self.block: sizes},
            dropout=self.dropout,
        )


PRESET_TEXT_MODEL = TextModelConfig()
PRESET_TEXT_TRAIN = TrainConfig(max_epochs=20, batch_size=32, lr=3e-3, patience=4)
