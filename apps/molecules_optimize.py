"""Goal-directed design: what `mambakit molecules optimize` does."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.shared import own_defaults
from mambakit.core.cli import print_json
from mambakit.core.errors import UsageError
from mambakit.domains.molecules.design.config import FEW_CALLS, PRESETS, DesignConfig

if TYPE_CHECKING:
    from mambakit.core.training import RunFolder
    from mambakit.domains.molecules.design.optimise import Design

_TELL_S, _DRAW_S = 5.0, 30.0


def optimize(
    *,
    model: Path,
    objective: str,
    budget: int = 1000,
    output: Path = Path("runs/design"),
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    preset: Literal["few-calls", "many-calls"] = "few-calls",
    design: DesignConfig = FEW_CALLS,
    json: bool = False,
) -> None:
    """Designs molecules towards an objective with a language model that learns from what it is worth.

    An oracle call is a new molecule that is scored; repeats cost nothing. Every call is written to
    OUTPUT/molecules.csv at once: a killed run goes on where it was when the same command is given again, and
    a larger budget continues a finished one.

    Args:
        model: Folder of a language model (mambakit molecules pretrain).
        objective: A YAML file (see below), or a name: qed, saturn-part1, or an oracle of the PMO benchmark.
        budget: Oracle calls.
        output: Folder for the run; the model that has learned lies in OUTPUT/model.
        seed: Of all draws.
        device: auto, cpu, cuda or mps.
        max_time: Stop after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        preset: How it learns: few-calls is for budgets of about a thousand, many-calls
            for ten thousand (Augmented Memory's on the PMO benchmark).
        design: What differs from the preset; the defaults shown are those of few-calls.
        json: Print JSON for machines.

    Examples:
        mambakit molecules optimize --model runs/lm --objective objective.yaml --output runs/design
        mambakit molecules optimize --model runs/lm --objective qed --budget 500
        mambakit molecules optimize --model runs/lm --objective median1 --budget 10000 --preset many-calls

        objective.yaml:
          aggregate: geometric                 # or arithmetic, product
          components:
            - {oracle: qed, weight: 2}
            - {oracle: tpsa, transform: {kind: sigmoid, low: 75, high: 350, k: 0.15}}
            - {oracle: similarity, target: CC(=O)Oc1ccccc1C(=O)O, fingerprint: ecfp4}
            - {oracle: predictor, model: runs/esol, transform: {kind: right_step, low: -3}}
            - {oracle: function, function: mine.py:score, timeout_s: 10}  # list of SMILES to list of numbers

        oracles: qed, logp, tpsa, mw, hba, hbd, rings, aromatic_rings, rotatable_bonds, heavy_atoms, bertz,
        sa, similarity (target, fingerprint), rediscovery (target), median (targets, fingerprint), smarts
        (pattern, absent), isomer (formula), predictor (model, task), function, and those of PMO.

        transforms: sigmoid, reverse_sigmoid (low, high, k), double_sigmoid (low, high, coef_div, coef_si,
        coef_se), step, linear (low, high), right_step (low), left_step (high), gaussian, min_gaussian,
        max_gaussian (mu, sigma).
    """
    from mambakit.core.fingerprint import fingerprint
    from mambakit.core.training import RunFolder, parse_duration, resolve_device
    from mambakit.domains.molecules.design import report
    from mambakit.domains.molecules.design.agent import Agent
    from mambakit.domains.molecules.design.objective_file import load_objective
    from mambakit.domains.molecules.design.optimise import HISTORY_FILE, Design

    if budget < 1:
        raise UsageError(f"budget: expected at least 1 oracle call, got {budget}")
    if seed < 0:
        raise UsageError(f"seed: expected at least 0, got {seed}")
    design = own_defaults(design, FEW_CALLS, PRESETS[preset])
    seconds = None if max_time is None else parse_duration(max_time)
    agent = Agent.load(model, resolve_device(device))
    wanted = load_objective(objective)
    try:
        run = RunFolder(output, overwrite=overwrite)
        run.start(
            {"model": model, "fingerprint": fingerprint(agent.model), "objective": wanted.spec}
            | {"seed": seed, "design": design},
            seed=seed,
        )
        if overwrite:
            (run.path / HISTORY_FILE).unlink(missing_ok=True)
        made = Design(agent, wanted, run, budget=budget, config=design, seed=seed)
        if len(made.history):
            print(f"goes on after {len(made.history)} oracle calls", file=sys.stderr)
        watch = _Watch(run, budget)
        designed = made.run(max_time_s=seconds, after_step=watch)
        result = report.write(run, wanted, designed, budget, f"Design towards {objective}")
        run.save(agent.model, "model", of_result=False)
    finally:
        wanted.close()
    if json:
        print_json({**result, "objective": objective, "output": run.path})
        return
    print(report.sentences(designed.counts, designed.history, designed.stopped))
    if result["failed"] == result["calls"]:
        print("no molecule has a value" if result["calls"] else "no molecule was scored")
    else:
        print(f"best {result['best']:.3f}: {result['best_smiles']}")
    print(f"mean of the best 10: {result['top10']:.3f}, AUC top-10: {result['auc_top10']:.3f}")
    print(f"molecules: {made.history.path}\nreport: {run.report_path}")


class _Watch:
    """After each step: tells how far it is, and draws, each now and then."""

    def __init__(self, run: RunFolder, budget: int) -> None:
        self.run, self.budget = run, budget
        self.told = self.drawn = time.monotonic()

    def __call__(self, made: Design) -> None:
        from mambakit.domains.molecules.design.measures import top_mean
        from mambakit.domains.molecules.design.report import write_progress

        now = time.monotonic()
        if now - self.told >= _TELL_S:
            counts, rewards = made.counts, made.history.rewards
            valid = 1 - counts.invalid / counts.sampled
            print(
                f"{len(rewards)} of {self.budget} calls: best {top_mean(rewards, 1):.3f}, best ten "
                f"{top_mean(rewards):.3f}, {valid:.0%} valid",
                file=sys.stderr,
            )
            self.told = now
        if now - self.drawn >= _DRAW_S:
            write_progress(self.run, made.history, self.budget)
            self.drawn = time.monotonic()
