"""The forecaster that reads row by row: its state is all it keeps of the past, however long that was.

level and spread of the series so far, exponentially weighted         (no look ahead: running.py)
value, mask, covariates, calendar of the last rows -> one token a row  (missing values are masked)
-> Mamba-2 over time, irregular gaps driving dt                        (Gu & Dao 2023; Dao & Gu 2024)
   [-> Mamba-2 both ways across the series of each row]                (series as tokens: S-Mamba, Wang 2024)
-> at any row: hidden state + what is known of each step ahead -> quantiles of the step
+ linear map of the last rows and what is known ahead, begun at least squares
average the members: such networks begun and trained apart             (Lakshminarayanan et al. 2017)
average with least squares alone, by the weight that validation gives  (stacking: Wolpert 1992)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.distributions import forecast_head
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.timeseries.about import FORECASTER
from mambakit.domains.timeseries.config import StreamConfig
from mambakit.domains.timeseries.stream.imputer import ImputationHead
from mambakit.domains.timeseries.stream.neighbours import Neighbours
from mambakit.domains.timeseries.stream.parts import Origin, Passed, Read, backbone_config
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.stream.running import Level, level_of, running_level

# Quantiles begin as those of a normal distribution with this deviation, in the series' running deviations.
_FIRST_SPREAD = 0.6
_LEVEL_FEATURES = 4


class RowNetwork(nn.Module):
    """One member: tokens to hidden states, and hidden states to quantiles of the steps ahead.

    Args:
        config: The network and the data it is for.
    """

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config = config
        model = config.model
        d_row = _LEVEL_FEATURES + config.irregular + config.n_past + config.n_known
        self.embed = nn.Linear(model.context * d_row, model.d_model)
        self.names = nn.Embedding(config.n_series + 1, model.d_model)  # the last is every unknown series
        nn.init.normal_(self.names.weight, std=0.02)
        self.names.weight._no_weight_decay = True  # type: ignore[attr-defined]
        self.static = nn.Linear(config.n_static, model.d_model, bias=False) if config.n_static else None
        self.over_time = nn.ModuleList(Backbone(backbone_config(config)) for _ in range(model.n_layers))
        mixed = model.n_layers if config.n_mixed > 1 else 0
        self.across = nn.ModuleList(Backbone(backbone_config(config, both_ways=True)) for _ in range(mixed))
        self.dropout = nn.Dropout(model.dropout)
        self.to_steps = nn.Linear(model.d_model, config.horizon * model.d_ahead)
        d_step = 3 * config.n_known + config.n_seasons
        self.ahead = nn.Linear(d_step, model.d_ahead) if d_step else None
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(model.d_ahead, model.d_ahead), nn.GELU())
        self.head = forecast_head(model.output, d_model=model.d_ahead, quantiles=sorted(model.quantiles))
        if model.use_linear:
            self.linear: nn.Parameter | None = nn.Parameter(torch.zeros(config.n_linear, config.horizon))
            self.linear._no_weight_decay = True  # type: ignore[attr-defined]
        else:
            self.linear = None
        self.imputer = ImputationHead(config) if config.imputes else None
        self.head.begin_at_normal(_FIRST_SPREAD)
        with torch.no_grad():
            self.head.proj.weight.mul_(0.1)

    def init_state(self, rows: int, device: torch.device | str | None = None) -> State:
        """Of the layers over time."""
        return State.of(**{str(i): one.init_state(rows, device) for i, one in enumerate(self._layers())})

    def forward(
        self,
        features: Tensor,
        read: Read,
        state: State | None,
        lengths: Tensor | None,
        *,
        from_end: bool = False,
        at: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Hidden states ``(rows, length, d_model)`` of features ``(rows, length, context * d_row)``.

        With ``at`` ``(n,)`` of those rows alone, ``(rows, n, d_model)``.
        """
        length = features.shape[1]
        beside = self.names(read.series)
        if self.static is not None:
            beside = beside + self.static(read.static)
        if from_end and self.imputer is not None:
            beside = beside + self.imputer.from_end
        x = self.embed(features) + beside[:, None]
        gaps = read.elapsed if self.config.irregular else None
        states = {}
        for i, layer in enumerate(self._layers()):
            past = None if state is None else state[str(i)]
            if length == 1 and past is not None:
                gap = None if gaps is None else gaps[:, 0]
                y, states[str(i)] = layer.step(x[:, 0], past, elapsed=gap)
                y = y[:, None]
            else:
                keep = at if i == len(self.over_time) - 1 else None
                y, states[str(i)] = layer(x, past, lengths=lengths, elapsed=gaps, keep=keep)
                x = x if keep is None else x.index_select(1, keep)
            x = x + y
            if len(self.across):
                n = self.config.n_mixed
                at_once = x.unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)  # [b*l, c, d]
                y, _ = self.across[i](at_once)
                x = x + y.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)
        return x, State.of(**states)

    def quantiles(self, hidden: Tensor, origin: Origin, ahead: Tensor, unit: Tensor) -> Tensor:
        """``(rows, origins, horizon, n_quantiles)`` in the series' units; see ``StreamForecaster.ahead``."""
        return self.head.to_quantiles(self.outlook(hidden, origin, ahead, unit))

    def outlook(self, hidden: Tensor, origin: Origin, ahead: Tensor, unit: Tensor) -> Tensor:
        """What the head says, ``(rows, origins, horizon, ...)``, in the series' units."""
        config = self.config
        steps = self.to_steps(self.dropout(hidden)).unflatten(-1, (config.horizon, -1))
        if self.ahead is not None:
            before = torch.cat([ahead[..., :1, :], ahead[..., :-1, :]], -2)
            after = torch.cat([ahead[..., 1:, :], ahead[..., -1:, :]], -2)
            seasons = seasons_before(origin, config)
            steps = steps + self.ahead(torch.cat([before, ahead, after, seasons], -1))
        steps = steps + self.mix(steps)
        base = origin.mean[..., None]
        if self.linear is not None:
            base = base + linear_map(self.linear, origin, ahead, unit, config)
        return self.head.moved(self.head(steps)[..., 0, :], base, origin.deviation[..., None])

    def _layers(self) -> Sequence[Backbone]:
        return list(self.over_time)  # type: ignore[arg-type]


