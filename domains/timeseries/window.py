"""The forecaster: a linear map, and a Mamba-2 over time and across series that corrects it.

half the members correct closed-form forecasts and read what those leave of a window (anchor.Anchor), half
read it as it is; of each, half are told the mean and deviation that come next
normalise each window by its own mean and deviation            (RevIN: Kim et al. 2022, without affine)
take out the seasonal pattern learned for the series           (CycleNet: Lin et al. 2024, eq. 3)
+ linear map lookback -> horizon, begun at least squares
+ patches -> Mamba-2 over time -> one vector a series
  + the season's phase, as sines and cosines
  -> Mamba-2 both ways across the series -> quantiles        (series as tokens: S-Mamba, Wang 2024)
put the seasonal pattern and the normalisation back
average the members, which err in different ways               (ensembles: Lakshminarayanan et al. 2017)
average with the closed-form forecasts alone, by the weight that validation gives (stacking: Wolpert 1992)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.adapters import TokenBatch
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.backbone_config import sizes_of_heads
from mambakit.core.distributions import forecast_head
from mambakit.core.hub import HubModel
from mambakit.core.retrieval.neighbours import FOLDER, Neighbours
from mambakit.domains.timeseries.about import FORECASTER
from mambakit.domains.timeseries.anchor import Anchor, Anchored
from mambakit.domains.timeseries.config import ForecasterConfig
from mambakit.domains.timeseries.tokenizer import PatchAdapter, PatchTokenizer

_EPSILON = 1e-5
# Quantiles begin as those of a normal distribution with this deviation, in window deviations.
_FIRST_SPREAD = 0.6
# Waves a season that tell the phase.
_HARMONICS = 4


class _Reading(NamedTuple):
    """A window as a member reads it.

    Attributes:
        x: The lookback less what is expected of it, spread and season, ``(batch, n_series, lookback)``.
        expected: Added to the forecasts, ``(batch, n_series, horizon or 1)``.
        deviation: What they are multiplied by before, ``(batch, n_series, 1)``.
        season: ``(batch, n_series, lookback + horizon)``.
        vectors: ``(batch, n_series, d_series)``.
    """

    x: Tensor
    expected: Tensor
    deviation: Tensor
    season: Tensor | None
    vectors: Tensor


class Network(nn.Module):
    """One member of a forecaster: quantile forecasts of all series of a window.

    Args:
        config: The network and the data it is for.
        view: How it reads, one of ``config.VIEWS``.
    """

    def __init__(self, config: ForecasterConfig, view: str = "window") -> None:
        super().__init__()
        self.config = config
        self.anchored = view.startswith("anchor")
        model, lookback, horizon = config.model, config.lookback, config.horizon
        names = config.n_series + 1  # the last one stands for every unknown series
        if model.use_season and config.season_length > 1:
            self.season: nn.Parameter | None = nn.Parameter(torch.zeros(config.season_length, names))
            self.season._no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.season = None
        if model.use_linear:
            self.linear: nn.Parameter | None = nn.Parameter(torch.zeros(lookback, horizon))
            self.linear._no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.linear = None
        if model.time_blocks:
            self.adapter: PatchAdapter | None = PatchAdapter(model.patch_length, model.d_time)
            self.over_time: Backbone | None = Backbone(_backbone(config, model.d_time, model.time_blocks))
            features = lookback // model.patch_length * model.d_time
        else:
            self.adapter = self.over_time = None
            features = lookback
        self.to_series = nn.Linear(features, model.d_series)
        self.name_table = nn.Embedding(names, model.d_series)
        nn.init.normal_(self.name_table.weight, std=0.02)
        self.name_table.weight._no_weight_decay = True  # type: ignore[attr-defined]
        with_phase = model.use_phase and config.season_length > 1
        self.phase_map = nn.Linear(2 * _HARMONICS, model.d_series) if with_phase else None
        self.level_map = nn.Linear(2, model.d_series) if view.endswith("level") else None
        self.across_series = Backbone(_backbone(config, model.d_series, model.series_blocks, both_ways=True))
        self.dropout = nn.Dropout(model.dropout)
        self.head = forecast_head(
            model.output, d_model=model.d_series, quantiles=sorted(model.quantiles), d_output=horizon
        )
        self.head.begin_at_normal(_FIRST_SPREAD)
        with torch.no_grad():
            self.head.proj.weight.zero_()

    def forward(self, history: Tensor, phase: Tensor, series: Tensor, anchor: Anchored) -> Tensor:
        """As ``WindowForecaster``'s, of this member alone, beside what its anchor makes of the window."""
        return self.head.to_quantiles(self.outlook(history, phase, series, anchor))

    def outlook(self, history: Tensor, phase: Tensor, series: Tensor, anchor: Anchored) -> Tensor:
        """What the head says, ``(batch, horizon, n_series, ...)``; arguments as ``forward``'s."""
        read = self._read(history, phase, series, anchor)
        y = self.head(self.dropout(read.vectors))  # [b, c, h, q]
        if self.linear is not None:
            y = self.head.moved(y, read.x @ self.linear)
        if read.season is not None:
            y = self.head.moved(y, read.season[..., self.config.lookback :])
        return self.head.moved(y, read.expected, read.deviation).transpose(1, 2)

    def embed(self, history: Tensor, phase: Tensor, series: Tensor, anchor: Anchored) -> Tensor:
        """What the head reads, ``(batch, n_series, d_series)``; arguments as ``forward``'s."""
        return self._read(history, phase, series, anchor).vectors

    def _read(self, history: Tensor, phase: Tensor, series: Tensor, anchor: Anchored) -> _Reading:
        x = history.transpose(1, 2)  # [b, c, l]
        mean = x.mean(-1, keepdim=True)
        deviation = (x.var(-1, keepdim=True, unbiased=False) + _EPSILON).sqrt()
        expected, x = anchor if self.anchored else (mean, x - mean)
        x = x / deviation
        season = self._season(phase, series)
        if season is not None:
            x = x - season[..., : self.config.lookback]
        vectors = self._features(x, series, self._known(mean, deviation, phase))
        return _Reading(x, expected, deviation, season, vectors)

    def _known(self, mean: Tensor, deviation: Tensor, phase: Tensor) -> list[Tensor]:
        """What is told beside the normalised window, each ``(batch, 1 or n_series, d_series)``."""
        told = []
        if self.level_map is not None:
            told.append(self.level_map(torch.cat([mean, deviation.log()], -1)))
        if self.phase_map is not None:
            waves = torch.arange(1, _HARMONICS + 1, device=phase.device)
            angle = phase[:, None, None] * waves * (2 * math.pi / self.config.season_length)
            told.append(self.phase_map(torch.cat([angle.sin(), angle.cos()], -1)))
        return told

    def _features(self, x: Tensor, series: Tensor, known: Sequence[Tensor]) -> Tensor:
        """One vector for each series, ``(batch, n_series, d_series)``, from its normalised lookback."""
        batch, n_series, _ = x.shape
        if self.over_time is not None and self.adapter is not None:
            patches = x.reshape(batch * n_series, -1, self.config.model.patch_length)
            lengths = torch.full((len(patches),), patches.shape[1], device=x.device)
            tokens = TokenBatch(patches, lengths)
            read, _ = self.over_time(self.adapter.embed(tokens))
            x = read.reshape(batch, n_series, -1)
        vectors = self.to_series(x) + self.name_table(series)
        for one in known:
            vectors = vectors + one
        return self.across_series(vectors)[0]

    def _season(self, phase: Tensor, series: Tensor) -> Tensor | None:
        """The seasonal pattern over lookback and horizon, ``(batch, n_series, lookback + horizon)``."""
        if self.season is None:
            return None
        length = self.config.season_length
        offsets = torch.arange(-self.config.lookback, self.config.horizon, device=phase.device)
        steps = (phase[:, None] + offsets) % length  # [b, l + h]
        if series.dim() == 1:
            return F.embedding(steps, self.season[:, series]).transpose(1, 2)
        index = steps[:, None, :] * self.season.shape[1] + series[..., None]
        return F.embedding(index, self.season.view(-1, 1))[..., 0]


