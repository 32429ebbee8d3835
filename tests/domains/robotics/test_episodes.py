"""Episodes: returns to go, splits by whole episodes, and what can't be used is set apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import (
    ActionSpace,
    EnvironmentRecord,
    Episode,
    Episodes,
    gathered,
    record_from,
    seen_actions,
    split_episodes,
)


def episode(steps: int, *, width: int = 3, last: bool = True, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        {"state": rng.normal(size=(steps + last, width)).astype(np.float32)},
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32),
        terminated=True,
    )


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
def test_returns_to_go_start_at_the_return_and_fall_by_the_reward(rewards: list[float]) -> None:
    found = Episode(
        {"state": np.zeros((len(rewards), 1), np.float32)}, np.zeros((len(rewards), 1)), np.float32(rewards)
    )
    to_go = found.returns_to_go()
    scale = 1 + np.abs(rewards).sum()
    assert to_go[0] == pytest.approx(found.total, abs=scale * 1e-6)
    assert np.abs(np.append(to_go[1:], 0.0) + np.float32(rewards) - to_go).max() <= scale * 1e-6


@given(st.integers(3, 60), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 5))
def test_split_puts_every_episode_on_one_side(count: int, validation: float, test: float, seed: int) -> None:
    found = Episodes("many", [episode(1)] * count)
    split = split_episodes(found, validation, test, seed=seed)
    assert sorted(split.train + split.validation + split.test) == list(range(count))
    assert split.train
    assert bool(split.validation) == (validation > 0)
    assert bool(split.test) == (test > 0)
    assert split == split_episodes(found, validation, test, seed=seed)


def test_split_refuses_what_leaves_nothing_to_learn_from() -> None:
    with pytest.raises(UsageError, match="2 episodes can't be split"):
        split_episodes(Episodes("two", [episode(4)] * 2))
    with pytest.raises(UsageError, match="leave some to learn from"):
        split_episodes(Episodes("many", [episode(4)] * 20), 0.5, 0.5)


def test_episodes_that_cannot_be_used_are_named_with_the_reason() -> None:
    good = episode(5)
    nan = episode(5)
    nan.observations["state"][3, 1] = np.nan
    bad = [
        dataclasses.replace(good, rewards=good.rewards[:4]),
        dataclasses.replace(good, observations={"state": good.observations["state"][:3]}),
        dataclasses.replace(good, observations={}),
        episode(0),
        nan,
        episode(5, width=4),
        dataclasses.replace(good, actions=np.array([0, 2, -1, 0, 1])),
    ]
    found = gathered("mixed", [good, *bad, episode(1)])
    assert [len(one) for one in found.episodes] == [5, 1]
    reasons = [reason for _, reason in found.left_out]
    for reason, part in zip(
        reasons,
        (
            "5 actions but 4 rewards",
            "but 3 observations",
            "no state",
            "no steps",
            "state of step 3",
            "shapes",
            "action of step 2 is -1",
        ),
        strict=True,
    ):
        assert part in reason
    assert found.left_out[4][0] == "episode 5"


def test_seen_actions_are_the_bounds_of_all() -> None:
    episodes = [episode(9, seed=seed) for seed in range(3)]
    space = seen_actions(episodes)
    actions = np.concatenate([one.actions for one in episodes])
    assert space.low == tuple(map(float, actions.min(0)))
    assert space.high == tuple(map(float, actions.max(0)))
    chosen = Episode({"state": np.zeros((3, 1), np.float32)}, np.array([0, 4, 2]), np.zeros(3, np.float32))
    assert seen_actions([chosen]) == ActionSpace(n=5)


def test_record_comes_back_from_its_facts() -> None:
    record = EnvironmentRecord(
        "X-v0", {"a": 1}, {"mass": 2.0}, "3.10.0", "1.4.0", 3, ActionSpace((-1.0,), (1.0,)), 50.0
    )
    assert record_from(dataclasses.asdict(record)) == record
