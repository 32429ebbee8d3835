"""The loop and its parts: what it learns, counts, keeps and takes up again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Mol

from mambakit.core.adapters import Tokens
from mambakit.core.errors import DataError
from mambakit.core.training import RunFolder
from mambakit.domains.molecules.design import report
from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.design.config import DesignConfig
from mambakit.domains.molecules.design.learning import Learner
from mambakit.domains.molecules.design.memory import Remembered
from mambakit.domains.molecules.design.objective import Component, Objective
from mambakit.domains.molecules.design.optimise import HISTORY_FILE, Design
from mambakit.domains.molecules.structures import structure
from mambakit.domains.molecules.tokenizer import END, START

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


def weights_of(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.model.state_dict().items()}


class Killed(BaseException):
    """As a kill: nothing catches it."""


def started(folder: Path, agent: Agent, oracle: Nitrogens, budget: int, **options: object) -> Design:
    run = RunFolder(folder)
    run.start({"seed": 0})
    objective = Objective([Component("nitrogens", oracle)])
    return Design(agent, objective, run, budget=budget, **{"config": QUICK, **options})  # type: ignore[arg-type]


# --- the loop


@pytest.mark.slow
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

    def watched(
        self: Learner, batch: list[Remembered], ids: list[list[int]], *rest: Any, **more: Any
    ) -> float:
        learned.append((batch, ids))
        return step(self, batch, ids, *rest, **more)

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
    design = Design(agent, flat, run, budget=1000, config=DesignConfig(rounds=0, bucket_size=0))
    designed = design.run()
    assert designed.stopped == "nothing-new"
    assert len(designed.history) == 1
    # only after it went back several times, remembering what it had
    assert (designed.counts.restarts, designed.counts.steps) == (4, 201)
    assert [one.smiles for one in design.memory.best] == ["CCO"]


def test_an_agent_that_has_lost_the_language_begins_anew(
    tmp_path: Path, make_agent: Callable[[], Agent]
) -> None:
    agent = make_agent()
    prior = {name: value.clone() for name, value in agent.model.state_dict().items()}
    design = started(tmp_path, agent, Nitrogens(), 5)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.zero_()
    after: list[dict[str, torch.Tensor]] = []

    def first_restart(made: Design) -> None:
        if made.counts.restarts == 1 and not after:
            after.append(weights_of(agent))

    designed = design.run(max_time_s=30, after_step=first_restart)
    assert designed.counts.restarts >= 1
    assert len(designed.history) > 0
    torch.testing.assert_close(after[0], prior, rtol=0, atol=0)


def test_what_was_learned_is_not_lost_with_the_language(
    tmp_path: Path, make_agent: Callable[[], Agent]
) -> None:
    agent = make_agent()
    prior = weights_of(agent)
    states: list[dict[str, torch.Tensor]] = []
    design = started(tmp_path, agent, Nitrogens(), 60)
    design.run(after_step=lambda made: states.append(weights_of(agent)))
    assert design.best is not None
    best = dict(design.best.weights)
    assert any(all(torch.equal(one[name], best[name]) for name in best) for one in states)
    assert not all(torch.equal(prior[name], best[name]) for name in best)
    # taken up from its checkpoint by an agent that knows nothing any more
    again = make_agent()
    design = started(tmp_path, again, Nitrogens(), 65)
    remembered = [one.smiles for one in design.memory.best]
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.zero_()
    after: list[tuple[dict[str, torch.Tensor], list[str]]] = []

    def restarted(made: Design) -> None:
        if made.counts.restarts and not after:
            after.append((weights_of(again), [one.smiles for one in made.memory.best]))

    again.sample = lambda n, max_tokens, seed: [("", [START, 5, END])] * n  # type: ignore[method-assign]
    design.config = dataclasses.replace(QUICK, rounds=0, replayed=0)
    design.learner.config = design.config
    design.run(after_step=restarted)
    torch.testing.assert_close(after[0][0], best, rtol=0, atol=0)
    assert after[0][1] == remembered


@pytest.mark.parametrize("invalid", ["drop", "zero"])
def test_samples_that_are_no_molecules_are_learned_from_if_so_wished(
    tmp_path: Path, make_agent: Callable[[], Agent], invalid: str
) -> None:
    agent = make_agent()
    bad = [START, *agent.tokenizer.ids("C("), END]
    agent.sample = lambda n, max_tokens, seed: [("C(", bad), ("CCN", agent.encode("CCN"))]  # type: ignore
    config = dataclasses.replace(QUICK, rounds=1, replayed=0, invalid=invalid)
    design = started(tmp_path, agent, Nitrogens(), 1, config=config)
    learned: list[list[int]] = []
    of = design.learner.prior.log_likelihoods
    design.learner.prior.log_likelihoods = lambda ids: learned.extend(ids) or of(ids)  # type: ignore
    counts = design.run().counts
    assert (counts.sampled, counts.invalid) == (2, 1)
    # once, as it was sampled: what is no molecule can't be written in other ways
    assert learned.count(bad) == (invalid == "zero")


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
