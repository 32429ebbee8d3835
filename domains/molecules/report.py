"""The report of a training run: one table beside the baselines, what leaks, pictures; one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.molecules import plots
from mambakit.domains.molecules.evaluation import Evaluation
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split, TaskKind

COLUMNS: dict[TaskKind, tuple[str, ...]] = {
    "regression": ("task", "model", "rmse", "mae", "unit", "r2", "coverage", "width", "n"),
    "classification": ("task", "model", "roc_auc", "pr_auc", "coverage", "set_size", "n"),
}
_MOST_LEFT_OUT = 50


def note_of(evaluation: Evaluation) -> str:
    """What the columns mean."""
    return (
        "rmse, mae and width are in the unit beside them. coverage: share of labels inside the "
        f"{1 - evaluation.alpha:.0%} intervals or sets, which validation molecules calibrated; width: of the "
        "intervals; set_size: labels in a set, 1 where the model commits itself. n: labels."
    )


def write(
    run: RunFolder,
    model: PropertyModel,
    molecules: Molecules,
    split: Split,
    result: FitResult,
    evaluation: Evaluation | None,
    leak: str,
    notes: Sequence[str],
) -> None:
    """Writes ``report.html`` and the pictures of a run.

    Args:
        run: Its folder.
        model: The trained model.
        molecules: What it was trained on.
        split: How that was split.
        result: How training went.
        evaluation: Scores on the test molecules, where there are any.
        leak: What test shares with training, in a sentence.
        notes: What else is worth knowing about the data.
    """
    report = Report(f"Properties of {molecules.name}")
    report.add_metrics(
        {
            "molecules": len(molecules),
            "training": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
            "properties": len(molecules.tasks),
            "members": len(model.members),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "training seconds": round(result.seconds, 1),
        }
    )
    if evaluation is not None:
        report.add_heading(f"Scores on the test molecules of the {split.name} split")
        for kind, columns in COLUMNS.items():
            rows = evaluation.table(kind)
            if rows:
                report.add_table([{name: row.get(name) for name in columns} for row in rows])
        report.add_text(note_of(evaluation))
        figures = {
            "parity": (plots.parity_figure(evaluation), "Predicted over measured; lines are the intervals."),
            "roc": (plots.roc_figure(evaluation), "The trade between ones found and false alarms."),
            "domain": (plots.domain_figure(evaluation), "Where the model leaves what it knows."),
        }
        for name, (figure, caption) in figures.items():
            if figure is not None:
                report.add_figure(run.save_picture(figure, name), caption)
    report.add_heading("The split")
    report.add_text(leak or "There is no test part.")
    for note in notes:
        report.add_text(note)
    if len(molecules.left_out):
        report.add_text(f"{len(molecules.left_out)} rows could not be read and are left out.")
        report.add_table(molecules.left_out.head(_MOST_LEFT_OUT))
    add_training(
        report,
        run,
        result,
        (Panel("training loss", ("train/loss",)), Panel("validation loss", ("val/loss",), "min")),
        f"the least validation loss, {result.best_score:.4f} (squared error of labels "
        "scaled to deviation 1, or cross-entropy). The same validation molecules calibrated probabilities, "
        "intervals and sets. The test molecules were measured once, at the end.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
