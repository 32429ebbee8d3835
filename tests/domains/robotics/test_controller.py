"""Step by step equals the whole: over resets, snapshots, chunks, missing modalities and exports."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.controller import Controller
from mambakit.domains.robotics.deadlines import deadline_report
from mambakit.domains.robotics.episodes import Episode, Episodes
from mambakit.domains.robotics.export import example_inputs, export_step, exported, initial_memory
from mambakit.domains.robotics.policy.data import measuring_loader
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.testing import ASKED, made_episodes, small_policy

# what a policy is, and what its data have beside states
KINDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"chunk": 4, "previous_action": True}, {}),
    ({"chunk": 3, "ensemble": None, "tokens": "three"}, {"goal": True}),
    ({"kind": "bc", "head": "mixture"}, {"asked": True}),
    ({"kind": "bc", "head": "flow", "chunk": 2, "words": "vocabulary"}, {"asked": True}),
    ({"kind": "decision-transformer", "tokens": "three"}, {}),
    ({"kind": "decision-transformer", "chunk": 2, "previous_action": True}, {"discrete": True}),
    ({"kind": "bc-mlp", "chunk": 3}, {"goal": True}),
    ({"tokens": "three", "patch": 4}, {"image": True, "asked": True}),
    ({"kind": "bc", "patch": 4, "previous_action": True}, {"image": True}),
    ({"kind": "bc-mlp", "patch": 4}, {"image": True, "blind": True}),
    ({"tokens": "three", "patch": 4}, {"image": True, "blind": True}),
]
NAMES = [
    "-".join(f"{key}={value}" for key, value in {**policy, **data}.items()) or "default"
    for policy, data in KINDS
]


def teacher_forced(policy: Policy, episodes: Episodes) -> list[np.ndarray]:
    """The parallel form's actions, by episode."""
    found: dict[int, np.ndarray] = {}
    for i, episode in enumerate(episodes.episodes):
        batch = next(iter(measuring_loader([episode], policy)))
        found[i] = policy.actions(batch.seen, batch.seq_idx)[0, : len(episode)].numpy()
    return [found[i] for i in range(len(episodes))]


