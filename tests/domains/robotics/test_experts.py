"""Experts: the search is what its paper says, goes on after a kill, and scripts solve their tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.behaviours import LEVELS, Cast, Level
from mambakit.domains.robotics.collection import CollectConfig, collect_in_memory
from mambakit.domains.robotics.environments import make, record_of
from mambakit.domains.robotics.episodes import ActionSpace
from mambakit.domains.robotics.experts.ars import ArsConfig, Search, load_search, run_episode, search
from mambakit.domains.robotics.experts.linear import LinearPolicy, RunningMoments
from mambakit.domains.robotics.experts.scripted import inverted_pendulum, reacher, scripted

SMALL = ArsConfig(learning_rate=0.05, noise=0.1, steps=12_000, evaluate_every=3, evaluation_episodes=2)
CARTPOLE = ActionSpace(n=2)


def found(path: Path | None = None, config: ArsConfig = SMALL, **options: object) -> Search:
    return search(make("CartPole-v1"), "CartPole-v1", CARTPOLE, config, path, **options)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 9))
def test_running_moments_are_those_of_all_states(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(3.0, 5.0, (count, 2)) for count in counts]
    moments = RunningMoments.nothing(2)
    for part in parts:
        moments.add(part)
    states = np.concatenate(parts)
    assert moments.count == len(states)
    if len(states) > 1:
        assert np.allclose(moments.mean, states.mean(0), atol=1e-12 * 50)
        assert np.allclose(moments.deviation, states.std(0, ddof=1), rtol=1e-9)


def test_a_linear_policy_is_its_formula_and_ignores_what_never_changes() -> None:
    rng = np.random.default_rng(0)
    weights, mean = rng.normal(size=(2, 3)), rng.normal(size=3)
    deviation = np.array([0.5, 2.0, np.inf])
    space = ActionSpace((-1.0, -0.5), (1.0, 0.5))
    policy = LinearPolicy(weights, mean, deviation, space)
    for state in rng.normal(0, 3, (20, 3)):
        expected = weights @ ((state - mean) / deviation)
        assert np.allclose(policy.act(state), np.clip(expected, space.low, space.high), atol=1e-6)
    assert LinearPolicy(weights, mean, deviation, CARTPOLE).act(mean + np.eye(3)[0]) == int(
        weights[:, 0].argmax()
    )


def test_one_iteration_is_the_papers_update() -> None:
    """V2-t, written out: top directions by their better side, deviation of their returns, running moments."""
    config = ArsConfig(learning_rate=0.05, noise=0.1, directions=4, top=2, steps=1, evaluation_episodes=1)
    state = found(config=config)
    env = make("CartPole-v1")
    changes = np.random.default_rng((config.seed, 0)).standard_normal((4, 2, 4))
    ones, zeros = np.ones(4), np.zeros(4)
    earned = np.zeros((4, 2))
    seen = []
    for k in range(4):
        start = int(np.random.SeedSequence((config.seed, 0, k)).generate_state(1)[0] >> 1)
        for side, sign in enumerate((1, -1)):
            policy = LinearPolicy(sign * config.noise * changes[k], zeros, ones, CARTPOLE)
            earned[k, side], states = run_episode(env, policy.act, start)
            seen.append(states)
    best = np.argsort(-earned.max(1), kind="stable")[:2]
    step = sum((earned[k, 0] - earned[k, 1]) * changes[k] for k in best)
    assert np.allclose(state.weights, config.learning_rate / (2 * earned[best].std()) * step)
    assert np.allclose(state.moments.mean, np.concatenate(seen).mean(0), atol=1e-6)


def test_search_learns_and_its_best_and_middle_are_in_order() -> None:
    state = found(config=dataclasses.replace(SMALL, steps=30_000))
    first = state.evaluated[0][1]
    iteration, best = state.best()
    assert best > 5 * first, "a pole balanced for longer"
    middle, earned = state.nearest(first + 0.5 * (best - first))
    assert middle <= iteration
    assert first <= earned <= best


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = found()
    calls = []

    def kill(state: Search) -> None:
        calls.append(state.steps)
        if len(calls) == 2:
            raise KeyboardInterrupt

    path = tmp_path / "search.npz"
    with pytest.raises(KeyboardInterrupt):
        found(path, tell=kill, save_every_s=0.0)
    kept = load_search(path)
    assert 0 < kept.steps < whole.steps
    resumed = found(path)
    assert np.array_equal(resumed.weights, whole.weights)
    assert resumed.evaluated == whole.evaluated
    assert resumed.steps_at == whole.steps_at
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    again = load_search(path)
    assert again.done
    with pytest.raises(UsageError, match="another search"):
        found(path, dataclasses.replace(SMALL, seed=1))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="delete it to search again"):
        found(path)


def test_workers_find_the_same() -> None:
    from functools import partial

    from mambakit.domains.robotics.experts.workers import Workers

    config = dataclasses.replace(SMALL, steps=3_000)
    with Workers(partial(make, "CartPole-v1"), 2) as roll_out:
        shared = found(config=config, roll_out=roll_out)
    alone = found(config=config)
    assert np.array_equal(shared.weights, alone.weights)
    assert shared.evaluated == alone.evaluated


def test_scripts_solve_their_tasks() -> None:
    env = make("Reacher-v5")
    earned = [run_episode(env, reacher, seed)[0] for seed in range(20)]
    assert np.mean(earned) > -4.2  # gymnasium calls -3.75 solved, over 100 episodes; random earns -43
    pendulum = make("InvertedPendulum-v5")
    assert [run_episode(pendulum, inverted_pendulum, seed)[0] for seed in range(2)] == [1000.0, 1000.0]
    assert scripted("Hopper-v5") is None


@pytest.mark.slow
def test_reacher_is_solved_by_gymnasiums_measure() -> None:
    env = make("Reacher-v5")
    assert np.mean([run_episode(env, reacher, seed)[0] for seed in range(100)]) > -3.75


def test_levels_are_in_order() -> None:
    def mean(level: Level) -> float:
        config = CollectConfig("Reacher-v5", level=level, episodes=8)
        return float(collect_in_memory(config, cast, "x").totals.mean())

    cast = Cast(record_of(make("Reacher-v5"), "Reacher-v5").action_space, expert=reacher)
    means = {level: mean(level) for level in LEVELS}
    assert means["expert"] > means["medium-expert"] > means["medium"] > means["medium-replay"] - 5
    assert means["medium"] > means["random"]
    assert means["expert"] > means["noisy"] > means["random"]


def test_replay_is_what_the_search_tried_up_to_medium() -> None:
    state = found()
    cast = Cast(CARTPOLE, search=state)
    names = [cast.behaviour("medium-replay", place, 10).name for place in range(10)]
    iterations = [int(name.rpartition("-")[2]) for name in names]
    assert iterations == sorted(iterations)
    assert iterations[0] == 0
    assert iterations[-1] == cast.medium_iteration()
    with pytest.raises(UsageError, match="only random needs no expert"):
        Cast(CARTPOLE).behaviour("expert", 0, 1)
