"""Splits of interactions in time: the last events of each user, or all events after a moment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.times import moment


def leave_one_out(interactions: Interactions) -> Split:
    """Of each user the last event is test, the one before it validation, the rest is learned from.

    Users with fewer than three events are only learned from. The protocol of SASRec (Kang & McAuley 2018) and
    of most sequential recommenders since.

    Raises:
        DataError: If no user has three events.
    """
    ends = interactions.offsets[1:]
    long = np.diff(interactions.offsets) >= 3
    if not long.any():
        most = int(np.diff(interactions.offsets).max(initial=0))
        raise DataError(
            f"leave-one-out: needs a user with three events or more (train, validation, test); the longest "
            f"history has {most}"
        )
    return Split(
        train_end=np.where(long, ends - 2, ends).astype(np.int64),
        validation=(ends[long] - 2).astype(np.int64),
        test=(ends[long] - 1).astype(np.int64),
    )


def time_split(
    interactions: Interactions,
    validation_at: float | str | None = None,
    test_at: float | str | None = None,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Split:
    """Everything before one moment is learned from, for all users alike; every later event is a case.

    A case knows all that its user did before it, later than the moment too. Users who appear only after the
    moment are cases from their first event on, with nothing known.

    Args:
        interactions: Events whose times can be compared between users.
        validation_at: The first moment of validation: seconds as in ``interactions.time``, or an ISO date.
        test_at: The first moment of test.
        validation_fraction: Without moments, the share of all events that is validation...
        test_fraction: ...and test. Events at one time stay together, in the later part.

    Raises:
        DataError: If a user's times are not known, count from the user's own beginning, or a part is empty.
        UsageError: If only one moment is given, they are in the wrong order, or a fraction is none.
    """
    unknown = np.isnan(interactions.time)
    if unknown.any():
        users = np.unique(interactions.user[unknown])
        raise DataError(
            f"time split: {len(users):,} of {interactions.n_users:,} users have no times (the first: "
            f"{str(interactions.users[users[0]])!r}); leave one out instead, or leave these users out"
        )
    if interactions.clock == "own":
        raise DataError(
            "time split: each user's times count from the user's own first event, so there is no moment "
            "that splits all; leave one out instead"
        )
    if (validation_at is None) != (test_at is None):
        raise UsageError("time split: give both validation_at and test_at, or neither")
    if validation_at is None or test_at is None:
        first, second = _moments(interactions.time, validation_fraction, test_fraction)
    else:
        first, second = moment(validation_at, "validation_at"), moment(test_at, "test_at")
        if not first < second:
            raise UsageError(f"test_at: expected a moment after validation_at {validation_at}, got {test_at}")
    late = interactions.time >= first
    last = interactions.time >= second
    begins = np.bincount(interactions.user[~late], minlength=interactions.n_users)
    split = Split(
        train_end=interactions.offsets[:-1] + begins,
        validation=np.flatnonzero(late & ~last),
        test=np.flatnonzero(last),
        moments=(first, second),
    )
    for name, count in (
        ("train", int((~late).sum())),
        ("validation", len(split.validation)),
        ("test", len(split.test)),
    ):
        if not count:
            low, high = interactions.time.min(initial=np.inf), interactions.time.max(initial=-np.inf)
            raise DataError(
                f"time split: no event is left for {name}: validation begins at {first:.15g}, test at "
                f"{second:.15g}, and the events lie between {low:.15g} and {high:.15g}"
            )
    return split


def tied(interactions: Interactions, events: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which events happened at the same time as the one before them of the same user, ``(len(events),)``.

    Of such an event only the table's order says that it came later, and often the order is no accident (a
    list ticked from its top): results on tied and untied events differ by factors, and are reported apart.
    First events, and events whose times are not known, are not tied.

    Raises:
        IndexError: If an event does not exist.
    """
    events = np.asarray(events, dtype=np.int64)
    if len(events) and (events.min() < 0 or events.max() >= len(interactions)):
        raise IndexError(
            f"events: expected 0 to {len(interactions) - 1}, got {events.min()} to {events.max()}"
        )
    before = np.maximum(events - 1, 0)
    follows = (events > 0) & (interactions.user[events] == interactions.user[before])
    return follows & (interactions.time[events] == interactions.time[before])


def _moments(time: NDArray[np.float64], validation: float, test: float) -> tuple[float, float]:
    for name, share in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 < share < 1:
            raise UsageError(f"{name}: expected a share between 0 and 1, got {share}")
    if validation + test >= 1:
        raise UsageError(
            f"validation_fraction + test_fraction: expected less than 1, got {validation + test}"
        )
    ordered = np.sort(time)
    places = (int(len(time) * (1 - validation - test) + 1e-9), int(len(time) * (1 - test) + 1e-9))
    first, second = (float(ordered[min(place, len(time) - 1)]) for place in places)
    return first, second
