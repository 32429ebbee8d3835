"""Coloured discs: the right one is asked for and drawn, the expert reaches it, unseen pairs stay unseen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mambakit.core.errors import UsageError, UserError
from mambakit.domains.robotics.collection import CollectConfig, collect_in_memory, find_cast
from mambakit.domains.robotics.environments import make
from mambakit.domains.robotics.experts.scripted import reacher
from mambakit.domains.robotics.reaching import COLOURS, ENVIRONMENT_ID, WORDINGS, is_unseen


def asked_for(pairs: str, count: int) -> set[tuple[str, str]]:
    env = make(ENVIRONMENT_ID, kwargs={"pairs": pairs})
    plain: Any = env.unwrapped
    found = set()
    for seed in range(count):
        _, info = env.reset(seed=seed)
        found.add((plain.colour, info["instruction"]))
    return found


def test_pairs_of_training_and_the_unseen_are_apart_and_cover_all() -> None:
    train, unseen = asked_for("train", 200), asked_for("unseen", 60)
    every = {(colour, wording.format(colour)) for colour in COLOURS for wording in WORDINGS}
    assert not train & unseen
    assert train | unseen == every
    assert len(unseen) == len(every) // 4
    for colour in COLOURS:
        assert any(pair[0] == colour for pair in train)
    for wording in WORDINGS:
        assert not all(is_unseen(colour, wording) for colour in COLOURS)


def test_the_expert_reaches_the_disc_that_is_asked_for() -> None:
    env = make(ENVIRONMENT_ID)
    plain: Any = env.unwrapped
    for seed in range(15):
        _, info = env.reset(seed=seed)
        asked = plain.model.body(plain.colour)
        assert np.allclose(info["expert_sees"][4:6], plain.data.mocap_pos[asked.mocapid[0]][:2])
        done = reached = False
        while not done:
            _, _, terminated, truncated, info = env.step(reacher(info["expert_sees"]))
            reached, done = reached or info["is_success"], terminated or truncated
        assert reached, info["instruction"]


def test_the_state_alone_does_not_tell_where_to_go() -> None:
    """Other discs, the same state: without the picture the task can't be solved."""
    env = make(ENVIRONMENT_ID)
    seen = [env.reset(seed=seed)[0]["state"] for seed in range(30)]
    plain: Any = env.unwrapped
    targets = []
    for seed in range(30):
        env.reset(seed=seed)
        targets.append(plain.target)
    assert np.std(seen, axis=0).max() < 0.1
    assert np.std(targets, axis=0).min() > 0.05


def test_the_picture_shows_the_asked_colour_where_it_lies() -> None:
    """What changes as the disc is taken away lies where the disc lay, and has its colour."""
    import mujoco

    env = make(ENVIRONMENT_ID, image_size=64, kwargs={"n_discs": 4})
    plain: Any = env.unwrapped
    half_width_m = 0.62 * np.tan(np.radians(45 / 2))
    for seed in range(8):
        try:
            seen, _ = env.reset(seed=seed)
        except UserError as error:
            pytest.skip(str(error))
        x, y = plain.target
        plain.data.mocap_pos[plain.model.body(plain.colour).mocapid[0]] = (0, 0, -1)
        mujoco.mj_forward(plain.model, plain.data)
        changed = np.abs(seen["image"].astype(int) - env.render()).sum(axis=2) > 30
        rows, columns = np.nonzero(changed)
        at = np.array([columns.mean() + 0.5 - 32, 32 - rows.mean() - 0.5]) / 32 * half_width_m
        assert np.linalg.norm(at - (x, y)) < 0.015, "the arm may hide a part"
        shown = np.median(seen["image"][changed], axis=0) / 255
        shown /= shown.max()
        unlike = {name: np.abs(shown - np.array(rgb) / max(rgb)).sum() for name, rgb in COLOURS.items()}
        assert min(unlike, key=lambda name: float(unlike[name])) == plain.colour
    env.close()


def test_episodes_carry_their_instruction() -> None:
    config = CollectConfig(ENVIRONMENT_ID, episodes=4, kwargs={"pairs": "unseen"})
    found = collect_in_memory(config, find_cast(config), "x")
    assert found.episodes[0].state.shape == (50, 6), "not the expert's"
    assert all(episode.success for episode in found.episodes)
    for episode in found.episodes:
        assert any(
            episode.instruction == wording.format(colour) for colour in COLOURS for wording in WORDINGS
        )
    with pytest.raises(UsageError, match="pairs: expected one of train, unseen, all"):
        make(ENVIRONMENT_ID, kwargs={"pairs": "some"})
