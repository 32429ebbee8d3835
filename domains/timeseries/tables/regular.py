"""Which step each series of a sorted table has, and where its rows lie on it: all series at once."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.domains.timeseries.tables.stamps import (
    MONTHS,
    business_days,
    calendar_frequency,
    clock,
    fixed_step,
    month_day,
    month_name,
    offset_of,
    step_name,
    ticks,
)

Ints = NDArray[np.int64]
# So few rows can't tell their step from a coarser one with gaps, or a month from its days.
FEW = 5
# Series with a step that pandas must be asked for, one after the other.
_MOST_ASKED = 20


def infer_frequency(stamps: pd.Index) -> str:
    """The step between ascending stamps: a pandas offset alias, or the integer step as text.

    With gaps or stray stamps it is the commonest step.

    Raises:
        ValueError: With fewer than two stamps.
    """
    if len(stamps) < 2:
        raise ValueError("a frequency needs at least two stamps")
    return frequencies(stamps, np.array([0, len(stamps)]))[0][0]


def frequencies(stamps: pd.Index, offsets: Ints) -> tuple[list[str], NDArray[np.bool_]]:
    """The step of each series, empty for a series of one row, and which series have none but equal steps.

    Args:
        stamps: Of all series one after the other, strictly ascending in each.
        offsets: ``(n_series + 1,)``: where each series begins and the last one ends.
    """
    numbers = _ticks(stamps, offsets)
    steps = np.diff(numbers, prepend=0)
    firsts, lengths = offsets[:-1], np.diff(offsets)
    steps[firsts] = np.where(lengths > 1, steps[np.minimum(firsts + 1, len(steps) - 1)], 0)
    common = np.minimum.reduceat(steps, firsts)
    even, odd = common == np.maximum.reduceat(steps, firsts), []
    for one in np.flatnonzero(~even).tolist():
        own, counts = np.unique(steps[offsets[one] + 1 : offsets[one + 1]], return_counts=True)
        common[one] = own[counts.argmax()]
        if (own % max(1, common[one])).any():
            odd.append(one)
    if not isinstance(stamps, pd.DatetimeIndex):
        return [str(step) if step else "" for step in common.tolist()], even
    found = _fixed(stamps, firsts, common)
    days = common // ticks(pd.Timedelta(days=1), stamps.unit)
    named = set()
    for one in np.flatnonzero(days >= 28).tolist():
        name = _months(clock(stamps[offsets[one] : offsets[one + 1]], absolute=False))
        if name:
            found[one] = name
            even[one] = False
            named.add(one)
    for one in np.flatnonzero(common == ticks(pd.Timedelta(days=1), stamps.unit)).tolist():
        if (steps[offsets[one] + 1 : offsets[one + 1]] != common[one]).any():  # with weekends it is daily
            own = clock(stamps[offsets[one] : offsets[one + 1]], absolute=False)
            found[one] = "B" if (own.day_of_week < 5).all() else found[one]
    _ask_pandas(stamps, offsets, [one for one in odd if one not in named], found)
    return found, even


def _fixed(stamps: pd.DatetimeIndex, firsts: Ints, steps: Ints) -> list[str]:
    """Names of fixed steps, by the series' first stamps."""
    weekdays = clock(stamps[firsts], absolute=False).day_of_week.to_numpy()
    names: dict[tuple[int, int], str] = {}
    found = []
    for step, day in zip(steps.tolist(), weekdays.tolist(), strict=True):
        if step and (step, day) not in names:
            names[step, day] = step_name(pd.Timedelta(step, unit=stamps.unit), day)
        found.append(names[step, day] if step else "")
    return found


def _months(stamps: pd.DatetimeIndex) -> str:
    """The name of a step of whole months whose stamps have one place in them; empty if they don't."""
    numbers = stamps.year.to_numpy() * 12 + stamps.month.to_numpy()
    step = int(np.gcd.reduce(np.diff(numbers)))
    if not step:
        return ""
    if stamps.is_month_start.all() or stamps.is_month_end.all():
        return month_name(step, int(stamps.month[0]), end=bool(stamps.is_month_end[0]))
    day = int(stamps.day.max())
    return f"{step if step > 1 else ''}MS-{day}" if _on_day(stamps, day).all() else ""


def _on_day(stamps: pd.DatetimeIndex, day: int) -> NDArray[np.bool_]:
    """Which stamps have that day of the month, or its last if it is too short."""
    return stamps.day.to_numpy() == np.minimum(day, stamps.days_in_month.to_numpy())


