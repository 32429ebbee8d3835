"""Training: the head's loss of the scaled values; windows are cut on the device that trains."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.scoring import pinball
from mambakit.core.training import GraphedLoss, MemberTraining, TrainConfig
from mambakit.domains.timeseries.config import LossConfig
from mambakit.domains.timeseries.window import WindowForecaster
from mambakit.domains.timeseries.window_data import Batch, Values


class ForecastLoss(nn.Module):
    """The loss of each member's head on its own batch of windows, near steps weighing more.

    Args:
        model: The network.
        config: What to minimise.
    """

    def __init__(self, model: WindowForecaster, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        weight = torch.arange(1, model.config.horizon + 1, dtype=torch.float32) ** -config.step_weight_power
        self.step_weight: Tensor
        self.register_buffer("step_weight", weight / weight.mean(), persistent=False)

    def forward(self, history: Tensor, future: Tensor, phase: Tensor, series: Tensor) -> Tensor:
        """The weighted loss, of quantiles twice their pinball loss, summed over the members.

        What their layers ask for besides, such as experts their balance, is in the sum too.

        Args:
            history: ``(members, batch, lookback, n_series)``.
            future: ``(members, batch, horizon, n_series)``.
            phase: ``(members, batch)``.
            series: ``(n_series,)``, or ``(members, batch, n_series)``.
        """
        losses = []
        for i, member in enumerate(self.model.members):
            window = history[i], phase[i], series if series.dim() == 1 else series[i]
            said = member.outlook(*window, self.model.anchor(*window))
            by_step = member.head.losses(said, future[i]).mean((0, 2, 3))
            losses.append((by_step * self.step_weight).mean())
        return torch.stack(losses).sum() + auxiliary_loss(self.model)


class ForecastTask(MemberTraining, pl.LightningModule):
    """Trains a ``WindowForecaster`` on batches of window starts.

    Args:
        model: The network.
        values: All scaled rows; they move to the training device once.
        train: The training options.
        loss: What to minimise.
    """

    def __init__(self, model: WindowForecaster, values: Values, train: TrainConfig, loss: LossConfig) -> None:
        super().__init__()
        self.loss = ForecastLoss(model, loss)
        self.train_config = train
        self.loss_config = loss
        self._values = values
        self._graphed = GraphedLoss(self.loss)

    @property
    def model(self) -> WindowForecaster:
        """The network."""
        return self.loss.model

    def on_fit_start(self) -> None:
        """Moves the rows to the device."""
        self._values = self._values.to(self.device)

    def on_validation_start(self) -> None:
        """Moves the rows to the device, where validation runs without a fit."""
        self._values = self._values.to(self.device)

    def training_step(self, starts: Tensor | Batch, batch_idx: int) -> Tensor:
        """Weighted pinball loss of the members' batches; some steps read every series alone and unnamed."""
        history, future, phase, series = self.remembered(starts)
        n_windows = phase.shape[-1]
        if torch.rand(()) < self.loss_config.solo_share:
            n_series = history.shape[-1]
            history = history.transpose(-1, -2).flatten(1, 2)[..., None]
            future = future.transpose(-1, -2).flatten(1, 2)[..., None]
            phase = phase.repeat_interleave(n_series, dim=-1)
            series = series.new_full((1,), self.model.unknown)
        loss = self._graphed(history, future, phase, series)
        mean = loss.detach() / len(self.model.members)
        self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=n_windows)
        return loss

    def remembered(self, starts: Tensor | Batch) -> Batch:
        """The windows themselves, which can be replayed in a later run on other rows."""
        if isinstance(starts, Batch):
            return starts
        return self._values.cut(starts, self.model.config.lookback, self.model.config.horizon)

    def validation_step(self, starts: Tensor, batch_idx: int) -> None:
        """Mean squared and absolute error of the point forecast, and the pinball loss."""
        config = self.model.config
        history, future, phase, series = self._values.cut(starts, config.lookback, config.horizon)
        quantiles = self.model(history, phase, series)
        error = self.model.point(quantiles) - future
        scores = {
            "val/mse": error.square().mean(),
            "val/mae": error.abs().mean(),
            "val/loss": 2 * pinball(quantiles, future, self.model.levels).mean(),
        }
        self.log_dict(scores, batch_size=len(starts))
