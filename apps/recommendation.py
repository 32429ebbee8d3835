"""Sequential recommendation.

mambakit recommendation train --data ml-latest-small --output runs/ml
mambakit recommendation evaluate --model runs/ml --data ml-latest-small --json
mambakit recommendation recommend --model runs/ml --input histories.csv --k 10 --output top.parquet
mambakit recommendation explain --model runs/ml --input histories.csv --user 42 --plot why.png
mambakit recommendation update --model runs/ml --store state.db --user 42 --item 318 --time 2026-11-22
mambakit recommendation neighbours --model runs/ml --data ml-latest-small
mambakit recommendation export --model runs/ml --output served
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mambakit.apps.recommendation_explain import explain
from mambakit.apps.recommendation_export import export
from mambakit.apps.recommendation_neighbours import neighbours
from mambakit.apps.recommendation_probe import probe
from mambakit.apps.recommendation_train import evaluate, load_model, read, tell_of_missing, train
from mambakit.apps.recommendation_update import update
from mambakit.apps.shared import check_suffix, in_plain_torch, words_of, write_table
from mambakit.core.cli import print_json, run_app
from mambakit.core.errors import DataError
from mambakit.domains.recommendation.config import Columns


def recommend(
    *,
    model: Path,
    input: str,
    k: int = 10,
    users: str | None = None,
    output: Path | None = None,
    filter_seen: bool = True,
    allow: Path | None = None,
    deny: Path | None = None,
    min_popularity: int = 0,
    search: Literal["exact", "approximate"] = "exact",
    min_recall: float = 0.95,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Recommends items to every user of a table, also to users that the model has never seen.

    Events with items outside the model's catalogue, and of which no features are given, are left out, and
    counted.

    Args:
        model: Folder of the saved model; nothing else is needed.
        input: CSV, Parquet or .inter file of histories (user, item, timestamp), or a card's name.
        k: Items for each user.
        users: Names between commas; all users by default.
        output: CSV or Parquet with user, rank, item and score; standard output by default.
        filter_seen: Leave out what the user has had.
        allow: Text file with an item a line: only these.
        deny: Text file with an item a line: none of these.
        min_popularity: Only items with at least so many training events.
        search: exact scores all items for each user; approximate, of mambakit[ann], those near the user. The
            index that it builds first pays from 700 to 2,400 users on: on one core it takes 0.2 s for 10,000
            items, then a user 0.13 ms instead of 0.25; for a million 21 s, then 0.5 ms instead of 29.
        min_recall: Share of the exact best items that approximate search is to find; its effort is chosen on
            some users, and the recall that is printed measured on others.
        columns: Which column is what.
        item_features: CSV, Parquet or .item file with a row an item: those that came after training are known
            by their features, recommended, and read in histories.
        user_features: CSV, Parquet or .user file with a row a user.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation recommend --model runs/ml --input histories.csv --k 10 --output top.parquet
        mambakit recommendation recommend --model runs/ml --input ml-latest-small --users 42,43 --json
        mambakit recommendation recommend --model runs/ml --input all.parquet --search approximate --json
        mambakit recommendation recommend --model runs/ml --input new.csv --item-features new_items.csv
    """
    import numpy as np

    from mambakit.domains.recommendation import recommending

    check_suffix("output", output, (".csv", ".parquet"))
    recommender = load_model(model, device, item_features, columns)
    given, unknown = recommending.on_catalogue(recommender, read(input, columns, user_features=user_features))
    tell_of_missing(recommender, given)
    if unknown:
        print(f"note: {unknown} events with items outside the catalogue are left out", file=sys.stderr)
    if nothing := int(recommender.unknown.sum()):
        print(f"note: {nothing} items without training events and features are never shown", file=sys.stderr)
    shown = recommending.Shown(
        filter_seen=filter_seen,
        allow=None if allow is None else _lines(allow),
        deny=() if deny is None else _lines(deny),
        min_popularity=min_popularity,
    )
    chosen = None if users is None else words_of(users)
    n_events = len(given) if chosen is None else int(np.isin(given.users, chosen)[given.user].sum())
    with in_plain_torch(recommender.bias.device.type, n_events):
        frame = recommending.recommend(
            recommender, given, k, users=chosen, shown=shown, search=search, min_recall=min_recall
        )
    if search == "approximate":
        print(
            "approximate search: {recall:.1%} of the exact top {k} found for {recall_users} of the users; "
            "{cells_read:.1%} of the cells read, {searched_exactly} users searched exactly".format(
                k=k, **frame.attrs
            ),
            file=sys.stderr,
        )
    if json:
        print_json({"k": k, **frame.attrs, "recommendations": frame.to_dict(orient="records")})
    if output is not None:
        write_table(frame, output)
        print(f"{frame['user'].nunique()} users, {len(frame)} rows: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text with an item a line: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mambakit recommendation ...``; returns the exit status."""
    verbs: dict[str, Callable[..., object]] = {
        "train": train,
        "evaluate": evaluate,
        "recommend": recommend,
        "explain": explain,
        "update": update,
        "export": export,
        "probe": probe,
        "neighbours": neighbours,
    }
    text = __doc__ or ""
    description, _, examples = text.partition("\n\n")
    return run_app("mambakit recommendation", verbs, argv, description, examples)


if __name__ == "__main__":
    sys.exit(main())
