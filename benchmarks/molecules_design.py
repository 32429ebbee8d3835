"""Goal-directed design beside what others published: Saturn's part-1 task and the RDKit-only oracles of PMO.

    python benchmarks/molecules_design.py runs/zinc250k-lm --jobs 8 --gpus 0 1
    python benchmarks/molecules_design.py runs/zinc250k-lm --tasks saturn-part1 --seeds 0 --device cpu
    python benchmarks/molecules_design.py runs/zinc250k-lm --tasks qed median1 --budget 500
    python benchmarks/molecules_design.py --baselines --tasks qed median1 --budget 500

The first argument is a language model's folder (mambakit molecules pretrain --data zinc250k); without it,
only baselines run. --baselines adds a graph-genetic algorithm without any network, which begins with 120 of a
thousand random molecules of --start. Saturn's task
has a budget of 1,000 unique oracle calls; a hit has a reward of 0.7 or more, before the diversity filter. Its
published run is one seed with a ChEMBL 33 prior. PMO has 10,000 calls; the area under the mean of the best
ten is taken every 100 calls, and a run that ends early keeps its last mean. PMO asks for no diversity: no
filter and no purge there, and learning is as Augmented Memory was published on PMO (MANY_CALLS); Saturn's
task has those of few-calls. isomers_*, sitagliptin_mpo and zaleplon_mpo follow GuacaMol's definition, with a
term for all atoms together; TDC's versions differ in it, so published figures may be of another oracle.
Scaffolds of Saturn's hits are counted with their stereochemistry, as its run counts them.

Each run keeps its folder under --output: what is stopped goes on when the same command is given again. Rows
are written to results/molecules-design.json for tasks of which all runs are done, unless --budget or --set is
given; of PMO also where --stop-after or --max-time cut runs short, since the area under what they found is
the least that they can have come to. Their rows say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

SATURN, SATURN_BUDGET, PMO_BUDGET, HIT = "saturn-part1", 1_000, 10_000, 0.7
# Of the run that Saturn's repository ships (experimental_reproduction/part_1/oracle_history.csv).
SATURN_RUN = {"hits": 125, "scaffolds": 61, "first": 608, "tenth": 762, "hundredth": 972}
# AUC top-10 as Table 1 of f-RAG (Lee et al. 2024) prints them: f-RAG, Genetic-GFN, REINVENT.
PUBLISHED = {
    "albuterol_similarity": (0.977, 0.949, 0.882),
    "amlodipine_mpo": (0.749, 0.761, 0.635),
    "celecoxib_rediscovery": (0.778, 0.802, 0.710),
    "deco_hop": (0.936, 0.733, 0.666),
    "fexofenadine_mpo": (0.856, 0.856, 0.784),
    "isomers_c7h8n2o2": (0.955, 0.969, 0.852),
    "isomers_c9h10n2o2pf2cl": (0.850, 0.897, 0.642),
    "median1": (0.340, 0.379, 0.356),
    "median2": (0.323, 0.294, 0.276),
    "mestranol_similarity": (0.671, 0.708, 0.618),
    "osimertinib_mpo": (0.866, 0.860, 0.837),
    "perindopril_mpo": (0.681, 0.595, 0.537),
    "qed": (0.939, 0.942, 0.941),
    "ranolazine_mpo": (0.820, 0.819, 0.760),
    "scaffold_hop": (0.576, 0.615, 0.560),
    "sitagliptin_mpo": (0.601, 0.634, 0.021),
    "thiothixene_rediscovery": (0.584, 0.583, 0.534),
    "troglitazone_rediscovery": (0.448, 0.511, 0.441),
    "valsartan_smarts": (0.627, 0.135, 0.178),
    "zaleplon_mpo": (0.486, 0.552, 0.358),
}
CUT = "cut"
DESIGN, GRAPH_GA, N_START = "ours", "graph GA (ours)", 1_000
METHODS = ("f-RAG (published)", "Genetic-GFN (published)", "REINVENT (published)")


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """One task with one seed, taken up where it was."""
    began = time.monotonic()
    stopped, before, history, counts = (_graph_ga if job["method"] == GRAPH_GA else _design)(job)
    seconds = time.monotonic() - began
    return {
        **job,
        "stopped": stopped,
        "seconds": round(seconds, 1),
        "calls_per_s": round((len(history) - before) / seconds, 2),
        **counts,
        **figures(history, job["budget"]),
    }


def figures(history: Any, budget: int) -> dict[str, Any]:
    """What the calls of a run, or of a part of it, came to."""
    from rdkit import Chem

    from mambakit.domains.molecules.design.measures import auc_top, hits, top_mean
    from mambakit.domains.molecules.structures import scaffold

    rewards = history.rewards
    found = [
        scaffold(Chem.MolFromSmiles(one.smiles), stereo=True) if one.reward >= HIT else ""
        for one in history.calls
    ]
    return {
        "calls": len(history),
        "top10": round(top_mean(rewards), 4),
        "auc_top10": round(auc_top(rewards, budget), 4),
        **hits(rewards, found, HIT),
    }


def folder_of(job: dict[str, Any]) -> Path:
    """Where a run lies."""
    method = "graph-ga-" if job["method"] == GRAPH_GA else ""
    return Path(job["output"]) / f"{method}{job['task']}-{job['seed']}"


def cut_short(job: dict[str, Any]) -> dict[str, Any] | None:
    """A run of PMO that was stopped, as far as it came; None if it has not begun."""
    from mambakit.domains.molecules.design.history import History
    from mambakit.domains.molecules.design.objective_file import load_objective
    from mambakit.domains.molecules.design.optimise import HISTORY_FILE

    path = folder_of(job) / HISTORY_FILE
    if job["task"] == SATURN or not path.exists():
        return None
    found = figures(History(path, load_objective(job["task"]).names), job["budget"])
    return {**job, "stopped": CUT, **found} if found["calls"] else None


def _graph_ga(job: dict[str, Any]) -> tuple[str, int, Any, dict[str, Any]]:
    """How it ended, the calls it began with, its history, and nothing to add."""
    from mambakit.domains.molecules.design.graph_ga import GraphGAConfig, graph_ga
    from mambakit.domains.molecules.design.history import History
    from mambakit.domains.molecules.design.objective_file import load_objective
    from mambakit.domains.molecules.design.optimise import HISTORY_FILE

    objective = load_objective(job["task"])
    history = History(folder_of(job) / HISTORY_FILE, objective.names)
    before = len(history)
    stopped = graph_ga(
        job["start"],
        objective,
        history,
        budget=job["budget"],
        config=GraphGAConfig(**job["ga_changes"]),
        seed=job["seed"],
        max_time_s=job["max_time"],
    )
    return stopped, before, history, {}


def _design(job: dict[str, Any]) -> tuple[str, int, Any, dict[str, Any]]:
    """How it ended, the calls it began with, its history, and what became of its samples."""
    import torch

    from mambakit.core.training import RunFolder, resolve_device
    from mambakit.domains.molecules.design.agent import Agent
    from mambakit.domains.molecules.design.config import FEW_CALLS, MANY_CALLS
    from mambakit.domains.molecules.design.objective_file import load_objective
    from mambakit.domains.molecules.design.optimise import Design

    torch.set_num_threads(1)
    own = FEW_CALLS if job["task"] == SATURN else dataclasses.replace(MANY_CALLS, bucket_size=0, purge=False)
    config = dataclasses.replace(own, **job["changes"])
    run = RunFolder(folder_of(job))
    run.start({**{key: job[key] for key in ("task", "seed", "model")}, "design": config}, seed=job["seed"])
    agent = Agent.load(Path(job["model"]), resolve_device(job["device"]))
    objective = load_objective(job["task"])
    design = Design(agent, objective, run, budget=job["budget"], config=config, seed=job["seed"])
    before = len(design.history)
    designed = design.run(max_time_s=job["max_time"])
    counts = designed.counts
    shares = {"valid": round(1 - counts.invalid / max(counts.sampled, 1), 4), "bred": counts.bred}
    return designed.stopped, before, designed.history, shares


def start_molecules(source: str) -> list[str]:
    """Random molecules of a card or a file, the same ones for all runs."""
    import numpy as np

    from mambakit.domains.molecules.cards import load_molecules

    smiles = load_molecules(source, tasks=()).smiles
    return [str(one) for one in np.random.default_rng(0).permutation(smiles)[:N_START]]


def saturn_rows(done: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of Saturn's task: means over seeds beside the published run; where a hit never came, no mean."""
    from rows import row

    seeds = sorted(job["seed"] for job in done)
    units = {
        "hits": f"molecules at reward {HIT} or more in {SATURN_BUDGET} calls",
        "scaffolds": "Murcko scaffolds of the hits",
        **{name: f"oracle call of the {name} hit" for name in ("first", "tenth", "hundredth")},
    }
    made = []
    for name, unit in units.items():
        values = [job[name] for job in done]
        whole = None not in values
        beside = [job[name] for job in baseline]
        own = {GRAPH_GA: round(statistics.mean(beside), 1)} if beside and None not in beside else {}
        what = f"molecules/{SATURN}/{name if name in ('hits', 'scaffolds') else f'{name}-hit'}"
        made.append(
            row(
                what,
                round(statistics.mean(values), 1) if whole else None,
                unit,
                peers={"Saturn (published, one seed, ChEMBL prior)": SATURN_RUN[name], **own},
                spread=round(statistics.pstdev(values), 1) if whole else None,
                seeds=seeds,
            )
        )
    return made


