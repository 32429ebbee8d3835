"""An agent's likelihoods, and what an update makes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.design.config import DesignConfig
from mambakit.domains.molecules.design.learning import Learner
from mambakit.domains.molecules.design.memory import Memory, Remembered
from mambakit.domains.molecules.tokenizer import END, START


def test_log_likelihoods_are_those_of_sampling_in_any_order(make_agent: Callable[[], Agent]) -> None:
    agent = make_agent()
    sampled = [(text, ids) for text, ids in agent.sample(32, 40, seed=3) if text]
    texts, sequences = [text for text, _ in sampled], [ids for _, ids in sampled]
    assert len(texts) > 10
    found = agent.log_likelihoods(sequences)
    torch.testing.assert_close(found, agent.model.log_likelihoods(texts), rtol=1e-4, atol=1e-4)
    alone = torch.cat([agent.log_likelihoods([one]) for one in sequences])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_rows_of_all_batches_have_few_lengths(make_agent: Callable[[], Agent]) -> None:
    agent = make_agent()
    lengths = []
    agent.model.register_forward_pre_hook(lambda model, given: lengths.append(given[0].shape[1]))
    for n in (1, 14, 15, 16, 17, 40):
        agent.log_likelihoods([[START, *[5] * n, END], [START, 5, END]])
    assert lengths == [16, 16, 16, 32, 32, 48]


@pytest.mark.gpu
def test_recorded_updates_learn_as_plain_ones_do(make_agent: Callable[[], Agent]) -> None:
    texts = ["CCO", "c1ccccc1", "CCN(CC)CC", "O=C(O)c1ccccc1", "C" * 40]
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        agent = Agent(make_agent().model, torch.device(device))
        learner = Learner(agent, agent.prior(), DesignConfig(rounds=2, replayed=2, lr=1e-3, sigma=5.0))
        memory, rng, losses[device] = Memory(5), np.random.default_rng(0), []
        for step in range(8):
            batch = [Remembered(one, one, one, 0.1 * i) for i, one in enumerate(texts[: 3 + step % 3])]
            memory.add(batch)
            sequences = [agent.encode(one.text) or [] for one in batch]
            losses[device].append(learner.step(batch, sequences, memory, rng))
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=5e-2)
    assert any(one is not None for one in learner._loss._graphs.values())  # of the GPU, which came last


def test_one_update_is_the_step_of_the_augmented_likelihood(make_agent: Callable[[], Agent]) -> None:
    agent, by_hand = make_agent(), make_agent()
    config = DesignConfig(rounds=0, replayed=0, lr=1e-3, sigma=50.0)
    texts, rewards = ["CCO", "c1ccccc1"], [1.0, 0.25]
    batch = [Remembered(one, one, one, reward) for one, reward in zip(texts, rewards, strict=True)]
    sequences = [agent.encode(one) or [] for one in texts]
    loss = Learner(agent, agent.prior(), config).step(batch, sequences, Memory(5), np.random.default_rng(0))
    optimizer = torch.optim.Adam(by_hand.model.parameters(), lr=1e-3)
    with torch.no_grad():
        prior = by_hand.model.log_likelihoods(texts)
    expected = (prior + 50 * torch.tensor(rewards) - by_hand.model.log_likelihoods(texts)).square().mean()
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, other in zip(agent.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_a_closed_scaffold_is_forgotten_before_the_memory_is_replayed(
    make_agent: Callable[[], Agent],
) -> None:
    agent = make_agent()
    for closed, n_learned, n_left in ((set(), 2 + 2, 2), ({"a"}, 2 + 1, 1)):
        memory = Memory(5)
        memory.add([Remembered("CCO", "CCO", "a", 0.5), Remembered("CCN", "CCN", "b", 0.4)])
        learner = Learner(agent, agent.prior(), DesignConfig(rounds=1, replayed=2))
        learned: list[list[int]] = []
        of = learner.prior.log_likelihoods
        learner.prior.log_likelihoods = lambda ids, of=of, to=learned: to.extend(ids) or of(ids)  # type: ignore
        learner.step([], [], memory, np.random.default_rng(0), closed=closed)
        assert (len(learned), len(memory.best)) == (n_learned, n_left)
