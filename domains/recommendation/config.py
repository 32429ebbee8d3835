"""What a recommender is made of, and the preset that it is trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

Loss = Literal["cross-entropy", "sampled-softmax", "gbce", "bce"]
TimeUse = Literal["none", "gaps", "dt", "both"]
Peer = Literal["sasrec", "gru4rec"]


@dataclass(frozen=True)
class Columns:
    """Which column is what; None finds it by its usual names (user_id, userId, movieId, timestamp, ...)."""

    user: str | None = None
    """Who."""
    item: str | None = None
    """What."""
    time: str | None = None
    """When; a table without such a column is in the order of time."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network; the defaults are the preset."""

    d_model: int = 128
    """Width of the stack and of the items' vectors."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2", "mlp"])
    """Kinds of block in a layer; they must be causal, and recurrent for a state of fixed size."""
    n_layers: int = 4
    """How many times they are stacked."""
    d_state: int = 32
    """State size of the Mamba blocks."""
    head_dim: int = 16
    """Channels a head of the Mamba blocks."""
    d_hidden: int | None = None
    """Width of the state of gru and lstm blocks; d_model by default."""
    dropout: float = 0.3
    """Share of each block's output that is dropped while training."""
    embedding_dropout: float = 0.2
    """Share of the input's channels that is dropped while training."""
    time: TimeUse = "gaps"
    """What the time between events does: embedded by its logarithm (gaps), drives dt, both, or none."""

    def __post_init__(self) -> None:
        check_least(self, 1, "d_model", "n_layers", "d_state", "head_dim")
        check_least(self, 1, "d_hidden")
        check_shares(self, "dropout", "embedding_dropout", below_one=True)
        if self.time not in ("none", "gaps", "dt", "both"):
            raise UsageError(f"time: expected none, gaps, dt or both, got {self.time!r}")


@dataclass(frozen=True)
class RecommenderConfig:
    """A network and the catalogue that it is for: what ``config.json`` holds."""

    n_items: int
    """Items that it learns of."""
    n_item_words: int = 0
    """Different words that describe items: categories, binned numbers, words of titles."""
    n_user_words: int = 0
    """Different words that describe users."""
    gap_unit: float = 1.0
    """Seconds of an ordinary gap between events."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of the network."""
    most_item_words: int = 0
    """Words that describe one item at most."""

    def __post_init__(self) -> None:
        check_least(self, 1, "n_items")


@dataclass(frozen=True)
class LossConfig:
    """What training minimises, and over what."""

    loss: Loss = "cross-entropy"
    """cross-entropy over all items; sampled-softmax, with log Q correction (Bengio & Senecal 2008); gbce
    (Petrov & Macdonald 2023) or bce with sampled items (Kang & McAuley 2018)."""
    max_length: int = 200
    """Events of a piece of history that is read at once; longer histories are cut, each time elsewhere."""
    n_negatives: int = 256
    """Items that are drawn beside the right ones, for all but cross-entropy."""
    popularity_power: float = 0.5
    """They are drawn by popularity to this power in sampled-softmax; elsewhere all alike."""
    gbce_t: float = 0.75
    """Calibration of gbce: 0 is bce, 1 corrects for the sampling altogether."""
    id_dropout: float = 0.05
    """Share of items that a step knows by their features alone, where there are some, as it does new ones."""
    row_length: int = 512
    """Positions of a row into which histories are packed."""

    def __post_init__(self) -> None:
        if self.loss not in ("cross-entropy", "sampled-softmax", "gbce", "bce"):
            raise UsageError(f"loss: expected cross-entropy, sampled-softmax, gbce or bce, got {self.loss!r}")
        check_least(self, 1, "max_length", "n_negatives", "row_length")
        check_shares(self, "gbce_t", "id_dropout")


PRESET_MODEL = ModelConfig()
PRESET_LOSS = LossConfig()
# Chosen by validation NDCG on ML-1M and Amazon Beauty.
PRESET_TRAIN = TrainConfig(max_epochs=60, batch_size=128, lr=2e-3, ema_decay=0.998, patience=10)
