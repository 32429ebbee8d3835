"""How long control steps take, and how many would come too late at a control rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONTROL_HZ = (50.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass(frozen=True)
class DeadlineReport:
    """Times of control steps, from observations in to actions out."""

    steps: int
    """How many were timed."""
    n_envs: int
    """Robots a step."""
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    missed: dict[str, int]
    """By control rate, such as ``1000 Hz``: steps that took longer than its period."""

    def row(self) -> dict[str, object]:
        """As a row of a table."""
        times = {name: round(getattr(self, name), 4) for name in ("mean_ms", "p50_ms", "p99_ms", "max_ms")}
        missed = {f"missed at {rate}": count for rate, count in self.missed.items()}
        return {"steps": self.steps, "robots": self.n_envs, **times, **missed}


def deadline_report(
    seconds: Sequence[float], n_envs: int = 1, rates_hz: Sequence[float] = CONTROL_HZ
) -> DeadlineReport:
    """The report of measured steps; nan of none.

    Args:
        seconds: Of each step.
        n_envs: Robots a step.
        rates_hz: Control rates whose deadlines are counted.
    """
    times = np.asarray(seconds, dtype=np.float64)
    ms = 1000 * times if len(times) else np.array([np.nan])
    return DeadlineReport(
        steps=len(times),
        n_envs=n_envs,
        mean_ms=float(ms.mean()),
        p50_ms=float(np.quantile(ms, 0.5)),
        p99_ms=float(np.quantile(ms, 0.99)),
        max_ms=float(ms.max()),
        missed={f"{rate:g} Hz": int((times > 1.0 / rate).sum()) for rate in rates_hz},
    )
