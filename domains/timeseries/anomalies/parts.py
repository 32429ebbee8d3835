"""From a row's value and its surprises to its score, a row at a time.

a_h = surprise of the row under the forecast from h rows before, h = 1..k, at most CAP
b_h = a_h / running mean of a_h                                            (an often wrong lead counts less)
b   = (b_1 + mean of b_1..b_k) / 2      (b_1 sees every jump; the longer leads have not yet seen the anomaly)

Over the ``smooth`` rows around the row, for half of which it waits, four parts:
forecast = mean of b
row      = how unusually high the row's own b is                           (what is over after one row)
level    = how unusual the mean value is, over a season at least           (forecasts follow a slow departure)
steps    = how unusual the mean step from value to value is, high or low   (what is flat is easy to forecast)
score    = root of their mean square

Unusual: a surprise under the distribution of the number's own past (``surprise.Usual``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.timeseries.anomalies.surprise import CAP, MEMORY, Usual

PARTS = ("forecast", "row", "level", "steps")
# The running mean of a lead begins at 1, what a calibrated forecast has, as if it had been seen so often;
# a great surprise is not to hide those that follow it.
_PRIOR = 20.0
_MOST_IN_MEAN = 6.0
# Logarithms are of a number and this share of what is usual, so that one near zero is not all that counts.
_FLOOR = 0.05
_LEAST_SEEN = 0.5


class Scored(NamedTuple):
    """A row, its score and the score's parts; NaN where it has none."""

    row: int
    score: float
    parts: tuple[float, ...]


class Leads:
    """One number from the surprises of a row under each lead, 1 in the mean.

    Args:
        n_leads: Rows that forecasts reach.
    """

    def __init__(self, n_leads: int) -> None:
        self.total = np.full(n_leads, _PRIOR)
        self.count = np.full(n_leads, _PRIOR)

    def add(self, surprises: NDArray[np.float64]) -> float:
        """Of the next row, from its surprises ``(n_leads,)``, NaN where there is none."""
        there = ~np.isnan(surprises)
        if not there.any():
            return math.nan
        capped = np.where(there, surprises, 0.0).clip(max=CAP)
        relative = capped / (self.total / self.count)
        whole = float(relative.sum() / there.sum())
        keep = 1 - 1 / MEMORY
        prior = (1 - keep) * _PRIOR  # which never fades, so that no mean falls to zero
        self.total = np.where(there, keep * self.total + prior + capped.clip(max=_MOST_IN_MEAN), self.total)
        self.count = np.where(there, keep * self.count + prior + 1, self.count)
        return (float(relative[0]) + whole) / 2 if there[0] else whole


class RowScorer:
    """Scores of one series' rows, with a state of fixed size.

    Args:
        n_leads: Rows that forecasts reach.
        smooth: Rows around each row that its score is of.
        season: Rows in a season: the level is over one at least, so that the hour of the day is none.
    """

    def __init__(self, n_leads: int, smooth: int, season: int = 1) -> None:
        self.leads = Leads(n_leads)
        self.smooth, self.wait, self.season = smooth, smooth // 2, max(season, smooth)
        # leads, value and step of the last season's rows, each written twice, so that they lie in one piece
        self.recent = np.full((3, 2 * self.season), math.nan)
        self.rows = 0
        self.last = math.nan
        self.step_total = self.step_count = 0.0
        self.usual_row, self.usual_level, self.usual_steps = Usual(), Usual(self.season), Usual(smooth)

    def add(self, surprises: NDArray[np.float64], value: float) -> Scored | None:
        """Take in the next row; the row that has its score now.

        Args:
            surprises: ``(n_leads,)``, NaN where there is none.
            value: The row's own; NaN where it is missing.
        """
        step, self.last = abs(value - self.last), value
        if not math.isnan(step):
            keep = 1 - 1 / MEMORY
            self.step_total, self.step_count = keep * self.step_total + step, keep * self.step_count + 1
        place, lead = self.rows % self.season, self.leads.add(surprises)
        for at in (place, place + self.season):
            self.recent[:, at] = lead, value, step
        self.rows += 1
        return self._score(self.rows - 1 - self.wait) if self.rows > self.wait else None

    def finish(self) -> Iterator[Scored]:
        """The rows that are still waiting, by what came."""
        return (self._score(row) for row in range(max(0, self.rows - self.wait), self.rows))

    def _score(self, row: int) -> Scored:
        end = (self.rows - 1) % self.season + 1 + self.season
        leads, values, steps = self.recent[:, end - min(self.rows, self.season) : end]
        place = row - self.rows + len(leads)
        own = float(leads[place])
        if math.isnan(own):
            return Scored(row, math.nan, (math.nan,) * len(PARTS))
        around = slice(max(0, place + self.wait + 1 - self.smooth), None)
        season = slice(max(0, place + self.wait + 1 - self.season), None)
        floor = _FLOOR * self.step_total / self.step_count if self.step_count else 0.0
        step = _mean(steps[around]) + floor
        parts = (
            _mean(leads[around], least=0),
            self.usual_row.surprise(math.log(own + _FLOOR), above=True),
            self.usual_level.surprise(_mean(values[season])),
            self.usual_steps.surprise(math.log(step) if step > 0 else math.nan),
        )
        squares = [part * part for part in parts if not math.isnan(part)]
        return Scored(row, math.sqrt(sum(squares) / len(squares)), parts)


def _mean(x: NDArray[np.float64], least: float = _LEAST_SEEN) -> float:
    """Mean of what is there; NaN if less than the share ``least`` is."""
    there = x[~np.isnan(x)]
    return float(there.mean()) if len(there) and len(there) >= least * len(x) else math.nan
