"""Goal-directed design: sample, breed, score, learn, until the oracle budget is spent; a killed run goes on.

Two things on disk make a run's progress. ``molecules.csv`` has every oracle call, written before anything is
learned from it. ``checkpoints/last.pt`` has weights, optimizer, memories and filter, now and then. All that
is drawn in a step follows from seed and step alone, so a run taken up from its checkpoint samples the same
molecules again, finds them in the cache, and comes to where it was killed without asking an oracle twice.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit import Chem

from mambakit.core.errors import DataError
from mambakit.core.training import RunFolder
from mambakit.domains.molecules.design.agent import Agent
from mambakit.domains.molecules.design.config import DesignConfig
from mambakit.domains.molecules.design.diversity import DiversityFilter, bucket
from mambakit.domains.molecules.design.genetic import offspring
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.learning import Learner
from mambakit.domains.molecules.design.measures import top_mean
from mambakit.domains.molecules.design.memory import Memory, Remembered
from mambakit.domains.molecules.design.objective import Objective
from mambakit.domains.molecules.structures import leaves, structure

HISTORY_FILE = "molecules.csv"
_CHECKPOINT_FILE = "last.pt"
_IDLE_STEPS = 50  # without a new molecule: sampling repeats itself
_LOST_STEPS = 10  # without a valid molecule: the agent has unlearned the language
_MOST_RESETS = 3  # in a row that bring no new molecule: nothing will
_LEAST_VALID = 0.5  # of the samples of a state that is worth going back to


@dataclass
class Counts:
    """What became of what was sampled."""

    steps: int = 0
    sampled: int = 0
    invalid: int = 0
    """No molecule: RDKit can't read it, or it did not end."""
    bred: int = 0
    """Molecules that were made from others (``DesignConfig.offspring``)."""
    repeated: int = 0
    """Molecules that had been scored before, or stood twice in their batch; they cost nothing."""
    calls: int = 0
    """Oracle calls; of a run that is taken up, those that it has come to again."""
    restarts: int = 0
    """Times that the agent went back to its best state, or to the prior: it had lost the language, or only
    repeated itself."""
    idle: int = field(default=0, repr=False)
    lost: int = field(default=0, repr=False)
    vain: int = field(default=0, repr=False)
    """Restarts since the last new molecule."""


class State(NamedTuple):
    """Weights of the agent after a step, and the mean reward of what was sampled in it."""

    reward: float
    weights: dict[str, torch.Tensor]


class Proposed(NamedTuple):
    """A molecule of a step, sampled or bred."""

    mol: Chem.Mol
    text: str
    ids: list[int] | None
    """As the agent writes it, from the first id to END; None if its vocabulary can't."""


@dataclass(frozen=True)
class Designed:
    """How a run ended: with its budget spent (``budget``), ``max-time``, ``patience``, or ``nothing-new``."""

    history: History
    counts: Counts
    stopped: str