class Follower:
    """Shows a controller recorded episodes, and corrects its memory of what it did to what was recorded."""

    def __init__(self, policy: Policy, episodes: Episodes, n_envs: int) -> None:
        self.controller, self.episodes = Controller(policy, n_envs), episodes
        self.at: list[tuple[int, int]] = [(0, 0)] * n_envs
        self.before = [0.0] * n_envs

    def begin(self, robots: list[int], numbers: list[int]) -> None:
        chosen = [self.episodes.episodes[number] for number in numbers]
        self.controller.reset(
            robots,
            target_return=[float(one.returns_to_go()[0]) for one in chosen],
            instruction=[one.instruction for one in chosen],
        )
        for robot, number in zip(robots, numbers, strict=True):
            self.at[robot] = (number, 0)

    def step(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Actions of all robots, and which step of which episode they are for."""
        where = [(number, min(at, len(self.episodes.episodes[number]) - 1)) for number, at in self.at]
        shown: dict[str, Any] = {}
        for name in self.episodes.episodes[0].observations:
            shown[name] = np.stack(
                [self.episodes.episodes[number].observations[name][at] for number, at in where]
            )
        rewards = [
            float(self.episodes.episodes[number].rewards[at - 1]) if at else 77.0 for number, at in where
        ]
        actions = self.controller.step(shown, rewards)
        done = np.stack([self.episodes.episodes[number].actions[at] for number, at in where])
        self.controller.correct(done)
        self.at = [(number, at + 1) for number, at in self.at]
        return actions, where


@pytest.fixture(scope="module", params=range(len(KINDS)), ids=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Policy, Episodes, list[np.ndarray]]:
    options, data = KINDS[request.param]
    episodes = made_episodes(4, **data)
    policy = small_policy(episodes, **options).double()
    return policy, episodes, teacher_forced(policy, episodes)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=3), max_size=14))
def test_equals_the_parallel_form_over_any_resets(
    case: tuple[Policy, Episodes, list[np.ndarray]], plan: list[list[tuple[int, int]]]
) -> None:
    """Robots are reset to any episode at any time; the others never notice."""
    policy, episodes, whole = case
    follower = Follower(policy, episodes, n_envs=3)
    follower.begin([0, 1, 2], [0, 1, 2])
    for resets in plan:
        chosen = dict(resets)
        if chosen:
            follower.begin(list(chosen), list(chosen.values()))
        if any(at >= len(episodes.episodes[number]) for number, at in follower.at):
            return
        actions, where = follower.step()
        for action, (number, at) in zip(actions, where, strict=True):
            np.testing.assert_allclose(action, whole[number][at], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk": 5, "n_layers": 1, "tokens": "three"},
        pytest.param({"kind": "decision-transformer"}, marks=pytest.mark.slow),
    ],
)
def test_float32_over_a_thousand_steps(options: dict[str, Any]) -> None:
    episodes = made_episodes(1, steps=(1000, 1001))
    policy = small_policy(episodes, **options)
    (whole,) = teacher_forced(policy, episodes)
    follower = Follower(policy, episodes, 1)
    follower.begin([0], [0])
    found = np.stack([follower.step()[0][0] for _ in range(1000)])
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"tokens": "three"}, {"goal": True, "asked": True}),
        ({"tokens": "three", "kind": "bc", "head": "flow"}, {"discrete": False, "asked": True}),
        ({"tokens": "three", "chunk": 2}, {"discrete": True}),
        ({"kind": "bc"}, {"goal": True, "asked": True}),
    ],
)
def test_one_robot_in_float32_acts_as_the_parallel_form(
    options: dict[str, Any], data: dict[str, Any]
) -> None:
    """The compiled step: every kind of token, and an episode without an instruction."""
    episodes = made_episodes(3, **data)
    policy = small_policy(episodes, **options)
    assert Controller(policy)._fast is not None
    whole = teacher_forced(policy, episodes)
    follower = Follower(policy, episodes, 1)
    for number, episode in enumerate(episodes.episodes):
        follower.begin([0], [number])
        found = np.stack([follower.step()[0][0] for _ in range(len(episode))])
        np.testing.assert_allclose(found, whole[number], rtol=0, atol=1e-5)


def test_state_does_not_grow_and_a_snapshot_comes_back_bit_for_bit() -> None:
    episodes = made_episodes(2)
    policy = small_policy(episodes, chunk=3, head="flow")
    controller = Controller(policy, 2, deterministic=False, seed=3)
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(12, 2, 3)).astype(np.float32)
    size = controller.state_bytes
    for one in shown[:5]:
        controller.step(one, [1.0, 2.0])
    kept = controller.snapshot()
    after = [controller.step(one, [1.0, 2.0]) for one in shown[5:]]
    assert controller.state_bytes == size
    controller.restore(kept)
    again = [controller.step(one, [1.0, 2.0]) for one in shown[5:]]
    assert all(np.array_equal(a, b) for a, b in zip(after, again, strict=True))
    with pytest.raises(UsageError, match="another policy, or of another number of robots"):
        Controller(policy, 3).restore(kept)


def test_warm_up_is_forgotten() -> None:
    policy = small_policy(made_episodes(2))
    shown = np.ones((1, 3), np.float32)
    cold, warm = Controller(policy), Controller(policy)
    warm.warm_up(4)
    assert warm.deadlines().steps == 0
    assert np.array_equal(cold.step(shown), warm.step(shown))
    assert warm.deadlines().steps == 1


def test_instruction_and_target_matter() -> None:
    episodes = made_episodes(6, asked=True)
    policy = small_policy(episodes)
    controller = Controller(policy)

    def acts(**how: Any) -> np.ndarray:
        controller.reset(**how)
        return np.stack([controller.step(np.ones(3, np.float32), 0.0) for _ in range(3)])

    plain = acts(target_return=1.0, instruction=ASKED[0])
    assert np.array_equal(plain, acts(target_return=1.0, instruction=ASKED[0]))
    assert not np.allclose(plain, acts(target_return=1.0, instruction=ASKED[1]))
    assert not np.allclose(plain, acts(target_return=1.0))
    assert not np.allclose(plain, acts(target_return=-3.0, instruction=ASKED[0]))


def test_acts_without_a_picture_or_without_the_state() -> None:
    episodes = made_episodes(4, image=True)
    policy = small_policy(episodes, patch=4)
    state, image = np.ones(3, np.float32), np.full((8, 8, 3), 9, np.uint8)
    found = []
    for shown in ({"state": state, "image": image}, {"state": state}, {"image": image}):
        controller = Controller(policy)
        found.append(controller.step(shown))
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    hidden = Controller(policy).step({"image": image})
    assert np.array_equal(hidden, found[2])
    with pytest.raises(UsageError, match="reads 'state', and it was not given"):
        Controller(policy).step({})


@pytest.mark.parametrize("tokens", ["fused", "three"])
@pytest.mark.parametrize(
    "kind", ["decision-mamba", pytest.param("decision-transformer", marks=pytest.mark.slow)]
)
def test_equals_the_parallel_form_whatever_is_missing(tokens: str, kind: str) -> None:
    """Pictures and states fail step by step, and some robots have no instruction."""
    episodes = made_episodes(3, steps=(9, 10), image=True, asked=True)
    policy = small_policy(episodes, tokens=tokens, kind=kind, patch=4, previous_action=True).double()
    batch = next(iter(measuring_loader(episodes.episodes, policy)))
    length = len(episodes.episodes[0])
    assert batch.real.shape == (1, 3 * length)
    lost = {"state": [1, 2, 6], "image": [0, 3, 4, 8]}
    there = {name: torch.ones(batch.real.shape, dtype=torch.bool) for name in lost}
    for name, steps in lost.items():
        for i in range(3):
            there[name][0, [i * length + t for t in steps]] = False
    seen = batch.seen.but(state_there=there["state"], image_there=there["image"])
    whole = policy.actions(seen, batch.seq_idx)[0].view(3, length, -1).numpy()
    controller = Controller(policy, 3)
    # the row's order is the loader's
    order = [int(one) for one in batch.seen.instruction.view(3, length)[:, 0]]
    texts = [sorted({one.instruction or "" for one in episodes.episodes} | {""})[i] for i in order]
    controller.reset(
        target_return=batch.seen.to_go.view(3, length)[:, 0].tolist(),
        instruction=[text or None for text in texts],
    )
    assert sum(not text for text in texts) == 1
    for t in range(length):
        shown = {
            name: getattr(batch.seen, name)
            .view(3, length, *getattr(batch.seen, name).shape[2:])[:, t]
            .numpy()
            for name, steps in lost.items()
            if t not in steps
        }
        to_go = batch.seen.to_go.view(3, length).double()
        earned = (to_go[:, t - 1] - to_go[:, t]).numpy() if t else np.zeros(3)
        np.testing.assert_allclose(controller.step(shown, earned), whole[:, t], rtol=0, atol=1e-9)
        controller.correct(batch.target.view(3, length, -1)[:, t].double().numpy())


def test_bad_input_names_the_robot_and_the_place() -> None:
    controller = Controller(small_policy(made_episodes(2)), 2)
    shown = np.zeros((2, 3), np.float32)
    shown[1, 2] = np.nan
    with pytest.raises(DataError, match="state of robot 1 has nan at place 2"):
        controller.step(shown)
    with pytest.raises(UsageError, match=r"state of shape \(2, 3\) is wanted"):
        controller.step(np.zeros((2, 4)))
    with pytest.raises(UsageError, match="different robots from 0 to 1"):
        controller.reset([2])
    with pytest.raises(UsageError, match="one for each of 2 robots, got 3"):
        controller.reset(target_return=[1.0, 2.0, 3.0])


def test_a_reward_that_is_no_number_is_refused_before_it_is_remembered() -> None:
    """A return to go of NaN would make every later action NaN."""
    controller = Controller(small_policy(made_episodes(4)), 2)
    shown = np.ones((2, 3), np.float32)
    controller.step(shown, [0.0, 0.0])
    before = controller.snapshot()
    with pytest.raises(DataError, match="that of robot 1 is nan"):
        controller.step(shown, [0.5, np.nan])
    for (name, now), (_, then) in zip(
        controller.snapshot().state.tensors(), before.state.tensors(), strict=True
    ):
        assert torch.equal(now, then), name
    controller.reset([1])
    acted = controller.step(shown, [0.5, np.nan])  # what was earned before a reset does not matter
    assert np.isfinite(acted).all()
    assert np.isfinite(controller.step(shown, [0.5, 0.5])).all()


def test_what_others_hand_over_may_be_read_only_or_backwards() -> None:
    policy = small_policy(made_episodes(4))
    shown = np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = Controller(policy, 2).step(shown, [0.0, 0.0])
    backwards, earned = np.ascontiguousarray(shown[::-1])[::-1], np.zeros(2)
    backwards.flags.writeable = earned.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller = Controller(policy, 2)
        np.testing.assert_array_equal(controller.step(backwards, earned), wanted)
        controller.correct(wanted[::-1])
    with pytest.raises(DataError, match="one is not finite"):
        controller.correct(np.full_like(wanted, np.nan))
    choices = Controller(small_policy(made_episodes(4, discrete=True)), 2)
    with pytest.raises(UsageError, match=r"choices from 0 to 1, got \[0, 2\]"):
        choices.correct([0, 2])


def test_actions_stay_inside_their_bounds() -> None:
    episodes = made_episodes(3)
    policy = small_policy(episodes)
    policy.low, policy.high = torch.tensor([-0.01, -0.02]), torch.tensor([0.01, 0.02])
    action = Controller(policy).step(np.full(3, 5.0, np.float32))
    assert np.all(np.abs(action) <= np.array([0.01, 0.02], np.float32))


def test_deadlines_count_what_came_late() -> None:
    report = deadline_report([0.0005, 0.0015, 0.004, 0.03], rates_hz=(50, 500, 1000))
    assert report.missed == {"50 Hz": 1, "500 Hz": 2, "1000 Hz": 3}
    assert report.mean_ms == pytest.approx(9.0)
    assert report.max_ms == pytest.approx(30.0)
    assert report.p50_ms == pytest.approx(2.75)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"tokens": "three", "kind": "decision-transformer"}, marks=pytest.mark.slow)],
)
def test_the_exported_step_acts_alike_with_torch_alone(options: dict[str, Any]) -> None:
    episodes = made_episodes(1, steps=(8, 9))
    policy = small_policy(episodes, **options)
    program = exported(policy)
    assert not [node for node in program.graph.nodes if "mambakit" in str(node.target)]
    module, memory, inputs = program.module(), initial_memory(policy), example_inputs(policy)
    controller = Controller(policy)
    controller.reset(target_return=2.0)
    episode: Episode = episodes.episodes[0]
    inputs["to_go"][:] = 2.0
    for t in range(len(episode)):
        inputs["state"] = torch.from_numpy(episode.state[t : t + 1])
        action, memory = module(inputs, memory)
        expected = controller.step(episode.state[t], 0.5)
        np.testing.assert_allclose(action[0].numpy(), expected, rtol=0, atol=1e-5)
        inputs["began"] = torch.zeros(1, dtype=torch.bool)
        if "previous" in inputs:
            inputs["previous"] = action
        inputs["to_go"] = inputs["to_go"] - 0.5


@pytest.mark.slow
def test_onnx_steps_alike_under_the_names_it_is_documented_with(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy = small_policy(made_episodes(1, steps=(8, 9)))
    assert export_step(policy, tmp_path / "step.onnx").startswith("ONNX, 1 robot, ")
    session = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"))
    memory, inputs = initial_memory(policy), example_inputs(policy)
    for _ in range(3):
        inputs = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in inputs.items()}
        given = {**inputs, **{f"memory_{i}": one for i, one in enumerate(memory)}}
        expected, memory = exported(policy).module()(inputs, memory)
        found = session.run(
            ["action", *(f"next_memory_{i}" for i in range(len(memory)))],
            {name: one.numpy() for name, one in given.items()},
        )
        for actual, one in zip(found, [expected, *memory], strict=True):
            np.testing.assert_allclose(actual, one.numpy(), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"kind": "decision-transformer"}])
def test_a_cuda_graph_changes_nothing(options: dict[str, Any]) -> None:
    policy = small_policy(made_episodes(2), **options).cuda()
    plain, graphed = Controller(policy, 3, graph=False), Controller(policy, 3, graph=True)
    rng = np.random.default_rng(0)
    for t in range(12):
        if t in (4, 7):
            for one in (plain, graphed):
                one.reset([t % 3], target_return=1.5)
        shown, earned = rng.normal(size=(3, 3)).astype(np.float32), rng.normal(size=3)
        np.testing.assert_allclose(graphed.step(shown, earned), plain.step(shown, earned), rtol=0, atol=1e-5)
