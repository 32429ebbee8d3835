"""The Lightning task: the loss at every position of packed histories, and ranks in validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.errors import UserError
from mambakit.core.training import TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.recommendation.config import LossConfig
from mambakit.domains.recommendation.histories import NO_TARGET, Batch
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.losses import next_item_loss, popularity_odds
from mambakit.domains.recommendation.metrics import hits, ndcg, target_ranks
from mambakit.domains.recommendation.model import Recommender, in_chunks, seen_before

_K = 10


class RecommenderTask(pl.LightningModule):
    """Trains a ``Recommender``.

    Args:
        model: The network.
        interactions: All events; those in ``validation`` are ranked among all items.
        trained: Items of the training events, ``(n,)``.
        validation: Events to be foretold, places of events.
        train: The training options.
        loss: What to minimise.
    """

    def __init__(
        self,
        model: Recommender,
        interactions: Interactions,
        trained: NDArray[np.int64],
        validation: NDArray[np.int64],
        train: TrainConfig,
        loss: LossConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_config, self.loss_config = train, loss
        self._interactions, self._validation = interactions, validation
        power = loss.popularity_power if loss.loss == "sampled-softmax" else 0.0
        odds = popularity_odds(torch.from_numpy(trained), interactions.n_items, power)
        self.odds: Tensor
        self.register_buffer("odds", odds, persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of every position that has a next event."""
        hidden_ids = None
        if self.model.item_table is not None and self.loss_config.id_dropout:
            n_items = self.model.config.n_items
            hidden_ids = torch.rand(n_items, device=self.device) < self.loss_config.id_dropout
            hidden_ids &= self.model.described  # of the others nothing would be left
        catalogue = self.model.catalogue(hidden_ids)
        # what is never the right one is no wrong one either: its features would be learned as unwanted
        catalogue = catalogue._replace(bias=catalogue.bias.masked_fill(self.model.cold, -torch.inf))
        hidden, _ = self.model(batch.tokens, catalogue, batch.user_words)
        there = batch.target != NO_TARGET
        loss = next_item_loss(hidden[there], batch.target[there], catalogue, self.loss_config, self.odds)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(there))
        return loss + auxiliary_loss(self.model)

    def remembered(self, batch: Batch) -> Batch:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, nothing: Any, batch_idx: int) -> None:
        """NDCG and hit rate among the first ten, seen items left out and not."""
        ranks = ranks_of(self.model, self._interactions, self._validation)
        scores: dict[str, float] = {}
        for name, rank in ranks.items():
            scores[f"val/hr@{_K}/{name}"] = float(hits(rank.cpu().numpy(), _K).mean())
            scores[f"val/ndcg@{_K}/{name}"] = float(ndcg(rank.cpu().numpy(), _K).mean())
        scores["val/ndcg"] = scores[f"val/ndcg@{_K}/filtered"]
        self.log_dict(scores, batch_size=1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch."""
        if isinstance(batch, Batch):
            return Batch(batch.tokens.to(device), batch.target.to(device), batch.user_words.to(device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )


@torch.no_grad()
def ranks_of(model: Recommender, interactions: Interactions, events: NDArray[np.int64]) -> dict[str, Tensor]:
    """The rank of each event's item among all, ``unfiltered`` and ``filtered`` of seen ones, ``(n,)``.

    1 is the best; items of equal score share their mean rank.

    Raises:
        UserError: If scores are no numbers.
    """
    found: dict[str, list[Tensor]] = {"unfiltered": [], "filtered": []}
    catalogue = model.catalogue()
    for part in in_chunks(events, interactions.n_items):
        users = interactions.user[part]
        hidden = model.hidden(interactions, users, part, catalogue)
        seen = seen_before(interactions, users, part)
        score = model.score(hidden, catalogue, seen)
        if not bool((score < torch.inf).all()):  # nor NaN; minus infinity is an item that nothing is known of
            raise UserError("the scores of validation events are no longer numbers; try a lower lr")
        target, row, item = (
            torch.from_numpy(one).to(score.device) for one in (interactions.item[part], *seen)
        )
        for out, ranks in zip(found.values(), target_ranks(score, target, (row, item)), strict=True):
            out.append(ranks)
    return {name: torch.cat(parts) for name, parts in found.items()}
