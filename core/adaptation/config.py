"""How a trained model is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mambakit.core.errors import UsageError

Kind = Literal["none", "lora", "dora", "state", "prefix"]


@dataclass(frozen=True)
class AdaptConfig:
    """Train few parameters of a saved model instead of all of a new one."""

    kind: Kind = "none"
    """What learns: low-rank changes of projections (lora; dora also their columns' lengths), initial states
    (state), or vectors read before each sequence (prefix); none trains everything."""
    base: str | None = None
    """Folder of the saved model to adapt; network and vocabulary must be as there."""
    rank: int = 8
    """Rank of lora's and dora's changes."""
    alpha: float = 16.0
    """They are scaled by alpha / rank."""
    dropout: float = 0.0
    """Of what lora's and dora's changes read, while training."""
    tokens: int = 16
    """Vectors of prefix."""
    also: list[str] | None = None
    """Parts of the model that learn whole, all of a name, such as head."""

    def __post_init__(self) -> None:
        for name in ("rank", "tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"adapt.{name}: expected at least 1, got {getattr(self, name)}")
        if not self.alpha > 0:
            raise UsageError(f"adapt.alpha: expected a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"adapt.dropout: expected a number in [0, 1), got {self.dropout}")
        if self.kind == "none" and (self.base is not None or self.also):
            given = "base" if self.base is not None else "also"
            raise UsageError(
                f"adapt.{given}: without effect while adapt.kind is none; choose lora, dora, state or prefix"
            )
