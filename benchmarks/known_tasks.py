"""Proof on known tasks: what each kind of network learns and what it does not, in one table and one picture.

    python benchmarks/known_tasks.py --gpus 0 1 2 3 --jobs 48 --journal runs/known-tasks.jsonl
    python benchmarks/known_tasks.py --tasks parity --networks mamba2 mamba3 --seeds 0 --steps 400
    python benchmarks/known_tasks.py --journal runs/known-tasks.jsonl --only-journal

Mamba-1, -2 and -3, a hybrid, attention and an LSTM of about 65,000 parameters (within 5 %, beside embedding
and logits), two mixing layers each, on the tasks of mambakit.core.known_tasks; known_tasks_runs.py has the
sizes, in ``PLANS`` and ``NETWORKS``. All train alike: AdamW, batches of 64 new rows, which grow to the
trained length. The learning rate is chosen from ``--lrs`` for every task and network on the first seed, by
accuracy in validation (then by loss); weights are those of the lowest validation loss; the test's rows are
drawn anew and looked at once. Streams are read in pieces with the state carried, up to 1,048,576 tokens;
what has attention reads them whole, up to 16,384.

Rows: ``core/TASK/accuracy/NETWORK`` at the trained length, ``.../L<tokens>`` beyond it; beside them the other
networks, chance, what is published of that kind of network as far as it is a number, and in the unit in
words. Writes results/known-tasks.json and ``--picture``. A run of the journal is taken for the same settings
and commit; ``--only-journal`` takes those of any commit, so that rows and picture can be made elsewhere, or
of fewer ``--seeds`` where time was short. Runs with ``--steps``, ``--rows`` or ``--longest`` write no rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from known_tasks_runs import NETWORKS, PLANS, Job, run_job
from processes import add_flags, run_all

_MAMBA = "Gu & Dao 2023"
_MAMBA2 = "Dao & Gu 2024"
_MAMBA3 = "Lahoti et al. 2026"
_HIERARCHY = "Deletang et al. 2022"

# What others found, at their sizes: a number where theirs is an accuracy of the same kind of network.
PUBLISHED: dict[tuple[str, str], tuple[float | None, str]] = {
    ("selective-copying", "mamba1"): (0.998, f"{_MAMBA}: solves, at 4096 tokens"),
    ("induction", "mamba1"): (1.0, f"{_MAMBA}: solves, to 1048576"),
    ("induction", "attention"): (None, f"{_MAMBA}: solves what is trained, nothing beyond 512"),
    ("recall", "attention"): (None, "Arora et al. 2023: solves"),
    ("recall", "mamba2"): (None, f"{_MAMBA2}: solves with enough state, better than Mamba-1"),
    ("parity", "mamba3"): (None, f"{_MAMBA3}: solves"),
    ("parity", "mamba2"): (None, f"{_MAMBA3}: fails"),
    ("parity", "mamba1"): (None, "Grazzi et al. 2024: fails"),
    ("parity", "attention"): (None, f"{_HIERARCHY}: fails beyond what is trained"),
    ("parity", "lstm"): (None, f"{_HIERARCHY}: solves"),
    ("arithmetic", "mamba3"): (None, f"{_MAMBA3}: solves, with products"),
    ("arithmetic", "mamba2"): (None, f"{_MAMBA3}: fails, with products"),
    ("arithmetic", "lstm"): (None, f"{_HIERARCHY}: solves, with products"),
}


def first_jobs(arguments: argparse.Namespace) -> list[Job]:
    """The first seed's, which choose the learning rates; those that take longest first."""
    from rows import commit

    common = {"steps": arguments.steps, "rows": arguments.rows, "longest": arguments.longest}
    tasks = sorted(arguments.tasks, key=lambda task: -PLANS[task].trained_length)
    networks = sorted(arguments.networks, key=lambda network: network != "lstm")
    return [
        {"task": task, "network": network, "seed": arguments.seeds[0], "lrs": arguments.lrs, **common}
        | {"commit": commit()}
        for network in networks
        for task in tasks
    ]


def other_jobs(found: Sequence[Job], seeds: Sequence[int]) -> list[Job]:
    """The other seeds' at the learning rates of the first."""
    kept = ("task", "network", "steps", "rows", "longest", "commit")
    return [
        {**{key: one[key] for key in kept}, "seed": seed, "lrs": [one["lr"]]}
        for seed in seeds[1:]
        for one in found
    ]


