"""What a design is to reach: components with transforms and weights, made one reward between 0 and 1.

aggregate: geometric
components:
  - oracle: tpsa
    transform: {kind: sigmoid, low: 75, high: 350, k: 0.15}
  - oracle: similarity
    target: CC(=O)Oc1ccccc1C(=O)O
    weight: 2
  - oracle: function
    function: mine.py:score
    timeout_s: 10
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rdkit.Chem import Mol

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.design.shaping import Transform

Aggregate = Literal["product", "geometric", "arithmetic"]
Scorer = Callable[[Sequence[str], Sequence[Mol]], tuple[NDArray[np.float64], list[str]]]
"""From canonical SMILES and their molecules to values ``(n,)``, NaN for none, and why there is none."""

COLUMNS, SHAPED = ("call", "smiles", "scaffold", "reward", "reason"), ":shaped"
"""Of the history, beside each component's ``NAME`` and ``NAME:shaped``."""

_MOST_FAILURES = 100


@dataclass(frozen=True)
class Component:
    """One wish.

    Attributes:
        name: As columns and messages call it.
        scorer: Its values.
        transform: From values to 0..1; None takes the values as they are.
        weight: How much it counts.
        batch: Molecules that it is given at once, at most; None sets no limit.
        close: Called at the end.
    """

    name: str
    scorer: Scorer
    transform: Transform | None = None
    weight: float = 1.0
    batch: int | None = None
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Scores:
    """What an objective says of some molecules.

    Attributes:
        values: Of each component, on its own scale, NaN for none, ``(n, n_components)``.
        shaped: The same between 0 and 1, 0 for none.
        reward: Of each molecule, between 0 and 1, ``(n,)``; 0 where a component has no value.
        reasons: Why a molecule has no value, else ''.
    """

    values: NDArray[np.float64]
    shaped: NDArray[np.float64]
    reward: NDArray[np.float64]
    reasons: list[str]


class Objective:
    """Scores molecules.

    Args:
        components: At least one.
        aggregate: ``product`` of shaped ** weight; ``geometric`` or ``arithmetic`` mean, weighted.
            (REINVENT's and Saturn's "product" is the geometric mean.)
        spec: What it was made from, as YAML can hold it.

    Raises:
        UsageError: If two columns of the history would have the same name.
    """

    def __init__(
        self, components: Sequence[Component], aggregate: Aggregate = "geometric", spec: Any = None
    ) -> None:
        self.components, self.aggregate, self.spec = tuple(components), aggregate, spec
        self._failing = np.zeros(len(self.components), np.int64)
        for i, name in enumerate(self.names):
            if not name or name in COLUMNS or name.endswith(SHAPED) or self.names.count(name) > 1:
                taken = ", ".join(COLUMNS)
                raise UsageError(
                    f"components[{i}].name: {name!r} can't be a column of its own beside {taken}, the other "
                    f"components and their NAME{SHAPED}; give the component another name"
                )

    @property
    def names(self) -> list[str]:
        """Of the components, no two alike."""
        given = [component.name for component in self.components]
        return [
            name if given.count(name) == 1 else f"{name}-{given[: i + 1].count(name)}"
            for i, name in enumerate(given)
        ]

    @property
    def at_once(self) -> int | None:
        """Molecules to score in one call, so that no component's work of more than a batch can be lost."""
        return min((one.batch for one in self.components if one.batch is not None), default=None)

    def __call__(self, smiles: Sequence[str], mols: Sequence[Mol]) -> Scores:
        """Score canonical SMILES and their molecules.

        Raises:
            DataError: If a component has failed on a hundred molecules in a row: it is at fault, not they.
        """
        n, k = len(smiles), len(self.components)
        values, shaped, reasons = np.full((n, k), np.nan), np.zeros((n, k)), [""] * n
        for j, (component, name) in enumerate(zip(self.components, self.names, strict=True)):
            values[:, j], why = component.scorer(smiles, mols)
            known = np.isfinite(values[:, j])
            own = values[known, j]
            shaped[known, j] = own if component.transform is None else component.transform(own)
            outside = known & ~((shaped[:, j] >= 0) & (shaped[:, j] <= 1))
            for i in np.flatnonzero(outside):
                why[i] = f"{values[i, j]:g} is not between 0 and 1; give the component a transform"
            shaped[outside, j] = 0.0
            failed = ~known | outside
            for i in np.flatnonzero(failed):
                reasons[i] = reasons[i] or f"{name}: {why[i] or 'no value'}"
            self._count(j, failed, reasons)
        reward = aggregated(shaped, np.array([one.weight for one in self.components]), self.aggregate)
        reward[[bool(reason) for reason in reasons]] = 0.0
        return Scores(values, shaped, reward, reasons)

    def close(self) -> None:
        """Ends what runs for the components."""
        for component in self.components:
            component.close()

    def _count(self, j: int, failed: NDArray[np.bool_], reasons: list[str]) -> None:
        for i, bad in enumerate(failed):
            self._failing[j] = self._failing[j] + 1 if bad else 0
            if self._failing[j] >= _MOST_FAILURES:
                raise DataError(
                    f"{self.names[j]} has failed on {_MOST_FAILURES} molecules in a row, at last with "
                    f"{reasons[i]!r}; mend it and run the same command again: what was scored is kept"
                )


def aggregated(
    shaped: NDArray[np.float64], weights: NDArray[np.float64], aggregate: Aggregate
) -> NDArray[np.float64]:
    """One reward ``(n,)`` of shaped components ``(n, n_components)``."""
    if aggregate == "arithmetic":
        return np.asarray(shaped @ weights / weights.sum())
    powers = weights if aggregate == "product" else weights / weights.sum()
    return np.asarray(np.prod(shaped**powers, axis=1))
