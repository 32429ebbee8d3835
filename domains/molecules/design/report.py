"""What a design leaves to look at: metrics.csv and pictures while it runs, result.json and report.html."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

import numpy as np
import yaml

from mambakit.core.training import Report, RunFolder
from mambakit.core.training.run_folder import write_atomically
from mambakit.domains.molecules.design.history import History
from mambakit.domains.molecules.design.measures import auc_top, top_mean
from mambakit.domains.molecules.design.objective import Objective
from mambakit.domains.molecules.design.optimise import Counts, Designed
from mambakit.domains.molecules.design.pictures import best_grid, progress_figure
from mambakit.domains.molecules.language.pictures import as_figure

_EVERY = 100
_SHOWN = 20
_ENDED = {
    "budget": "the budget was spent",
    "max-time": "the time was up; run the same command again to go on",
    "patience": "the best ten had stopped to grow",
    "nothing-new": "it found no new molecule any more, wherever it went back to",
}


def write_progress(run: RunFolder, history: History, budget: int) -> None:
    """metrics.csv, a row for every hundred calls (or tenth of a smaller budget), and both pictures."""
    rewards = history.rewards
    n, every = len(rewards), min(_EVERY, max(budget // 10, 1))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["calls", "top1", "top10", "top100", "mean_of_last", "auc_top10", "scaffolds"])
    for at in [*range(every, n, every), *([n] if n else [])]:
        means = [top_mean(rewards[:at], k) for k in (1, 10, 100)]
        so_far = auc_top(rewards[:at], budget, extrapolate=False)
        scaffolds = len({one.scaffold for one in history.calls[:at] if one.reward > 0})
        writer.writerow([at, *means, float(np.mean(rewards[max(at - every, 0) : at])), so_far, scaffolds])
    write_atomically(run.metrics_path, text.getvalue())
    if n:
        run.save_picture(progress_figure(history, budget), "progress")
        best_grid(history.best(_SHOWN), run.pictures / "best.png")


def summary(designed: Designed, budget: int) -> dict[str, Any]:
    """The figures of a run, as JSON can hold them."""
    history, counts = designed.history, designed.counts
    rewards = history.rewards
    failed = [one.reason for one in history.calls if one.reason]
    best = history.best(1)
    return {
        "calls": len(history),
        "budget": budget,
        "stopped": designed.stopped,
        "best": best[0][1].reward if best else None,
        "best_smiles": best[0][1].smiles if best else None,
        "top10": top_mean(rewards, 10),
        "top100": top_mean(rewards, 100),
        "auc_top10": auc_top(rewards, budget),
        "scaffolds": len({one.scaffold for one in history.calls if one.reward > 0}),
        "steps": counts.steps,
        "sampled": counts.sampled,
        "invalid": counts.invalid,
        "bred": counts.bred,
        "repeated": counts.repeated,
        "restarts": counts.restarts,
        "failed": len(failed),
    }


def write(
    run: RunFolder, objective: Objective, designed: Designed, budget: int, title: str
) -> dict[str, Any]:
    """result.json and report.html; returns the summary."""
    result = summary(designed, budget)
    history, counts = designed.history, designed.counts
    write_progress(run, history, budget)
    run.finish(result)
    page = Report(title)
    page.add_metrics(
        {
            "best reward": result["best"],
            "mean of the best 10": result["top10"],
            "AUC top-10": result["auc_top10"],
            "oracle calls": len(history),
            "scaffolds": result["scaffolds"],
        }
    )
    page.add_text(sentences(counts, history, designed.stopped))
    if len(history):
        page.add_figure(
            progress_figure(history, budget), "Rewards by oracle calls, before the diversity filter."
        )
        page.add_heading("The best molecules")
        page.add_figure(as_figure(best_grid(history.best(_SHOWN))), "Reward, and the call that found it.")
        table = history.table().sort_values("reward", ascending=False, kind="stable").head(_SHOWN)
        page.add_table(_rows(table), "NAME: a component's value; NAME:shaped: what it gives to the reward.")
    if failed := Counter(_kind(one.reason) for one in history.calls if one.reason):
        page.add_heading("Molecules without a value")
        page.add_text("They count 0, and are in molecules.csv with their reasons.")
        page.add_table([{"reason": reason, "molecules": n} for reason, n in failed.most_common(10)])
    page.add_heading("Objective")
    page.add_code(yaml.safe_dump(objective.spec, sort_keys=False))
    page.write(run.report_path)
    return result


def sentences(counts: Counts, history: History, stopped: str) -> str:
    """What became of the samples, and why the run ended."""
    failed = Counter(_kind(one.reason) for one in history.calls if one.reason)
    bred = f" and {counts.bred} bred" if counts.bred else ""
    said = (
        f"{counts.sampled} molecules were sampled{bred} in {counts.steps} steps: {counts.invalid} were no "
        f"molecules, {counts.repeated} had been scored before or were twice in their batch, and cost nothing."
    )
    if failed:
        reason, n = failed.most_common(1)[0]
        said += f" {failed.total()} have no value and count 0, {n} of them as {reason!r}."
    if counts.restarts:
        said += f" {counts.restarts} times the model had lost the language or repeated itself, and went back."
    return f"{said} The run ended because {_ENDED[stopped]}."


def _rows(table: Any) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "reason"}
        for row in table.to_dict(orient="records")
    ]


def _kind(reason: str) -> str:
    return reason if len(reason) <= 160 else reason[:159] + "…"