class StreamForecaster(nn.Module, HubModel):
    """Quantile forecasts from any row of any number of series, with a state of fixed size.

    Args:
        config: The network and the data it is for.
    """

    about = FORECASTER

    tokenizer: RowTokenizer
    members: Sequence[RowNetwork]

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = RowTokenizer()
        self.unknown = config.n_series
        self.members = nn.ModuleList(RowNetwork(config) for _ in range(config.model.members))  # type: ignore[assignment]
        self.neighbours = Neighbours(config) if config.imputes else None
        # What least squares alone says, and how far the network is trusted beside it: set after training.
        self.least_squares: Tensor
        self.trust: Tensor
        self.register_buffer("least_squares", torch.zeros(config.n_linear, config.horizon))
        self.register_buffer("trust", torch.ones(()))

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantile levels, increasing."""
        return self.members[0].head.quantiles

    @property
    def middle(self) -> int:
        """Index of the level nearest the median."""
        return self.members[0].head.anchor

    def init_state(self, rows: int, device: torch.device | str | None = None) -> State:
        """The state before the first row of ``rows`` series."""
        config, model = self.config, self.config.model
        d_row = _LEVEL_FEATURES + config.irregular + config.n_past + config.n_known

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device)

        return State.of(
            sums=zeros(5),
            features=zeros(model.context - 1, d_row),
            values=torch.full((rows, config.lookback), torch.nan, device=device),
            known=zeros(config.lookback, config.n_future),
            **{f"hidden{i}": zeros(model.d_model) for i in range(len(self.members))},
            **{f"member{i}": one.init_state(rows, device) for i, one in enumerate(self.members)},
        )

    def read(
        self,
        read: Read,
        state: State | None = None,
        *,
        origins: Tensor | None = None,
        lengths: Tensor | None = None,
        keep_state: bool = True,
        hidden_too: bool = True,
        passed: Passed | None = None,
    ) -> tuple[Origin, State | None]:
        """Read a piece; what forecasts from some of its rows need, and the state after it.

        Args:
            read: The piece.
            state: What came before; None at the beginning.
            origins: Rows to forecast after, ``(origins,)`` or ``(rows, origins)`` int64; the last by default.
            lengths: Rows of each series, where shorter ones are padded on the right.
            keep_state: Whether the state is wanted.
            hidden_too: Whether the members are to read, not the linear map alone.
            passed: What ``walk`` found, if it was called before.
        """
        config = self.config
        rows, length = read.values.shape
        only = None  # where hidden states are wanted and nowhere else
        if passed is None:
            if not keep_state and lengths is None and length > 1:
                only = origins if origins is not None and origins.dim() == 1 else None
            passed = self.walk(read, state, lengths, hidden_too=hidden_too, at=only)
        begin = self.init_state(rows, read.values.device) if state is None else state
        if origins is None:
            last = lengths - 1 if lengths is not None else torch.full((rows,), length - 1)
            origins = last.to(read.values.device)[:, None]
        at = origins.expand(rows, -1) if origins.dim() == 1 else origins  # [rows, o]
        hidden = passed.hidden
        if only is None:
            hidden = [x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])) for x in hidden]
        values = torch.cat([begin["values"], read.values], 1)
        known = torch.cat([begin["known"], read.known[..., : config.n_future]], 1)
        lookback = torch.arange(config.lookback, device=at.device)
        back = (at[..., None] + 1 + lookback).flatten(1)  # [rows, o*l0]
        mean, deviation = passed.level.mean.gather(1, at), passed.level.deviation.gather(1, at)
        recent = values.gather(1, back).view(rows, at.shape[1], config.lookback) - mean[..., None]
        beside = known.gather(1, back[..., None].expand(-1, -1, config.n_future))
        origin = Origin(
            hidden,
            mean,
            deviation,
            torch.where(recent.isfinite(), recent, 0.0),
            beside.view(rows, at.shape[1], config.lookback, config.n_future),
        )
        if not keep_state:
            return origin, None
        end = torch.full((rows,), length, device=at.device) if lengths is None else lengths.to(at.device)
        last = (end - 1)[:, None, None]
        after = {
            f"hidden{i}": x.gather(1, last.expand(-1, -1, x.shape[-1]))[:, 0]
            for i, x in enumerate(passed.hidden)
        }
        after |= {"values": _tail(values, end, config.lookback), "known": _tail(known, end, config.lookback)}
        return origin, State.of(**passed.state, **after)

    def walk(
        self,
        read: Read,
        state: State | None = None,
        lengths: Tensor | None = None,
        *,
        hidden_too: bool = True,
        from_end: bool = False,
        at: Tensor | None = None,
    ) -> Passed:
        """What is known at every row of a piece; arguments as ``read``'s.

        ``from_end`` says that the piece was turned round (``imputer.turned``) and is read from its end.
        With ``at`` ``(n,)`` hidden states are found for those rows alone, ``(rows, n, d_model)``.
        """
        there, context = read.values.isfinite(), self.config.model.context
        sums = None if state is None else state["sums"]
        level, sums = running_level(read.values, there, read.elapsed, sums, memory=self.config.memory)
        features = self._features(level, there, read)
        if state is None:
            before = features.new_zeros(len(features), context - 1, features.shape[-1])
        else:
            before = state["features"]
        joined = torch.cat([before, features], 1)
        hidden, after = [], {}
        if hidden_too:
            seen = joined.unfold(1, context, 1).transpose(-1, -2).flatten(-2)
            for i, member in enumerate(self.members):
                past = None if state is None else state[f"member{i}"]
                x, after[f"member{i}"] = member(seen, read, past, lengths, from_end=from_end, at=at)
                hidden.append(x)
        end = features.new_full((len(features),), features.shape[1], dtype=torch.int64)
        end = end if lengths is None else lengths.to(end.device)
        return Passed(level, hidden, State.of(sums=sums, features=_tail(joined, end, context - 1), **after))

    def origin_of(self, state: State) -> Origin:
        """What a forecast after the last row read needs, ``(rows, 1, ...)``, from the state after it."""
        mean, deviation = level_of(state["sums"])
        recent = state["values"] - mean[:, None]
        return Origin(
            [state[f"hidden{i}"][:, None] for i in range(len(self.members))],
            mean[:, None],
            deviation[:, None],
            torch.where(recent.isfinite(), recent, 0.0)[:, None],
            state["known"][:, None],
        )

    def ahead(self, origin: Origin, ahead: Tensor, series: Tensor) -> Tensor:
        """Quantiles of the steps after some rows, in the series' scaled units.

        Args:
            origin: From ``read``.
            ahead: What is known of the steps ahead, ``(rows, origins, horizon, n_known)``.
            series: ``(rows,)`` int64.

        Returns:
            ``(rows, origins, horizon, n_quantiles)``, increasing along the last dimension.
        """
        unit = self.unit_of(origin, series)
        made = [
            member.quantiles(hidden, origin, ahead, unit)
            for member, hidden in zip(self.members, origin.hidden, strict=True)
        ]
        y = torch.stack(made).mean(0)
        return y + (1 - self.trust) * (self.plain(origin, ahead, series) - self.point(y))[..., None]

    def plain(self, origin: Origin, ahead: Tensor, series: Tensor) -> Tensor:
        """What least squares alone says, ``(rows, origins, horizon)``; arguments as ``ahead``'s."""
        unit = self.unit_of(origin, series)
        return origin.mean[..., None] + linear_map(self.least_squares, origin, ahead, unit, self.config)

    def unit_of(self, origin: Origin, series: Tensor) -> Tensor:
        """What a covariate does to an unknown series is measured in its own deviations."""
        return torch.where((series == self.unknown)[:, None], origin.deviation, 1.0)

    def point(self, quantiles: Tensor) -> Tensor:
        """The point forecast: the mean over the levels, which for a skewed outcome is nearer the mean."""
        return quantiles.mean(-1)

    def save_extra(self, folder: Path) -> None:
        """The tokenizer: names, scales, covariates and calendar."""
        self.tokenizer.save(folder)

    def load_extra(self, folder: Path) -> None:
        """Reads what ``save_extra`` wrote."""
        self.tokenizer = RowTokenizer.load(folder)

    def _features(self, level: Level, there: Tensor, read: Read) -> Tensor:
        parts = [level.z, there.to(level.z.dtype), level.shift, level.growth]
        if self.config.irregular:
            parts.append(torch.log1p(read.elapsed))
        return torch.cat([torch.stack(parts, -1), read.past, read.known], -1)