def at_least(runs: list[dict[str, Any]]) -> str:
    """What a row's unit says of runs that were cut short; '' if none was."""
    cut = sorted(one["calls"] for one in runs if one.get("stopped") in (CUT, "max-time"))
    if not cut:
        return ""
    where = f"{cut[0]:,}" + (f" to {cut[-1]:,}" if len(cut) > 1 else "")
    return f"; at least: {len(cut)} of {len(runs)} runs were cut at {where}, their last mean kept"


def pmo_rows(
    done: list[dict[str, Any]], baseline: list[dict[str, Any]], seeds: list[int]
) -> list[dict[str, Any]]:
    """A row of each oracle that is done with all the seeds asked for, and the sum of all twenty."""
    from rows import row

    made, sums, sums_beside = [], {}, {}
    seeds = sorted(seeds)
    for task, published in PUBLISHED.items():
        of_task = [job for job in done if job["task"] == task]
        values = {job["seed"]: job["auc_top10"] for job in of_task}
        if sorted(values) != seeds:
            continue
        sums[task] = values
        beside = {job["seed"]: job["auc_top10"] for job in baseline if job["task"] == task}
        own = {}
        if sorted(beside) == seeds:
            sums_beside[task] = statistics.mean(beside.values())
            own[GRAPH_GA] = round(sums_beside[task], 3)
        made.append(
            row(
                f"molecules/pmo-20/auc-top10/{task}",
                round(statistics.mean(values.values()), 3),
                f"area under the mean of the best ten, {PMO_BUDGET} calls{at_least(of_task)}",
                peers=dict(zip(METHODS, published, strict=True)) | own,
                spread=round(statistics.pstdev(values.values()), 3),
                seeds=seeds,
            )
        )
    if len(sums) == len(PUBLISHED):
        totals = [sum(values[seed] for values in sums.values()) for seed in seeds]
        columns = zip(*PUBLISHED.values(), strict=True)
        peers = {name: round(sum(column), 2) for name, column in zip(METHODS, columns, strict=True)}
        if len(sums_beside) == len(PUBLISHED):
            peers[GRAPH_GA] = round(sum(sums_beside.values()), 2)
        made.append(
            row(
                "molecules/pmo-20/sum-auc-top10",
                round(statistics.mean(totals), 3),
                f"sum over 20 oracles, {PMO_BUDGET} calls each{at_least(done)}",
                peers=peers,
                spread=round(statistics.pstdev(totals), 3),
                seeds=seeds,
            )
        )
    return made


