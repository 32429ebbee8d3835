"""A graph-genetic algorithm alone: the baseline that every learned design has to beat.

Jensen 2019, Chem. Sci. 10, 3567, with the sizes that PMO tuned (Gao et al. 2022, arXiv:2206.12411): the best
120 molecules breed 70 children a generation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from mambakit.core.config_checks import check_least, check_shares
from mambakit.domains.molecules.design.genetic import MAX_ATOMS, offspring
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.objective import Objective
from mambakit.domains.molecules.structures import structure

_IDLE_GENERATIONS = 10  # without a new molecule


@dataclass(frozen=True)
class GraphGAConfig:
    """Sizes of a graph-genetic algorithm."""

    population: int = 120
    """The best molecules, which breed; and the random ones that it begins with."""
    offspring: int = 70
    """Children a generation."""
    mutation_rate: float = 0.1
    """Share of the children that are mutated too."""
    initial: int | None = None
    """Random molecules that it begins with, each an oracle call; by default as many as breed."""
    max_atoms: int = MAX_ATOMS
    """Heavy atoms of a child at most."""

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "offspring", "max_atoms")
        check_least(self, 1, "initial")
        check_shares(self, "mutation_rate")


def graph_ga(
    smiles: Sequence[str],
    objective: Objective,
    history: History,
    *,
    budget: int,
    config: GraphGAConfig = GraphGAConfig(),
    seed: int = 0,
    max_time_s: float | None = None,
) -> str:
    """Breeds until the budget is spent; what a killed run had asked it finds in its history.

    Args:
        smiles: Molecules of which some, drawn at random, are the first generation.
        objective: What is wanted.
        history: Takes every call.
        budget: Oracle calls: unique canonical SMILES that are scored, the first generation's too.
        config: Sizes.
        seed: Of all draws.
        max_time_s: Seconds from now.

    Returns:
        What ended it: ``budget``, ``max-time`` or ``nothing-new``.
    """
    began, generation, idle = time.monotonic(), 0, 0
    rewards: dict[str, float] = {}  # of all molecules that this run has come to
    made = _first(smiles, config, np.random.default_rng([seed, 0]))
    while True:
        idle = 0 if made.keys() - rewards.keys() else idle + 1
        history.ask(objective, made, budget)
        rewards |= {one: history[one].reward for one in made if one in history}
        if len(rewards) >= budget:
            return "budget"
        if idle >= _IDLE_GENERATIONS:
            return "nothing-new"
        if max_time_s is not None and time.monotonic() - began >= max_time_s:
            return "max-time"
        generation += 1
        best = sorted(rewards, key=lambda one: (-rewards[one], one))[: config.population]
        made = offspring(
            best,
            config.offspring,
            np.random.default_rng([seed, generation]),
            mutation_rate=config.mutation_rate,
            max_atoms=config.max_atoms,
        )


def _first(smiles: Sequence[str], config: GraphGAConfig, rng: np.random.Generator) -> dict[str, Chem.Mol]:
    """Random molecules of one component, by canonical SMILES."""
    wanted = config.initial or config.population
    made: dict[str, Chem.Mol] = {}
    for place in rng.permutation(len(smiles)):
        mol, _ = structure(str(smiles[place]))
        if mol is not None and len(Chem.GetMolFrags(mol)) == 1:
            made.setdefault(Chem.MolToSmiles(mol), mol)
        if len(made) == wanted:
            break
    return made