class Design:
    """A run of goal-directed design in a folder.

    Args:
        agent: The language model; it learns in place.
        objective: What is wanted.
        run: A started run folder; what it holds is taken up.
        budget: Oracle calls: unique canonical SMILES that are scored.
        config: How to learn.
        seed: Of all draws.
        checkpoint_s: Seconds between two checkpoints.

    Raises:
        DataError: If the folder holds a design with another objective, or is damaged.
    """

    def __init__(
        self,
        agent: Agent,
        objective: Objective,
        run: RunFolder,
        *,
        budget: int,
        config: DesignConfig = DesignConfig(),  # noqa: B008  (frozen)
        seed: int = 0,
        checkpoint_s: float = 30.0,
    ) -> None:
        self.agent, self.objective, self.budget = agent, objective, budget
        self.config, self.seed, self.checkpoint_s = config, seed, checkpoint_s
        self.learner = Learner(agent, agent.prior(), config)
        self.memory, self.population = Memory(config.memory), Memory(config.population)
        self.filter = DiversityFilter(config.bucket_size)
        self.history = History(run.path / HISTORY_FILE, objective.names)
        self.counts = Counts()
        self.best: State | None = None
        self._checkpoint = run.checkpoints / _CHECKPOINT_FILE
        if self._checkpoint.exists():
            self._load()

    def run(
        self, *, max_time_s: float | None = None, after_step: Callable[[Design], None] | None = None
    ) -> Designed:
        """Go on until something ends the run.

        Args:
            max_time_s: Seconds from now.
            after_step: Called after each step: to draw, to tell.

        Raises:
            DataError: If a component of the objective fails all the time.
            UserError: If the loss is not a number.
        """
        began = saved = time.monotonic()
        while not (stopped := self._stopped(began, max_time_s)):
            self._step()
            if time.monotonic() - saved >= self.checkpoint_s:
                self._save()
                saved = time.monotonic()
            if after_step is not None:
                after_step(self)
        self._save()
        return Designed(self.history, self.counts, stopped)

    def _stopped(self, began: float, max_time_s: float | None) -> str:
        n, patience = len(self.history), self.config.patience
        if n >= self.budget:
            return "budget"
        if max_time_s is not None and time.monotonic() - began >= max_time_s:
            return "max-time"
        if patience is not None and n > patience:
            rewards = self.history.rewards
            if top_mean(rewards) <= top_mean(rewards[:-patience]):
                return "patience"
        return "nothing-new" if self.counts.vain > _MOST_RESETS else ""

    def _step(self) -> None:
        config, counts = self.config, self.counts
        draws = [self.seed, counts.steps]
        sampled = self.agent.sample(
            config.batch_size, config.max_tokens, seed=self.seed * 1_000_003 + counts.steps
        )
        # parents are in the checkpoint: the same are bred again after a kill, whatever has been scored since
        parents = [one.smiles for one in self.population.best]
        bred = offspring(
            parents,
            config.offspring,
            np.random.default_rng([*draws, 1]),
            mutation_rate=config.mutation_rate,
            max_atoms=config.max_atoms,
        )
        counts.steps += 1
        counts.sampled += len(sampled)
        counts.bred += len(bred)
        molecules: dict[str, Proposed] = {}
        invalid = []
        for text, ids in sampled:
            mol = readable(text)
            if mol is None:
                invalid.append(ids)
            else:
                molecules.setdefault(Chem.MolToSmiles(mol), Proposed(mol, text, ids))
        n_valid, own = len(sampled) - len(invalid), set(molecules)
        for smiles, mol in bred.items():
            molecules.setdefault(smiles, Proposed(mol, smiles, self.agent.encode(smiles)))
        counts.invalid += len(invalid)
        self.history.ask(self.objective, {smiles: one.mol for smiles, one in molecules.items()}, self.budget)
        called = {smiles: one for smiles, one in molecules.items() if smiles in self.history}
        # what a killed run had asked already is new again to the one that takes it up
        n_new = sum(self.history.call(smiles) > counts.calls for smiles in called)
        counts.calls += n_new
        counts.repeated += n_valid + len(bred) - n_new
        counts.idle, counts.vain = (0, 0) if n_new else (counts.idle + 1, counts.vain)
        counts.lost = 0 if n_valid else counts.lost + 1
        learned = self._learn(called, invalid, np.random.default_rng(draws))
        self._note([reward for smiles, reward in learned.items() if smiles in own], n_valid / len(sampled))
        if counts.lost >= _LOST_STEPS or counts.idle >= _IDLE_STEPS:
            self._restart()

    def _note(self, rewards: list[float], valid: float) -> None:
        """Keeps the agent's weights if what it sampled is the best so far, as Saturn does."""
        reward = float(np.mean(rewards)) if rewards else 0.0
        if valid > _LEAST_VALID and (self.best is None or reward > self.best.reward):
            weights = {name: one.detach().clone() for name, one in self.agent.model.state_dict().items()}
            self.best = State(reward, weights)

    def _restart(self) -> None:
        """Back to the best state with the memory as it is; if that has led nowhere either, to the prior."""
        counts, prior = self.counts, self.learner.prior
        weights = prior.model.state_dict() if self.best is None else self.best.weights
        self.agent.model.load_state_dict(weights)
        self.learner = Learner(self.agent, prior, self.config)
        self.best = None
        counts.idle = counts.lost = 0
        counts.restarts, counts.vain = counts.restarts + 1, counts.vain + 1

    def _learn(
        self, molecules: dict[str, Proposed], invalid: list[list[int]], rng: np.random.Generator
    ) -> dict[str, float]:
        """Learns from a step's molecules, and gives their rewards after the filter."""
        called = [self.history[smiles] for smiles in molecules]
        buckets = [bucket(smiles, one.mol) for smiles, one in molecules.items()]
        closed = self.filter.full(buckets) if self.config.purge else set()
        rewards = self.filter.filtered(buckets, np.array([one.reward for one in called]))
        batch = [
            Remembered(smiles, one.text, its_bucket, float(reward))
            for (smiles, one), its_bucket, reward in zip(molecules.items(), buckets, rewards, strict=True)
        ]
        written = [one.ids is not None for one in molecules.values()]
        readable_batch = list(itertools.compress(batch, written))
        self.memory.add(readable_batch)
        if self.config.offspring:
            self.population.add(batch)
            self.population.purge(closed)
        ids = [one.ids for one in molecules.values() if one.ids is not None]
        zero = invalid if self.config.invalid == "zero" else []
        self.learner.step(readable_batch, ids, self.memory, rng, invalid=zero, closed=closed)
        return {one.smiles: one.reward for one in batch}

    def _save(self) -> None:
        content = {
            "agent": self.agent.model.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "memory": [tuple(one) for one in self.memory.best],
            "population": [tuple(one) for one in self.population.best],
            "filter": dict(self.filter.counts),
            "best": None if self.best is None else tuple(self.best),
            "counts": dict(self.counts.__dict__),
        }
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self._checkpoint.with_suffix(".saving")
        torch.save(content, partial)
        partial.replace(self._checkpoint)

    def _load(self) -> None:
        try:
            content: dict[str, Any] = torch.load(
                self._checkpoint, map_location=self.agent.device, weights_only=True
            )
            self.agent.model.load_state_dict(content["agent"])
            self.learner.optimizer.load_state_dict(content["optimizer"])
            self.memory.best = [Remembered(*one) for one in content["memory"]]
            self.population.best = [Remembered(*one) for one in content["population"]]
            self.filter.counts.update(content["filter"])
            self.best = None if content["best"] is None else State(*content["best"])
            self.counts = Counts(**content["counts"])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
            raise DataError(
                f"{self._checkpoint} is damaged or of another model ({' '.join(str(error).split())[:200]}); "
                "remove it to learn anew from the molecules scored so far, which cost no further calls"
            ) from None


def readable(text: str) -> Chem.Mol | None:
    """The molecule of a sampled text, as its canonical SMILES reads; None if there is none."""
    if not text or leaves(text)[1]:
        return None
    mol, _ = structure(text)
    return None if mol is None else structure(Chem.MolToSmiles(mol))[0]