def main() -> None:
    """The command line."""
    from processes import add_flags, run_all

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a language model")
    parser.add_argument("--baselines", action="store_true", help="a graph-genetic algorithm too")
    parser.add_argument("--start", default="zinc250k", help="a card or file of its first molecules")
    parser.add_argument("--tasks", nargs="+", default=[SATURN, *PUBLISHED], choices=[SATURN, *PUBLISHED])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    add_flags(parser)
    parser.add_argument("--budget", type=int, help="oracle calls, for a quick look")
    parser.add_argument("--max-time", type=float, help="seconds a run; it goes on with the next command")
    parser.add_argument("--output", default="runs/molecules-design", help="where the runs are kept")
    parser.add_argument("--set", dest="given", nargs="*", default=[], metavar="FIELD=JSON")
    parser.add_argument("--ga-set", nargs="*", default=[], metavar="FIELD=JSON")
    arguments = parser.parse_args()
    if arguments.model is None and not arguments.baselines:
        parser.error("give the folder of a language model, or --baselines")
    changes, ga_changes = (
        {key: json.loads(value) for key, _, value in (one.partition("=") for one in given)}
        for given in (arguments.given, arguments.ga_set)
    )
    start = start_molecules(arguments.start) if arguments.baselines else []
    methods = [DESIGN] * (arguments.model is not None) + [GRAPH_GA] * arguments.baselines
    jobs = [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "model": arguments.model,
            "budget": arguments.budget or (SATURN_BUDGET if task == SATURN else PMO_BUDGET),
            "device": arguments.device,
            "max_time": arguments.max_time,
            "output": arguments.output,
            "changes": changes,
            "ga_changes": ga_changes,
            "start": start if method == GRAPH_GA else [],
        }
        for seed in arguments.seeds
        for task in arguments.tasks
        for method in methods
    ]

    def tell(job: dict[str, Any], seconds: float) -> None:
        left_out = ("model", "device", "max_time", "output", "changes", "ga_changes", "start")
        shown = {key: value for key, value in job.items() if key not in left_out}
        print(json.dumps({**shown, "at": round(seconds)}), flush=True)

    limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
    found = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    done = [job for job in found if "error" not in job]
    ended = {folder_of(job) for job in found}
    done += [one for job in jobs if folder_of(job) not in ended and (one := cut_short(job))]
    if changes or ga_changes or arguments.budget or arguments.model is None:
        return
    rows = []
    saturn, saturn_ga = (
        [
            job
            for job in done
            if job["task"] == SATURN and job["method"] == method and job["stopped"] != "max-time"
        ]
        for method in (DESIGN, GRAPH_GA)
    )
    if len(saturn) == len(arguments.seeds):
        rows += saturn_rows(saturn, saturn_ga if len(saturn_ga) == len(saturn) else [])
    pmo, pmo_ga = (
        [job for job in done if job["task"] != SATURN and job["method"] == method]
        for method in (DESIGN, GRAPH_GA)
    )
    rows += pmo_rows(pmo, pmo_ga, arguments.seeds)
    if rows:
        from rows import write_rows

        print(write_rows("molecules-design", rows))


if __name__ == "__main__":
    main()
