"""Why this item: what each past event of a user adds to the score of an item.

lift of an item = its score - mean score of the catalogue, both without the repeat shift
                = log-odds of the item against an average one: ln p(item) - mean ln p        (in nats)

A score alone says little: adding a number to all of them changes no probability. The lift is what no such
number changes, so an event that moves all items alike adds nothing to it; +0.7 makes an item twice as likely
against an average one. Each method gives contributions of the events and a rest:

    score = catalogue mean + sum of contributions + rest

- hidden-attention: the network as the linear map of its events that it is with every coefficient held
  (``core.attribution.coefficients_held``): the scan's hidden attention, through all layers, to this item's
  vector. The rest is what START, the user's features and biases add: nothing is left unexplained.
- gradients: integrated gradients from a history whose events are all of an average item, at the same gaps.
  The rest is the lift after such a history, and the quadrature's error.
- leave-one-out: by how much the lift falls if the event had not happened. Together events can do more or less
  than one by one: the rest holds that, too.

The repeat shift, the same for all items had, is no event's and always in the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.adapters import TokenBatch
from mambakit.core.attribution import coefficients_held, complete_integrated_gradients
from mambakit.core.attribution.embedded import Embedded, embedded
from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.kept_events import Events, lift_weights
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.tokenizer import History

Method = Literal["hidden-attention", "gradients", "leave-one-out"]
METHODS: tuple[Method, ...] = ("hidden-attention", "gradients", "leave-one-out")

_STEPS = 32
_TOKENS_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one user is recommended some items.

    Attributes:
        user: Its name.
        method: How the contributions came about.
        past: Names of the items of the user's events, ``(n_events,)``, in the order of time.
        time: When each was, ``(n_events,)``: ISO dates, or seconds since the first one where the times count
            from there; empty where not known.
        items: Names of the explained items, ``(n_items,)``.
        rank: Of each in the list for the user, from 1.
        score: Of each, as ``recommend`` gives it.
        average: Mean score of the catalogue, without the repeat shift.
        contribution: ``(n_items, n_events)``, in nats.
    """

    user: str
    method: Method
    past: list[str]
    time: list[str]
    items: list[str]
    rank: NDArray[np.int64]
    score: NDArray[np.float64]
    average: float
    contribution: NDArray[np.float64]

    @property
    def rest(self) -> NDArray[np.float64]:
        """What is no event's, ``(n_items,)``: score - average - sum of contributions."""
        return self.score - self.average - self.contribution.sum(1)

    def table(self, titles: dict[str, str] | None = None) -> pd.DataFrame:
        """A row an explained item and event: ``user, item, rank, score, lift, rest, event, past_item, title,
        time, contribution``; ``title`` only with titles, ``lift`` score - average.

        Args:
            titles: Of items, by name.
        """
        n, k = len(self.past), len(self.items)
        each: dict[str, Any] = {
            "user": self.user,
            "item": np.repeat(self.items, n),
            "rank": np.repeat(self.rank, n),
            "score": np.repeat(self.score, n),
            "lift": np.repeat(self.score - self.average, n),
            "rest": np.repeat(self.rest, n),
            "event": np.tile(np.arange(1, n + 1), k),
            "past_item": np.tile(self.past, k),
        }
        if titles is not None:
            each["title"] = np.tile([titles.get(name, "") for name in self.past], k)
        each["time"] = np.tile(self.time, k)
        each["contribution"] = self.contribution.ravel()
        return pd.DataFrame(each)


def explain(
    model: Recommender,
    interactions: Interactions,
    user: str,
    *,
    items: list[str] | None = None,
    k: int = 5,
    method: Method = "hidden-attention",
    filter_seen: bool = True,
) -> Explanation:
    """What each event of a user adds to the scores of the best items for it, or of these items.

    Time and memory grow as the history's length; the time of leave-one-out as its square.

    Args:
        model: A trained recommender.
        interactions: Events, of the model's catalogue (``on_catalogue``).
        user: Name of the user.
        items: Names of the items to explain; the best ``k`` by default.
        k: How many of the best.
        method: See the module.
        filter_seen: Rank without the items that the user has had.

    Raises:
        UsageError: On an unknown method, user, or item, a ``k`` below 1 or above the items that may be
            shown, or a network whose blocks have no hidden attention.
        DataError: If the user has no event here.
    """
    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    past = Events.of(interactions, user)
    model = model.eval()
    score, average = _scores(model, past)
    chosen, rank = _chosen(model, score, past.item, items, k, filter_seen)
    if method == "leave-one-out":
        nothing_out = np.ones((1, len(past)), dtype=bool)
        each_out = ~np.eye(len(past), dtype=bool)
        contribution = (past.lifts(model, chosen, nothing_out) - past.lifts(model, chosen, each_out)).T
    else:
        contribution = _through_network(model, past, chosen, method)
    return Explanation(
        user=user,
        method=method,
        past=[str(name) for name in interactions.items[past.item]],
        time=_times(past),
        items=[str(name) for name in interactions.items[chosen]],
        rank=rank,
        score=score[chosen],
        average=average,
        contribution=contribution,
    )


