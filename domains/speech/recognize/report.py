"""The report of a training run of a recogniser: one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.speech.recognize.evaluation import COLUMNS
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.training import RecordingParts


def write(
    run: RunFolder,
    model: Recognizer,
    parts: RecordingParts,
    split: str,
    result: FitResult,
    rows: Sequence[dict[str, Any]],
    examples: Sequence[tuple[str, str]],
    times: dict[str, float] | None,
) -> None:
    """Writes ``report.html`` and the learning curve.

    Args:
        run: Its folder.
        model: The trained model.
        parts: What it was trained on.
        split: How that was chosen.
        result: How training went.
        rows: Error rates on the test part; empty where there is none.
        examples: What was said and what was written, of a few test recordings.
        times: How far word times are off, where they are known.
    """
    report = Report(f"Recognition: {model.config.trained_on}")
    report.add_metrics(
        {
            "training": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "symbols": model.config.n_ids,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "streams": "yes" if model.streams else "no",
            "training seconds": round(result.seconds, 1),
        }
    )
    if rows:
        report.add_heading(f"Errors on the test part of the {split} split")
        report.add_table([{name: row[name] for name in COLUMNS} for row in rows])
        report.add_text("wer, cer: wrong words and characters over those said; dB: speech over added noise.")
        report.add_table([{"said": said, "written": written} for said, written in examples])
    if times is not None:
        report.add_metrics({name: round(value, 4) for name, value in times.items()})
    for note in parts.notes:
        report.add_text(note)
    report.add_left_out(parts.left_out, "recordings")
    add_training(
        report,
        run,
        result,
        (
            Panel("loss a symbol", ("train/loss", "val/loss"), "min"),
            Panel("word error rate of validation", ("val/wer",), "min"),
        ),
        f"the least validation loss, {result.best_score:.4f}. Test was measured at the end.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
