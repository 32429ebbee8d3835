"""A model for those who serve it without mambakit: what `mambakit recommendation export` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.recommendation_train import load_model
from mambakit.core.cli import print_json
from mambakit.domains.recommendation.config import Columns


def export(
    *,
    model: Path,
    output: Path,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    json: bool = False,
) -> None:
    """Writes a model as files that need torch alone: its items, its step, and what they mean.

    items.parquet holds each item's vector, bias and popularity; step.pt2 a program that moves users' states
    by an event each; serving.json their shapes and how to put a history in; items.faiss the search index, if
    mambakit[ann] is installed. examples/recommendation_serving.py serves them.

    Args:
        model: Folder of the saved model, of recurrent blocks.
        output: Folder for the files; a new one, or empty.
        columns: Which column of the items' table is what.
        item_features: CSV, Parquet or .item file with a row an item: those that came after training are known
            by their features, and written with the others.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation export --model runs/ml --output served
    """
    from mambakit.domains.recommendation import serving

    said = serving.export_recommender(load_model(model, "cpu", item_features, columns), output)
    if said["index"] is None:
        print('note: there is no search index: pip install "mambakit[ann]"', file=sys.stderr)
    if "left_out" in said:
        print(f"note: left out are {said['left_out']}", file=sys.stderr)
    if json:
        print_json({"output": output, **said})
        return
    for path in sorted(output.iterdir()):
        print(f"{path.stat().st_size:>12,} bytes  {path}")
