"""Collections: what is in the data set, the same after a kill, and plans that are not mixed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.cards import load_episodes
from mambakit.domains.robotics.collection import CollectConfig, collect, find_cast
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.experts.ars import ArsConfig
from mambakit.domains.robotics.minari_files import facts_of
from mambakit.domains.robotics.wrappers import WrapperConfig

CONFIG = CollectConfig("Reacher-v5", level="noisy", episodes=6, seed=40)


def same(a: Episode, b: Episode) -> bool:
    arrays = [(a.actions, b.actions), (a.rewards, b.rewards)]
    arrays += [(a.observations[name], b.observations[name]) for name in a.observations | b.observations]
    told = ("terminated", "truncated", "instruction", "seed", "behaviour", "success")
    return all(np.array_equal(x, y) for x, y in arrays) and all(getattr(a, n) == getattr(b, n) for n in told)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "lerobot"])
def test_a_killed_collection_goes_on_where_it_was(tmp_path: Path, data_format: Any) -> None:
    cast = find_cast(CONFIG)
    collect(CONFIG, cast, tmp_path / "whole", data_format=data_format)
    whole = load_episodes(tmp_path / "whole")
    seen = []

    def kill(place: int, episode: Episode) -> None:
        seen.append(place)
        if place == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        collect(CONFIG, cast, folder, data_format=data_format, tell=kill)
    with pytest.raises(DataError, match="not finished; run the same collect again"):
        load_episodes(folder)
    with pytest.raises(UsageError, match=r"beginning of another collection \(noise, seed differ\)"):
        collect(dataclasses.replace(CONFIG, seed=1, noise=0.1), cast, folder)
    collect(CONFIG, cast, folder, data_format=data_format, tell=lambda place, episode: seen.append(place))
    assert seen == [0, 1, 2, 3, 4, 5], "no episode was collected twice"
    resumed = load_episodes(folder)
    assert all(same(a, b) for a, b in zip(whole.episodes, resumed.episodes, strict=True))
    assert [episode.seed for episode in resumed.episodes] == list(range(40, 46))
    assert not (folder / ".collecting").exists()
    with pytest.raises(UsageError, match="already there"):
        collect(CONFIG, cast, folder)


def test_a_kill_while_lerobots_files_are_written_is_got_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambakit.domains.robotics import lerobot_files

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    folder, config = tmp_path / "d", dataclasses.replace(CONFIG, episodes=2)
    cast = find_cast(config)
    with monkeypatch.context() as patched:
        patched.setattr(lerobot_files, "_stats", kill)
        with pytest.raises(KeyboardInterrupt):
            collect(config, cast, folder, data_format="lerobot")
    assert (folder / "data").exists()
    with pytest.raises(DataError, match="not finished"):
        load_episodes(folder)
    shutil.copytree(folder, tmp_path / "other")
    collect(config, cast, tmp_path / "other", tell=lambda *_: kill())
    assert len(load_episodes(tmp_path / "other")) == 2, "in another format too"
    collect(config, cast, folder, data_format="lerobot", tell=lambda *_: kill())
    assert [episode.seed for episode in load_episodes(folder).episodes] == [40, 41]


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    cast = find_cast(CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        collect(CONFIG, cast, tmp_path / "file")
    (tmp_path / "own/data").mkdir(parents=True)
    with pytest.raises(UsageError, match="is already there"):
        collect(CONFIG, cast, tmp_path / "own", data_format="lerobot")
    (tmp_path / "begun/.collecting").mkdir(parents=True)
    (tmp_path / "begun/.collecting/plan.json").write_text("{")
    with pytest.raises(DataError, match=r"can't be read .* to begin again"):
        collect(CONFIG, cast, tmp_path / "begun")


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps in one array, which it shows each time; it has no control rate.

    Broken, it shows nan after every action of 1.
    """

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, last: int = 4, broken: bool = False) -> None:
        self._last, self._broken = last, broken
        self._count = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count[:] = self._steps = 0
        return self._count, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._count[:] = np.nan if self._broken and action else self._steps
        return self._count, 1.0, self._steps == self._last, False, {}


if "mambakit-test/Counter-v0" not in gymnasium.registry:
    gymnasium.register("mambakit-test/Counter-v0", Counter, disable_env_checker=True)
    gymnasium.register("mambakit-test/Broken-v0", Counter, kwargs={"broken": True}, disable_env_checker=True)


def test_environments_that_write_into_one_array_are_seen_as_they_were(tmp_path: Path) -> None:
    config = CollectConfig("mambakit-test/Counter-v0", level="random", episodes=2)
    collect(config, find_cast(config), tmp_path / "d")
    for episode in load_episodes(tmp_path / "d").episodes:
        assert episode.observations["state"].ravel().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_episodes_of_one_step_are_kept(tmp_path: Path, data_format: Any) -> None:
    config = CollectConfig("mambakit-test/Counter-v0", level="random", episodes=2, kwargs={"last": 1})
    collect(config, find_cast(config), tmp_path / "d", data_format=data_format)
    found = load_episodes(tmp_path / "d")
    assert [len(episode) for episode in found.episodes] == [1, 1]
    assert all(episode.terminated and episode.total == 1.0 for episode in found.episodes)