class WindowForecaster(nn.Module, HubModel):
    """Quantile forecasts of all series of a window: the mean of the members', beside closed-form forecasts.

    Args:
        config: The network and the data it is for.
    """

    about = FORECASTER

    tokenizer: PatchTokenizer
    members: Sequence[Network]

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = PatchTokenizer(config.model.patch_length)
        self.unknown = config.n_series
        self.members = nn.ModuleList(  # type: ignore[assignment]
            Network(config, config.model.view(i)) for i in range(config.model.members)
        )
        # What closed form says, fitted before training, and how far the network is trusted beside it, after.
        self.anchor = Anchor(config)
        self.neighbours: Neighbours | None = None  # windows like this one and what followed; see retrieval
        self.trust: Tensor
        self.register_buffer("trust", torch.ones(()))

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantile levels, increasing."""
        return tuple(sorted(self.config.model.quantiles))

    @property
    def middle(self) -> int:
        """Index of the level nearest the median."""
        return self.members[0].head.anchor

    def forward(self, history: Tensor, phase: Tensor, series: Tensor) -> Tensor:
        """Quantiles of what follows.

        Args:
            history: Scaled values, ``(batch, lookback, n_series)``.
            phase: Season's phase of the first forecast step, ``(batch,)`` int64.
            series: Index of each series, ``(n_series,)`` or ``(batch, n_series)`` int64; ``unknown``
                for one that was not trained on.

        Returns:
            ``(batch, horizon, n_series, n_quantiles)``, increasing along the last dimension.

        Raises:
            ValueError: If the history has another lookback.
        """
        if history.dim() != 3 or history.shape[1] != self.config.lookback:
            raise ValueError(
                f"history: expected shape (batch, lookback={self.config.lookback}, n_series), "
                f"got {tuple(history.shape)}"
            )
        anchor = self.anchor(history, phase, series)
        parts = [member(history, phase, series, anchor) for member in self.members]
        y: Tensor = sum(parts[1:], parts[0]) / len(parts)
        plain = anchor[0].transpose(1, 2)
        # the levels move together: the spread stays the network's
        y = y + (1 - self.trust) * (plain - self.point(y))[..., None]
        if self.neighbours is None or not self.neighbours.mix.share:
            return y
        weights, place = self.neighbours.weights(self.embed(history, phase, series))
        said = followed(weights, self.neighbours.values[place], history)
        return y + self.neighbours.mix.share * (said - self.point(y))[..., None]

    def embed(self, history: Tensor, phase: Tensor, series: Tensor) -> Tensor:
        """What the members' heads read, one behind the other, ``(batch, n_series, members * d_series)``."""
        anchor = self.anchor(history, phase, series)
        return torch.cat([member.embed(history, phase, series, anchor) for member in self.members], -1)

    def point(self, quantiles: Tensor) -> Tensor:
        """The point forecast: the mean over the levels, which for a skewed outcome is nearer the mean."""
        return quantiles.mean(-1)

    def save_extra(self, folder: Path) -> None:
        """The tokenizer: names, scales and frequency."""
        self.tokenizer.save(folder)
        if self.neighbours is not None:
            self.neighbours.save(folder / FOLDER, self)

    def load_extra(self, folder: Path) -> None:
        """Reads what ``save_extra`` wrote."""
        self.tokenizer = PatchTokenizer.load(folder)
        self.neighbours = Neighbours.load(folder / FOLDER, self)


def level_and_spread(history: Tensor) -> tuple[Tensor, Tensor]:
    """What a window is normalised by, ``(..., 1, n_series)`` each."""
    mean = history.mean(-2, keepdim=True)
    return mean, (history.var(-2, keepdim=True, unbiased=False) + _EPSILON).sqrt()


def followed(weights: Tensor, values: Tensor, history: Tensor) -> Tensor:
    """What neighbours foretell, ``(batch, horizon, n_series)``.

    Args:
        weights: ``(batch, n_series, k)``.
        values: What followed them, normalised by their own windows, ``(batch, n_series, k, horizon)``.
        history: ``(batch, lookback, n_series)``.
    """
    mean, deviation = level_and_spread(history)
    said = torch.einsum("bck,bckh->bhc", weights, values).to(history)
    return said * deviation + mean


def _backbone(
    config: ForecasterConfig, d_model: int, blocks: list[str], *, both_ways: bool = False
) -> BackboneConfig:
    model = config.model
    return BackboneConfig(
        d_model=d_model,
        layers=list(blocks),
        block_options=sizes_of_heads(blocks, d_state=model.d_state, head_dim=model.head_dim),
        bidirectional=both_ways,
        dropout=model.dropout,
    )
