"""What the apps share: flags checked and combined, tables in files."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mambakit.core.cli import print_json
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from mambakit.core.retrieval import Mix, Neighbours

Config = TypeVar("Config", bound="DataclassInstance")

_FEW_EVENTS = 200


def train_config(config: TrainConfig, seed: int, device: str, max_time: str | None) -> TrainConfig:
    """The nested options; the flags that every app has come before them where they are given."""
    return dataclasses.replace(
        config,
        seed=seed or config.seed,
        device=config.device if device == "auto" else device,
        max_time=max_time or config.max_time,
    )


def own_defaults(config: Config, preset: Config, own: Config) -> Config:
    """Other defaults under the options that differ from the flags' defaults: of a network, or a preset."""
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(preset)
        if getattr(config, field.name) != getattr(preset, field.name)
    }
    return dataclasses.replace(own, **given)


def refuse_given(
    verb: Callable[..., object], values: Mapping[str, Any], names: Sequence[str], why: str
) -> None:
    """Refuse parameters of a verb that mean nothing here, where their values are not the defaults."""
    defaults = inspect.signature(verb).parameters
    given = [name for name in names if values[name] != defaults[name].default]
    if given:
        nested = [dataclasses.is_dataclass(defaults[name].default) for name in given]
        flags = [
            f"--{name}.*" if inner else f"--{name.replace('_', '-')}"
            for name, inner in zip(given, nested, strict=True)
        ]
        raise UsageError(f"{', '.join(flags)}: {why}")


def print_neighbours(
    neighbours: Neighbours, tried: Sequence[tuple[Mix, float]], measure: str, *, json: bool
) -> None:
    """Says what neighbours count, and what they brought on validation data."""
    mix, best = tried[0]
    alone = next(value for one, value in tried if not one.share)
    if json:
        print_json({"keys": len(neighbours), **dataclasses.asdict(mix), measure: best, "without": alone})
        return
    print(
        f"{len(neighbours):,} keys; {mix.k} neighbours at temperature {mix.temperature} "
        f"count {mix.share:.0%}: {measure} {best:.4g}, without {alone:.4g}"
    )


def check_suffix(flag: str, path: Path | None, allowed: tuple[str, ...]) -> None:
    """Refuse a file name that says no format we write."""
    if path is not None and path.suffix.lower() not in allowed:
        raise UsageError(f"{flag}: expected a name that ends in {' or '.join(allowed)}, got {path}")


def write_table(frame: Any, path: Path) -> None:
    """CSV or Parquet, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def tell(notes: Iterable[str]) -> None:
    """What a person should see, on stderr."""
    for line in notes:
        print(f"note: {line}", file=sys.stderr)


def tell_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """How many recordings are left out, and which and why of the first, on stderr."""
    if left_out:
        which, why = left_out[0]
        recordings = "recording" if len(left_out) == 1 else "recordings"
        print(f"left out: {len(left_out)} {recordings}, the first: {which}: {why}", file=sys.stderr)


@contextmanager
def in_plain_torch(device: str, n_events: int = 1) -> Iterator[None]:
    """A few events on the CPU in plain torch: to load the compiled loops, and torch's compiler, takes longer.

    Args:
        device: Where the model is.
        n_events: How many are read.
    """
    if device != "cpu" or n_events > _FEW_EVENTS or os.environ.get("MAMBAKIT_BACKEND"):
        yield
        return
    from mambakit.kernels.backend import use_backend

    with use_backend("reference"):
        yield


def words_of(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers_of(flag: str, text: str) -> list[float]:
    """The numbers between commas.

    Raises:
        UsageError: If one isn't.
    """
    try:
        return [float(word) for word in words_of(text)]
    except ValueError:
        raise UsageError(f"{flag}: expected numbers between commas, such as 80,95, got {text!r}") from None
