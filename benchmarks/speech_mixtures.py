"""What the benchmarks of speech that learn from mixtures share: ``--long``, for what a GPU can do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from trials import changed


def add_long_flag(parser: argparse.ArgumentParser) -> None:
    """``--long``, of benchmarks whose preset is meant for a CPU."""
    parser.add_argument(
        "--long",
        type=int,
        metavar="EPOCHS",
        help="train as a GPU can: a larger network, in bfloat16, for so many epochs of 200 "
        "batches of 16, instead of the preset for a CPU",
    )


def lengthened(
    configs: dict[str, Any], epochs: int | None, mixtures: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Configs as ``--long`` has them.

    Args:
        configs: The preset's.
        epochs: How many; None leaves the preset as it is.
        mixtures: Names the config that says how many mixtures are made.
        settings: What else differs, by dotted names.
    """
    if epochs is None:
        return configs
    changes = {"train.max_epochs": epochs, "train.batch_size": 16, "train.patience": 0}
    # float32 takes two and a half times as long on an H200, and learns the same
    changes |= {"train.precision": "bf16-mixed"}
    made = {f"{mixtures}.steps_per_epoch": 200, f"{mixtures}.validation_mixtures": 100}
    return changed(configs, {**changes, **made, **settings})