def seasons_before(origin: Origin, config: StreamConfig) -> Tensor:
    """Values of each step's phase in the last seasons, ``(rows, origins, horizon, n_seasons)``, as z is."""
    n, length = config.n_seasons, config.season_length
    z = torch.asinh(origin.recent[..., config.lookback - n * length :] / origin.deviation[..., None])
    phase = torch.arange(config.horizon, device=z.device) % length
    if not n:
        return z[..., None, :].expand(-1, -1, config.horizon, -1)
    return z.unflatten(-1, (n, length))[..., phase].transpose(-1, -2)


def linear_map(weight: Tensor, origin: Origin, ahead: Tensor, unit: Tensor, config: StreamConfig) -> Tensor:
    """What the linear map adds to the level, ``(rows, origins, horizon)``; weight ``(n_linear, horizon)``."""
    y = origin.recent @ weight[: config.lookback]
    if config.n_linear > config.lookback:
        beside = linear_covariates(origin, ahead, config)
        y = y + (beside @ weight[config.lookback :]) * unit[..., None]
    return y


def linear_covariates(origin: Origin, ahead: Tensor, config: StreamConfig) -> Tensor:
    """What the linear map sees of the future covariates, ``(rows, origins, n)``: no calendar."""
    steps = ahead[..., : config.n_future]
    if config.linear_sees_back:
        steps = torch.cat([origin.known, steps], -2)
    return steps.flatten(-2)


def _tail(x: Tensor, end: Tensor, n: int) -> Tensor:
    """The ``n`` entries before ``end + n`` of ``(rows, n + length, ...)``: what a row has just read."""
    index = end[:, None] + torch.arange(n, device=x.device)
    return x.gather(1, index.view(*index.shape, *(1,) * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))