def test_lerobot_without_a_control_rate_is_refused_before_anything_is_collected(tmp_path: Path) -> None:
    config = CollectConfig("mambakit-test/Counter-v0", level="random", episodes=2)
    with pytest.raises(UsageError, match="Counter-v0 does not say"):
        collect(config, find_cast(config), tmp_path / "d", data_format="lerobot", tell=lambda *_: 1 / 0)
    assert not (tmp_path / "d").exists()


def test_states_that_are_not_finite_end_a_search_and_are_left_out_of_data(tmp_path: Path) -> None:
    config = CollectConfig("mambakit-test/Broken-v0", level="random", episodes=20, kwargs={"last": 2})
    collect(config, find_cast(config), tmp_path / "d")
    found = load_episodes(tmp_path / "d")
    assert all(not episode.actions.any() for episode in found.episodes)
    assert all("state of step" in why and "is not finite" in why for _, why in found.left_out)
    assert len(found) + len(found.left_out) == 20
    with pytest.raises(DataError, match=r"Broken-v0: the state of step \d is not finite in the episode of"):
        find_cast(dataclasses.replace(config, level="expert"), cache=tmp_path)


def test_minari_reads_what_was_collected(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, level="medium-expert", episodes=4)
    record = collect(config, find_cast(config), tmp_path / "reacher-both")
    ours = load_episodes(tmp_path / "reacher-both")
    assert ours.environment == record
    theirs = minari.MinariDataset(tmp_path / "reacher-both/data")
    assert theirs.spec.total_steps == ours.n_steps == 200
    for a, b in zip(ours.episodes, theirs, strict=True):
        assert np.array_equal(a.observations["state"], b.observations)
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.rewards, b.rewards)
        assert a.truncated == bool(b.truncations[-1])
    # the issue that data sets without references have
    assert minari.get_normalized_score(theirs, np.array([-3.75])) == pytest.approx([1.0])
    again, _ = theirs.recover_environment().reset(seed=40)
    assert np.array_equal(again.astype(np.float32), ours.episodes[0].observations["state"][0])
    facts = facts_of(tmp_path / "reacher-both")
    assert facts["collect"]["level"] == "medium-expert"
    assert facts["environment"]["mujoco_version"] == record.mujoco_version
    assert {episode.behaviour for episode in ours.episodes} == {"medium", "expert"}


def test_environments_registered_by_their_class_are_collected_too(tmp_path: Path) -> None:
    """Their spec can't be written, which Minari then lacks; ours is all that is needed here."""
    from gymnasium.envs.classic_control import CartPoleEnv

    if "mambakit-test/Pole-v0" not in gymnasium.registry:
        gymnasium.register("mambakit-test/Pole-v0", CartPoleEnv, max_episode_steps=20)
    config = CollectConfig("mambakit-test/Pole-v0", level="random", episodes=3)
    record = collect(config, find_cast(config), tmp_path / "d")
    found = load_episodes(tmp_path / "d")
    assert found.environment == record
    assert len(found) == 3


def test_what_was_seen_is_what_the_actions_do(tmp_path: Path) -> None:
    """Played again from its seed, an episode gives the same states and rewards."""
    from mambakit.domains.robotics.environments import make

    collect(CONFIG, find_cast(CONFIG), tmp_path / "d")
    episode = load_episodes(tmp_path / "d").episodes[5]
    env = make("Reacher-v5")
    seen, _ = env.reset(seed=episode.seed)
    for step, action in enumerate(episode.actions):
        assert np.array_equal(seen["state"], episode.state[step])
        seen, reward, *_ = env.step(action)
        assert np.float32(reward) == episode.rewards[step]
    assert np.array_equal(seen["state"], episode.observations["state"][-1])


def test_a_search_is_kept_for_the_next_level(tmp_path: Path) -> None:
    ars = ArsConfig(learning_rate=0.05, noise=0.1, steps=5_000, evaluate_every=2, evaluation_episodes=1)
    told: list[int] = []
    config = CollectConfig("CartPole-v1", level="medium-replay", episodes=5)
    cast = find_cast(config, ars, lambda state: told.append(state.steps), tmp_path)
    assert told
    told.clear()
    other = dataclasses.replace(config, level="expert")
    again = find_cast(other, ars, lambda state: told.append(state.steps), tmp_path)
    assert not told, "found, not searched for again"
    assert again.search is not None
    assert cast.search is not None
    assert np.array_equal(again.search.weights, cast.search.weights)
    collect(config, cast, tmp_path / "cartpole")
    found = load_episodes(tmp_path / "cartpole")
    assert found.environment is not None
    assert found.environment.action_space.n == 2
    assert found.episodes[0].actions.dtype == np.int64
    assert all(episode.total == len(episode) for episode in found.episodes)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"level": "great"}, "level: expected one of random"),
        ({"episodes": 0}, "episodes: expected 1 or more"),
        ({"noise": -1.0}, "noise: expected 0 or more"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"image_size": 0}, "image_size: expected 1 pixel or more"),
        ({"wrappers": WrapperConfig(action_delay=2)}, "action_delay would hide"),
    ],
)
def test_impossible_plans_are_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CollectConfig("Reacher-v5", **bad)
