"""Small policies and episodes that the tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mambakit.domains.robotics.episodes import Episode, Episodes
from mambakit.domains.robotics.policy.config import PolicyConfig
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.training import build_policy

SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "d_state": 8, "head_dim": 8, "window": 3}
ASKED = ("reach the red one", "reach the blue one", None)


def made_episodes(
    n: int = 4,
    *,
    seed: int = 0,
    steps: tuple[int, int] = (5, 12),
    discrete: bool = False,
    goal: bool = False,
    image: bool = False,
    asked: bool = False,
    blind: bool = False,
) -> Episodes:
    """Episodes whose actions follow from what is seen."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        length = int(rng.integers(*steps))
        state = rng.normal(size=(length + 1, 3)).astype(np.float32)
        seen: dict[str, Any] = {"state": state}
        if goal:
            seen["goal"] = np.repeat(rng.normal(size=(1, 2)), length + 1, 0).astype(np.float32)
        if image:
            seen["image"] = rng.integers(0, 256, (length + 1, 8, 8, 3), dtype=np.uint8)
        actions = np.tanh(state[:length, :2])
        if blind:  # there are pictures alone
            del seen["state"]
        found.append(
            Episode(
                observations=seen,
                actions=(actions[:, 0] > 0).astype(np.int64) if discrete else actions.astype(np.float32),
                # eighths, so that float32 sums them without rounding
                rewards=(rng.integers(-8, 9, length) / 8).astype(np.float32),
                instruction=ASKED[i % 3] if asked else None,
            )
        )
    return Episodes("made", found)


def small_policy(episodes: Episodes, seed: int = 0, **options: Any) -> Policy:
    """A policy with random weights for them."""
    torch.manual_seed(seed)
    policy = build_policy(episodes, episodes.episodes, PolicyConfig(**(SMALL | options)))
    return policy.eval()
