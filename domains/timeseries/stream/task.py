"""Training the network that reads row by row: forecasts from many rows of each window at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.scoring import pinball
from mambakit.core.training import GraphedLoss, MemberTraining, TrainConfig
from mambakit.domains.timeseries.config import StreamLossConfig
from mambakit.domains.timeseries.stream.data import Store, cut, forecasts, windows_of
from mambakit.domains.timeseries.stream.imputer import guessed, read_both_ways
from mambakit.domains.timeseries.stream.masking import hidden_rows, hide, hide_some
from mambakit.domains.timeseries.stream.neighbours import Guess
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Origin, Passed, Read
from mambakit.domains.timeseries.stream.running import LEAST, Level

# Values that are seen before a normal's likelihood counts; at least a season, where there is one.
_LEAST_SEEN = 8


class StreamLoss(nn.Module):
    """The loss of each member's head over all origins of a batch.

    Args:
        model: The network.
        config: What to minimise.
    """

    def __init__(self, model: StreamForecaster, config: StreamLossConfig) -> None:
        super().__init__()
        self.model = model
        self.impute_weight = config.impute_weight
        weight = torch.arange(1, model.config.horizon + 1, dtype=torch.float32) ** -config.step_weight_power
        self.step_weight: Tensor
        self.register_buffer("step_weight", weight / weight.mean(), persistent=False)

    def forward(
        self,
        origins: Tensor,
        ahead: Tensor,
        target: Tensor,
        weight: Tensor,
        hidden: Tensor,
        shift: Tensor,
        spread: Tensor,
        *read: Tensor,
    ) -> Tensor:
        """The weighted loss, of quantiles twice their pinball loss, summed over the members; of the hidden
        values too, if it imputes.

        Args:
            origins: ``(origins,)``.
            ahead: ``(rows, origins, horizon, n_known)``.
            target: ``(rows, origins, horizon)``, NaN where there is none.
            weight: ``(rows,)``, of each series.
            hidden: ``(first rows, length)``, values hidden in the first rows, NaN where none is.
            shift, spread: ``(first rows, length)``, the linear estimate of these rows.
            read: The fields of a ``Read``.
        """
        piece = Read(*read)
        passed = self.model.walk(piece) if self.impute_weight else None
        origin, _ = self.model.read(piece, origins=origins, keep_state=False, passed=passed)
        unit = self.model.unit_of(origin, piece.series)
        there = target.isfinite()
        if self.model.config.model.output != "quantiles":
            there = there & self._measurable(piece, origin, origins)[..., None]
        goal = torch.where(there, target, 0.0)
        counted = there * self.step_weight * weight[:, None, None]
        losses = []
        for member, state in zip(self.model.members, origin.hidden, strict=True):
            loss = member.head.losses(member.outlook(state, origin, ahead, unit), goal).mean(-1)
            losses.append((loss * counted).sum() / there.sum().clamp(min=1))
        if passed is not None:
            n = len(hidden)
            start = Passed(
                Level(*(x[:n] for x in passed.level)), [x[:n] for x in passed.hidden], passed.state
            )
            said = read_both_ways(self.model, Read(*(x[:n] for x in piece)), start, Guess(shift, spread))
            loss = impute_loss(said, hidden, self.model.members[0].head.levels, weight[:n])
            losses.append(self.impute_weight * loss)
        return torch.stack(losses).sum() + auxiliary_loss(self.model)

    def _measurable(self, piece: Read, origin: Origin, origins: Tensor) -> Tensor:
        """From where a likelihood counts, ``(rows, origins)``: it is of deviations, which must be known.

        A series that never changed so far has none. Squares of deviations that a few rows gave would be all
        of a normal's loss; Student's t bears them, and so learns what a short history is worth.
        """
        known = origin.deviation > LEAST
        config = self.model.config
        if config.model.output == "normal":
            least = min(piece.values.shape[1] // 4, max(_LEAST_SEEN, config.season_length))
            known = known & (piece.values.isfinite().cumsum(1)[:, origins] >= least)
        return known


class StreamTask(MemberTraining, pl.LightningModule):
    """Trains a ``StreamForecaster`` on numbers of windows.

    Args:
        model: The network.
        store: All rows; they move to the training device once.
        train: The training options.
        loss: What to minimise.
        length: Rows of a window.
    """

    def __init__(
        self, model: StreamForecaster, store: Store, train: TrainConfig, loss: StreamLossConfig, length: int
    ) -> None:
        super().__init__()
        self.loss = StreamLoss(model, loss)
        self.train_config = train
        self.loss_config = loss
        self.length = length
        self._store = store
        self._graphed = GraphedLoss(self.loss)
        self._weights = series_weights(store, loss.season_weight, model.config.season_length)

    @property
    def model(self) -> StreamForecaster:
        """The network."""
        return self.loss.model

    def on_fit_start(self) -> None:
        """Moves the rows to the device."""
        self._store, self._weights = self._store.to(self.device), self._weights.to(self.device)

    def on_validation_start(self) -> None:
        """Moves the rows to the device, where validation runs without a fit."""
        self.on_fit_start()

    def training_step(self, windows: Tensor | tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The loss of some windows, moved at random, forecast from rows chosen at random."""
        inputs = self.remembered(windows)
        value = self._graphed(*inputs)
        mean = value.detach() / len(self.model.members)
        self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=len(inputs[1]))
        return value

    def remembered(self, windows: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the loss reads of some windows, which can be replayed in a later run on other rows."""
        if isinstance(windows, tuple):
            return windows
        config, loss_config, store = self.model.config, self.loss_config, self._store
        windows = windows.to(self.device)
        which = (windows[:, :1] + torch.arange(config.n_mixed, device=self.device)).flatten()
        move = torch.randint(
            -loss_config.origins, loss_config.origins + 1, (len(windows),), device=self.device
        )
        start = (windows[:, 1] + move).clamp(min=0).repeat_interleave(config.n_mixed)
        origins = torch.randint(0, self.length, (loss_config.origins,), device=self.device)
        window = cut(store, which, start, self.length, origins, config.horizon, store.bounds[which, 0])
        read = window.read
        if loss_config.solo_share:
            hidden = torch.rand(len(windows), device=self.device) < loss_config.solo_share
            series = torch.where(hidden.repeat_interleave(config.n_mixed), self.model.unknown, read.series)
            read = read._replace(series=series)
        read, hidden = hide_some(read, loss_config.mask_share, config.n_mixed)
        guess = Guess(hidden, hidden)
        if self.model.neighbours is not None:
            guess = guessed(self.model, Read(*(x[: len(hidden)] for x in read)))
        return origins, window.ahead, window.target, self._weights[which], hidden, *guess, *read

    def validation_step(self, nothing: Any, batch_idx: int) -> None:
        """Squared, absolute and pinball errors of forecasts from rows of the validation part, scaled."""
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        options = self.loss_config
        for found in forecasts(
            self.model,
            self._store,
            1,
            stride=options.validation_stride,
            most_series=options.validation_series,
        ):
            there = found.target.isfinite()
            goal = torch.where(there, found.target, 0.0)
            error = torch.where(there, self.model.point(found.quantiles) - goal, 0.0)
            weight = self._weights[found.which.to(self.device)][:, None, None]
            loss = (2 * pinball(found.quantiles, goal, self.model.levels).mean(-1) * there * weight).sum()
            parts = torch.stack([error.square().sum(), error.abs().sum(), loss, there.sum().to(loss)])
            sums += parts.double()
        mean = (sums[:3] / sums[3].clamp(min=1)).float()
        scores = {"val/mse": mean[0], "val/mae": mean[1], "val/loss": mean[2]}
        if options.impute_weight:
            loss, squared = self._impute_error()
            scores |= {"val/loss": mean[2] + options.impute_weight * loss, "val/forecast": mean[2]}
            scores |= {"val/impute": loss, "val/impute_mse": squared}
        self.log_dict(scores, batch_size=1)

    def _impute_error(self) -> tuple[Tensor, Tensor]:
        """Pinball loss and squared error of values hidden in windows of the validation part, always alike."""
        n_mixed, generator = self.model.config.n_mixed, torch.Generator().manual_seed(0)
        sums = torch.zeros(3, device=self.device, dtype=torch.float64)
        for which, read, inside in windows_of(
            self._store,
            1,
            length=self.length,
            n_mixed=n_mixed,
            most_series=self.loss_config.validation_series,
        ):
            where = hidden_rows(len(which) // n_mixed, n_mixed, self.length, generator=generator)
            masked, hidden = hide(read, where.to(self.device) & inside)
            said = torch.stack(read_both_ways(self.model, masked)).mean(0)
            there = hidden.isfinite()
            loss = impute_loss([said], hidden, self.model.levels, self._weights[which])
            error = torch.where(there, self.model.point(said) - hidden, 0.0).square().sum()
            count = there.sum().double()
            sums += torch.stack([loss.double() * count, error.double(), count])
        mean = (sums[:2] / sums[2].clamp(min=1)).float()
        return mean[0], mean[1]


def impute_loss(
    said: Sequence[Tensor], hidden: Tensor, levels: Tensor | Sequence[float], weight: Tensor
) -> Tensor:
    """Twice the weighted pinball loss of hidden values, summed over the members."""
    there = hidden.isfinite()
    goal = torch.where(there, hidden, 0.0)
    counted = there * weight[:, None]
    losses = [(pinball(one, goal, levels).mean(-1) * counted).sum() for one in said]
    return 2 * torch.stack(losses).sum() / there.sum().clamp(min=1)


def series_weights(store: Store, power: float, season_length: int) -> Tensor:
    """``(n_series,)``: a series' seasonal step to the minus ``power``, of mean 1: what MASE divides by."""
    weights = torch.ones(len(store))
    if power:
        for i, (first, end) in enumerate(zip(store.first.tolist(), store.bounds[:, 0].tolist(), strict=True)):
            values = store.values[first : first + end]
            season = season_length if end > season_length else 1
            step = (values[season:] - values[:-season]).abs().nanmean()
            weights[i] = step.clamp(min=1e-2) ** -power if step.isfinite() else 1.0
    return weights / weights.mean()
