"""Why an item is recommended: what `mambakit recommendation explain` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.recommendation_train import load_model, read, tell_of_missing, told
from mambakit.apps.shared import check_suffix, in_plain_torch, write_table
from mambakit.core.cli import print_json
from mambakit.domains.recommendation.config import Columns

if TYPE_CHECKING:
    from mambakit.domains.recommendation.explaining import Explanation
    from mambakit.domains.recommendation.interactions import Interactions

_MOST_LINES = 5


def explain(
    *,
    model: Path,
    input: str,
    user: str,
    item: str | None = None,
    k: int = 5,
    method: Literal["hidden-attention", "gradients", "leave-one-out"] = "hidden-attention",
    output: Path | None = None,
    plot: Path | None = None,
    filter_seen: bool = True,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Says what each past event of a user adds to the scores of the best items for it.

    Contributions are in nats of the item's log-odds against an average item of the catalogue: 0.7 makes it
    twice as likely. For each item: score = catalogue's mean + sum of contributions + rest; the lift is score
    - mean, and the rest is what no event adds.

    hidden-attention follows the scan's hidden attention through all layers to the item, all gates and norms
    held as they are: its rest is only the start and biases. gradients are integrated from a history of
    average items. leave-one-out is how far the lift falls if the event had not happened: the plainest
    meaning, a pass an event, and blind where events stand in for each other.

    Args:
        model: Folder of the saved model.
        input: CSV, Parquet or .inter file of histories (user, item, timestamp), or a card's name.
        user: Whose recommendations.
        item: Explain this item instead of the best ones.
        k: How many of the best items.
        method: How contributions are found.
        output: CSV or Parquet with a row an item and past event.
        plot: PNG, PDF or SVG with a bar an event, a panel an item.
        filter_seen: Rank without the items that the user has had.
        columns: Which column is what.
        item_features: CSV, Parquet or .item file with a row an item; a title in it names items in words, and
            items that came after training are known by their features.
        user_features: CSV, Parquet or .user file with a row a user.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation explain --model runs/ml --input histories.csv --user 42 --output why.csv
        mambakit recommendation explain --model runs/ml --input ml-latest-small --user 42 --item 318 \
            --plot why.png
    """
    from mambakit.domains.recommendation import explaining, recommending
    from mambakit.domains.recommendation.new_items import add_items, read_new_items

    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    recommender = load_model(model, device)
    if item_features is not None and recommender.item_table is not None:
        added = add_items(recommender, read_new_items(item_features, columns))
        recommender = told(added, item_features).model
    features = {"item_features": item_features, "user_features": user_features}
    given = read(input, columns, **features, cold_items=True)  # titles, also of items without an event
    titles = _titles(given)
    tell_of_missing(recommender, given)
    known, unknown = recommending.on_catalogue(recommender, given)
    chosen = None if item is None else [item]
    n_events = int((known.users == user)[known.user].sum())
    with in_plain_torch(recommender.bias.device.type, n_events):
        found = explaining.explain(
            recommender, known, user, items=chosen, k=k, method=method, filter_seen=filter_seen
        )
    if unknown:
        print(f"note: {unknown} events with items outside the catalogue are left out", file=sys.stderr)
    for name in found.items:
        if not int(recommender.popularity[recommender.tokenizer.index[name]]):
            print(
                f"note: item {name!r} was in no training event: its vector says what its features say, if "
                "anything",
                file=sys.stderr,
            )
    table = found.table(titles)
    if output is not None:
        write_table(table, output)
        print(f"{len(found.items)} items, {len(table)} rows: {output}", file=sys.stderr)
    if plot is not None:
        from mambakit.domains.recommendation.explanation_figure import explanation_figure

        plot.parent.mkdir(parents=True, exist_ok=True)
        explanation_figure(found, titles).savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        print_json(_for_machines(found, titles))
    else:
        print(_text(found, titles or {}))


def _titles(given: Interactions) -> dict[str, str] | None:
    if given.item_features is None or "title" not in given.item_features:
        return None
    named = zip(given.items.tolist(), given.item_features["title"], strict=True)
    return {name: title for name, title in named if title}


def _text(found: Explanation, titles: dict[str, str]) -> str:
    """The events that add or take most, item by item."""

    def called(name: str) -> str:
        return f"{name}  {titles[name]}" if name in titles else name

    n = len(found.past)
    lines = [
        f"user {found.user}, {n} event{'s' * (n > 1)}; nats added to the item's log-odds, {found.method}"
    ]
    for i, name in enumerate(found.items):
        own = found.contribution[i]
        lines.append(
            f"{found.rank[i]:3d}. {called(name)}: score {found.score[i]:.3f} = mean {found.average:.3f} "
            f"+ events {own.sum():.3f} + rest {found.rest[i]:.3f}"
        )
        for event in sorted(range(n), key=lambda event: -abs(own[event]))[:_MOST_LINES]:
            when = f"  {found.time[event]}" if found.time[event] else ""
            lines.append(f"       {own[event]:+.3f}  event {event + 1}: {called(found.past[event])}{when}")
    return "\n".join(lines)


def _for_machines(found: Explanation, titles: dict[str, str] | None) -> dict[str, object]:
    def called(name: str) -> dict[str, str]:
        return {"item": name} if titles is None else {"item": name, "title": titles.get(name, "")}

    past = [
        {"event": i + 1, **called(name), "time": when or None}
        for i, (name, when) in enumerate(zip(found.past, found.time, strict=True))
    ]
    items = [
        {
            **called(name),
            "rank": int(found.rank[i]),
            "score": float(found.score[i]),
            "rest": float(found.rest[i]),
            "contributions": found.contribution[i].tolist(),
        }
        for i, name in enumerate(found.items)
    ]
    return {
        "user": found.user,
        "method": found.method,
        "unit": "nats of the item's log-odds against an average item",
        "catalogue_mean": found.average,
        "events": past,
        "items": items,
    }