def _times(past: Events) -> list[str]:
    if past.source.clock == "own":
        return ["" if np.isnan(one) else f"{one:.0f}" for one in past.time]
    stamps = pd.to_datetime(pd.Series(past.time), unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [str(one) for one in stamps.fillna("")]


class _Lifts(nn.Module):
    """Lifts of the chosen items behind the last token, ``(rows, n_chosen)``: what is explained."""

    def __init__(self, model: Recommender, chosen: NDArray[np.int64], user_words: Tensor | None) -> None:
        super().__init__()
        self.model, self.user_words = model, user_words
        with torch.no_grad():
            self.catalogue = model.catalogue()
            self.direction, self.offset = lift_weights(self.catalogue, chosen)

    def forward(self, batch: TokenBatch) -> Tensor:
        words = None if self.user_words is None else self.user_words.expand(batch.values.shape[0], -1)
        hidden, _ = self.model(batch, self.catalogue, words)
        return hidden[:, -1] @ self.direction.T + self.offset


def _through_network(
    model: Recommender, past: Events, chosen: NDArray[np.int64], method: Method
) -> NDArray[np.float64]:
    """``(len(chosen), n_events)`` by gradients with respect to the events' embeddings."""
    words = None
    if model.user_table is not None:
        words = model.words_of(past.source, np.array([past.user]))
    lifts = _Lifts(model, chosen, words)
    history = History([str(name) for name in past.source.items[past.item]], past.time)
    given = embedded(lifts, model.tokenizer.encode(history), embedding=model.dropout)
    if method == "hidden-attention":
        try:
            with coefficients_held(model.backbone):
                tokens = given.tokens.clone().requires_grad_()
                (values,) = given.run(tokens)
        except ValueError as error:
            raise UsageError(
                f"method: hidden-attention cannot take this network apart ({error}); gradients and "
                "leave-one-out explain any"
            ) from None
        rows = [
            torch.autograd.grad(value, tokens, retain_graph=True)[0][0] * given.tokens[0] for value in values
        ]
    else:
        average = model.popularity.double() / model.popularity.sum().clamp(min=1)
        table = lifts.catalogue.vectors
        shift = average.to(table.dtype) @ table - table[torch.from_numpy(past.item).to(table.device)]
        nothing = given.tokens.clone()
        nothing[:, 1:] += shift * model.config.model.d_model**0.5
        rows = [_integrated(given, nothing, i) for i in range(len(chosen))]
    return torch.stack(rows)[:, 1:].sum(-1).double().cpu().numpy()


def _integrated(given: Embedded, nothing: Tensor, output: int) -> Tensor:
    """Integrated gradients of one output, ``(length, d_model)``, in as many steps as completeness takes."""
    at_once = max(1, min(_STEPS, _TOKENS_AT_ONCE // given.tokens.shape[1]))
    return complete_integrated_gradients(
        lambda rows: given.run(rows)[:, output],
        given.tokens,
        nothing,
        steps=_STEPS,
        rows_per_call=at_once,
    ).scores[0]


@torch.no_grad()
def _scores(model: Recommender, past: Events) -> tuple[NDArray[np.float64], float]:
    """Scores of the catalogue, ``(n_items,)``, and their mean without the repeat shift."""
    catalogue, nothing = model.catalogue(), np.zeros(0, dtype=np.int64)
    whole = past.kept(np.ones((1, len(past)), dtype=bool))
    hidden = model.hidden(whole, np.zeros(1, dtype=np.int64), whole.offsets[1:], catalogue)
    score = model.score(hidden, catalogue, (np.zeros_like(past.item), past.item))
    plain = model.score(hidden, catalogue, (nothing, nothing))
    known = plain[plain.isfinite()]
    return score[0].double().cpu().numpy(), float(known.double().mean())


def _chosen(
    model: Recommender,
    score: NDArray[np.float64],
    seen: NDArray[np.int64],
    items: list[str] | None,
    k: int,
    filter_seen: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The items to explain, ``(n,)``, and the rank of each."""
    known = np.isfinite(score)  # of the others there is nothing to score them by
    shown = known.copy()
    if filter_seen:
        shown[seen] = False
    if items is None:
        if not shown.any():
            raise UsageError(
                f"filter_seen: the user has had all {known.sum():,} items, so none is left to recommend; ask "
                "for an item, or turn filter_seen off"
            )
        if not 1 <= k <= shown.sum():
            raise UsageError(f"k: expected 1 to {shown.sum()}, the items that may be shown, got {k}")
        order = np.argsort(np.where(shown, -score, np.inf), kind="stable")[:k]
        return order, np.arange(1, k + 1)
    index = model.tokenizer.index
    for name in items:
        if name not in index:
            raise UsageError(f"item: {name!r} is not in the model's catalogue of {len(score):,} items")
        if not known[index[name]]:
            raise UsageError(
                f"item: {name!r} has no training event and no feature that was there in training, so it is "
                "never recommended and there is nothing to explain"
            )
    chosen = np.array([index[name] for name in items], dtype=np.int64)
    better = (score[None, :] > score[chosen, None]) & shown
    return chosen, better.sum(1) + 1
