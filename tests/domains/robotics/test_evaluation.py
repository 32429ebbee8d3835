"""Evaluation: each seed its own episode whoever runs beside it, targets chosen apart, spaces checked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium import spaces  # noqa: E402

from mambakit.core.errors import DataError, UsageError, UserError  # noqa: E402
from mambakit.domains.robotics import rollouts  # noqa: E402
from mambakit.domains.robotics.environments import make  # noqa: E402
from mambakit.domains.robotics.episodes import Episode, Episodes  # noqa: E402
from mambakit.domains.robotics.evaluation import (  # noqa: E402
    FIRST_VALIDATION_SEED,
    as_json,
    candidate_targets,
    choose_target,
    measure,
    pooled,
    roll_out,
)
from mambakit.domains.robotics.plots import returns_figure, rollout_figure  # noqa: E402
from mambakit.domains.robotics.policy.testing import small_policy  # noqa: E402
from mambakit.domains.robotics.video import write_video  # noqa: E402


class Follow(gymnasium.Env[Any, Any]):
    """Say the number that is shown; each error costs its square. Lengths follow from seeds."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(
        self, render_mode: str | None = None, broken_at: int | None = None, diverges: bool = False
    ) -> None:
        self.render_mode, self.broken_at, self.diverges = render_mode, broken_at, diverges
        self.left = 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        self.at = 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -float(np.square(action - self.shown[:2]).sum())
        self.left -= 1
        self.at += 1
        return self._shown(), reward, self.left == 0, False, {"is_success": reward > -0.05}

    def _shown(self) -> Any:
        self.shown = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        broken = self.broken_at is not None and self.at >= self.broken_at
        if broken or (self.diverges and self.left == 0):
            return np.full(3, np.nan, np.float32)
        return self.shown

    def render(self) -> Any:
        return np.full((31, 41, 3), 10 * self.at, np.uint8)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Any:
    gymnasium.register("MambakitFollow-v0", entry_point=Follow)
    yield
    del gymnasium.registry["MambakitFollow-v0"]


def recorded(n: int = 8) -> Episodes:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        state = rng.uniform(-1, 1, (9, 3)).astype(np.float32)
        found.append(Episode({"state": state}, state[:8, :2], rng.normal(size=8).astype(np.float32)))
    return Episodes("follow", found)


maker = partial(make, "MambakitFollow-v0")


def test_a_seed_gives_its_episode_whoever_runs_beside_it() -> None:
    policy = small_policy(recorded())
    seeds = [5, 0, 3, 11, 8]
    alone = [roll_out(policy, maker, [seed], n_envs=1, target_return=-1.0) for seed in seeds]
    together = roll_out(policy, maker, seeds, n_envs=3, target_return=-1.0)
    assert together.seeds == seeds
    np.testing.assert_allclose(together.returns, [one.returns[0] for one in alone], atol=1e-4)
    assert together.lengths.tolist() == [int(one.lengths[0]) for one in alone]
    assert len(set(together.lengths.tolist())) > 1
    assert together.successes is not None


def test_the_target_is_chosen_on_other_seeds_than_are_measured() -> None:
    policy = small_policy(recorded())
    used: list[int] = []

    class Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            used.append(int(seed or 0))
            return super().reset(seed=seed, options=options)

    def watched() -> Any:
        return Watched(maker())

    chosen = choose_target(policy, watched, n_seeds=2)
    assert min(used) >= FIRST_VALIDATION_SEED
    assert [one["target_return"] for one in chosen.tried] == candidate_targets(policy.config)
    assert chosen.value == max(chosen.tried, key=lambda one: one["return"])["target_return"]
    used.clear()
    (found,) = measure({"best": policy}, watched, "MambakitFollow-v0", range(4), validation_seeds=2)
    assert [one for one in used if one < FIRST_VALIDATION_SEED] == [0, 1, 2, 3]
    assert found.row["iqm_low"] <= found.row["iqm"] <= found.row["iqm_high"]
    assert found.row["episodes"] == 4
    assert as_json([found])[0]["returns"] == found.rollouts.returns.tolist()
    again = measure({"best": policy}, maker, "MambakitFollow-v0", range(9), target_return=0.0)
    (both,) = pooled([found, *again], "MambakitFollow-v0")
    assert (both["runs"], both["episodes"]) == (2, 13)
    means = [found.row["mean"], again[0].row["mean"]]
    assert both["mean"] == pytest.approx((4 * means[0] + 9 * means[1]) / 13)
    assert both["deviation"] == pytest.approx(np.std(means))
    with pytest.raises(UsageError, match="choose the target return; choose another"):
        measure({"best": policy}, maker, "MambakitFollow-v0", [FIRST_VALIDATION_SEED])


