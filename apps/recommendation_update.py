"""One more event of a user, and what to recommend now: what `mambakit recommendation update` does."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from mambakit.apps.recommendation_train import load_model
from mambakit.core.cli import print_json
from mambakit.core.errors import UsageError


def update(
    *,
    model: Path,
    store: str,
    user: str,
    item: str,
    time: str | None = None,
    event: str | None = None,
    k: int = 10,
    filter_seen: bool = True,
    new_store: bool = False,
    item_features: Path | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Moves a user's stored state by one event and prints the best items after it.

    The work is the same however long the history. An event that comes twice counts once, whichever process
    it comes to; a killed update leaves the old state or the new one.

    Args:
        model: Folder of the saved model.
        store: Where the states are: a path (SQLite), or redis://host:port/0.
        user: Whose event it is; a new one begins without a history.
        item: Its item; one outside the catalogue is counted, and changes nothing else.
        time: When: an ISO date, or seconds since 1970.
        event: What tells the event from all others of the user; item and time by default, so that without a
            time it must be given.
        k: Items to recommend.
        filter_seen: Leave out what the user has had.
        new_store: Begin the store anew for this model; the states of another are dropped.
        item_features: CSV, Parquet or .item file with a row an item: those that came after training are known
            by their features. States stay valid when the file changes.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation update --model runs/ml --store state.db --user 42 --item 318 \
            --time 2026-11-22T10:00:00Z
    """
    from mambakit.domains.recommendation.live import LiveRecommender
    from mambakit.domains.recommendation.new_items import read_new_items
    from mambakit.domains.recommendation.store.opening import open_store
    from mambakit.domains.recommendation.times import moment

    recommender = load_model(model, device)
    if not 1 <= k <= recommender.config.n_items:
        raise UsageError(f"k: expected 1 to {recommender.config.n_items}, the items there are, got {k}")
    if time is None and event is None:
        raise UsageError("event: without --time, --event must tell this event from its repeats")
    seconds = math.nan if time is None else moment(time, "time")
    if recommender.user_table is not None:
        print("note: the model reads features of users, which update does not have", file=sys.stderr)
    live = LiveRecommender(recommender, None if item_features is None else read_new_items(item_features))
    with open_store(store, live.fingerprint, anew=new_store) as states:
        outcome = states.update(
            user, event or f"{item}@{seconds}", lambda past: live.moved(past, item, seconds), time=seconds
        )
        now = live.read(outcome.record.state, f"the state of user {user!r}")
    best = live.top(now, k, filter_seen=filter_seen)
    if json:
        items = [{"rank": i, "item": name, "score": score} for i, (name, score) in enumerate(best, 1)]
        print_json(
            {"user": user, "events": outcome.record.n_events, "applied": outcome.applied, "items": items}
        )
        return
    note = "" if outcome.applied else " (this event had been applied before)"
    print(f"user {user}, {outcome.record.n_events} events{note}")
    for rank, (name, score) in enumerate(best, 1):
        print(f"{rank:3d}  {name}  {score:.4f}")
