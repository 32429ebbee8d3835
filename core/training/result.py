"""What a training run came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class FitResult:
    """What a run came to; the task holds the best checkpoint's weights."""

    best_score: float
    """The monitored metric of the weights kept."""
    best_checkpoint: str
    """Their checkpoint, relative to the run folder."""
    epochs: int
    """Epochs completed."""
    steps: int
    """Optimizer steps taken."""
    seconds: float
    """Wall-clock time of this call; a resumed run adds that of its earlier parts."""
    stopped: Literal["epochs", "steps", "patience", "time"]
    """What ended it."""
    steps_to_best: int | None = None
    """Optimizer steps until the weights kept; None of a run that an older version finished."""
    seconds_to_best: float | None = None
    """Wall-clock time until then, without validation, of all parts of a resumed run."""
    monitor: str | None = None
    """The monitored metric's name; None of a run that an older version finished."""
    privacy: dict[str, Any] | None = None
    """What private training has spent: epsilon, delta, and what they follow from; None without it."""
