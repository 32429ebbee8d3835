"""Reference returns of environments, and what a score in relation to them may be called.

Score: 100 (R - random) / (expert - random) (Fu et al. 2020, arXiv:2004.07219, section 4). D4RL's
references were measured in gym's v2-era environments; v5 differs (a random hopper earns about 17 there, not
-20), so a score of a v5 environment is never a D4RL score and is labelled apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from mambakit.domains.robotics.episodes import base_name
from mambakit.domains.robotics.metrics import bootstrap_interval, interquartile_mean, normalised_score

__all__ = [
    "REFERENCES",
    "Reference",
    "bootstrap_interval",
    "interquartile_mean",
    "normalised_score",
    "reference_of",
    "score_label",
]

_D4RL = "D4RL's d4rl/infos.py (gym v2-era environments)"


@dataclass(frozen=True)
class Reference:
    """The returns that count as 0 and as 100."""

    random: float
    expert: float
    source: str
    """Who measured them, and where."""
    versions: tuple[str, ...] | None = None
    """Versions of the environment that they were measured in; None where they follow from the task."""


REFERENCES: dict[str, Reference] = {
    # by the id without its version
    "HalfCheetah": Reference(-280.178953, 12135.0, _D4RL, ("v2",)),
    "Hopper": Reference(-20.272305, 3234.3, _D4RL, ("v2",)),
    "Walker2d": Reference(1.629008, 4592.3, _D4RL, ("v2",)),
    "Ant": Reference(-325.6, 3879.7, _D4RL, ("v2",)),
    "AdroitHandPen": Reference(96.262799, 3076.8331017826877, _D4RL, ("v0",)),
    "AdroitHandHammer": Reference(-274.856578, 12794.134825156867, _D4RL, ("v0",)),
    "AdroitHandDoor": Reference(-56.512833, 2880.5693087298737, _D4RL, ("v0",)),
    "AdroitHandRelocate": Reference(-6.425911, 4233.877797728884, _D4RL, ("v0",)),
    "FrankaKitchen": Reference(0.0, 4.0, _D4RL, ("v0",)),
    "InvertedPendulum": Reference(5.1, 1000.0, "random measured in v5; 1000 is the most there is"),
    "Reacher": Reference(-43.6, -3.75, "random measured in v5; gymnasium's reward threshold"),
}


def reference_of(environment_id: str) -> Reference | None:
    """The references of an environment, whatever its version; None where there are none."""
    return REFERENCES.get(base_name(environment_id))


def score_label(environment_id: str) -> str:
    """What a score in this environment must be called."""
    reference = reference_of(environment_id)
    if reference is None:
        return "raw return (no reference returns known)"
    version = environment_id.removeprefix(environment_id.rpartition(":")[0]).rpartition("-v")[2]
    found = f"v{version}" if version.isdigit() else "no version"
    if reference.versions is None:
        return f"normalised score ({reference.source})"
    if found in reference.versions:
        return "D4RL normalised score"
    return f"D4RL-reference-normalised score ({found} environment, not comparable with D4RL's scores)"
