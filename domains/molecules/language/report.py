"""Reports of a pretraining run and of drawn molecules: tables, pictures, one HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdkit import Chem

from mambakit.core.training import FitResult, Report, RunFolder
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.molecules.language.corpus import Corpus
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.language.pictures import as_figure, descriptor_figure, grid
from mambakit.domains.molecules.language.quality import MEASURES_NOTE, SAMPLES, Quality

_MOST_ROWS = 20


def write_run(
    run: RunFolder, model: MoleculeModel, corpus: Corpus, result: FitResult, quality: Quality | None
) -> None:
    """Writes ``report.html`` and the pictures of a pretraining run.

    Args:
        run: Its folder.
        model: What was trained.
        corpus: What on.
        result: How training went.
        quality: Of samples of the model; None if it was not measured.
    """
    report = Report(f"A language of the molecules of {corpus.name}")
    report.add_metrics(
        {
            "training molecules": len(corpus.train),
            "tokens in the vocabulary": corpus.tokenizer.n_ids,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "validation bits a token": round(result.best_score / math.log(2), 4),
            "training seconds": round(result.seconds, 1),
        }
    )
    if quality is not None:
        add_quality(report, quality)
        report.add_figure(as_figure(grid(quality.sets[SAMPLES].names)), "Molecules drawn from the model.")
    add_training(
        report,
        run,
        result,
        (
            Panel("nats a token", ("train/loss", "val/loss"), "min"),
            Panel("share of valid samples", ("val/validity",), ""),
        ),
        "the lowest validation loss. Training molecules are written anew each epoch, "
        "validation molecules are canonical SMILES: the two curves are of different things.",
    )
    if len(corpus.left_out):
        report.add_heading("Rows left out")
        report.add_table(
            corpus.left_out.head(_MOST_ROWS), f"The first of {len(corpus.left_out):,}; all: left_out.csv."
        )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)


def write_samples(
    path: Path,
    quality: Quality,
    *,
    settings: Mapping[str, object],
    faults: Mapping[str, int],
    query: Chem.Mol | None = None,
) -> Path:
    """Writes the report of drawn molecules as one HTML file.

    Args:
        path: The file.
        quality: What was measured.
        settings: How they were drawn.
        faults: How many were not valid, by reason.
        query: The scaffold that they were drawn for.
    """
    report = Report("Molecules drawn from a language model")
    report.add_metrics({"drawn": quality.rows[0]["n"], **settings})
    add_quality(report, quality)
    picture = grid(quality.sets[SAMPLES].names, query=query)
    report.add_figure(as_figure(picture), "The first valid molecules that differ.")
    if faults:
        report.add_heading("Not valid")
        report.add_table([{"reason": reason, "molecules": n} for reason, n in faults.items()])
    return report.write(path)


def add_quality(report: Report, quality: Quality) -> None:
    """Adds the tables and the picture of what was measured.

    Args:
        report: To add to.
        quality: What was measured.
    """
    report.add_heading("Quality of the samples")
    report.add_table(shown(quality.rows), MEASURES_NOTE)
    for note in quality.notes:
        report.add_text(note + ".")
    report.add_figure(descriptor_figure(quality), "Descriptors, as the KL score has them.")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """The same numbers for machines; what means nothing is null."""
    path.write_text(json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a table: what means nothing is a dash."""
    return [
        {name: None if isinstance(one, float) and math.isnan(one) else one for name, one in row.items()}
        for row in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