def common_frequency(found: list[str], lengths: Ints) -> str | None:
    """The step that more than half of the series have that say one; None without such a majority.

    Weeks that begin on different days are one step. Series of few rows count only where there are no others.
    """
    sure = [name for name, length in zip(found, lengths.tolist(), strict=True) if name and length > FEW]
    names = sure or [name for name in found if name]
    if not names:
        return ""
    kind, count = Counter(name.partition("-")[0] for name in names).most_common(1)[0]
    if 2 * count <= len(names):
        return None
    return next(name for name in names if name.partition("-")[0] == kind)


def positions(stamps: pd.Index, offsets: Ints, frequency: str) -> tuple[Ints, NDArray[np.bool_]]:
    """How many steps each row lies behind its series' first, and which rows lie on no step."""
    firsts = np.repeat(offsets[:-1], np.diff(offsets))
    if not isinstance(stamps, pd.DatetimeIndex):
        place, rest = np.divmod(stamps.to_numpy() - stamps.to_numpy()[firsts], int(frequency))
        return place, rest != 0
    step = fixed_step(frequency)
    own = clock(stamps, absolute=step is not None and step < pd.Timedelta(days=1))
    if step is not None:
        numbers = own.asi8
        try:
            size = ticks(step, own.unit)
        except OverflowError:
            return np.zeros(len(own), dtype=np.int64), np.ones(len(own), dtype=bool)
        place, rest = np.divmod(numbers - numbers[firsts], size)
        return place, rest != 0
    kind = frequency.partition("-")[0].lstrip("0123456789")
    n = int(frequency.partition("-")[0][: -len(kind)] or 1)
    if kind in MONTHS or kind == "B":
        inside = own.asi8 - own.normalize().asi8
        on_day = (
            own.day_of_week < 5
            if kind == "B"
            else _on_day(own, month_day(frequency))
            if month_day(frequency)
            else own.is_month_start
            if kind.endswith("S")
            else own.is_month_end
        )
        if kind == "B":
            numbers = business_days(own)
        else:
            numbers = own.year.to_numpy().astype(np.int64) * 12 + own.month.to_numpy()
        place, rest = np.divmod(numbers - numbers[firsts], n * MONTHS.get(kind, 1))
        return place, (rest != 0) | ~np.asarray(on_day) | (inside != inside[firsts])
    place = np.empty(len(own), dtype=np.int64)  # rarer ones, series by series
    for first, end in itertools.pairwise(offsets):
        grid = pd.date_range(own[first], own[end - 1], freq=offset_of(frequency))
        place[first:end] = grid.get_indexer(own[first:end])
    return place, place < 0


def _ticks(stamps: pd.Index, offsets: Ints) -> Ints:
    """Stamps as numbers whose differences are steps: of the calendar's days where the steps are days."""
    if not isinstance(stamps, pd.DatetimeIndex):
        return stamps.to_numpy().astype(np.int64)
    absolute = clock(stamps, absolute=True)
    if stamps.tz is None or len(stamps) < 2:
        return absolute.asi8
    steps = np.diff(absolute.asi8)
    steps = steps[steps > 0]
    nearly_a_day = ticks(pd.Timedelta(hours=22), stamps.unit)
    daily = len(steps) > 0 and np.median(steps) >= nearly_a_day
    return clock(stamps, absolute=not daily).asi8


def _ask_pandas(stamps: pd.DatetimeIndex, offsets: Ints, pending: list[int], found: list[str]) -> None:
    """Fills in calendar steps: what pandas says of one series holds for all others that it fits."""
    for _ in range(_MOST_ASKED):
        if not pending:
            return
        one, *rest = pending
        own = clock(stamps[offsets[one] : offsets[one + 1]], absolute=False)
        name = calendar_frequency(own)
        pending = rest
        if name is None:
            continue
        found[one] = name
        fits = fitting(stamps, offsets, rest, name)
        for other in fits:
            found[other] = name
        pending = [other for other in rest if other not in fits]


def fitting(stamps: pd.Index, offsets: Ints, which: list[int], frequency: str) -> set[int]:
    """Those of some series whose rows all lie on a step."""
    if not which:
        return set()
    rows = np.concatenate([np.arange(offsets[one], offsets[one + 1]) for one in which])
    own = np.concatenate([[0], np.cumsum([offsets[one + 1] - offsets[one] for one in which])])
    _, stray = positions(stamps[rows], own, frequency)
    strays = np.add.reduceat(stray.astype(np.int64), own[:-1])
    return {one for one, count in zip(which, strays.tolist(), strict=True) if not count}