class Stages:
    """Runs what is not in the journal, and writes into it what is done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.journal: Path | None = arguments.journal
        self.left = 0
        self.began = time.time()

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """What came of the jobs, in their order; those that failed or were not begun are counted."""
        known: list[Job] = []
        if self.journal is not None and self.journal.exists():
            known = [json.loads(line) for line in self.journal.read_text().splitlines()]
        if self.arguments.only_journal:
            jobs = [{key: value for key, value in job.items() if key != "commit"} for job in jobs]
        wanted = [job for job in jobs if _latest(job, known) is None]
        if not self.arguments.only_journal:
            spent = time.time() - self.began  # limits are those of both stages together
            ran = run_all(
                run_job,
                wanted,
                self.arguments.jobs,
                tell=self.tell,
                gpus=self.arguments.gpus,
                seconds=self.arguments.seconds - spent,
                stop_after=self.arguments.stop_after - spent,
            )
            known += [one for one in ran if "error" not in one]
        done = [one for job in jobs if (one := _latest(job, known)) is not None]
        self.left += len(jobs) - len(done)
        return done

    def tell(self, one: Job, seconds: float) -> None:
        """A line of a run that ended, and one for the journal."""
        if "error" in one:
            print(one["task"], one["network"], one["seed"], one["error"], file=sys.stderr, flush=True)
            return
        if self.journal is not None:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            with self.journal.open("a") as file:
                file.write(json.dumps(one) + "\n")
        shown = ("task", "network", "seed", "lr", "validation", "test", "seconds")
        line = {key: one[key] for key in shown} | {"at": round(seconds)}
        print(json.dumps(line), file=sys.stderr, flush=True)


def _latest(job: Job, known: Sequence[Job]) -> Job | None:
    """The last of the runs that are as the job asks."""
    return next((one for one in reversed(known) if job.items() <= one.items()), None)


def grouped(found: Sequence[Job], seeds: Sequence[int]) -> dict[tuple[str, str], list[Job]]:
    """The runs of each task and network of which every seed is there."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for task in PLANS:
        for network in NETWORKS:
            own = [one for one in found if (one["task"], one["network"]) == (task, network)]
            if own and {one["seed"] for one in own} == set(seeds):
                groups[task, network] = own
    return groups


def result_rows(groups: dict[tuple[str, str], list[Job]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for every length that a network was tested at: the mean over seeds."""
    from rows import row

    made = []
    for (task, network), own in groups.items():
        number, words = PUBLISHED.get((task, network), (None, ""))
        beside = {name: others for (of, name), others in groups.items() if of == task and name != network}
        for length in own[0]["test"]:
            values = [one["test"][length] for one in own]
            peers = {
                name: round(statistics.mean(one["test"][length] for one in others), 4)
                for name, others in beside.items()
                if length in others[0]["test"]
            }
            peers |= {"chance": round(PLANS[task].task.chance, 4)}
            peers |= {} if number is None else {"published": number}
            trained = int(length) == PLANS[task].test_lengths[0]
            made.append(
                row(
                    f"core/{task}/accuracy/{network}" + ("" if trained else f"/L{length}"),
                    round(statistics.mean(values), 4),
                    "of answers" + (f" ({words})" if words else ""),
                    peers=peers,
                    spread=round(statistics.pstdev(values), 4),
                    seeds=list(seeds),
                )
                | {key: own[0][key] for key in ("commit", "machine", "date")}
            )
    return made


def table(groups: dict[tuple[str, str], list[Job]]) -> str:
    """Markdown: a line for every task and length, a column for every network."""
    lines = ["| task | tokens | " + " | ".join(NETWORKS) + " | chance |"]
    lines.append("|---" + "|--:" * (len(NETWORKS) + 2) + "|")
    for task, plan in PLANS.items():
        for length in plan.test_lengths:
            cells = []
            for network in NETWORKS:
                own = [one["test"].get(str(length)) for one in groups.get((task, network), [])]
                values = [value for value in own if value is not None]
                cells.append(f"{100 * statistics.mean(values):.1f}" if values else "–")
            if any(cell != "–" for cell in cells):
                line = [task, f"{length:,}", *cells, f"{100 * plan.task.chance:.1f}"]
                lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3], help="to choose from")
    parser.add_argument("--steps", type=int, help="instead of the plans'")
    parser.add_argument("--rows", type=int, default=64, help="of a step")
    parser.add_argument("--longest", type=int, help="tokens of a test at most")
    parser.add_argument(
        "--journal", type=Path, help="a file of finished runs: what is in it is not run again"
    )
    parser.add_argument("--only-journal", action="store_true", help="run nothing: show what the journal has")
    parser.add_argument("--picture", type=Path, default=Path("runs/known-tasks.png"))
    add_flags(parser)
    arguments = parser.parse_args(words)
    stages = Stages(arguments)
    found = stages.run(first_jobs(arguments))
    found += stages.run(other_jobs(found, arguments.seeds))
    groups = grouped(found, arguments.seeds)
    print(table(groups))
    if groups:
        from known_tasks_picture import draw

        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(groups, arguments.picture)
        print(f"picture: {arguments.picture}")
    trial = arguments.steps or arguments.longest or arguments.rows != parser.get_default("rows")
    if groups and not trial:
        from rows import write_rows

        made = result_rows(groups, arguments.seeds)
        print(f"{len(made)} rows written to {write_rows('known-tasks', made)}")
    if stages.left:
        print(f"{stages.left} runs failed or are not done", file=sys.stderr)
    return 1 if stages.left else 0


if __name__ == "__main__":
    sys.exit(main())
