"""Pictures: policies find what an instruction asks for, wherever it lies, in pictures never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.robotics.episodes import Episode, Episodes
from mambakit.domains.robotics.policy.config import PolicyConfig
from mambakit.domains.robotics.policy.testing import SMALL
from mambakit.domains.robotics.policy.training import action_error, read_parts, train_policy

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 240)}
WORDINGS = ("reach the {} one", "touch {}")
PIXELS, SIDE = 24, 6


def squares(count: int) -> Episodes:
    """A red and a blue square lie at random places on noise; the action is the place of the one asked for."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        colour, wording = list(COLOURS)[i % 2], WORDINGS[i // 2 % 2]
        images = rng.integers(110, 130, (4, PIXELS, PIXELS, 3), dtype=np.uint8)
        actions = np.zeros((4, 2), np.float32)
        for image, action in zip(images, actions, strict=True):
            places = rng.integers(0, PIXELS - SIDE + 1, (2, 2))
            while np.abs(places[0] - places[1]).max() < SIDE:
                places = rng.integers(0, PIXELS - SIDE + 1, (2, 2))
            for (name, rgb), (y, x) in zip(COLOURS.items(), places, strict=True):
                image[y : y + SIDE, x : x + SIDE] = rgb
                if name == colour:
                    action[:] = x, y
        instruction = wording.format(colour)
        rewards = np.zeros(4, np.float32)
        found.append(Episode({"image": images}, actions, rewards, instruction=instruction))
    return Episodes("squares", found)


@pytest.mark.slow
def test_what_is_asked_for_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """To learn the 960 pictures of the training by heart would not help with those of the test."""
    episodes = squares(300)
    parts = read_parts(episodes, seed=0)
    shape = PolicyConfig(
        **(SMALL | {"kind": "bc", "dropout": 0.0, "patch": 8, "image_width": 16, "previous_action": False})
    )
    train = TrainConfig(max_epochs=60, max_steps=100, batch_size=4, lr=1e-2, ema_decay=0.9, patience=0)
    policy, _ = train_policy(episodes, parts, RunFolder(tmp_path), shape, train)
    assert action_error(policy, parts.test)["scaled_mse"] < 0.06
