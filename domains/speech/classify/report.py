"""The report of a classifier's training: scores beside the baselines, pictures, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.speech.classify import plots
from mambakit.domains.speech.classify.evaluation import ClassifyEvaluation, size_of
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.classify.training import ClipParts


def write(
    run: RunFolder,
    model: Classifier,
    parts: ClipParts,
    split: str,
    result: FitResult,
    evaluation: ClassifyEvaluation | None,
    notes: Sequence[str],
) -> None:
    """Writes ``report.html`` and the pictures of a run.

    Args:
        run: Its folder.
        model: The trained model.
        parts: The recordings.
        split: Name of how they were split.
        result: How training went.
        evaluation: Scores on the test recordings, where there are any.
        notes: What else is worth knowing.
    """
    report = Report(f"Classification of {model.config.trained_on}")
    report.add_metrics(
        {
            "classes": len(parts.classes),
            "training": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "parameters": size_of(model),
            "training seconds": round(result.seconds, 1),
        }
    )
    if evaluation is not None:
        report.add_heading(f"Scores on the test recordings of the {split} split")
        report.add_table(evaluation.rows)
        figure = plots.confusion_figure(evaluation)
        report.add_figure(run.save_picture(figure, "confusion"), "What was taken for what.")
    for note in notes:
        report.add_text(note)
    report.add_left_out(parts.left_out, "recordings")
    add_training(
        report,
        run,
        result,
        (
            Panel("loss", ("train/loss", "val/loss"), "min"),
            Panel("validation accuracy", ("val/accuracy",), "max"),
        ),
        f"the least validation loss, {result.best_score:.4f}. Training recordings are "
        "changed anew each time (speed, room, noise, level, hidden bands and times): their loss is higher.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
