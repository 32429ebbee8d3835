"""How a trained model's own metric falls as what it reads, or its step sizes, are spoilt more and more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from mambakit.core.cli import did_you_mean
from mambakit.core.errors import UsageError
from mambakit.core.trust.perturbations import scaled_steps, stepping_blocks

CLEAN, DT = "clean", "dt"
DT_FACTORS = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)

Spoil = Callable[[float, torch.Generator], AbstractContextManager[None]]


@dataclass(frozen=True)
class Perturbation:
    """One way of spoiling.

    Attributes:
        levels: How much, in ``unit``, the least first.
        unit: What a level is.
        spoil: Of a level and a generator: a context in which the subject's ``measure`` reads spoilt inputs.
    """

    levels: tuple[float, ...]
    unit: str
    spoil: Spoil


@dataclass(frozen=True)
class Subject:
    """What is probed: a domain's part.

    Attributes:
        model: The network.
        measure: The domain's figures by name, on inputs as they are by then.
        metric: The one that counts.
        better: Whether less or more of it is better.
        perturbations: By name.
        about: What is measured, in a few words.
        notes: What a person should know.
    """

    model: nn.Module
    measure: Callable[[], Mapping[str, float]]
    metric: str
    better: Literal["min", "max"]
    perturbations: Mapping[str, Perturbation]
    about: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ProbeResult:
    """What was found.

    Attributes:
        rows: ``perturbation``, ``level`` (None of the clean inputs), ``unit``, every figure, and ``change``
            of the metric since the clean ones.
        metric: The one that counts.
        better: Whether less or more of it is better.
        notes: What a person should know.
    """

    rows: list[dict[str, Any]]
    metric: str
    better: Literal["min", "max"]
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> float:
        """The metric on inputs as they are."""
        return float(self.rows[0][self.metric])

    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)


def probe(subject: Subject, only: Sequence[str] = (), *, seed: int = 0) -> ProbeResult:
    """Measures a subject clean, and under each perturbation at each of its levels.

    Each measurement has a generator of its own, from the seed, the perturbation and the level: leaving some
    out changes none of the others.

    Args:
        subject: What is probed.
        only: Names of perturbations, ``dt`` among them; all by default.
        seed: Of all draws.

    Raises:
        UsageError: On a name that there is not.
    """
    ways = dict(subject.perturbations)
    notes = list(subject.notes)
    n_blocks = len(stepping_blocks(subject.model))
    if n_blocks:

        def slower(factor: float, generator: torch.Generator) -> AbstractContextManager[None]:
            return scaled_steps(subject.model, factor)

        ways[DT] = Perturbation(DT_FACTORS, "times dt", slower)
    else:
        notes.append("dt: no block of this model has a step size")
    for name in only:
        if name not in ways:
            raise UsageError(
                f"only: there is no perturbation {name!r}{did_you_mean(name, ways)}; {_known(ways)}"
            )
    rows = [_row(subject, CLEAN, None, "", None)]
    clean = rows[0][subject.metric]
    for name, way in ways.items():
        if only and name not in only:
            continue
        for i, level in enumerate(way.levels):
            generator = torch.Generator().manual_seed(_seed_of(seed, name, i))
            rows.append(_row(subject, name, level, way.unit, way.spoil(level, generator)))
    for row in rows:
        row["change"] = row[subject.metric] - clean
    return ProbeResult(rows, subject.metric, subject.better, notes)


def _row(
    subject: Subject, name: str, level: float | None, unit: str, spoilt: AbstractContextManager[None] | None
) -> dict[str, Any]:
    with spoilt or nullcontext():
        figures = subject.measure()
    return {"perturbation": name, "level": level, "unit": unit, **{k: float(v) for k, v in figures.items()}}


def _seed_of(seed: int, name: str, i: int) -> int:
    return int(np.random.SeedSequence([seed, *name.encode(), i]).generate_state(1)[0])


def _known(ways: Mapping[str, Perturbation]) -> str:
    return f"perturbations: {', '.join(ways)}"


def probe_figure(result: ProbeResult) -> Any:
    """A panel for each perturbation: the metric over its levels, the clean one as a line."""
    from matplotlib.figure import Figure

    frame = result.frame()
    names = [name for name in frame["perturbation"].unique() if name != CLEAN]
    figure = Figure(figsize=(3.1 * max(1, len(names)), 3.2), layout="constrained")
    axes = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=False):
        rows = frame[frame["perturbation"] == name]
        ax.axhline(result.clean, color="0.5", lw=1, ls="--")
        places = range(len(rows))
        ax.plot(places, rows[result.metric], marker="o", color="C0")
        ax.set_xticks(list(places), [f"{level:g}" for level in rows["level"]])
        ax.set_title(name)
        ax.set_xlabel(rows["unit"].iloc[0])
    axes[0].set_ylabel(f"{result.metric} ({'less' if result.better == 'min' else 'more'} is better)")
    figure.suptitle(f"dashed: clean, {result.clean:.4g}", fontsize=9)
    return figure
