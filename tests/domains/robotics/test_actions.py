"""Choices of every kind: numbered from 0 and back, read from data, learned and acted out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("minari")

from gymnasium import spaces  # noqa: E402

from mambakit.core.errors import DataError, UsageError  # noqa: E402
from mambakit.core.training import RunFolder, TrainConfig  # noqa: E402
from mambakit.domains.robotics.actions import action_space_of, choice, numbered  # noqa: E402
from mambakit.domains.robotics.cards import load_episodes  # noqa: E402
from mambakit.domains.robotics.environments import make  # noqa: E402
from mambakit.domains.robotics.evaluation import roll_out  # noqa: E402
from mambakit.domains.robotics.policy.config import PolicyConfig  # noqa: E402
from mambakit.domains.robotics.policy.testing import SMALL  # noqa: E402
from mambakit.domains.robotics.policy.training import read_parts, train_policy  # noqa: E402

SERVED: list[Any] = [
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([[2, 3], [1, 4]]),
    spaces.MultiDiscrete([3, 2], start=[1, -1]),
    spaces.MultiBinary([2, 2]),
]
TWO = spaces.MultiDiscrete([2, 3], start=[0, 1])


class Switches(gymnasium.Env[Any, Any]):
    """Two switches: which way each must go is shown; every step in which both are right earns 1."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, kind: str = "two") -> None:
        self.action_space = TWO if kind == "two" else spaces.Discrete(6, start=10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 6
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        earned = float(np.array_equal(action, self.right()))
        self.left -= 1
        return self._shown(), earned, self.left == 0, False, {}

    def right(self) -> Any:
        first, second = int(self.ways[0]), int(self.ways[1])
        return (
            np.array([first, second + 1]) if self.action_space == TWO else np.int64(10 + first * 3 + second)
        )

    def _shown(self) -> Any:
        self.ways = self.np_random.integers(0, [2, 3])
        return (self.ways - np.array([0.5, 1])).astype(np.float32)


if "mambakit-test/Switches-v0" not in gymnasium.registry:
    gymnasium.register("mambakit-test/Switches-v0", Switches, disable_env_checker=True)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, len(SERVED) - 1), seed=st.integers(0, 99))
def test_every_choice_has_a_number_and_comes_back(place: int, seed: int) -> None:
    space = SERVED[place]
    space.seed(seed)
    rows = np.stack([space.sample() for _ in range(7)])
    numbers = numbered(space, rows)
    assert numbers.dtype == np.int64
    assert all(np.array_equal(choice(space, number), row) for number, row in zip(numbers, rows, strict=True))
    every = [choice(space, number) for number in range(action_space_of(space).n or 0)]
    assert all(space.contains(one) for one in every)
    assert len({np.asarray(one).tobytes() for one in every}) == len(every)
    assert numbered(space, np.stack(every)).tolist() == list(range(len(every)))


def test_what_is_not_served_is_said() -> None:
    with pytest.raises(UsageError, match="are not served: a vector of numbers"):
        action_space_of(spaces.Tuple([spaces.Discrete(2)]))
    with pytest.raises(UsageError, match="are not served"):
        action_space_of(spaces.Box(-1, 1, (2, 2)))
    with pytest.raises(UsageError, match="have 1048576 combinations, and 4096 are served"):
        action_space_of(spaces.MultiBinary(20))
    with pytest.raises(ValueError, match="not in Discrete"):
        numbered(spaces.Discrete(3, start=1), [0])


@pytest.mark.parametrize("kind", ["two", "one"])
def test_choices_are_read_learned_and_acted_out(tmp_path: Path, kind: str) -> None:
    """Recorded as the environment takes them; every step of the policy's is one the environment takes."""
    folder, env = tmp_path / "data", Switches(kind)
    write(folder, env, 40)
    episodes = load_episodes(folder)
    assert episodes.episodes[0].actions.dtype == np.int64
    assert episodes.action_space.n == 6
    config = PolicyConfig(**(SMALL | {"kind": "bc-mlp", "dropout": 0.0}))
    train = TrainConfig(max_epochs=2, max_steps=60, batch_size=2, lr=1e-2, ema_decay=0.9, patience=0)
    run = RunFolder(tmp_path / "run")
    policy, _ = train_policy(episodes, read_parts(episodes, seed=0), run, config, train)
    maker = partial(make, "mambakit-test/Switches-v0", kwargs={"kind": kind})
    assert roll_out(policy, maker, range(5), n_envs=2).returns.tolist() == [6.0] * 5


def test_a_recorded_choice_that_there_is_not_leaves_its_episode_out(tmp_path: Path) -> None:
    write(tmp_path, Switches("one"), 4, wrong=2)
    found = load_episodes(tmp_path)
    assert len(found) == 3
    ((name, reason),) = found.left_out
    assert name == "episode 2"
    assert "not in Discrete" in reason
    write(tmp_path / "other", Switches("one"), 1, space=spaces.MultiBinary(20))
    with pytest.raises(DataError, match="1048576 combinations"):
        load_episodes(tmp_path / "other")


def write(folder: Path, env: Switches, count: int, wrong: int | None = None, space: Any = None) -> None:
    """A Minari data set of right actions as its own collector writes it."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    space = space or env.action_space
    folder.mkdir(exist_ok=True)
    storage = MinariStorage.new(folder / "data", env.observation_space, space)
    for episode in range(count):
        shown, _ = env.reset(seed=100 + episode)
        seen, actions, done = [shown], [], False
        while not done:
            actions.append(env.right())
            shown, _, done, _, _ = env.step(actions[-1])
            seen.append(shown)
        taken = np.stack(actions) + (100 if episode == wrong else 0)
        if isinstance(space, spaces.MultiBinary):
            taken = np.zeros((len(actions), 20), np.int8)
        ends = np.arange(len(actions)) == len(actions) - 1
        buffer = EpisodeBuffer(
            observations=np.stack(seen), actions=taken, rewards=np.ones(len(actions)),
            terminations=ends, truncations=ends & False,
        )  # fmt: skip
        storage.update_episodes([buffer])
