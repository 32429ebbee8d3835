"""Further events of users, and what to recommend now: what `mambakit recommendation update` does."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.apps.recommendation_train import load_model, told
from mambakit.apps.shared import check_suffix, in_plain_torch, refuse_given, tell, write_table
from mambakit.core.cli import print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.config import Columns

if TYPE_CHECKING:
    import pandas as pd

    from mambakit.domains.recommendation.incoming import Incoming
    from mambakit.domains.recommendation.live import LiveRecommender
    from mambakit.domains.recommendation.updating import Updated


def update(
    *,
    model: Path,
    store: str,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    event: str | None = None,
    input: str | None = None,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    output: Path | None = None,
    left_out: Path | None = None,
    user_features: Path | None = None,
    k: int = 10,
    filter_seen: bool = True,
    new_store: bool = False,
    item_features: Path | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Moves stored states of users by one event, or a table of them, and gives the best items after it.

    The work is the same however long a history. An event that comes twice counts once, whichever process it
    comes to; a killed update leaves each user's old state or the new one, and can be run again.

    Of a table, rows without a user, item or time that can be read, of items outside the catalogue, and from
    before the user's last event are left out and counted; the rest is applied in the order of time.

    Args:
        model: Folder of the saved model.
        store: Where the states are: a path (SQLite), or redis://host:port/0.
        user: Whose event it is; a new one begins without a history.
        item: Its item; the event of one outside the catalogue is left out, and can come again when the item
            is known.
        time: When: an ISO date, or seconds since 1970; milliseconds and finer are told by their size.
        event: What tells the event from all others of the user; item and time by default, so that without a
            time it must be given.
        input: In place of one event, many: CSV, Parquet or .inter file (user, item, timestamp and perhaps
            event_id), or - for a CSV from standard input.
        columns: Which column of the input is what.
        output: CSV or Parquet with user, rank, item and score, of each user of the input; standard output by
            default.
        left_out: CSV or Parquet for the rows of the input that are left out, and why.
        user_features: CSV, Parquet or .user file with a row a user, for a model that was trained with such;
            read when a user comes for the first time. The input's own columns by default.
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
        mambakit recommendation update --model runs/ml --store state.db --input new.csv --output top.parquet
        zcat new.csv.gz | mambakit recommendation update --model runs/ml --store state.db --input -
    """
    values = locals()
    if input is not None:
        single = ("user", "item", "time", "event")
        refuse_given(update, values, single, "these are of a single event, not for --input")
    else:
        refuse_given(update, values, ("output", "left_out"), "these are for --input")
        if item_features is None and user_features is None:
            refuse_given(update, values, ("columns",), "these are for tables")
        if user is None or item is None:
            raise UsageError("user, item: name both, or a table of events with --input")
        if time is None and event is None:
            raise UsageError("event: without --time, --event must tell this event from its repeats")
    for flag, path in (("output", output), ("left_out", left_out)):
        check_suffix(flag, path, (".csv", ".parquet"))
    from mambakit.domains.recommendation.incoming import event_of
    from mambakit.domains.recommendation.live import LiveRecommender
    from mambakit.domains.recommendation.new_items import read_new_items
    from mambakit.domains.recommendation.store.opening import open_store
    from mambakit.domains.recommendation.times import moment
    from mambakit.domains.recommendation.updating import UNKNOWN, update_all

    recommender = load_model(model, device)
    new_items = None if item_features is None else read_new_items(item_features, columns)
    with in_plain_torch(recommender.bias.device.type):
        live = LiveRecommender(recommender, new_items)
    if live.added is not None and item_features is not None:
        told(live.added, item_features)
    n_items = int((~live.model.unknown).sum())
    if not 1 <= k <= n_items:
        raise UsageError(f"k: expected 1 to {n_items}, the items that may be shown, got {k}")
    if input is not None:
        events = _read(live, input, columns)
        features = _features(live, user_features, columns, events.users, events.features)
        with open_store(store, live.fingerprint, anew=new_store) as states:
            done = update_all(live, states, events, k, features=features, filter_seen=filter_seen)
        _tell(events, done, output, left_out, json)
        return
    assert user is not None
    assert item is not None
    seconds = math.nan if time is None else moment(time, "time")
    known = item in live.model.tokenizer.index
    with in_plain_torch(recommender.bias.device.type):
        features = _features(live, user_features, columns, [user])
        with open_store(store, live.fingerprint, anew=new_store) as states:
            if not known:
                record, applied = states.get(user), False
            else:
                record, applied = states.update(
                    user,
                    event or event_of(item, seconds),
                    lambda past: live.moved(past, item, seconds, features),
                    time=seconds,
                )
        if record is None:
            [now] = live.begun(features, 1)
        else:
            now = live.read(record.state, f"the state of user {user!r}")
        best = live.top(now, k, filter_seen=filter_seen)
    if not known:
        tell([f"item {item!r} is not in the catalogue: the event is left out, and can come again"])
    n_events = 0 if record is None else record.n_events
    if json:
        items = [{"rank": i, "item": name, "score": score} for i, (name, score) in enumerate(best, 1)]
        out = {"left_out": None if known else UNKNOWN}
        print_json({"user": user, "events": n_events, "applied": applied, **out, "items": items})
        return
    note = " (this event had been applied before)" if known and not applied else ""
    print(f"user {user}, {n_events} events{note}")
    for rank, (name, score) in enumerate(best, 1):
        print(f"{rank:3d}  {name}  {score:.4f}")


