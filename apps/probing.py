"""What every app's `probe` does with a subject: measure, print, write and draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.apps.shared import check_suffix, tell, write_table
from mambakit.core.cli import format_table, print_json

if TYPE_CHECKING:
    from mambakit.core.trust.probe import Subject


def check_outputs(output: Path | None, plot: Path | None) -> None:
    """Refuse file names that say no format, before anything is measured."""
    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))


def show_probe(
    subject: Subject,
    *,
    only: Sequence[str],
    seed: int,
    output: Path | None,
    plot: Path | None,
    json: bool,
) -> None:
    """Probes a subject; the table goes to stdout, or as JSON, and to the files that are named."""
    from mambakit.core.trust.probe import probe, probe_figure

    result = probe(subject, only, seed=seed)
    tell(result.notes)
    if output is not None:
        write_table(result.frame(), output)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        probe_figure(result).savefig(plot, dpi=130)
    if json:
        print_json(
            {"about": subject.about, "metric": result.metric, "better": result.better, "seed": seed}
            | {"results": result.rows, "notes": result.notes}
        )
        return
    print(f"{subject.about}: {result.metric}, {'less' if result.better == 'min' else 'more'} is better")
    shown = ("perturbation", "level", "unit", result.metric, "change")
    print(format_table([{name: row[name] for name in shown} for row in result.rows]))
