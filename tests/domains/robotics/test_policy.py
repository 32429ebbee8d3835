"""Policies learn what their inputs tell, heads say what their distributions mean, packing loses nothing."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.robotics.controller import Controller
from mambakit.domains.robotics.episodes import Episode, Episodes
from mambakit.domains.robotics.policy import training
from mambakit.domains.robotics.policy.advantages import CriticConfig, Critics
from mambakit.domains.robotics.policy.chunks import ensembled, weighted
from mambakit.domains.robotics.policy.config import PolicyConfig, SavedPolicyConfig, Spaces
from mambakit.domains.robotics.policy.data import Collate, Packing, Piece, measuring_loader, training_loader
from mambakit.domains.robotics.policy.heads import build_head
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.task import PolicyTask
from mambakit.domains.robotics.policy.testing import SMALL, made_episodes, small_policy
from mambakit.domains.robotics.policy.tokenizer import WordNumbers
from mambakit.domains.robotics.policy.training import (
    action_error,
    policies_in,
    read_parts,
    spaces_of,
    train_policy,
)

FEW = TrainConfig(
    max_epochs=9, max_steps=60, validate_every=30, batch_size=4, lr=1e-2, ema_decay=0.9, patience=0
)
QUICK_CRITICS = CriticConfig(steps=300, width=32, lr=3e-3)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    horizon=st.integers(0, 25),
    row_steps=st.integers(1, 64),
    seed=st.integers(0, 9),
)
def test_every_step_is_learned_once_an_epoch(
    lengths: list[int], horizon: int, row_steps: int, seed: int
) -> None:
    packing = Packing(lengths, horizon, row_steps)
    rows = packing.shuffled(torch.Generator().manual_seed(seed))
    assert len(rows) == packing.n_rows
    assert all(sum(stop - start for _, start, stop in row) <= packing.row_steps for row in rows)
    seen = sorted((one.episode, t) for row in rows for one in row for t in range(one.start, one.stop))
    assert seen == [(i, t) for i, length in enumerate(lengths) for t in range(length)]
    pieces = [piece for row in rows for piece in row]
    if horizon:
        assert all(stop - start <= horizon for _, start, stop in pieces)
    else:
        assert sorted(pieces) == [Piece(i, 0, length) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_is_the_policys_loss_of_batches_of_one_shape(device: str) -> None:
    episodes = made_episodes(12, steps=(3, 11))
    policy = small_policy(episodes, dropout=0.0).to(device).train()
    task = PolicyTask(policy, FEW)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer to tell
    loader = training_loader(episodes.episodes, policy, 1)
    lengths = set()
    for i, batch in zip(range(6), loader, strict=False):
        here = batch.map(lambda tensor: tensor.to(device))
        lengths.add(here.real.shape[1])
        loss = task.training_step(here, i)
        torch.testing.assert_close(loss, policy.loss(here), rtol=1e-4, atol=1e-5)
        got, want = (
            torch.autograd.grad(one, list(policy.parameters()), allow_unused=True)
            for one in (loss, policy.loss(here))
        )
        for mine, plain in zip(got, want, strict=True):
            if plain is not None:
                torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5)
    assert lengths == {256}


def test_batches_say_what_happened() -> None:
    episodes = made_episodes(2, steps=(5, 6), asked=True)
    policy = small_policy(episodes, chunk=3)
    row = [Piece(1, 2, 5), Piece(0, 0, 2)]
    batch = Collate(episodes.episodes, policy, hide=False)([row, [Piece(0, 0, 1)]])
    one, other = episodes.episodes[1], episodes.episodes[0]
    assert batch.seq_idx.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    assert batch.seen.began.tolist()[0] == [False, False, False, True, False]
    np.testing.assert_array_equal(batch.seen.previous[0, :3], one.actions[1:4])
    np.testing.assert_array_equal(batch.seen.previous[0, 4], other.actions[0])
    np.testing.assert_allclose(batch.seen.to_go[0, :3], one.returns_to_go()[2:5])
    np.testing.assert_array_equal(batch.target[0, 0], one.actions[2:5])
    assert batch.counted[0].tolist() == [
        [True, True, True], [True, True, False], [True, False, False], [True] * 3, [True] * 3
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.target[0, 4], other.actions[1:4])


def test_a_window_without_the_beginning_knows_only_itself() -> None:
    episodes = made_episodes(1, steps=(9, 10))
    policy = small_policy(episodes)
    collate = Collate(episodes.episodes, policy, hide=False)
    apart, together = collate([[Piece(0, 4, 9)]]), collate([[Piece(0, 0, 4), Piece(0, 4, 9)]])
    with torch.no_grad():
        one = policy(apart.seen, apart.seq_idx)
        other = policy(together.seen, together.seq_idx)[:, 4:]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_gaussian_and_mixture_losses_are_their_likelihoods() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(6, 8).double(), torch.randn(6, 1, 2).double()
    mask = torch.ones(6, 1, dtype=torch.bool)
    mixture = build_head("mixture", d_model=8, chunk=1, width=2, n_components=3, flow_steps=1).double()
    output = mixture(x)
    logits, mean, log_deviation = mixture._parts(output)  # type: ignore[operator]
    parts = torch.distributions.Independent(torch.distributions.Normal(mean, log_deviation.exp()), 1)
    whole = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), parts)
    expected = -whole.log_prob(target).mean() / 2
    torch.testing.assert_close(mixture.loss(output, target, mask), expected)
    gaussian = build_head("gaussian", d_model=8, chunk=1, width=2, n_components=1, flow_steps=1).double()
    output = gaussian(x)
    drawn = torch.stack([gaussian.drawn(output) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), gaussian.point(output), rtol=0, atol=0.12)


@pytest.mark.parametrize("head", ["mixture", "flow"])
def test_two_ways_to_act_are_not_averaged(head: Any) -> None:
    """Actions are -1 or 1 by chance: the mean, 0, is never done."""
    torch.manual_seed(0)
    model = build_head(head, d_model=4, chunk=1, width=1, n_components=4, flow_steps=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, mask = torch.ones(256, 4), torch.ones(256, 1, dtype=torch.bool)
    for _ in range(300):
        target = torch.randint(0, 2, (256, 1, 1)).float() * 2 - 1
        optimizer.zero_grad()
        model.loss(model(x), target, mask).backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.drawn(model(x)).flatten()
    near = ((drawn.abs() - 1).abs() < 0.35).float().mean()
    assert near > 0.85
    assert 0.3 < (drawn > 0).float().mean() < 0.7


def test_ensembling_weighs_older_predictions_as_the_paper() -> None:
    points = torch.randn(1, 6, 3, 2, dtype=torch.float64)
    seq_idx = torch.tensor([[0, 0, 0, 0, 1, 1]], dtype=torch.int32)
    found = ensembled(points, seq_idx, 0.5)
    w = [math.exp(-0.5 * i) for i in range(3)]  # 0: the oldest
    expected = (w[0] * points[0, 1, 2] + w[1] * points[0, 2, 1] + w[2] * points[0, 3, 0]) / sum(w)
    torch.testing.assert_close(found[0, 3], expected)
    torch.testing.assert_close(found[0, 4], points[0, 4, 0])  # a new episode begins
    two = (w[0] * points[0, 4, 1] + w[1] * points[0, 5, 0]) / (w[0] + w[1])
    torch.testing.assert_close(found[0, 5], two)
    one = weighted(points[0, 0], torch.tensor([True, False, False]), 0.5)
    torch.testing.assert_close(one, points[0, 0, 0])


def test_words_are_hashed_the_same_everywhere_and_unknown_ones_are_known_to_be() -> None:
    hashed = WordNumbers("hash", 64, [])
    assert hashed("Reach the RED one!").tolist()[:5] == hashed("reach the red one").tolist()[:5]
    assert hashed("123456789").tolist()[0] == 2 + 0xCBF43926 % 64  # the check value of CRC-32
    known = WordNumbers("vocabulary", 64, ["go left", "go right"])
    assert known("go up").tolist()[:3] == [2, 1, 0]
    assert known.size == 5
    assert not known(None).any()


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"kind": "bc-mlp"}, {}),
        ({"tokens": "three", "horizon": 6}, {"discrete": True}),
        pytest.param(
            {"chunk": 2, "ensemble": None, "patch": 4}, {"image": True, "asked": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_learns_and_comes_back_from_its_folder(
    tmp_path: Path, options: dict[str, Any], data: dict[str, Any]
) -> None:
    # pictures that are noise beside the state: of a few hundred steps they would be learned by heart
    pictures = bool(data.get("image"))
    episodes = made_episodes(400 if pictures else 48, **data)
    parts = read_parts(episodes, seed=0)
    shape = PolicyConfig(**(SMALL | {"dropout": 0.0} | options))
    run = RunFolder(tmp_path / "run")
    longer = {"max_epochs": 30, "max_steps": 150, "lr": 3e-3} if pictures else {}
    policy, result = train_policy(episodes, parts, run, shape, dataclasses.replace(FEW, **longer))
    assert result.steps == longer.get("max_steps", 60)
    error = action_error(policy, parts.test)
    assert error["wrong" if data.get("discrete") else "scaled_mse"] < (0.1 if pictures else 0.3)
    found = policies_in(tmp_path / "run")
    assert list(found) == ["best", "last"]
    shown = {name: values[0] for name, values in episodes.episodes[0].observations.items()}
    np.testing.assert_array_equal(Controller(found["best"]).step(shown), Controller(policy).step(shown))


def test_memory_finds_what_one_step_does_not_show(tmp_path: Path) -> None:
    """The action is what was seen first: a policy without memory can't know it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        state = np.zeros((9, 1), np.float32)
        state[0] = rng.choice([-1.0, 1.0])
        actions = np.repeat(state[:1], 8, 0)
        actions[0] = 0.0
        found.append(Episode({"state": state}, actions, np.zeros(8, np.float32)))
    episodes = Episodes("remember", found)
    parts = read_parts(episodes, seed=0)
    errors = {}
    for kind in ("bc", "bc-mlp"):
        shape = PolicyConfig(**(SMALL | {"kind": kind, "previous_action": False, "dropout": 0.0}))
        policy, _ = train_policy(episodes, parts, RunFolder(tmp_path / kind), shape, FEW)
        errors[kind] = action_error(policy, parts.test)["scaled_mse"]
    assert errors["bc"] < 0.1
    assert errors["bc-mlp"] > 0.5


