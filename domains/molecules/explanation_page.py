"""Explanations of many molecules as one page that opens anywhere, offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambakit.core.training.report import Report
from mambakit.domains.molecules.explanation_picture import picture, sentence
from mambakit.domains.molecules.explanation_tables import Explained
from mambakit.domains.molecules.language.pictures import as_figure

_MOST_PICTURES = 200  # a page of more is slow to open


def write_page(found: Sequence[Explained], path: Path, title: str) -> Path:
    """Pictures of all rows, and why some have none; returns the path.

    Args:
        found: From ``explain_all``.
        path: Where to write it.
        title: The page's.
    """
    page = Report(title)
    bad = [one for one in found if one.error]
    page.add_metrics({"molecules": len(found) - len(bad), "rows with an error": len(bad)})
    page.add_text(
        "Blue atoms raise the prediction, orange ones lower it; each picture has a scale of its own. "
        "Prediction = base + atoms + descriptors + residual: the base is the prediction where nothing of the "
        "molecule is known, descriptors are of the whole molecule and no atom's."
    )
    if bad:
        page.add_heading("Rows with an error")
        page.add_table([{"row": one.row, "smiles": one.smiles, "error": one.error} for one in bad])
    drawn = [(one, made) for one in found for made in one.explanations]
    page.add_heading("Molecules")
    for one, made in drawn[:_MOST_PICTURES]:
        caption = f"row {one.row}: {one.smiles}   {made.task.name}: {sentence(made)}"
        page.add_figure(as_figure(picture(made, svg=False)), caption)
    if len(drawn) > _MOST_PICTURES:
        page.add_text(f"and {len(drawn) - _MOST_PICTURES} more: give a folder as output for all pictures")
    return page.write(path)
