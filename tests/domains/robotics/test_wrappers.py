"""Wrappers change what they say they change, and recorded episodes look as if seen through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.behaviours import Behaviour
from mambakit.domains.robotics.collection import run
from mambakit.domains.robotics.environments import make
from mambakit.domains.robotics.episodes import Episodes
from mambakit.domains.robotics.wrappers import WrapperConfig, mask_indices, seen_through


def played(wrappers: WrapperConfig, actions: Any, seed: int) -> Any:
    """An episode in which these actions are decided on, whatever is seen."""
    rows = iter(actions)
    env = make("InvertedPendulum-v5", wrappers=wrappers)
    return run(env, Behaviour("played", lambda state, rng: next(rows)), seed)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 4), st.booleans(), st.integers(0, 100))
def test_recorded_episodes_look_as_through_the_wrappers(
    action_delay: int, observation_delay: int, masked: bool, seed: int
) -> None:
    config = WrapperConfig(action_delay, observation_delay, mask=[1, 3] if masked else None)
    decided = np.random.default_rng(seed).uniform(-3, 3, (200, 1)).astype(np.float32)
    through = played(config, decided, seed)
    # what the simulation itself was told
    told = np.concatenate([np.zeros((action_delay, 1), np.float32), decided])
    plain = played(WrapperConfig(), told, seed)
    assert len(plain) == len(through)
    if len(plain) <= action_delay:
        return
    (found,) = seen_through(Episodes("one", [plain]), config).episodes
    steps = len(found)
    assert steps == len(plain) - action_delay
    assert np.array_equal(found.actions, through.actions[:steps])
    assert np.array_equal(found.observations["state"], through.observations["state"][: steps + 1])
    assert np.array_equal(found.rewards, through.rewards[:steps])


@pytest.mark.parametrize(("name", "places"), [("Hopper-v5", range(5, 11)), ("Reacher-v5", range(6, 8))])
def test_velocities_are_those_that_change_when_joints_are_pushed(name: str, places: range) -> None:
    env = make(name, seed=0)
    assert mask_indices(env, "velocities") == list(places)
    plain: Any = env.unwrapped
    env.reset()
    still = plain._get_obs()
    plain.set_state(plain.data.qpos.copy(), plain.data.qvel + 0.5)
    changed = np.flatnonzero(~np.isclose(plain._get_obs(), still, atol=1e-9))
    assert set(changed) == set(places)


def test_places_that_are_not_there_are_refused() -> None:
    plain = played(WrapperConfig(), np.zeros((200, 1), np.float32), 0)
    with pytest.raises(UsageError, match=r"places from 0 to 3 of one's state, got \[4\]"):
        seen_through(Episodes("one", [plain]), WrapperConfig(mask=[4]))


def test_noise_has_its_deviation_and_follows_the_seed() -> None:
    config = WrapperConfig(observation_noise=0.1)

    def seen(seed: int) -> Any:
        env = make("Reacher-v5", wrappers=config)
        clean = make("Reacher-v5")
        a, b = env.reset(seed=seed)[0]["state"], clean.reset(seed=seed)[0]["state"]
        return a - b

    assert np.array_equal(seen(3), seen(3))
    noise = np.concatenate([seen(seed) for seed in range(30)])
    assert noise.std() == pytest.approx(0.1, rel=0.2)
    assert abs(noise.mean()) < 0.03


def test_mass_and_friction_are_factors() -> None:
    plain: Any = make("Hopper-v5").unwrapped
    changed: Any = make("Hopper-v5", wrappers=WrapperConfig(mass=2.0, friction=0.5)).unwrapped
    assert np.allclose(changed.model.body_mass, 2 * plain.model.body_mass)
    assert np.allclose(changed.model.body_inertia, 2 * plain.model.body_inertia)
    assert np.allclose(changed.model.geom_friction, 0.5 * plain.model.geom_friction)
    with pytest.raises(UsageError, match="another physics"):
        seen_through(Episodes("none", []), WrapperConfig(mass=2.0))


@pytest.mark.parametrize("bad", [{"action_delay": -1}, {"observation_noise": -0.1}, {"mass": 0.0}])
def test_impossible_changes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        WrapperConfig(**bad)
