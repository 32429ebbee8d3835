"""What every app's `probe` does with what a domain gives it: measure, print, write and draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.shared import check_suffix, tell, write_table
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mambakit.core.trust.membership import Attacked
    from mambakit.core.trust.probe import Subject

Attack = Literal["perturb", "membership"]


def check_outputs(output: Path | None, plot: Path | None) -> None:
    """Refuse file names that say no format, before anything is measured."""
    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))


def check_attack(attack: Attack, only: Sequence[str], reference: Path | None) -> None:
    """Refuse flags that mean nothing to an attack."""
    if attack == "membership" and only:
        raise UsageError("only: perturbations are of --attack perturb")
    if attack == "perturb" and reference is not None:
        raise UsageError("reference: this is for --attack membership")


def show_membership(
    attacked: Attacked,
    reference: Attacked | None,
    *,
    name: str,
    seed: int,
    output: Path | None,
    plot: Path | None,
    json: bool,
) -> None:
    """Attacks a model by its losses; the table goes to stdout, or as JSON, and to the files named."""
    from mambakit.core.trust.membership import membership, roc_figure

    found = membership(attacked, reference, seed=seed)
    tell(attacked.notes)
    _keep(found.frame(), lambda: roc_figure(found), output, plot)
    if json:
        print_json(
            {"data": name, "case": attacked.about, "seed": seed, "results": found.rows}
            | {"notes": attacked.notes}
        )
        return
    print(f"{name}: was {attacked.about} learned from? AUC 0.5 is guessing")
    print(format_table(found.rows))


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
    _keep(result.frame(), lambda: probe_figure(result), output, plot)
    if json:
        print_json(
            {"about": subject.about, "metric": result.metric, "better": result.better, "seed": seed}
            | {"results": result.rows, "notes": result.notes}
        )
        return
    print(f"{subject.about}: {result.metric}, {'less' if result.better == 'min' else 'more'} is better")
    shown = ("perturbation", "level", "unit", result.metric, "change")
    print(format_table([{name: row[name] for name in shown} for row in result.rows]))


def _keep(table: pd.DataFrame, figure: Callable[[], Figure], output: Path | None, plot: Path | None) -> None:
    """The table and the picture, to the files that are named."""
    if output is not None:
        write_table(table, output)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure().savefig(plot, dpi=130)
