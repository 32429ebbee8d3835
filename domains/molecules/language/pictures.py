"""Pictures of generated molecules: a grid of structures, and how their descriptors are spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from mambakit.core.training.curves import tidy
from mambakit.domains.molecules.language.metrics import DESCRIPTORS
from mambakit.domains.molecules.language.quality import BASELINE, HELD_OUT, SAMPLES, Quality

_CELL = (230, 190)
_COLORS = {SAMPLES: "#c2571a", HELD_OUT: "#1668b8", BASELINE: "#8a94a0"}
_SCAFFOLD_COLOR = (0.99, 0.87, 0.72)


def grid(
    smiles: Sequence[str],
    path: Path | None = None,
    *,
    legends: Sequence[str] | None = None,
    per_row: int = 6,
    most: int = 36,
    query: Chem.Mol | None = None,
) -> bytes:
    """Molecules drawn side by side, as PNG, or SVG where ``path`` ends in it.

    Args:
        smiles: Valid ones.
        path: Where to write it.
        legends: A line below each.
        per_row, most: How many.
        query: A scaffold to mark, and to draw alike in all.

    Returns:
        What is in the file.
    """
    mols = [Chem.MolFromSmiles(one) for one in smiles[:most]]
    marked = [list(mol.GetSubstructMatch(query)) if query is not None else [] for mol in mols]
    if query is not None:
        template = Chem.Mol(query)
        rdDepictor.Compute2DCoords(template)
        for mol, atoms in zip(mols, marked, strict=True):
            if atoms:
                rdDepictor.GenerateDepictionMatching2DStructure(mol, template)
    n_rows = max(1, -(-len(mols) // per_row))
    n_columns = min(per_row, max(1, len(mols)))
    width, height = _CELL
    svg = path is not None and path.suffix.lower() == ".svg"
    kind = rdMolDraw2D.MolDraw2DSVG if svg else rdMolDraw2D.MolDraw2DCairo
    canvas = kind(width * n_columns, height * n_rows, width, height)
    options: Any = canvas.drawOptions()  # its stubs type every option as the options themselves
    options.setHighlightColour(_SCAFFOLD_COLOR)
    options.legendFontSize = 14
    options.drawMolsSameScale = False
    options.fixedBondLength = 22  # small molecules are not blown up; large ones are made to fit
    if mols:
        below = list(legends[: len(mols)]) if legends else [""] * len(mols)
        with rdBase.BlockLogs():  # bare atoms have more radical electrons than it can draw
            canvas.DrawMolecules(mols, legends=below, highlightAtoms=marked)
    canvas.FinishDrawing()
    drawn = canvas.GetDrawingText()
    content = drawn.encode() if isinstance(drawn, str) else bytes(drawn)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return content


def descriptor_figure(quality: Quality) -> Figure:
    """Each descriptor's distribution in the samples, the held-out molecules and the baseline.

    Args:
        quality: What was measured.
    """
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    axes = figure.subplots(3, 3).ravel()
    shown = {name: quality.sets[name] for name in quality.divergences}
    for i, (axis, descriptor) in enumerate(zip(axes, DESCRIPTORS, strict=True)):
        values = {name: one.descriptors[:, i] for name, one in shown.items() if len(one.flat)}
        together = np.concatenate(list(values.values()))
        low, high = np.percentile(together, [0.5, 99.5])
        counts = not descriptor.startswith(("Bertz", "MolLogP", "MolWt", "TPSA"))
        bins = np.arange(low - 0.5, high + 1.5) if counts else np.linspace(low, max(high, low + 1e-9), 31)
        for name, one in values.items():
            filled = name == HELD_OUT
            axis.hist(
                np.clip(one, bins[0], bins[-1]),  # the rare ones beyond stand in the last bin
                bins=bins,
                density=True,
                histtype="stepfilled" if filled else "step",
                color=_COLORS[name],
                alpha=0.25 if filled else 1.0,
                linewidth=1.5 if name == SAMPLES else 1.0,
                label=name,
            )
        kl = quality.divergences[SAMPLES][descriptor]
        axis.set_title(f"{descriptor}   KL {kl:.3f}", fontsize=10, loc="left")
        axis.set_yticks([])
        tidy(axis)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def as_figure(png: bytes) -> Figure:
    """A PNG as a figure, for a report."""
    import io

    from matplotlib.image import imread

    image = imread(io.BytesIO(png), format="png")
    height, width = image.shape[:2]
    figure = Figure(figsize=(width / 130, height / 130))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(image, interpolation="lanczos")
    axis.set_axis_off()
    return figure
