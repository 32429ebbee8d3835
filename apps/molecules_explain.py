"""Why a property is predicted as it is: what `mambakit molecules explain` does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.molecules_train import load_model
from mambakit.apps.shared import check_suffix, write_table
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from mambakit.domains.molecules.explanation_tables import Explained

_MOST_LINES = 5


def explain(
    *,
    model: Path,
    smiles: str | None = None,
    input: Path | None = None,
    output: Path | None = None,
    table: Path | None = None,
    task: list[str] | None = None,
    method: Literal["gradients", "hidden-attention", "leave-one-out"] = "gradients",
    randomised: int | None = None,
    smiles_column: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Says what each atom of a molecule adds to the prediction of a property, and draws it.

    prediction = base + atoms + descriptors + residual, in the property's unit; of a classification in logits.
    The base is the prediction where nothing of the molecule is known; an atom's part is that of its tokens
    and of the circular fragments that it is in; descriptors are of the whole molecule and no atom's. In
    pictures blue atoms raise the prediction and orange ones lower it.

    gradients are integrated from the base to the molecule: the parts add up to the prediction, but for a
    residual that is said. hidden-attention follows the scan's hidden attention through all layers, all gates
    and norms held as they are. leave-one-out is how far the prediction falls without an atom's tokens and
    fragments: the plainest meaning, blind where atoms stand in for each other.

    Args:
        model: Folder of the saved model.
        smiles: The molecule.
        input: CSV, Parquet, SMILES or SD file of many, instead.
        output: Picture (.svg, .png), page of many (.html), or a folder for a picture a row.
        table: CSV, Parquet or JSON file with a row an atom; of unreadable molecules one with RDKit's reason.
        task: Only these properties; all by default, a picture each.
        method: How an atom's part is found.
        randomised: Average over so many ways of writing the molecule; by default as predictions do. The more,
            the less two atoms that are alike differ.
        smiles_column: The column of structures; found by its usual names where not given.
        seed: Of the ways of writing.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit molecules explain --model runs/esol --smiles "CC(=O)Oc1ccccc1C(=O)O" --output why.svg
        mambakit molecules explain --model runs/esol --input my.csv --output why.html --table why.csv
    """
    from mambakit.domains.molecules import explanation_tables as tables
    from mambakit.domains.molecules.explaining import check_method, chosen_tasks
    from mambakit.domains.molecules.files import read_source
    from mambakit.domains.molecules.structures import shown

    if (smiles is None) == (input is None):
        raise UsageError("smiles, input: expected one of the two")
    check_suffix("table", table, (".csv", ".parquet", ".json"))
    if smiles is not None:
        check_suffix("output", output, (".svg", ".png", ".html"))
    elif output is not None and output.suffix.lower() != ".html" and (output.suffix or output.is_file()):
        raise UsageError(f"output: for many molecules expected a folder or a name in .html, got {output}")
    trained = load_model(model, device)
    chosen_tasks(trained, task)
    check_method(trained, method, randomised)
    if input is not None:
        source = read_source(input, smiles_column)
    else:
        source = tables.one_molecule(smiles or "")
    found = tables.explain_all(trained, source, tasks=task, method=method, randomised=randomised, seed=seed)
    bad = [one for one in found if one.error]
    if len(bad) == len(found):
        where = f"{input}: none of {len(bad)} rows can be explained; the first, row {bad[0].row}, "
        raise DataError(f"{'smiles: ' if input is None else where}{shown(bad[0].smiles)}: {bad[0].error}")
    if output is not None:
        print(f"picture: {_draw(found, output, str(input))}", file=sys.stderr)
    if table is not None and table.suffix.lower() == ".json":
        tables.write_json(found, table)
    elif table is not None:
        write_table(tables.atom_table(found), table)
    if table is not None:
        print(f"table: {table}", file=sys.stderr)
    for line in _notes(found):
        print(f"note: {line}", file=sys.stderr)
    if json:
        print_json({"method": method, "molecules": tables.records(found)})
    else:
        for one in found:
            print(_text(one, with_row=input is not None))


def _draw(found: list[Explained], output: Path, title: str) -> str:
    """Writes the pictures; returns what to say of them."""
    from mambakit.domains.molecules.explanation_picture import picture

    ending = output.suffix.lower()
    if ending == ".html":
        from mambakit.domains.molecules.explanation_page import write_page

        write_page(found, output, "Why these predictions" if title == "None" else f"Why: {title}")
        return str(output)
    written = []
    if not ending:
        output.mkdir(parents=True, exist_ok=True)
    for one in found:
        for explanation in one.explanations:
            words = [] if ending else [f"row{one.row}"]
            words += [_plain(explanation.task.name)] if len(one.explanations) > 1 else []
            name = "-".join(words)
            if ending:
                path = output.with_name(f"{output.stem}-{name}{output.suffix}") if name else output
            else:
                path = output / f"{name}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(explanation, svg=path.suffix.lower() == ".svg"))
            written.append(path)
    return str(written[0]) if len(written) == 1 else f"{written[0]} and {len(written) - 1} more"


def _plain(name: str) -> str:
    """A property's name as part of a file's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-") or "task"


def _notes(found: list[Explained]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    bad = [one for one in found if one.error]
    if bad:
        notes.append(
            f"{len(bad)} of {len(found)} rows have an error (the first, row {bad[0].row}: {bad[0].error})"
        )
    every = [one for molecule in found for one in molecule.explanations]
    cut = sum(one.cut for one in every)
    if cut:
        notes.append(
            f"{cut} molecules are longer than the model reads: their last atoms are in fragments only"
        )
    beside = [one for one in every if one.forest is not None]
    if beside:
        one = beside[0]
        notes.append(
            f"explained is what the networks say; the prediction counts them by {one.trust:.0%} and the "
            f"forest beside them by {1 - one.trust:.0%}, and is {one.predicted:.4g} of {one.task.name}"
            f"{'' if len(beside) == 1 else ' in the first'} (--model.trees 0 trains without)"
        )
    beyond = [one for one in every if abs(one.descriptors) > abs(one.atoms).sum()]
    if beyond:
        notes.append(
            f"in {len(beyond)} of {len(every)} the descriptors of the whole molecule add more than all atoms "
            "together; a model trained with --model.features ecfp leaves nothing to them"
        )
    return notes


def _text(one: Explained, *, with_row: bool) -> str:
    """The atoms that add or take most."""
    from mambakit.domains.molecules.explanation_picture import sentence

    where = f"row {one.row}: " if with_row else ""
    if one.error:
        return f"{where}{one.smiles}: {one.error}"
    lines = []
    for found in one.explanations:
        unit = f" {found.unit}" if found.unit else ""
        lines.append(f"{where}{one.smiles}  {found.task.name}{f' ({found.unit})' if unit else ''}")
        lines.append(f"  {sentence(found)}")
        for i in sorted(range(len(found.atoms)), key=lambda i: -abs(found.atoms[i]))[:_MOST_LINES]:
            lines.append(f"  {found.atoms[i]:+9.4f}  atom {i} {found.mol.GetAtomWithIdx(i).GetSymbol()}")
        largest = sorted(found.by_descriptor.items(), key=lambda item: -abs(item[1]))[:3]
        if largest:
            named = ", ".join(f"{name} {part:+.3f}" for name, part in largest)
            lines.append(f"  {found.descriptors:+9.4f}  descriptors; of these most: {named}")
    return "\n".join(lines)
