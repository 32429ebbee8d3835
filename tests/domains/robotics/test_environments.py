"""Environments: named observations, seeds that hold, pictures, and errors that help."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mambakit.core.errors import UsageError, UserError
from mambakit.domains.robotics.environments import make, make_many, record_of, version_note
from mambakit.domains.robotics.episodes import ActionSpace
from mambakit.domains.robotics.observations import NamedObservations, named_rows, parts_of
from mambakit.domains.robotics.wrappers import WrapperConfig


class Goals(gymnasium.Env[Any, Any]):
    """Counts steps; observations as goal environments give them."""

    observation_space = spaces.Dict(
        {
            name: spaces.Box(-9, 9, (2,), np.float64)
            for name in ("observation", "desired_goal", "achieved_goal")
        }
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0.0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._seen(), float(action), self.count >= 3, False, {}

    def _seen(self) -> dict[str, Any]:
        return {
            "observation": np.full(2, self.count),
            "desired_goal": np.ones(2) * 7,
            "achieved_goal": np.zeros(2),
        }


class Parts(gymnasium.Env[Any, Any]):
    """Observations in parts of several kinds, one of them a picture."""

    observation_space = spaces.Dict(
        {
            "gripper": spaces.Discrete(2),
            "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "joints": spaces.Box(-1, 1, (2, 2), np.float64),
        }
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        picture = np.full((4, 4, 3), 9, np.uint8)
        return {"gripper": 1, "image": picture, "joints": np.array([[0.1, 0.2], [0.3, 0.4]])}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


if "mambakit-test/Goals-v0" not in gymnasium.registry:
    gymnasium.register("mambakit-test/Parts-v0", Parts)
    gymnasium.register("mambakit-test/Goals-v0", Goals)


def test_goal_environments_give_state_and_goal() -> None:
    env = make("mambakit-test/Goals-v0")
    seen, _ = env.reset()
    assert set(seen) == {"state", "goal"}
    seen, *_ = env.step(1)
    assert seen["state"].tolist() == [1.0, 1.0]
    assert seen["goal"].tolist() == [7.0, 7.0]
    assert env.observation_space.contains(seen)
    assert record_of(env, "mambakit-test/Goals-v0").action_space == ActionSpace(n=3)


def test_parts_that_are_no_pictures_become_one_state() -> None:
    env = make("mambakit-test/Parts-v0")
    seen, _ = env.reset()
    assert seen["state"] == pytest.approx([0, 1, 0.1, 0.2, 0.3, 0.4])
    assert (seen["image"] == 9).all()
    assert env.observation_space.contains(seen)


class Cameras(Parts):
    """Two pictures, neither called image, and no time limit."""

    observation_space = spaces.Dict(
        {
            "wrist": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "front": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "touch": spaces.MultiBinary(2),
            "mode": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2])]),
        }
    )

    def __init__(self, size: int = 1) -> None:
        assert size < 3, "size must be below 3"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


if "mambakit-test/Cameras-v0" not in gymnasium.registry:
    gymnasium.register("mambakit-test/Cameras-v0", Cameras, disable_env_checker=True)


@pytest.mark.parametrize("named", [Goals, Parts, Cameras])
def test_recorded_observations_are_named_as_those_of_the_environment(named: Any) -> None:
    space = named.observation_space
    space.seed(3)
    rows = [space.sample() for _ in range(5)]
    parts = parts_of(space)

    def stacked(parted: Any, values: list[Any]) -> Any:
        if isinstance(parted, spaces.Dict):
            return {name: stacked(part, [value[name] for value in values]) for name, part in parted.items()}
        if isinstance(parted, spaces.Tuple):
            return tuple(stacked(part, [value[k] for value in values]) for k, part in enumerate(parted))
        return np.stack(values)

    shown = iter(rows)

    class Shows(named):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            return next(shown), {}

    env = NamedObservations(Shows())
    alone = [env.reset()[0] for _ in rows]
    found = named_rows(parts, stacked(space, rows))
    assert set(found) == set(alone[0]) == set(parts)
    for name, values in found.items():
        assert np.array_equal(values, np.stack([one[name] for one in alone]))
        assert values.dtype == alone[0][name].dtype
    if named is Cameras:
        assert np.array_equal(found["image"], np.stack([row["front"] for row in rows])), "the first by name"
        assert found["state"].shape == (5, 2 + 3 + 4), "no picture is among the numbers"


def test_an_episode_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambakit.domains.robotics.environments._MOST_STEPS", 7)
    env = make("mambakit-test/Cameras-v0")
    for _ in range(2):
        env.reset()
        for _ in range(7):
            env.step(None)
    with pytest.raises(UsageError, match=r"not ended after 7 steps; .*max_episode_steps"):
        env.step(None)
    limited = make("mambakit-test/Cameras-v0", kwargs={"max_episode_steps": 9})
    limited.reset()
    assert [limited.step(None)[3] for _ in range(9)] == [False] * 8 + [True]


def test_choices_seen_become_one_hot() -> None:
    env = make("FrozenLake-v1", kwargs={"is_slippery": False}, seed=0)
    seen, _ = env.reset()
    assert seen["state"].argmax() == 0
    seen, *_ = env.step(2)  # to the right
    assert seen["state"].argmax() == 1
    assert seen["state"].sum() == 1


def test_the_seed_of_make_is_that_of_the_first_reset() -> None:
    first, _ = make("Reacher-v5", seed=5).reset()
    named, _ = make("Reacher-v5").reset(seed=5)
    other, _ = make("Reacher-v5", seed=5).reset(seed=6)
    assert np.array_equal(first["state"], named["state"])
    assert not np.array_equal(first["state"], other["state"])


def test_many_environments_go_as_each_alone_and_begin_again() -> None:
    many = make_many("mambakit-test/Goals-v0", 2, seed=3)
    many.reset()
    for _ in range(2):
        seen, rewards, ended, _, _ = many.step(np.array([1, 2]))
        assert not ended.any()
    seen, rewards, ended, _, info = many.step(np.array([1, 2]))
    assert ended.all()
    assert seen["state"].tolist() == [[0, 0], [0, 0]], "reset in the same step"
    assert [last["state"].tolist() for last in info["final_obs"]] == [[3, 3], [3, 3]]
    single = [make("Reacher-v5", seed=3 + place) for place in range(2)]
    both = make_many("Reacher-v5", 2, seed=3)
    start, _ = both.reset()
    assert np.array_equal(start["state"], np.stack([env.reset()[0]["state"] for env in single]))
    action = np.float32([[0.3, -0.2], [0.1, 0.9]])
    seen, rewards, *_ = both.step(action)
    alone = [env.step(row) for env, row in zip(single, action, strict=True)]
    assert np.array_equal(seen["state"], np.stack([found[0]["state"] for found in alone]))
    assert rewards.tolist() == [found[1] for found in alone]


def test_the_record_says_what_must_be_known() -> None:
    record = record_of(make("Hopper-v5"), "Hopper-v5")
    assert record.state_dim == 11
    assert record.action_space == ActionSpace((-1.0,) * 3, (1.0,) * 3)
    assert record.control_hz == 125.0
    assert record.reference_expert == 3234.3
    assert version_note(record) is None
    note = version_note(dataclasses.replace(record, mujoco_version="2.1.0"))
    assert note is not None
    assert "recorded with mujoco 2.1.0" in note


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("Hoper-v5", {}, "did you mean Hopper-v5"),
        ("Hopper-v99", {}, "knows no 'Hopper-v99'"),
        ("nowhere:Thing-v0", {}, "no module 'nowhere'"),
        ("Hopper-v5", {"kwargs": {"gravity": 3}}, "arguments .*gravity.* don't fit"),
        ("mambakit-test/Cameras-v0", {"kwargs": {"size": 3}}, "size must be below 3"),
        ("mambakit-test/Cameras-v0", {"image_size": 8}, "it can't be drawn, or its arguments"),
        ("Reacher-v5", {"render_size": 0}, "render_size: expected 1 pixel or more"),
        ("Reacher-v5", {"wrappers": WrapperConfig(mask=[10])}, "places from 0 to 9"),
        ("FrozenLake-v1", {"wrappers": WrapperConfig(mask="velocities")}, "not known; name their places"),
        ("CartPole-v1", {"wrappers": WrapperConfig(mass=2)}, "no MuJoCo environment"),
    ],
)
def test_what_cannot_be_made_is_said(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(name, **options)


def test_modules_of_ones_own_say_what_they_lack(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mambakit_lacking.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"can't be imported \(No module named 'not_installed_anywhere'\)"):
        make("mambakit_lacking:Thing-v0")


def test_suites_that_are_not_installed_name_their_extra() -> None:
    if find_spec("gymnasium_robotics") is not None:
        pytest.skip("gymnasium-robotics is installed")
    with pytest.raises(UserError, match=r"mambakit\[robotics-suites\]"):
        make("FetchReach-v4")


def test_pictures_show_what_happens() -> None:
    env = make("InvertedPendulum-v5", seed=0, image_size=48)
    try:
        seen, _ = env.reset()
    except UserError as error:
        pytest.skip(str(error))
    start = seen["image"]
    assert start.shape == (48, 48, 3)
    assert start.std() > 10, "something is drawn"
    again, _ = env.reset(seed=0)
    assert np.abs(again["image"].astype(int) - start).mean() < 1
    for _ in range(10):
        seen, *_ = env.step(np.float32([3.0]))
    assert np.abs(seen["image"].astype(int) - start).mean() > 1, "the cart has moved"
    env.close()


def test_a_missing_package_to_draw_with_is_said() -> None:
    if find_spec("pygame") is not None:
        pytest.skip("pygame is installed")
    env = make("CartPole-v1", render_size=32)
    env.reset()
    with pytest.raises(UserError, match=r"CartPole-v1 can't be drawn: pygame is not installed"):
        env.render()


@pytest.mark.parametrize(
    ("backend", "quality", "needs"),
    [("osmesa", "fast", "libosmesa6"), ("osmesa", "full", "libosmesa6"), ("nothing", "fast", "libegl1")],
)
def test_a_missing_way_to_draw_names_the_package(backend: str, quality: str, needs: str) -> None:
    """As one error of ours, whether mujoco's import or the first picture finds out."""
    code = (
        "from mambakit.domains.robotics.environments import make\n"
        "from mambakit.core.errors import UserError\n"
        "try:\n"
        f"    env = make('InvertedPendulum-v5', render_size=32, render_quality={quality!r})\n"
        "    env.reset(); env.render()\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "MUJOCO_GL": backend}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip("osmesa is installed")
    assert f"can't draw with MUJOCO_GL={backend}" in done.stdout
    assert needs in done.stdout
