"""How well explanations of recommendations foretell what happens when events are taken out of the history.

    mambakit recommendation train --data simulated-shop --output runs/shop --model.d_model 64 \
        --model.n_layers 2 --train.batch_size 32 --train.max_epochs 30
    python benchmarks/recommendation_explain.py --model runs/shop --data simulated-shop --users 150 --write

The published figures of ml-100k are of the same network with --train.batch_size 16, stopped in the ninth of
25 epochs (NDCG@10 0.12 on its test events).

For the best item for each of some users (one not had yet, as recommended), events are ranked by what a method
says they add, beside the latest first and random orders. Those ranked first are taken out of the history, as
if they had not happened; the more the item's lift falls, the better (deletion; Petsiuk et al. 2018,
arXiv:1806.07421, section 4.2). Then they alone are kept: the less it falls, the better (insertion). Fractions
of events round up.

In the simulated shop the true probabilities are known, and so is what each event truly adds to the item's
log-odds (the oracle's fall without it). Reported: the rank correlation with that over a user's events, and
how often the event that truly adds most comes first. There the best item mostly follows the last event; so
the best item of other clusters than the last event's is explained too, which taste alone speaks for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mambakit.domains.recommendation.cards import load_interactions
from mambakit.domains.recommendation.embedded import Shop, make_shop
from mambakit.domains.recommendation.explaining import METHODS, explain
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.kept_events import Events
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.recommending import on_catalogue
from rows import row, write_rows

ORDERS = (*METHODS, "recency", "random")
SHARES = {"1-event": 0.0, "10%": 0.1, "25%": 0.25, "50%": 0.5}
_RANDOM = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    model = Recommender.from_pretrained(arguments.model).eval()
    interactions, _ = on_catalogue(model, load_interactions(arguments.data))
    rng = np.random.default_rng(arguments.seed)
    lengths = np.diff(interactions.offsets)
    users = rng.permutation(np.flatnonzero((lengths >= 10) & (lengths <= 200)))[: arguments.users]
    shop = make_shop() if arguments.data == "simulated-shop" else None

    found: dict[str, dict[str, list[float]]] = {}

    def note(what: str, order: str, value: float) -> None:
        found.setdefault(what, {name: [] for name in ORDERS})[order].append(value)

    for user in users.tolist():
        name = str(interactions.users[user])
        past = Events.of(interactions, name)
        for kind, item in items_of(model, past, shop).items():
            ranked: dict[str, list[NDArray[np.float64]]] = {
                "recency": [np.arange(len(past), dtype=float)],
                "random": [rng.random(len(past)) for _ in range(_RANDOM)],
            }
            for method in METHODS:
                made = explain(
                    model, interactions, name, items=[str(interactions.items[item])], method=method
                )
                ranked[method] = [made.contribution[0]]
            truth = None if shop is None else true_contributions(shop, past, item)
            for order, all_scores in ranked.items():
                for what, value in deletion(model, past, item, all_scores).items():
                    note(f"{kind}/{what}", order, value)
                if truth is not None:
                    rho = np.mean([spearmanr(one, truth).statistic for one in all_scores])
                    first = np.mean([np.argmax(one) == np.argmax(truth) for one in all_scores])
                    note(f"{kind}/true-rank-correlation", order, float(rho))
                    note(f"{kind}/true-first-event", order, float(first))
    made_rows = []
    for what, values in found.items():
        means = {order: round(float(np.mean(own)), 4) for order, own in values.items()}
        own = values["hidden-attention"]
        print(f"{what} ({len(own)} users): {means}", flush=True)
        made_rows.append(
            row(
                f"recommendation-explain/{arguments.data}/{what}",
                means.pop("hidden-attention"),
                "share" if what.endswith("first-event") else "rho" if "true" in what else "nats",
                peers=dict(means),
                spread=round(float(np.std(own) / len(own) ** 0.5), 4),
                seeds=[arguments.seed],
            )
        )
    if arguments.write:
        print(write_rows("recommendation-explain", made_rows))
    return 0


def items_of(model: Recommender, past: Events, shop: Shop | None) -> dict[str, int]:
    """The best item that the user has not had; in the shop also the best outside the last one's cluster."""
    every = np.arange(model.config.n_items)
    lift = past.lifts(model, every, np.ones((1, len(past)), dtype=bool))[0]
    lift[past.item] = -np.inf
    found = {"best-item": int(lift.argmax())}
    if shop is not None:
        cluster = shop.cluster[[int(name[1:]) for name in past.source.items.tolist()]]
        lift[cluster == cluster[past.item[-1]]] = -np.inf
        found["other-cluster"] = int(lift.argmax())
    return found


def deletion(
    model: Recommender, past: Events, item: int, all_scores: list[NDArray[np.float64]]
) -> dict[str, float]:
    """By how much the item's lift falls without the events ranked first, and with them alone."""
    n = len(past)
    counts = [max(1, int(np.ceil(share * n))) for share in SHARES.values()]
    ranks = np.stack([np.argsort(np.argsort(-scores, kind="stable")) for scores in all_scores])
    first = np.stack([ranks < count for count in counts])  # [shares, orders, n]
    keep = np.concatenate([np.ones((1, n), dtype=bool), (~first).reshape(-1, n), first.reshape(-1, n)])
    lift = past.lifts(model, np.array([item]), keep)[:, 0]
    falls = (lift[0] - lift[1:]).reshape(2, len(counts), -1).mean(-1)
    return {
        f"{kind}/{share}": float(fall)
        for kind, own in zip(("deletion", "insertion"), falls, strict=True)
        for share, fall in zip(SHARES, own, strict=True)
    }


def true_contributions(shop: Shop, past: Events, item: int) -> NDArray[np.float64]:
    """``(n_events,)``: by how much the item's true log-odds against an average one fall without each."""
    n = len(past)
    keep = np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)])
    copies = past.kept(keep)
    counts = keep.sum(1)
    ends = np.cumsum(counts + 1) - 1  # an event to be foretold, whatever it is, behind each history
    gap = np.concatenate([[0], np.cumsum(counts)[:-1]]) + counts
    to_come = Interactions(
        users=copies.users,
        items=copies.items,
        user=np.insert(copies.user, gap, np.arange(len(keep))),
        item=np.insert(copies.item, gap, item),
        time=np.insert(copies.time, gap, past.time[-1]),
    )
    log = np.log(shop.probabilities(to_come, ends))
    lift = log[:, item] - log.mean(1)
    return np.asarray(lift[0] - lift[1:])


if __name__ == "__main__":
    sys.exit(main())