def test_an_environment_of_other_spaces_is_refused() -> None:
    policy = small_policy(recorded())
    with pytest.raises(UsageError, match="takes actions of 1 numbers, -2 to 2, the policy gives 2 numbers"):
        roll_out(policy, partial(make, "Pendulum-v1"), [0])
    with pytest.raises(
        UsageError, match="CartPole-v1 takes actions of 2 choices, the policy gives 2 numbers"
    ):
        roll_out(policy, partial(make, "CartPole-v1"), [0])


def test_a_broken_sensor_is_named_with_its_seed() -> None:
    policy = small_policy(recorded())
    with pytest.raises(DataError, match=r"state of robot 0 has nan at place 0.*seed 4 step 2"):
        roll_out(policy, partial(make, "MambakitFollow-v0", kwargs={"broken_at": 2}), [4])
    with pytest.raises(UsageError, match="n_envs: expected at least 1, got 0"):
        roll_out(policy, maker, [4], n_envs=0)


def test_what_an_episode_shows_after_its_end_stops_no_other() -> None:
    policy = small_policy(recorded())
    diverging = partial(make, "MambakitFollow-v0", kwargs={"diverges": True})
    seeds = [5, 0, 3, 11, 8]
    found = roll_out(policy, diverging, seeds, n_envs=3, target_return=-1.0)
    assert found.lengths.tolist() == roll_out(policy, maker, seeds, target_return=-1.0).lengths.tolist()


def test_targets_may_differ_from_episode_to_episode() -> None:
    policy = small_policy(recorded())
    targets = [-3.0, -1.0, 4.0]
    alone = [roll_out(policy, maker, [7], target_return=one).returns[0] for one in targets]
    together = roll_out(policy, maker, [7, 7, 7], n_envs=2, target_return=targets)
    np.testing.assert_allclose(together.returns, alone, atol=1e-4)
    assert len(set(np.round(alone, 6))) == 3
    with pytest.raises(UsageError, match="one for each of 2 episodes, got 3"):
        roll_out(policy, maker, [7, 8], target_return=targets)
    with pytest.raises(UsageError, match="chosen on at least 1, got 0"):
        choose_target(policy, maker, n_seeds=0)


def test_a_rollout_is_kept_and_filmed(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    policy = small_policy(recorded(), kind="bc")
    acted = rollouts.act(
        policy, partial(maker, render_size=32), seed=3, video=tmp_path / "a.mp4", control_hz=20.0
    )
    n = len(acted.rewards)
    assert acted.n_frames == n + 1
    assert acted.target_return is None
    film = imageio.get_reader(tmp_path / "a.mp4")
    assert film.count_frames() == n + 1
    assert film.get_meta_data()["fps"] == 20.0
    levels = [int(np.asarray(frame).mean()) for frame in film]
    assert levels == sorted(levels)
    assert levels[-1] > levels[0]
    rollouts.write(tmp_path / "a.npz", acted)
    kept = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(kept["actions"], acted.actions)
    np.testing.assert_array_equal(kept["observation_state"], acted.observations["state"])
    same = rollouts.act(policy, maker, seed=3, max_steps=2)
    np.testing.assert_array_equal(same.actions, acted.actions[:2])
    rollout_figure(acted.rewards, acted.actions, control_hz=20.0, title="x").savefig(tmp_path / "a.png")
    returns_figure({"ours": [1.0, 2.0], "data": [0.0, 1.0, 5.0]}, best_of_data=5.0).savefig(
        tmp_path / "b.png"
    )


def test_a_rollout_that_breaks_leaves_no_half_of_a_film(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    policy = small_policy(recorded(), kind="bc")
    broken = partial(maker, render_size=32, kwargs={"broken_at": 2})
    with pytest.raises(DataError, match=r"state of robot 0 has nan at place 0.*at step 2"):
        rollouts.act(policy, broken, seed=4, video=tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="max_steps: expected at least 1, got 0"):
        rollouts.act(policy, maker, max_steps=0)


def test_no_frame_is_no_video(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(UserError, match="no frame to write"):
        write_video(tmp_path / "a.mp4", [], 30.0)