def _read(live: LiveRecommender, input: str, columns: Columns) -> Incoming:
    """The input's events; what a person should see of them goes to stderr."""
    from mambakit.domains.recommendation.incoming import read_incoming

    known = live.model.tokenizer.user_words
    if input == "-":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "input.csv"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            events = read_incoming(path, columns, known=known, name="standard input")
    else:
        events = read_incoming(input, columns, known=known)
    tell(events.notes)
    return events


def _features(
    live: LiveRecommender,
    path: Path | None,
    columns: Columns,
    users: list[str],
    found: pd.DataFrame | None = None,
) -> pd.DataFrame | None:
    """What is known of these users, a row each: what a file says, else what was found; None for nothing."""
    if live.model.user_table is None:
        if path is not None:
            tell(["the model has read no features of users in training, nor now"])
        return None
    if path is None:
        if found is None:
            tell(["the model reads features of users: new ones begin without any; give --user-features"])
        return found
    from mambakit.domains.recommendation.features import read_features
    from mambakit.domains.recommendation.naming import find_column

    notes: list[str] = []
    table = read_features(path, lambda names, at: find_column(names, columns, "user", at), "users")
    frame = table.of(users, notes)
    tell(notes)
    return frame


def _tell(events: Incoming, done: Updated, output: Path | None, left_out: Path | None, json: bool) -> None:
    """The results of a table of events, and what is left out of it."""
    import numpy as np

    from mambakit.domains.recommendation.updating import APPLIED, REPEATED

    counts = done.counts()
    bad = np.flatnonzero(~np.isin(done.status, (APPLIED, REPEATED)))
    rows = events.frame(bad).assign(reason=done.status[bad])
    if left_out is not None:
        write_table(rows, left_out)
    for reason, some in rows.groupby("reason"):
        row, user, item = some.iloc[0][["row", "user", "item"]]
        first = f"the first: row {row}, user {user}, item {item}"
        print(f"note: left out {len(some):,} rows: {reason} ({first})", file=sys.stderr)
    if len(bad) == len(events):
        raise DataError(f"no row can be used: {', '.join(f'{n} {one}' for one, n in counts.items())}")
    if output is not None:
        write_table(done.top, output)
    if json:
        good = {"applied": counts.pop(APPLIED, 0), "repeated": counts.pop(REPEATED, 0)}
        print_json({"rows": len(events), **good, "left_out": counts, "users": done.n_users, "output": output})
        return
    print(", ".join(f"{n} {one}" for one, n in counts.items()), file=sys.stderr)
    if output is None:
        print(done.top.to_csv(index=False), end="")
    else:
        print(f"{done.n_users} users, {len(done.top)} rows: {output}", file=sys.stderr)