def test_spaces_follow_from_the_data() -> None:
    assert spaces_of(made_episodes(3, goal=True)).goal_dim == 2
    assert spaces_of(made_episodes(6, discrete=True)).n_actions == 2
    found = spaces_of(made_episodes(3, image=True, asked=True))
    assert found.image == [8, 8]
    assert found.instructions == ["reach the blue one", "reach the red one"]
    with pytest.raises(DataError, match="2 usable episodes"):
        read_parts(made_episodes(2), seed=0)


def test_an_episode_of_one_step_serves() -> None:
    episodes = made_episodes(4, steps=(1, 2))
    policy = small_policy(episodes, chunk=3)
    for loader in (
        training_loader(episodes.episodes, policy, 2),
        measuring_loader(episodes.episodes, policy),
    ):
        assert torch.isfinite(policy.loss(next(iter(loader))))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match="kind: expected decision-mamba"):
        PolicyConfig(kind="lstm")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gaussian does not fit the data's actions, which are numbered"):
        SavedPolicyConfig(PolicyConfig(head="gaussian"), Spaces(state_dim=2, n_actions=3))
    with pytest.raises(UsageError, match="the data have no goals"):
        SavedPolicyConfig(PolicyConfig(conditioning=["goal"]), Spaces(state_dim=2, action_dim=1))
    with pytest.raises(UsageError, match="patches of 5 pixels do not tile pictures of 8 x 8"):
        Policy(SavedPolicyConfig(PolicyConfig(patch=5), Spaces(action_dim=1, image=[8, 8])))


