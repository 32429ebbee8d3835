"""From interactions to a trained recommender."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, resolve_device, seed_everything
from mambakit.domains.recommendation.config import LossConfig, ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.counting import item_counts, training_events
from mambakit.domains.recommendation.histories import Histories
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.model import Recommender, in_chunks, seen_before
from mambakit.domains.recommendation.tokenizer import EventTokenizer

# Validation events that training looks at after each epoch, and that the repeat shift is fitted on.
_MOST_VALIDATION = 20_000
_FARTHEST_SHIFT = 20.0
# Share of the items that are taken for new ones to fit the cold shift.
_TAKEN_FOR_NEW = 0.2


def train_recommender(
    interactions: Interactions,
    split: Split,
    run: RunFolder,
    *,
    model_config: ModelConfig,
    loss_config: LossConfig,
    train_config: TrainConfig,
) -> tuple[Recommender, FitResult]:
    """Trains on the split's training events; the weights of the best validation NDCG@10 are kept.

    Args:
        interactions: All events.
        split: Which are learned from and which watch over that.
        run: Where the run is kept; one that was killed goes on.
        model_config, loss_config, train_config: What to train and how.

    Returns:
        The recommender in evaluation mode on the CPU, and how the training went.

    Raises:
        DataError: If there is nothing to learn from, or nothing to watch it by.
        UserError: If training fails, or the run folder holds another run.
    """
    from mambakit.domains.recommendation.task import RecommenderTask

    if not (split.train_end > interactions.offsets[:-1]).any():
        raise DataError("there is no event to learn from: every user's events are for validation or test")
    if not len(split.validation):
        raise DataError("there is no validation event: users need three events, or the split another date")
    tokenizer = EventTokenizer.of(interactions, split.train_end)
    config = RecommenderConfig(
        n_items=interactions.n_items,
        n_item_words=len(tokenizer.item_words),
        n_user_words=len(tokenizer.user_words),
        gap_unit=tokenizer.gap_unit,
        model=model_config,
    )
    seed_everything(train_config.seed)
    model = Recommender(config)
    model.tokenizer = tokenizer
    words = tokenizer.item_words.encode(interactions.item_features, interactions.n_items)
    model.item_words = torch.from_numpy(words)
    model.popularity.copy_(torch.from_numpy(item_counts(interactions, split)))
    model.cold.copy_(model.popularity == 0)
    histories = Histories(
        interactions,
        split.train_end,
        tokenizer,
        max_length=loss_config.max_length,
        row_length=loss_config.row_length,
    )
    validation = _some(split.validation)
    learned = interactions.item[training_events(interactions, split)]
    result = fit(
        RecommenderTask(model, interactions, learned, validation, train_config, loss_config),
        histories.loader(train_config.batch_size),
        DataLoader([0]),  # type: ignore[arg-type]  # validation finds its events itself
        train_config,
        run,
        monitor="val/ndcg",
        mode="max",
    )
    model = model.to(resolve_device(train_config.device)).eval()
    fit_repeat_shift(model, interactions, validation)
    if model.item_table is not None:
        fit_cold_shift(model, interactions, validation, seed=train_config.seed)
    return model.cpu(), result


@torch.no_grad()
def fit_repeat_shift(model: Recommender, interactions: Interactions, events: NDArray[np.int64]) -> None:
    """Set what is added to the score of items that a user has had, by the likelihood of some events.

    With w it, the expected number of repeats is sum_i p_i(w), p_i the softmax's share of the seen items of
    event i; the likelihood is greatest where that is the number observed. Half a repeat is added to it, and
    half of one that is none, so that w stays finite where nothing ever repeats.
    """
    model.repeat_shift.zero_()
    odds, repeats = [], []
    for part in in_chunks(events, interactions.n_items):
        score = model.scores(interactions, part)
        seen = torch.zeros_like(score, dtype=torch.bool)
        row, item = seen_before(interactions, interactions.user[part], part)
        seen[torch.from_numpy(row), torch.from_numpy(item)] = True
        repeats.append(seen[torch.arange(len(part)), torch.from_numpy(interactions.item[part])])
        inside = score.masked_fill(~seen, -torch.inf).logsumexp(1)
        odds.append(inside - score.masked_fill(seen, -torch.inf).logsumexp(1))
    model.repeat_shift.fill_(_likeliest_shift(torch.cat(odds), torch.cat(repeats)))


@torch.no_grad()
def fit_cold_shift(
    model: Recommender, interactions: Interactions, events: NDArray[np.int64], *, seed: int
) -> None:
    """Set what is added to the score of items that are known by their features alone.

    A fifth of the trained items with features, drawn with the seed, are taken for new ones; the rest is as in
    ``fit_repeat_shift``: as many of these events are expected to be theirs as are.
    """
    taken = torch.from_numpy(np.random.default_rng(seed).random(model.config.n_items) < _TAKEN_FOR_NEW)
    taken = taken.to(model.cold.device) & ~model.cold & model.described
    catalogue, as_new = model.catalogue(), model.catalogue(taken)
    as_new = as_new._replace(bias=as_new.bias.masked_fill(model.cold, -torch.inf))
    odds, hits = [], []
    for part in in_chunks(events, interactions.n_items):
        hidden = model.hidden(interactions, interactions.user[part], part, catalogue)
        seen = seen_before(interactions, interactions.user[part], part)
        score = model.score(hidden, as_new, seen)
        odds.append(score[:, taken].logsumexp(1) - score[:, ~taken].logsumexp(1))
        hits.append(taken[torch.from_numpy(interactions.item[part]).to(taken.device)])
    model.cold_shift.fill_(_likeliest_shift(torch.cat(odds), torch.cat(hits)))


def _likeliest_shift(log_odds: Tensor, happened: Tensor) -> float:
    """The w at which as many of the events are expected, at log odds + w, as happened; but for half a one."""
    counted = log_odds.isfinite()  # neither nothing seen nor everything
    log_odds = log_odds[counted].double()
    if not len(log_odds):
        return 0.0
    wanted = (int(happened.to(counted.device)[counted].sum()) + 0.5) * len(log_odds) / (len(log_odds) + 1)
    low, high = -_FARTHEST_SHIFT, _FARTHEST_SHIFT
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (log_odds + middle).sigmoid().sum() < wanted else (low, middle)
    return (low + high) / 2


def _some(events: NDArray[np.int64]) -> NDArray[np.int64]:
    every = -(-len(events) // _MOST_VALIDATION)
    return events[::every]
