"""How a design learns, and presets for budgets of about a thousand and of ten thousand oracle calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError


@dataclass(frozen=True)
class DesignConfig:
    """How a design learns; the defaults are Saturn's (Guo & Schwaller 2024, arXiv:2405.17066) but for the
    learning rate, there 1e-4.

    It was chosen on three objectives of the kind of Saturn's first task, but of other properties (donors,
    logP, rotatable bonds), with a budget of 1,000: together 1,365 rewards of .7 or more with 1e-3, 1,169 with
    5e-4, 781 with 1e-4 (one seed).
    """

    batch_size: int = 16
    """Molecules sampled in a step."""
    sigma: float = 128.0
    """Nats of log-likelihood that a reward of 1 is worth."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    rounds: int = 10
    """Updates a step with the batch and the memory written anew as other SMILES (Augmented Memory); 0 for
    plain REINVENT."""
    memory: int = 100
    """The best molecules that are remembered and replayed."""
    replayed: int = 10
    """Remembered molecules beside the sampled ones in a step's first update."""
    purge: bool = True
    """Forget molecules whose scaffold the diversity filter has closed, when it comes again."""
    bucket_size: int = 10
    """A Murcko scaffold that was sampled more often than this counts 0 in learning. 0 for no filter."""
    invalid: Literal["drop", "zero"] = "drop"
    """Samples that are no molecules: left out of learning, or learned from with a reward of 0."""
    offspring: int = 0
    """Molecules bred in a step from the best so far (Genetic-GFN, Kim et al. 2024), beside the sampled ones:
    scored, remembered and learned from as these are."""
    population: int = 500
    """The best molecules that parents are drawn from, by rank."""
    mutation_rate: float = 0.1
    """Share of the bred molecules that are mutated too."""
    max_atoms: int = 50
    """Heavy atoms of a bred molecule at most."""
    max_tokens: int = 160
    """Tokens of a sampled molecule at most; an unfinished one is invalid."""
    patience: int | None = None
    """Stop after so many oracle calls without a better mean of the best ten; by default the budget
    ends it."""

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "rounds": 0, "memory": 1, "replayed": 0, "bucket_size": 0, "max_tokens": 2}
        least |= {"offspring": 0, "population": 1, "max_atoms": 1}
        for name, value in least.items():
            check_least(self, value, name)
        if self.invalid not in ("drop", "zero"):
            raise UsageError(f"invalid: expected drop or zero, got {self.invalid!r}")
        for name in ("sigma", "lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected a positive number, got {getattr(self, name)}")
        check_shares(self, "mutation_rate")
        check_least(self, 1, "patience")


FEW_CALLS = DesignConfig()
# As Augmented Memory was run on PMO (Guo & Schwaller 2024, JACS Au 4, 2160): larger steps, fewer updates.
MANY_CALLS = DesignConfig(batch_size=64, sigma=500.0, lr=5e-4, rounds=2, memory=100, replayed=10)
PRESETS = {"few-calls": FEW_CALLS, "many-calls": MANY_CALLS}
