"""The report of a policy's training: action errors beside the baselines, pictures, what was left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.robotics import plots
from mambakit.domains.robotics.episodes import Episodes
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.training import EpisodeParts, chosen_by

_MOST_BEHAVIOURS = 8


def write(
    run: RunFolder,
    policy: Policy,
    episodes: Episodes,
    parts: EpisodeParts,
    result: FitResult,
    rows: Sequence[Mapping[str, object]],
) -> None:
    """Writes ``report.html`` and the pictures of a run.

    Args:
        run: Its folder.
        policy: The trained policy.
        episodes: All of them.
        parts: Their split.
        result: How training went.
        rows: Action errors on the test episodes, ours first.
    """
    totals = episodes.totals
    report = Report(f"{policy.config.policy.kind} on {episodes.name}")
    report.add_metrics(
        {
            "episodes": len(episodes),
            "steps": episodes.n_steps,
            "training": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "parameters": sum(one.numel() for one in policy.parameters()),
            "training seconds": round(result.seconds, 1),
        }
    )
    report.add_heading("Held-out action error")
    report.add_table(rows)
    column = next(name for name in rows[0] if name in ("scaled_mse", "wrong"))
    figure = plots.error_figure(rows, column)
    report.add_figure(run.save_picture(figure, "action_error"))
    report.add_text(
        "How far actions are from those of the test episodes, told what was seen then; scaled_mse is in "
        "deviations of the training data's actions, so that 1 is as good as their mean. It says how well "
        "the behaviour is imitated, and not what the policy would earn: mambakit robotics evaluate does."
    )
    report.add_heading("The data")
    figure = plots.returns_figure(_by_behaviour(episodes))
    report.add_figure(
        run.save_picture(figure, "data_returns"), f"Returns, from {totals.min():.6g} to {totals.max():.6g}."
    )
    for note in episodes.notes:
        report.add_text(note)
    report.add_left_out(episodes.left_out, "episodes")
    add_training(
        report,
        run,
        result,
        (
            Panel("loss", ("train/loss", "val/loss"), "min"),
            Panel("validation action error", ("val/action_error",), "min"),
        ),
        f"the least validation {chosen_by(policy.config)[4:].replace('_', ' ')}, "
        f"{result.best_score:.4f}; those of the end are in the "
        f"folder last. Lengths of episodes: {_range([len(one) for one in episodes.episodes])} steps.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)


def _by_behaviour(episodes: Episodes) -> dict[str, list[float]]:
    """Returns by who acted; names that differ in their last number alone are one."""
    found: dict[str, list[float]] = {}
    for one in episodes.episodes:
        name = re.sub(r"[-_ ]*[0-9.]+$", "", one.behaviour or "data")
        found.setdefault(name, []).append(one.total)
    return found if len(found) <= _MOST_BEHAVIOURS else {"data": episodes.totals.tolist()}


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}, on average {np.mean(values):.0f}"
