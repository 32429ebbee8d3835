"""Reports of a training run and of an evaluation: both columns, kinds of case, pictures; one HTML file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.recommendation import plots
from mambakit.domains.recommendation.evaluation import Evaluation, shown
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.slices import Slices

ACCURACY_NOTE = (
    "Every case is ranked among all items (unfiltered), and without the items that its user had before "
    "(filtered; a target that was seen stays). hr: share of targets in the first k, which is recall with one "
    "target. ndcg: 1 / log2(1 + rank), mrr: 1 / rank, both within k. Tied items share the mean of their "
    "places, and are within k if it is below k + 1."
)
LISTS_NOTE = (
    "coverage: share of the catalogue in some list. gini: 0 all items alike, 1 one only. novelty: bits of "
    "surprise at an item, log2(users / its users). popularity: mean training events of an item; ratio: that "
    "over the targets' own. diversity: 1 - mean cosine of a list's pairs, by who had them, or by features."
)
SAMPLED_NOTE = (
    "Ranked among sampled negatives, for comparison with older papers only: such numbers can turn the order "
    "of two recommenders round (Krichene & Rendle 2020)."
)
SLICES_NOTE = (
    "activity: thirds of users by training events. popularity: of the target; head and long tail have a "
    "fifth of the training events each. long-tail: share of list places that the long tail has. ± is half of "
    "the bootstrap interval over users."
)
GAPS_NOTE = "A gap whose interval holds zero is none that these data show."
_LISTS = ("coverage", "gini", "novelty", "popularity", "diversity", "feature-diversity")


def write(
    run: RunFolder,
    model: Recommender,
    interactions: Interactions,
    result: FitResult,
    evaluation: Evaluation,
    name: str,
    slices: Slices | None = None,
) -> None:
    """Writes ``report.html`` and the pictures of a run.

    Args:
        run: Its folder.
        model: The trained recommender.
        interactions: All events.
        result: How training went.
        evaluation: What was measured on the test events.
        name: Of the data.
        slices: The same by groups of users and items.
    """
    report = Report(f"Recommending from {name}")
    report.add_metrics(
        {
            "users": interactions.n_users,
            "items": interactions.n_items,
            "events": len(interactions),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "best validation NDCG@10": round(result.best_score, 4),
            "repeat shift": round(float(model.repeat_shift), 2),
            "training seconds": round(result.seconds, 1),
        }
    )
    add_evaluation(report, evaluation)
    if slices is not None:
        add_slices(report, slices)
    add_training(
        report,
        run,
        result,
        (
            Panel("training loss", ("train/loss",)),
            Panel("validation NDCG@10", ("val/ndcg@10/unfiltered", "val/ndcg@10/filtered"), "max"),
        ),
        "the best validation NDCG@10; test events were ranked once, at the end.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)


def add_evaluation(report: Report, evaluation: Evaluation) -> None:
    """Adds the tables and pictures of an evaluation to a report.

    Args:
        report: To add to.
        evaluation: What was measured.
    """
    share = f"± is half of the {100 * evaluation.settings['level']:g} % interval over users."
    report.add_heading(f"Accuracy on {evaluation.which} events")
    report.add_table(_table(evaluation, _is_accuracy), f"{ACCURACY_NOTE} {share}")
    for why, n in evaluation.left_out.items():
        report.add_text(f"left out: {n:,} events: {why}")
    report.add_figure(plots.ndcg_figure(evaluation))
    if any(name.startswith("sampled-") for name in evaluation.rows[0]):
        report.add_table(_table(evaluation, lambda name: name.startswith("sampled-")), SAMPLED_NOTE)
    report.add_heading("By kind of case")
    report.add_figure(plots.groups_figure(evaluation, "history"))
    report.add_figure(
        plots.groups_figure(evaluation, "gap"),
        "tied: at the same time as the event before, so that their order is the table's; unknown: no times.",
    )
    report.add_table(_group_table(evaluation), "cold: no training event has the target.")
    report.add_heading("What the lists are like")
    report.add_table(_table(evaluation, _is_of_lists), LISTS_NOTE)


def write_evaluation(path: Path, evaluation: Evaluation, name: str, slices: Slices | None = None) -> None:
    """Writes a report of an evaluation alone.

    Args:
        path: The HTML file.
        evaluation: What was measured.
        name: Of the data.
        slices: The same by groups of users and items.
    """
    report = Report(f"Recommending from {name}, measured")
    add_evaluation(report, evaluation)
    if slices is not None:
        add_slices(report, slices)
    report.write(path)


def add_slices(report: Report, slices: Slices) -> None:
    """Adds whom the recommender serves worse to a report."""
    report.add_heading("By slice")
    ours = str(slices.rows.scorer.iloc[0])
    for what, rows, label, note in (
        ("groups", slices.rows, ("slice", "group", "users", "cases", "filter"), SLICES_NOTE),
        ("gaps", slices.gaps, ("slice", "metric", "filter", "best", "worst"), GAPS_NOTE),
    ):
        if len(rows):
            own = rows[rows.scorer == ours].drop(columns="scorer")
            report.add_table(slices.table(own, label), f"{what} of {ours}. {note}")
    report.add_text(f"The long tail is {slices.long_tail:.0%} of the catalogue.")


def _is_accuracy(name: str) -> bool:
    return name.partition("@")[0] in ("hr", "ndcg", "mrr")


def _is_of_lists(name: str) -> bool:
    return name.partition("@")[0] in (*_LISTS, "popularity-ratio")


def _table(evaluation: Evaluation, wanted) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    lines = []
    for row in evaluation.rows:
        names = [name for name in row if wanted(name) and not name.endswith(("-lo", "-hi"))]
        label = {"scorer": row["scorer"], "filter": row["filter"]}
        lines.append({**label, **{name: shown(row, name, row[name]) for name in names}})
    return pd.DataFrame(lines)


def _group_table(evaluation: Evaluation) -> pd.DataFrame:
    k = 10 if 10 in evaluation.ks else evaluation.ks[-1]
    names = [f"{name}@{k}" for name in ("hr", "ndcg", "mrr")]
    lines = []
    for row in evaluation.groups.to_dict(orient="records"):
        label = {name: row[name] for name in ("by", "group", "cases", "scorer", "filter")}
        lines.append({**label, **{name: shown(row, name, row[name]) for name in names}})
    return pd.DataFrame(lines)
