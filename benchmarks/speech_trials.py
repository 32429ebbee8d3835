"""What the benchmarks of speech share: presets that are changed for a trial, and where runs are kept."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from processes import add_flags


def add_long_flag(parser: argparse.ArgumentParser) -> None:
    """``--long``, of benchmarks whose preset is meant for a CPU."""
    parser.add_argument(
        "--long",
        type=int,
        metavar="EPOCHS",
        help="train as a GPU can: so many epochs of 200 batches of 16, instead of the preset for a CPU",
    )


def lengthened(configs: dict[str, Any], epochs: int | None, mixtures: str) -> dict[str, Any]:
    """Configs as ``--long`` has them; ``mixtures`` names the one that says how many are made."""
    if epochs is None:
        return configs
    changes = {"train.max_epochs": epochs, "train.batch_size": 16, "train.patience": 0}
    made = {f"{mixtures}.steps_per_epoch": 200, f"{mixtures}.validation_mixtures": 100}
    return changed(configs, {**changes, **made})


def add_trial_flags(parser: argparse.ArgumentParser) -> None:
    """``--seeds``, ``--limit``, ``--set``, ``--keep``, and those of ``processes``."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="learn from so many of each part, to try it out")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; those that are there go on")
    add_flags(parser)


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """Values by their dotted names."""
    return {name: json.loads(value) for name, _, value in (one.partition("=") for one in given)}


def changed(configs: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The configs with some fields, at any depth, set."""

    def within(config: Any, path: Sequence[str], value: Any) -> Any:
        inner = within(getattr(config, path[0]), path[1:], value) if len(path) > 1 else value
        return dataclasses.replace(config, **{path[0]: inner})

    made = dict(configs)
    for name, value in changes.items():
        part, *path = name.split(".")
        made[part] = within(made[part], path, value)
    return made


@contextlib.contextmanager
def run_at(keep: str | None, *names: object) -> Iterator[Path]:
    """A folder for one run: below ``keep``, or one that is gone afterwards."""
    name = "-".join(str(one).replace(" ", "-") for one in names)
    if keep is not None:
        yield Path(keep) / name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def device_here() -> str:
    """The GPU that this process was given, else the CPU, of which it takes one core."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    torch.set_num_threads(1)
    return "cpu"
