"""The report of a classifier's training run: scores beside the baselines, confusion, learning curves."""

from __future__ import annotations

from mambakit.core.training import Report, RunFolder
from mambakit.domains.timeseries.classification.evaluation import ClassifierEvaluation, confusion_figure
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.classification.training import ClassifierResult
from mambakit.domains.timeseries.tables.labelled import LabelledData


def write(
    run: RunFolder,
    model: SeriesClassifier,
    data: LabelledData,
    result: ClassifierResult,
    evaluation: ClassifierEvaluation | None,
) -> None:
    """Writes ``report.html`` and the picture of a run.

    Args:
        run: Its folder.
        model: The trained classifier.
        data: What it was trained on.
        result: How training went.
        evaluation: Its scores on other series, where there are any.
    """
    report = Report(f"Classifying {data.name}")
    lengths = [len(one.values) for one in data.series]
    report.add_metrics(
        {
            "series": len(data.series),
            "channels": len(data.channels),
            "classes": len(data.classes),
            "rows": f"{min(lengths)} to {max(lengths)}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "held-out accuracy": result.validation_accuracy,
            "training seconds": round(result.seconds, 1),
        }
    )
    if evaluation is not None:
        report.add_heading("Scores on the test series")
        report.add_table(
            evaluation.rows,
            "balanced_accuracy: mean of the classes' recalls; calibration_error: how far probabilities are "
            "off the shares that are right; coverage: share of series whose set holds "
            "their class; set_size: classes in a set on the average.",
        )
        figure = confusion_figure(evaluation)
        report.add_figure(
            run.save_picture(figure, "confusion"), "Counts; the colour is the share of the true class."
        )
    report.add_heading("Training")
    report.add_text(
        f"{result.epochs} epochs had the least log-loss, {result.validation_loss:.4f}, on "
        f"{result.n_held_out} series, by the members that had not seen them. Temperature and sets are of the "
        "same predictions. Test series were measured once, at the end."
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
