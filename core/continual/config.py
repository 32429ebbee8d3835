"""How a trained model is trained further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError

Kind = Literal["none", "finetune", "replay", "ewc", "both"]


@dataclass(frozen=True)
class ContinualConfig:
    """Train a saved model further on new data, and forget little of the old."""

    kind: Kind = "none"
    """finetune goes on with all weights of base; replay mixes batches in that earlier runs kept; ewc holds
    weights where they mattered; both does both; none trains a new model."""
    base: str | None = None
    """Folder of the run to go on from; network and vocabulary must be as there."""
    keep: int = 0
    """Training batches to keep for later runs, an even draw from this run's and those before it; also writes
    how much each weight matters. 0 keeps nothing."""
    share: float = 0.5
    """Weight of the replayed batch in each step's loss; the new one has the rest."""
    strength: float = 1000.0
    """How firmly ewc holds weights, the lambda of its penalty."""
    decay: float = 1.0
    """What earlier importance counts, as importance is summed up from run to run; 1 forgets none."""
    fisher_batches: int = 100
    """Training batches that the importance of weights is estimated from, at most."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"continual.kind: expected {', '.join(get_args(Kind))}, got {self.kind!r}")
        check_least(self, 0, "keep", "strength")
        check_least(self, 1, "fisher_batches")
        check_shares(self, "share", "decay")
        if self.kind == "none" and self.base is not None:
            raise UsageError(
                "continual.base: without effect while continual.kind is none; choose finetune, replay, ewc "
                "or both"
            )
        if self.kind != "none" and self.base is None:
            raise UsageError(f"continual.base: name the folder of the run that {self.kind} goes on from")

    @property
    def replays(self) -> bool:
        """Whether earlier batches are mixed in."""
        return self.kind in ("replay", "both")

    @property
    def holds(self) -> bool:
        """Whether weights are held."""
        return self.kind in ("ewc", "both")
