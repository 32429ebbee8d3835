"""The report of an enhancement run: scores beside log-MMSE, spectrograms, the curves; one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.speech.enhance.evaluation import Evaluation
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.enhance.plots import before_after_figure
from mambakit.domains.speech.noises import Signal

COLUMNS = ("model", "pesq", "stoi", "si_sdr", "n")
MEANING = (
    "pesq: perceptual quality, 1 to 4.6; stoi: intelligibility, 0 to 1; si_sdr: in dB; n: signals. noisy is "
    "what came in, log-MMSE an estimator that learns nothing (Ephraim & Malah 1985)."
)


def write(
    run: RunFolder,
    model: Enhancer,
    result: FitResult,
    evaluation: Evaluation,
    example: tuple[str, Signal, Signal],
    notes: Sequence[str] = (),
) -> None:
    """Writes ``report.html`` and the pictures.

    Args:
        run: The run's folder.
        model: Trained.
        result: How training went.
        evaluation: Scores on the test mixtures.
        example: Name, noisy and clean signal of one of them.
        notes: What else is worth knowing.
    """
    report = Report(f"Enhancement of {model.config.trained_on}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report.add_metrics({"parameters": parameters, "training seconds": round(result.seconds, 1)})
    report.add_heading("Scores on test mixtures")
    report.add_table([{name: row.get(name) for name in COLUMNS} for row in evaluation.means()])
    report.add_text(MEANING)
    name, noisy, clean = example
    with torch.no_grad():
        said = model(torch.from_numpy(noisy)[None])[0]
    signals = {"noisy": torch.from_numpy(noisy), "enhanced": said, "clean": torch.from_numpy(clean)}
    figure = before_after_figure(signals, model.config.rate_hz)
    report.add_figure(
        run.save_picture(figure, "before_after"),
        f"The test mixture {name} before and after, and the speech without noise.",
    )
    for note in notes:
        report.add_text(note)
    add_training(
        report,
        run,
        result,
        (
            Panel("loss", ("train/loss", "val/loss"), "min"),
            Panel("validation: SI-SDR gained, dB", ("val/si_sdr_gain",)),
        ),
        f"the least validation loss, {result.best_score:.4f}.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
