"""The recommender: a causal state-space model over events; the next item by its vector.

item vector = own vector + sum of its features' vectors / root of their number;
              the features' alone, if the item has no training event
START (+ the user's features), event, event, ... -> causal blocks -> hidden state behind every event
score of an item = hidden . item vector + its bias              (weights tied: Press & Wolf 2017)
                   + repeat shift, if the user has had it       (one number, fitted on validation events)
                   + cold shift, if the item has no training event               (another, fitted alike)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.adapters import TokenBatch
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.errors import DataError, UsageError
from mambakit.core.hub import HubModel
from mambakit.core.retrieval.neighbours import FOLDER, Neighbours, mixed_log_probabilities
from mambakit.core.state import State
from mambakit.domains.recommendation.about import RECOMMENDER
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.counting import events_before
from mambakit.domains.recommendation.histories import context_batch
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.tokenizer import N_GAP_BINS, EventTokenizer, bin_elapsed

_CASES_AT_ONCE = 512
_SCORES_AT_ONCE = 1 << 26
_HEAD = 32


class Catalogue(NamedTuple):
    """Items as the network sees them: vectors ``(n_items, d_model)`` and biases ``(n_items,)``."""

    vectors: Tensor
    bias: Tensor


class Recommender(nn.Module, HubModel):
    """Scores of all items as the next one, after every event of a history.

    Args:
        config: The network and the catalogue it is for.

    Attributes:
        tokenizer: From histories to ids; saved beside the weights.
        item_words: ``(n_items, most)`` int64, what describes each item.
        popularity: ``(n_items,)`` int64, training events of each.
        cold: ``(n_items,)`` bool, items without a training event, whose own vectors were never learned.
        neighbours: Hidden states and the items that followed, mixed into scores; see ``retrieval``.
    """

    about = RECOMMENDER

    item_words: Tensor
    repeat_shift: Tensor
    cold_shift: Tensor
    popularity: Tensor
    cold: Tensor
    elapsed_of: Tensor

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = EventTokenizer()
        self.neighbours: Neighbours | None = None
        model, d = config.model, config.model.d_model
        self.ids = nn.Embedding(config.n_items + 2, d)
        self.bias = nn.Parameter(torch.zeros(config.n_items))
        self.gaps = nn.Embedding(N_GAP_BINS, d) if model.time in ("gaps", "both") else None
        words = (config.n_item_words, config.n_user_words)
        self.item_table, self.user_table = (
            nn.Embedding(n + 1, d, padding_idx=0) if n else None for n in words
        )
        self.word_bias = nn.Parameter(torch.zeros(d)) if config.n_item_words else None
        for table in (self.ids, self.gaps, self.item_table, self.user_table):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
                if table.padding_idx is not None:
                    nn.init.zeros_(table.weight[0])
        try:
            self.backbone = Backbone(backbone_config(model))
        except ValueError as error:
            raise UsageError(f"model: {error}") from None
        if not self.backbone.causal:
            raise UsageError(f"blocks: {model.blocks} read ahead; a recommender's blocks must be causal")
        if model.time in ("dt", "both") and not self.backbone.uses_elapsed:
            raise UsageError(f"time: {model.time} drives dt, which none of the blocks {model.blocks} has")
        self.dropout = nn.Dropout(model.embedding_dropout)
        words_of = torch.zeros(config.n_items, config.most_item_words, dtype=torch.int64)
        self.register_buffer("item_words", words_of)
        self.register_buffer("repeat_shift", torch.zeros(()))
        self.register_buffer("cold_shift", torch.zeros(()))
        self.register_buffer("popularity", torch.zeros(config.n_items, dtype=torch.int64))
        self.register_buffer("cold", torch.zeros(config.n_items, dtype=torch.bool))
        self.register_buffer("elapsed_of", torch.from_numpy(bin_elapsed(config.gap_unit)), persistent=False)

    def catalogue(self, hidden_ids: Tensor | None = None) -> Catalogue:
        """All items; of cold ones and those in ``hidden_ids``, ``(n_items,)`` bool, what their features say.

        A cold item of which nothing is known has the bias minus infinity: it is never the next one.
        """
        shown = ~(self.cold if hidden_ids is None else self.cold | hidden_ids)
        vectors, bias = self.ids.weight[: self.config.n_items] * shown[:, None], self.bias * shown
        if self.item_table is not None and self.word_bias is not None:
            said = _mean_of(self.item_table, self.item_words)
            vectors, bias = vectors + said, bias + said @ self.word_bias
        bias = bias + self.cold_shift * self.cold
        return Catalogue(vectors, bias.masked_fill(self.unknown, -torch.inf))

    @property
    def described(self) -> Tensor:
        """Items of which some feature is known, ``(n_items,)`` bool."""
        return (self.item_words > 0).any(1)

    @property
    def unknown(self) -> Tensor:
        """Items of which neither a training event nor a feature is known, ``(n_items,)`` bool."""
        return self.cold & ~self.described

    def forward(
        self,
        batch: TokenBatch,
        catalogue: Catalogue,
        user_words: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Hidden states behind every event, ``(batch, length, d_model)``, and the state after the last.

        Args:
            batch: Ids of items and gaps, ``(batch, length, 2)``.
            catalogue: From ``catalogue``.
            user_words: ``(starts, most)``, what describes the user of each START, row by row.
            state: What came before.
        """
        x = self._embed(batch.values, catalogue, user_words)
        elapsed = None
        if self.config.model.time in ("dt", "both"):
            elapsed = self.elapsed_of[batch.values[..., 1]]
        return self.backbone(self.dropout(x), state, **batch.layout(), elapsed=elapsed)

    def step(
        self, event: Tensor, catalogue: Catalogue, state: State, user_words: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One more event of each history, ``(batch, 2)``: hidden states ``(batch, d_model)`` and states.

        ``user_words`` as in ``forward``, a row for each event that is START.
        """
        x = self._embed(event[:, None], catalogue, user_words)[:, 0]
        elapsed = self.elapsed_of[event[:, 1]] if self.config.model.time in ("dt", "both") else None
        return self.backbone.step(x, state, elapsed=elapsed)

    def init_state(self, batch: int) -> State:
        """The state before START."""
        return self.backbone.init_state(batch, self.ids.weight.device, self.ids.weight.dtype)

    @torch.no_grad()
    def scores(
        self, interactions: Interactions, events: NDArray[np.int64], *, history: int | None = None
    ) -> Tensor:
        """``(len(events), n_items)`` float32 on the CPU; see ``Scorer``.

        Args:
            interactions: All events, with the catalogue that it was trained on.
            events: Events to be foretold.
            history: Events that are read before each at most; None for all.
        """
        self.eval()
        catalogue, found = self.catalogue(), []
        for part in in_chunks(events, self.config.n_items):
            users = interactions.user[part]
            hidden = self.hidden(interactions, users, part, catalogue, history=history)
            found.append(self.score(hidden, catalogue, seen_before(interactions, users, part)).cpu())
        return torch.cat(found) if found else torch.zeros(0, self.config.n_items)

    def score(
        self, hidden: Tensor, catalogue: Catalogue, seen: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> Tensor:
        """``(n, n_items)`` float32: scores behind hidden states ``(n, d_model)``; with neighbours
        log-probabilities.

        Args:
            hidden: From ``hidden`` or ``step``.
            catalogue: From ``catalogue``.
            seen: Places ``(row, item)`` of what each user has had.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # ranks want all digits
            score = hidden.float() @ catalogue.vectors.float().T + catalogue.bias.float()
        if float(self.repeat_shift):
            at = tuple(torch.from_numpy(one).to(score.device) for one in seen)
            score[at] = score[at] + self.repeat_shift
        if self.neighbours is None or not self.neighbours.mix.share:
            return score
        weights, place = self.neighbours.weights(hidden)
        labels = self.neighbours.values[place]
        return mixed_log_probabilities(score, weights, labels, self.neighbours.mix.share)

    def hidden(
        self,
        interactions: Interactions,
        users: NDArray[np.int64],
        ends: NDArray[np.int64],
        catalogue: Catalogue,
        *,
        history: int | None = None,
    ) -> Tensor:
        """Hidden states behind the history of each user up to an event, ``(len(users), d_model)``.

        Whole histories are read once a user, however many events of the user are asked for.

        Args:
            interactions: All events.
            users: ``(n,)``.
            ends: One past the last event that is read of each, ``(n,)``.
            catalogue: From ``catalogue``.
            history: Events that are read of each at most; None for all.
        """
        device = self.ids.weight.device
        own, farthest = np.arange(len(users)), ends
        if history is None:
            chosen, own = np.unique(users, return_inverse=True)
            farthest = np.zeros(len(chosen), dtype=np.int64)
            np.maximum.at(farthest, own, ends)
            users = chosen
        batch, whole = context_batch(interactions, users, farthest, self.tokenizer, history)
        words = None if self.user_table is None else self.words_of(interactions, whole)
        hidden, _ = self(batch.to(device), catalogue, words)
        spans = batch.spans[torch.from_numpy(own)]
        last = spans[:, 1] + spans[:, 2] - 1 - torch.from_numpy(farthest[own] - ends)
        return hidden[spans[:, 0].to(device), last.to(device)]

    def hub_config(self) -> dict[str, Any]:
        """The config, with the width that ``item_words`` has by now."""
        return {**super().hub_config(), "most_item_words": self.item_words.shape[1]}

    def words_of(self, interactions: Interactions, users: NDArray[np.int64]) -> Tensor:
        """``(len(users), most)`` int64, what describes these users, as ``forward`` takes it."""
        features = interactions.user_features
        chosen = None if features is None else features.iloc[users]
        words = self.tokenizer.user_words.encode(chosen, len(users))
        return torch.from_numpy(words).to(self.ids.weight.device)

    def save_extra(self, folder: Path) -> None:
        """The tokenizer beside the weights."""
        self.tokenizer.save(folder)
        if self.neighbours is not None:
            self.neighbours.save(folder / FOLDER, self)

    def load_extra(self, folder: Path) -> None:
        """Reads the tokenizer.

        Raises:
            DataError: If it is missing, damaged, or another model's.
        """
        self.tokenizer = EventTokenizer.load(folder)
        self.neighbours = Neighbours.load(folder / FOLDER, self)
        words = len(self.tokenizer.item_words), len(self.tokenizer.user_words)
        found = (len(self.tokenizer.items), *words)
        config = self.config
        if found != (config.n_items, config.n_item_words, config.n_user_words):
            raise DataError(
                f"{folder}: tokenizer.json is another model's: it has {found[0]} items, {found[1]} words of "
                f"items and {found[2]} of users, the weights are for {config.n_items}, {config.n_item_words} "
                f"and {config.n_user_words}; save the model again"
            )

    def _embed(self, values: Tensor, catalogue: Catalogue, user_words: Tensor | None) -> Tensor:
        ids, n = values[..., 0], self.config.n_items
        # START and UNKNOWN apart: one table of all would copy the catalogue at each event of a stream
        others = nn.functional.embedding((ids - n).clamp(min=0), self.ids.weight[n:])
        items = nn.functional.embedding(ids.clamp(max=n - 1), catalogue.vectors)
        x = torch.where((ids < n)[..., None], items, others)
        if self.gaps is not None:
            x = x + self.gaps(values[..., 1])
        if user_words is not None and self.user_table is not None:
            starts = values[..., 0] == self.config.n_items
            said = torch.zeros_like(x)
            said[starts] = _mean_of(self.user_table, user_words).to(x.dtype)
            x = x + said
        return x * self.config.model.d_model**0.5


def check_network(model: ModelConfig) -> None:
    """Builds a network without memory for it.

    Raises:
        UsageError: If it can't be, as ``Recommender`` raises it.
    """
    with torch.device("meta"):
        Recommender(RecommenderConfig(1, model=model))


def seen_before(
    interactions: Interactions, users: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places ``(row, item)`` of what each user has had before an event, ``ends`` being places of events."""
    row, at = events_before(interactions, ends, users=users)
    return row, interactions.item[at]


def in_chunks(cases: NDArray[np.int64], n_items: int) -> list[NDArray[np.int64]]:
    """Cases, so many at once that the scores of all items fit: 64 million, of 512 cases at most."""
    at_once = max(1, min(_CASES_AT_ONCE, _SCORES_AT_ONCE // max(1, n_items)))
    return np.array_split(cases, max(1, -(-len(cases) // at_once)))


def _mean_of(table: nn.Embedding, words: Tensor) -> Tensor:
    """Sum of the words' vectors over the root of their number, ``(n, d)``: as large as one of them."""
    if not words.shape[1]:  # of nobody is anything known
        return table.weight.new_zeros(len(words), table.embedding_dim)
    there = (words > 0).sum(1, keepdim=True).clamp(min=1)
    total = nn.functional.embedding_bag(words, table.weight, mode="sum", padding_idx=0)
    return total / there.sqrt()


def backbone_config(model: ModelConfig) -> BackboneConfig:
    """The stack of blocks of a network."""
    options: dict[str, dict[str, object]] = {}
    for kind in model.blocks:
        if kind.startswith(("mamba2", "mamba3")):
            options[kind] = {"d_state": model.d_state, "head_dim": model.head_dim}
        elif kind.startswith("mamba1"):
            options[kind] = {"d_state": model.d_state}
        elif kind.startswith("attention"):
            options[kind] = {"n_heads": max(1, model.d_model // _HEAD)}
        elif kind.startswith(("gru", "lstm")):
            options[kind] = {"d_hidden": model.d_hidden}
    return BackboneConfig(
        d_model=model.d_model,
        layers=_repeated(model.blocks, model.n_layers),
        dropout=model.dropout,
        block_options=options,
    )


def _repeated(blocks: Sequence[str], n_layers: int) -> list[str]:
    return list(blocks) * n_layers