def two_actions() -> Episodes:
    """One action earns, the other does not; a third of the episodes takes the first."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(60):
        state = rng.normal(size=(9, 1)).astype(np.float32)
        good = i % 3 == 0
        actions = np.full((8, 1), 1.0 if good else -1.0, np.float32)
        actions += 0.1 * rng.normal(size=(8, 1)).astype(np.float32)
        found.append(Episode({"state": state}, actions, np.full(8, float(good), np.float32), truncated=True))
    return Episodes("two", found)


def test_advantages_find_the_better_of_two_actions() -> None:
    episodes = two_actions()
    found, config = episodes.episodes, QUICK_CRITICS
    critics = Critics(small_policy(episodes, kind="iql"), found, config=config)
    weights = critics.weights(found, 3.0)
    assert np.concatenate(weights[::3]).mean() > 3 * np.concatenate(weights[1::3]).mean()
    assert np.concatenate(weights).mean() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(UsageError, match="every episode earns the same"):
        Critics(critics.policy, found[::3], config=config)
    # an episode of bad actions alone: none counts as nothing
    (bad,) = critics.weights(found[1:2], 1e6)
    assert np.isfinite(bad).all()
    assert bad.mean() == pytest.approx(1.0, abs=1e-4)
    brief = [
        dataclasses.replace(
            one,
            observations={"state": one.state[:1]},
            actions=one.actions[:1],
            rewards=one.rewards[:1] + i,
            terminated=False,
        )
        for i, one in enumerate(found)
    ]
    with pytest.raises(UsageError, match="what was seen after an action, and the data do not say it"):
        Critics(critics.policy, brief, config=config)


@pytest.mark.slow
def test_iql_acts_on_the_better_action_and_bc_on_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = two_actions()
    monkeypatch.setattr(training, "Critics", partial(Critics, config=QUICK_CRITICS))  # they train 3000 steps
    parts, done = read_parts(episodes, seed=0), {}
    for kind in ("bc-mlp", "iql"):
        shape = PolicyConfig(**(SMALL | {"kind": kind, "dropout": 0.0}))
        policy, _ = train_policy(episodes, parts, RunFolder(tmp_path / kind), shape, FEW)
        done[kind] = float(Controller(policy).step(np.zeros(1, np.float32))[0])
    assert done["bc-mlp"] < 0
    assert done["iql"] > 0.5


def test_convolutions_tell_pictures_apart_by_where_things_lie() -> None:
    episodes = made_episodes(4)
    for episode in episodes.episodes:
        episode.observations["image"] = np.zeros((len(episode) + 1, 40, 40, 3), np.uint8)
    policy = small_policy(episodes, kind="bc-mlp", pictures="cnn")
    state = np.zeros(3, np.float32)
    corners = [np.zeros((40, 40, 3), np.uint8) for _ in range(2)]
    corners[0][:10, :10], corners[1][-10:, -10:] = 255, 255
    told = [Controller(policy).step({"state": state, "image": one}) for one in corners]
    assert np.abs(told[0] - told[1]).max() > 1e-4
    with pytest.raises(UsageError, match="cnn needs pictures of 36 x 36 or more, these are 8 x 8"):
        small_policy(made_episodes(4, image=True), kind="bc-mlp", pictures="cnn")


def test_a_real_robot_is_no_environment_to_act_in() -> None:
    spaces = Spaces(state_dim=1, action_dim=1)
    ids = ("Hopper-v5", "mambakit/ColouredReach-v0", "my_module:Own-v0", "WidowX 250 (a real arm)", "")
    found = [SavedPolicyConfig(PolicyConfig(), spaces, environment={"id": one}) for one in ids]
    assert [one.environment_id for one in found] == [*ids[:3], None, None]
