"""What the benchmarks of speech that learn from mixtures share: ``--long``, for what a GPU can do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from trials import changed

RECIPES = Path(__file__).parent.parent / "examples" / "speech"


def add_long_flag(parser: argparse.ArgumentParser) -> None:
    """``--long``, of benchmarks whose preset is meant for a CPU."""
    parser.add_argument(
        "--long",
        type=int,
        metavar="EPOCHS",
        help="train as a GPU can: the recipe in examples/speech for so many epochs, not the preset for a CPU",
    )


def lengthened(configs: dict[str, Any], epochs: int | None, recipe: str) -> dict[str, Any]:
    """Configs as the recipe of that name has them, for so many epochs; without a number as they are."""
    if epochs is None:
        return configs
    given = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text("utf-8"))
    changes = {
        f"{part}.{name}": value for part in configs if part in given for name, value in given[part].items()
    }
    return changed(configs, {**changes, "train.max_epochs": epochs})
