"""The picture of an explanation: the structure, each atom in the colour of its part, drawn by RDKit."""

from __future__ import annotations

from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.Geometry import Point2D

from mambakit.domains.molecules.explaining import Explanation

Color = tuple[float, float, float]

_RAISES: Color = (0.086, 0.408, 0.722)
_LOWERS: Color = (0.761, 0.341, 0.102)
_INK: Color = (0.133, 0.188, 0.235)
_GREY: Color = (0.42, 0.47, 0.53)
_WIDTH, _HEIGHT = 560, 400  # of the structure, in pixels
_HEAD, _FOOT = 58, 86
_BAR = 240
_LARGE, _MOST_NOTES = 0.4, 6  # parts of such a share of the largest are written beside their atoms
_LONG = 64  # characters of a name


def picture(found: Explanation, *, svg: bool, largest: float | None = None) -> bytes:
    """What is in the file of a picture.

    Colours are symmetric about zero: blue raises the prediction, orange lowers it, white does nothing. The
    largest parts are written beside their atoms.

    Args:
        found: From ``explain``.
        svg: As SVG; PNG otherwise.
        largest: The part that has the full colour; by default the largest of this molecule.
    """
    mol = Chem.Mol(found.mol)
    rdDepictor.SetPreferCoordGen(False)
    rdDepictor.Compute2DCoords(mol)
    rdDepictor.StraightenDepiction(mol)
    most = float(np.abs(found.atoms).max()) if largest is None else largest
    scale = most or 1.0
    colors = {i: shade(part / scale) for i, part in enumerate(found.atoms.tolist())}
    bonds = {}
    for bond in mol.GetBonds():
        ends = (found.atoms[bond.GetBeginAtomIdx()] + found.atoms[bond.GetEndAtomIdx()]) / 2
        bonds[bond.GetIdx()] = shade(float(ends) / scale)
    for i in np.argsort(-np.abs(found.atoms), kind="stable")[:_MOST_NOTES].tolist():
        if abs(found.atoms[i]) >= _LARGE * scale and most:
            mol.GetAtomWithIdx(i).SetProp("atomNote", signed(found.atoms[i], scale))

    kind = rdMolDraw2D.MolDraw2DSVG if svg else rdMolDraw2D.MolDraw2DCairo
    canvas = kind(_WIDTH, _HEAD + _HEIGHT + _FOOT, _WIDTH, _HEIGHT)
    options: Any = canvas.drawOptions()
    options.useBWAtomPalette()  # red oxygens would be read as a part of the scale
    options.bondLineWidth = 1.8
    options.fixedBondLength = 42
    options.padding = 0.06
    options.highlightRadius = 0.38
    options.highlightBondWidthMultiplier = 14
    options.fillHighlights = True
    options.annotationFontScale = 0.62
    options.setAnnotationColour(_INK)
    canvas.ClearDrawing()
    options.clearBackground = False  # it would be moved with the structure
    canvas.SetOffset(0, _HEAD)
    canvas.DrawMolecule(
        mol,
        highlightAtoms=list(colors),
        highlightAtomColors=colors,
        highlightBonds=list(bonds),
        highlightBondColors=bonds,
    )
    canvas.SetOffset(0, 0)
    _head(canvas, found)
    _foot(canvas, found, scale)
    canvas.FinishDrawing()
    drawn = canvas.GetDrawingText()
    return drawn.encode() if isinstance(drawn, str) else bytes(drawn)


def shade(share: float) -> Color:
    """The colour of a part, from -1 (orange) through 0 (white) to 1 (blue)."""
    full = np.array(_RAISES if share >= 0 else _LOWERS)
    strength = 0.75 * min(abs(share), 1.0)  # full colour would hide the atom's letter
    r, g, b = (1 - strength * (1 - full)).tolist()
    return r, g, b


def signed(part: float, scale: float) -> str:
    """A part with its sign, in as many digits as the scale is worth."""
    digits = min(max(0, 1 - int(np.floor(np.log10(scale)))), 6)
    return f"{part:+.{digits}f}"


def sentence(found: Explanation) -> str:
    """How the parts make the prediction."""
    scale = max(abs(found.value), abs(found.base), 1e-9)
    parts = f"{found.value:.3g} = base {found.base:.3g}{_added(found.atoms.sum(), scale, 'atoms')}"
    if found.by_descriptor or found.descriptors:
        parts += _added(found.descriptors, scale, "descriptors")
    return parts + _added(found.residual, scale, "residual")


def _added(part: float, scale: float, what: str) -> str:
    digits = max(0, 2 - int(np.floor(np.log10(scale))))
    return f" {'-' if part < 0 else '+'} {what} {abs(part):.{min(digits, 6)}f}"


def _head(canvas: Any, found: Explanation) -> None:
    unit = f" {found.unit}" if found.unit else ""
    name = found.task.name if len(found.task.name) <= _LONG else found.task.name[: _LONG - 3] + "..."
    said = f"{found.predicted:.4g}{unit}"
    if found.task.kind == "classification":
        said = f"probability {found.predicted:.3g}, logit {found.value:.3g}"
    _write(canvas, f"{name}: {said}", 16, 20, 17 if len(name) + len(said) < 56 else 13)
    networks = "" if found.forest is None else f"networks (count {found.trust:.0%}): "
    _write(canvas, networks + sentence(found), 16, 44, 12, _GREY)


def _foot(canvas: Any, found: Explanation, scale: float) -> None:
    top = _HEAD + _HEIGHT + 22
    left = (_WIDTH - _BAR) / 2
    steps = 60
    canvas.SetFillPolys(True)
    canvas.SetLineWidth(1)
    for i in range(steps):
        canvas.SetColour(shade(2 * (i + 0.5) / steps - 1))
        a, b = (left + _BAR * k / steps for k in (i, i + 1))
        canvas.DrawRect(Point2D(a, top), Point2D(b, top + 12), True)
    for at, text in ((0, signed(-scale, scale)), (0.5, "0"), (1, signed(scale, scale))):
        _write(canvas, text, left + at * _BAR, top + 24, 11, align="middle")
    _write(canvas, "lowers", left - 10, top + 6, 12, _LOWERS, align="end")
    _write(canvas, "raises", left + _BAR + 10, top + 6, 12, _RAISES)
    unit = (
        "logits of the class" if found.task.kind == "classification" else found.unit or "the property's unit"
    )
    ways = f"mean of {found.n_written} ways of writing" if found.n_written > 1 else "one way of writing"
    _write(
        canvas,
        f"added by each atom, {unit}   ({found.method}, {ways})",
        _WIDTH / 2,
        top + 48,
        11,
        _GREY,
        align="middle",
    )


def _write(
    canvas: Any, text: str, x: float, y: float, size: int, color: Color = _INK, *, align: str = "start"
) -> None:
    canvas.SetColour(color)
    canvas.SetFontSize(size)
    canvas.DrawString(text, Point2D(x, y), {"middle": 0, "start": 1, "end": 2}[align], True)
