"""The loop and its parts: what it learns, counts, keeps and takes up again."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Mol

from mambakit.core.adapters import Tokens
from mambakit.core.errors import DataError
from mambakit.core.training import RunFolder
from mambakit.domains.molecules.design import report
from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.design.config import DesignConfig
from mambakit.domains.molecules.design.diversity import DiversityFilter
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.learning import Learner
from mambakit.domains.molecules.design.measures import auc_top, hits, top_mean
from mambakit.domains.molecules.design.memory import Memory, Remembered, rewritings
from mambakit.domains.molecules.design.objective import Component, Objective, Scores
from mambakit.domains.molecules.design.optimise import HISTORY_FILE, Design
from mambakit.domains.molecules.design.pictures import running_top
from mambakit.domains.molecules.structures import structure

QUICK = DesignConfig(rounds=2, memory=20, lr=3e-3, max_tokens=30)


class Nitrogens:
    """Share of nitrogen among the heavy atoms; writes down what it was asked, and is killed if so wished."""

    def __init__(self, killed_at: int = 10**9) -> None:
        self.asked: list[str] = []
        self.killed_at = killed_at

    def __call__(self, smiles: Sequence[str], mols: Sequence[Mol]) -> tuple[NDArray[np.float64], list[str]]:
        if len(self.asked) + len(smiles) > self.killed_at:
            raise Killed
        self.asked += smiles
        values = [
            sum(atom.GetAtomicNum() == 7 for atom in mol.GetAtoms()) / mol.GetNumAtoms() for mol in mols
        ]
        return np.array(values), [""] * len(smiles)


class Killed(BaseException):
    """As a kill: nothing catches it."""


def started(folder: Path, agent: Agent, oracle: Nitrogens, budget: int, **options: object) -> Design:
    run = RunFolder(folder)
    run.start({"seed": 0})
    objective = Objective([Component("nitrogens", oracle)])
    return Design(agent, objective, run, budget=budget, **{"config": QUICK, **options})  # type: ignore[arg-type]


# --- the loop


def test_it_learns_what_is_rewarded_within_the_budget(
    tmp_path: Path, make_agent: Callable[[], Agent]
) -> None:
    oracle = Nitrogens()
    drawn = [structure(text)[0] for text, _ in make_agent().sample(200, 30, seed=1)]
    mols = [mol for mol in drawn if mol is not None]
    share_before = oracle([], mols)[0].mean()
    design = started(tmp_path, make_agent(), oracle, 150)
    designed = design.run()
    rewards = designed.history.rewards
    assert designed.stopped == "budget"
    # each call is one canonical SMILES, asked once
    assert len(rewards) == 150 == len(oracle.asked) == len(set(oracle.asked))
    assert all(Chem.MolToSmiles(Chem.MolFromSmiles(one)) == one for one in oracle.asked)
    assert rewards[-50:].mean() > 2 * share_before
    counts = designed.counts
    assert counts.sampled == 16 * counts.steps
    assert counts.sampled - counts.invalid - counts.repeated == 150
    found = report.summary(designed, 150)
    assert found["top10"] == pytest.approx(np.sort(rewards)[-10:].mean())


@pytest.mark.parametrize("offspring", [0, 5])
def test_killed_anywhere_it_comes_to_the_same_without_asking_twice(
    tmp_path: Path, make_agent: Callable[[], Agent], offspring: int
) -> None:
    config = dataclasses.replace(QUICK, offspring=offspring)
    whole = Nitrogens()
    designed = started(tmp_path / "whole", make_agent(), whole, 60, config=config).run()
    assert (designed.counts.bred > 0) == (offspring > 0)
    asked: list[str] = []
    for i, more in enumerate((25, 1, 14, 10**9)):
        oracle = Nitrogens(killed_at=more)
        # a checkpoint after every step in the first run, none in the second, which begins at the last one
        checkpoint_s = 0 if i == 0 else 1e9
        design = started(tmp_path / "cut", make_agent(), oracle, 60, checkpoint_s=checkpoint_s, config=config)
        if more < 10**9:
            with pytest.raises(Killed):
                design.run()
        else:
            design.run()
        asked += oracle.asked
    assert asked == whole.asked
    assert (tmp_path / "cut" / HISTORY_FILE).read_bytes() == (tmp_path / "whole" / HISTORY_FILE).read_bytes()
    assert design.counts == designed.counts


def test_bred_molecules_are_learned_from_where_the_agent_can_write_them(
    tmp_path: Path, make_agent: Callable[[], Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    monkeypatch.setattr(agent, "encode", lambda text: None if "S" in text else Agent.encode(agent, text))
    learned: list[tuple[list[Remembered], list[list[int]]]] = []
    step = Learner.step

    def watched(self: Learner, batch: list[Remembered], ids: list[list[int]], *rest: Any) -> float:
        learned.append((batch, ids))
        return step(self, batch, ids, *rest)

    monkeypatch.setattr(Learner, "step", watched)
    config = dataclasses.replace(QUICK, offspring=16, mutation_rate=1.0, purge=False, max_atoms=12)
    oracle = Nitrogens()
    design = started(tmp_path, agent, oracle, 150, config=config)
    designed = design.run()
    counts = designed.counts
    # the first step has nobody to breed from; what is bred is asked as any other, each molecule once
    assert 0 < counts.bred <= 16 * (counts.steps - 1)
    assert counts.sampled + counts.bred - counts.invalid - counts.repeated == 150 == len(set(oracle.asked))
    for batch, ids in learned:
        assert [agent.tokenizer.decode(Tokens(torch.tensor(one[1:]))) for one in ids] == [
            one.text for one in batch
        ]
    texts = {one.text for batch, _ in learned for one in batch}
    bred = [one.smiles for one in design.population.best if "S" in one.smiles]
    assert bred
    assert not any(one in texts for one in bred)
    assert not any("S" in one.text for one in design.memory.best)
    assert len(texts & set(oracle.asked)) > 75


def test_a_larger_budget_goes_on(tmp_path: Path, make_agent: Callable[[], Agent]) -> None:
    first, second = Nitrogens(), Nitrogens()
    started(tmp_path, make_agent(), first, 20).run()
    designed = started(tmp_path, make_agent(), second, 35).run()
    assert [one.smiles for one in designed.history.calls] == [*first.asked, *second.asked]
    assert len(second.asked) == 15


def test_it_stops_when_nothing_gets_better_or_new(tmp_path: Path, make_agent: Callable[[], Agent]) -> None:
    flat = Objective(
        [Component("flat", lambda smiles, mols: (np.full(len(smiles), 0.5), [""] * len(smiles)))]
    )
    run = RunFolder(tmp_path)
    run.start({})
    config = DesignConfig(rounds=0, patience=20, max_tokens=30)
    designed = Design(make_agent(), flat, run, budget=1000, config=config).run()
    assert designed.stopped == "patience"
    assert 20 < len(designed.history) < 60
    agent = make_agent()
    agent.sample = lambda n, max_tokens, seed: [("CCO", agent.encode("CCO"))] * n  # type: ignore[method-assign]
    run = RunFolder(tmp_path / "stuck")
    run.start({})
    designed = Design(agent, flat, run, budget=1000, config=DesignConfig(rounds=0)).run()
    assert designed.stopped == "nothing-new"
    assert len(designed.history) == 1


def test_an_agent_that_has_lost_the_language_begins_anew(
    tmp_path: Path, make_agent: Callable[[], Agent]
) -> None:
    agent = make_agent()
    prior = {name: value.clone() for name, value in agent.model.state_dict().items()}
    design = started(tmp_path, agent, Nitrogens(), 5)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.zero_()
    designed = design.run(max_time_s=30)
    assert designed.counts.restarts >= 1
    assert len(designed.history) > 0
    assert set(prior) == set(agent.model.state_dict())


# --- likelihoods and learning


def test_log_likelihoods_are_those_of_sampling_in_any_order(make_agent: Callable[[], Agent]) -> None:
    agent = make_agent()
    sampled = [(text, ids) for text, ids in agent.sample(32, 40, seed=3) if text]
    texts, sequences = [text for text, _ in sampled], [ids for _, ids in sampled]
    assert len(texts) > 10
    found = agent.log_likelihoods(sequences)
    torch.testing.assert_close(found, agent.model.log_likelihoods(texts), rtol=1e-4, atol=1e-4)
    alone = torch.cat([agent.log_likelihoods([one]) for one in sequences])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


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


# --- measures, memory, filter, history


def test_auc_by_hand_and_as_pmo_counts_it() -> None:
    # one call of reward 1 in a budget of 4, a point a call: a trapezium of 1/2, then 3 calls at 1
    assert auc_top([1.0], 4, k=1, every=1) == pytest.approx((0.5 + 3) / 4)
    assert auc_top([1.0], 4, k=1, every=1, extrapolate=False) == pytest.approx(0.5 / 4)
    assert auc_top([], 10) == 0
    # 250 calls of 0.5 in a budget of 1000: from 0 to 0.5 over the first hundred, then 0.5
    assert auc_top([0.5] * 250, 1000) == pytest.approx((25 + 75 + 375) / 1000)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=350), st.integers(1, 12))
def test_running_top_and_auc_agree_with_sorting(rewards: list[float], k: int) -> None:
    running = running_top(np.array(rewards), k)
    for n in {1, len(rewards) // 2 or 1, len(rewards)}:
        assert running[n - 1] == pytest.approx(top_mean(rewards[:n], k), abs=1e-12)
    area = auc_top(rewards, len(rewards), k=k)
    assert 0 <= area <= max(rewards) + 1e-12


def test_hits() -> None:
    found = hits([0.1, 0.7, 0.9, 0.69], ["a", "b", "b", "c"], 0.7)
    assert found == {"hits": 2, "scaffolds": 1, "first": 2, "tenth": None, "hundredth": None}


def test_a_bucket_rewards_so_many_and_repeats_fill_it() -> None:
    diversity = DiversityFilter(2)
    assert diversity.filtered(["a", "b", "a", "a"], np.array([0.5, 0.6, 0.7, 0.8])).tolist() == [
        0.5,
        0.6,
        0.7,
        0,
    ]
    assert diversity.full(["a", "b"]) == {"a"}
    assert DiversityFilter(0).filtered(["a"] * 9, np.ones(9)).tolist() == [1.0] * 9


def test_memory_keeps_the_best_once_and_forgets_closed_scaffolds() -> None:
    memory = Memory(2)
    memory.add(
        [Remembered(name, name, name[0], reward) for name, reward in (("a1", 0.3), ("a2", 0.9), ("b1", 0.5))]
    )
    assert [one.smiles for one in memory.best] == ["a2", "b1"]
    memory.add([Remembered("a2", "a2", "a", 0.1), Remembered("c1", "c1", "c", 0.0)])
    assert [(one.smiles, one.reward) for one in memory.best] == [("b1", 0.5), ("a2", 0.1)]
    memory.purge({"b"})
    assert [one.smiles for one in memory.drawn(5, np.random.default_rng(0))] == ["a2"]


def test_rewritings_are_the_same_molecule_written_otherwise() -> None:
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    ways = rewritings(smiles, 20, np.random.default_rng(0))
    assert {Chem.CanonSmiles(one) for one in ways} == {smiles}
    assert len(set(ways)) > 10
    assert ways == rewritings(smiles, 20, np.random.default_rng(0))


def scores(*rewards: float, reason: str = "") -> Scores:
    values = np.array(rewards)[:, None]
    return Scores(values, values, np.array(rewards), [reason] * len(rewards))


def test_history_survives_a_torn_line_and_refuses_another_objective(tmp_path: Path) -> None:
    path = tmp_path / "molecules.csv"
    history = History(path, ["x"])
    history.append(["CC", "CO"], ["", ""], scores(0.25, 1 / 3))
    history.append(["c1ccccc1"], ["c1ccccc1"], scores(0.0, reason='x: said "no,\nnever"'))
    whole = path.read_bytes()
    path.write_bytes(whole + b"4,CCN,,0.9")
    again = History(path, ["x"])
    assert path.read_bytes() == whole
    assert again.calls == history.calls
    assert again.rewards.tolist() == [0.25, 1 / 3, 0.0]
    assert again["c1ccccc1"].reason == 'x: said "no, never"'
    assert "CCN" not in again
    again.append(["CCN"], [""], scores(0.5))
    assert [row["call"] for row in csv.DictReader(path.open())] == ["1", "2", "3", "4"]
    with pytest.raises(DataError, match="of another objective"):
        History(path, ["y"])
    path.write_bytes(whole.replace(b"2,CO", b"7,CO"))
    with pytest.raises(DataError, match="row 2 is damaged"):
        History(path, ["x"])


def test_a_damaged_checkpoint_is_told_and_the_history_is_enough(
    tmp_path: Path, make_agent: Callable[[], Agent]
) -> None:
    first = Nitrogens()
    started(tmp_path, make_agent(), first, 20).run()
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(DataError, match=r"last.pt is damaged .* remove it to learn anew"):
        started(tmp_path, make_agent(), Nitrogens(), 20)
    checkpoint.unlink()
    second = Nitrogens()
    designed = started(tmp_path, make_agent(), second, 30).run()
    assert not set(first.asked) & set(second.asked)
    assert len(designed.history) == 30
