"""A model for those who serve it without mambakit: what `mambakit recommendation export` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.recommendation_train import load_model
from mambakit.core.cli import print_json


def export(*, model: Path, output: Path, json: bool = False) -> None:
    """Writes a model as files that need torch alone: its items, its step, and what they mean.

    items.parquet holds each item's vector, bias and popularity; step.pt2 a program that moves users' states
    by an event each; serving.json their shapes and how to put a history in; items.faiss the search index, if
    mambakit[ann] is installed. examples/recommendation_serving.py serves them.

    Args:
        model: Folder of the saved model, of recurrent blocks.
        output: Folder for the files; a new one, or empty.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation export --model runs/ml --output served
    """
    from mambakit.domains.recommendation import serving

    said = serving.export_recommender(load_model(model, "cpu"), output)
    if said["index"] is None:
        print('note: there is no search index: pip install "mambakit[ann]"', file=sys.stderr)
    if "left_out" in said:
        print(f"note: left out are {said['left_out']}", file=sys.stderr)
    if json:
        print_json({"output": output, **said})
        return
    for path in sorted(output.iterdir()):
        print(f"{path.stat().st_size:>12,} bytes  {path}")
