"""The training options that every domain shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.config_checks import check_least
from mambakit.core.continual.config import ContinualConfig
from mambakit.core.errors import UsageError
from mambakit.core.trust.private_config import PrivateConfig

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]

_NOT_NEGATIVE = (
    *("lr", "weight_decay", "warmup_fraction", "final_lr_fraction", "gradient_clip", "ema_decay"),
    *("patience", "seed", "num_workers"),
)


@dataclass(frozen=True)
class TrainConfig:
    """How to train: passes, optimizer, schedule, when to stop."""

    max_epochs: int = 20
    """Passes over the training data at most."""
    max_steps: int = -1
    """Optimizer steps at most; -1 for no limit."""
    batch_size: int = 32
    """Samples a step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Decay of matrices; A_log, D, dt_bias, norms and biases have none."""
    warmup_fraction: float = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    final_lr_fraction: float = 0.01
    """The cosine schedule ends at this share of lr."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are validated and kept; 0 for no averaging."""
    average: int = 1
    """Checkpoints whose weights are averaged in the end, if that is better than the best; 1 for none."""
    average_of: Literal["best", "last"] = "best"
    """Which are averaged: those of the best validations, or the last."""
    patience: int = 5
    """Validations without improvement before stopping; 0 to never stop early."""
    validate_every: int | None = None
    """Validate after so many steps instead of after every epoch."""
    seed: int = 0
    """Seed of weights, shuffling and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto is bf16-mixed on GPUs that have it, else 32-true."""
    max_time: str | None = None
    """Stop after so long: 90s, 10m, 1h30m or 00:10:00; seconds without a unit."""
    num_workers: int | None = 0
    """Processes that load data; 0 loads in this one, null as many as suit the device."""
    adapt: AdaptConfig = AdaptConfig()  # noqa: RUF009  (frozen)
    """Train few parameters of a saved model instead of all of a new one."""
    private: PrivateConfig = PrivateConfig()  # noqa: RUF009  (frozen)
    """Clip the gradients of single cases and add noise, so that no case shows in the weights."""
    continual: ContinualConfig = ContinualConfig()  # noqa: RUF009  (frozen)
    """Train a saved model further on new data, and forget little of the old."""

    def __post_init__(self) -> None:
        at_least = {
            "max_epochs": 1,
            "max_steps": -1,
            "batch_size": 1,
            "average": 1,
            "validate_every": 1,
            **dict.fromkeys(_NOT_NEGATIVE, 0),
        }
        for name, least in at_least.items():
            check_least(self, least, name)
        if self.max_steps == 0:
            raise UsageError("max_steps: expected a positive number, or -1 for no limit, got 0")
        for name in ("warmup_fraction", "ema_decay", "final_lr_fraction"):
            if not getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected at most 1, got {getattr(self, name)}")
        if self.ema_decay == 1:
            raise UsageError("ema_decay: expected less than 1, got 1: the average would never move")
        if self.average_of not in ("best", "last"):
            raise UsageError(f"average_of: expected best or last, got {self.average_of!r}")
        if self.average > 1 and self.ema_decay:
            raise UsageError("average, ema_decay: both average weights; use one of them")
        if self.adapt.kind != "none" and self.continual != ContinualConfig():
            raise UsageError("adapt, continual: a run either adapts few parameters or trains all further")
        if self.private.noise_multiplier and self.continual != ContinualConfig():
            raise UsageError("private, continual: batches that are kept or mixed in are outside of epsilon")
        if self.max_time is not None:
            parse_duration(self.max_time)


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m``, ``1h30m`` or ``HH:MM:SS``.

    Raises:
        UsageError: If it is none of these, or not more than zero.
    """
    number = r"\d+(?:\.\d+)?"
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text.strip())
    units = re.fullmatch(rf"(?:({number})h)?(?:({number})m)?(?:({number})s?)?", text.strip().lower())
    matched = clock or units
    seconds = 0.0
    if matched:
        hours, minutes, rest = (float(part or 0) for part in matched.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    if seconds <= 0:
        raise UsageError(f"max_time: expected a duration such as 90s, 10m, 1h30m or 00:10:00, got {text!r}")
    return seconds
