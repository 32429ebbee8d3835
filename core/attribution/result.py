"""What an attribution says, token by token, as a table and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Attribution:
    """One sample's tokens with a score each.

    Attributes:
        scores: ``(length,)``, float64.
        labels: What each token is called.
        method: How the scores came about.
        target: What they explain.
        signed: Whether a negative score speaks against the target; otherwise scores are amounts.
        value, baseline_value: The target's value for the sample and for the baseline, where the method has
            them.
        gap: How far the scores' sum is from the difference of the two; of integrated gradients.
        matrices: ``(length, length)`` by layer: how much each token (row) reads of each (column); of hidden
            attention and rollout.
        matrix_scale: What their numbers are.
    """

    scores: NDArray[np.float64]
    labels: list[str]
    method: str
    target: str
    signed: bool = True
    value: float | None = None
    baseline_value: float | None = None
    gap: float | None = None
    matrices: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    matrix_scale: str = "weight"

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.labels),):
            raise ValueError(
                f"labels: expected one for each of the {self.scores.shape[0]} tokens, got {len(self.labels)}"
            )

    def table(self) -> Any:
        """A pandas DataFrame with a row a token: ``position``, ``token``, ``score``, ``share`` of all
        magnitudes."""
        import pandas as pd

        total = np.abs(self.scores).sum()
        return pd.DataFrame(
            {
                "position": np.arange(len(self.labels)),
                "token": self.labels,
                "score": self.scores,
                "share": np.abs(self.scores) / total if total > 0 else np.zeros_like(self.scores),
            }
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Bars over the tokens, and a heat map of each layer's matrix where there are any.

        Args:
            path: Also written there; the ending says how (``.png``, ``.svg``, ``.pdf``).
        """
        from mambakit.core.attribution.pictures import attribution_figure, save_figure

        figure = attribution_figure(self)
        if path is not None:
            save_figure(figure, path)
        return figure

    def __repr__(self) -> str:
        gap = "" if self.gap is None else f", completeness gap {self.gap:.2g}"
        return f"Attribution({self.method} of {self.target}, {len(self.labels)} tokens{gap})"
