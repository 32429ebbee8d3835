"""What a policy is measured beside: the same training with less, or with attention in place of a state."""

from __future__ import annotations

import dataclasses

from mambakit.domains.robotics.policy.config import MEMORYLESS, Kind, PolicyConfig


def baseline_config(kind: Kind, ours: PolicyConfig) -> PolicyConfig:
    """The config of a baseline of this kind beside ours: as alike as the kind allows.

    A policy without memory is told everything in one token, and its previous action only if ours is told so
    by name; a decision transformer has a token for each of return, state and action, as it was published.
    """
    if kind in MEMORYLESS:
        return dataclasses.replace(ours, kind=kind, tokens="fused")
    if kind == "decision-transformer":
        return dataclasses.replace(ours, kind=kind, tokens="three")
    return dataclasses.replace(ours, kind=kind)
