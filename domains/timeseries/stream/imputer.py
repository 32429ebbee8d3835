"""The network part of imputation: what a value was, from the rows before it and the rows after it.

r_t = value - straight line between the observed neighbours of row t, itself left out   (in deviations)
hidden state of t read forwards, hidden state of t read from the end, r of the rows around t
-> one vector a row [-> Mamba-2 both ways across the series of the row, which know r where they are observed]
-> quantiles of the value about the linear estimate from the values around it, in its spread (neighbours.py)

The layer that reads out begins at zero, so that training begins at the linear estimate; before that is fitted
it is the straight line itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.heads import QuantileHead
from mambakit.domains.timeseries.config import StreamConfig
from mambakit.domains.timeseries.stream.neighbours import Guess, scale_of
from mambakit.domains.timeseries.stream.parts import Passed, Read, backbone_config
from mambakit.domains.timeseries.stream.running import Level

if TYPE_CHECKING:
    from mambakit.domains.timeseries.stream.network import StreamForecaster

# Where there is no linear estimate quantiles begin with this spread, in the series' running deviations.
_FIRST_SPREAD = 0.3
_LEAST_SPREAD = 1e-4
_FARTHEST = 8.0
_N_FACTS = 12


class Between(NamedTuple):
    """The observed neighbours of every row, the row itself left out; each ``(rows, length)``.

    Attributes:
        base: On the straight line between them; the nearer end's value outside, zero where there is none.
        left, right: Their values; the base where there is none.
        before, after: Steps to them; zero where there is none.
        is_left, is_right: Whether there are.
    """

    base: Tensor
    left: Tensor
    right: Tensor
    before: Tensor
    after: Tensor
    is_left: Tensor
    is_right: Tensor


def between(values: Tensor, elapsed: Tensor) -> Between:
    """The observed neighbours of every row.

    Args:
        values: ``(rows, length)``, NaN where missing.
        elapsed: ``(rows, length)``, steps since the row before.
    """
    length = values.shape[1]
    there = values.isfinite()
    at = torch.arange(length, device=values.device)
    clock = elapsed.cumsum(1)
    first = values.new_full((len(values), 1), -1, dtype=torch.int64)
    last = torch.where(there, at, -1).cummax(1).values
    left = torch.cat([first, last[:, :-1]], 1)
    last = torch.where(there, at, length).flip(1).cummin(1).values.flip(1)
    right = torch.cat([last[:, 1:], first + length + 1], 1)
    is_left, is_right = left >= 0, right < length
    left, right = left.clamp(min=0), right.clamp(max=length - 1)
    before = torch.where(is_left, clock - clock.gather(1, left), 0.0)
    after = torch.where(is_right, clock.gather(1, right) - clock, 0.0)
    before_value, after_value = values.gather(1, left), values.gather(1, right)
    share = before / (before + after).clamp(min=1e-9)
    base = torch.where(
        is_left & is_right,
        before_value + (after_value - before_value) * share,
        torch.where(is_left, before_value, torch.where(is_right, after_value, 0.0)),
    )
    before_value = torch.where(is_left, before_value, base)
    return Between(
        base, before_value, torch.where(is_right, after_value, base), before, after, is_left, is_right
    )


def turned(read: Read, after: Tensor | None = None) -> Read:
    """A piece from its last row to its first; a row's gap is now the gap to the row read before it.

    Args:
        read: The piece.
        after: Steps from the last row to the row after the piece, ``(rows,)``; 1 by default, as in a series.
    """
    first = read.elapsed.new_ones(len(read.elapsed)) if after is None else after
    elapsed = torch.cat([first[:, None], read.elapsed[:, 1:].flip(1)], 1)
    return read._replace(
        values=read.values.flip(1), past=read.past.flip(1), known=read.known.flip(1), elapsed=elapsed
    )


def read_both_ways(
    model: StreamForecaster, read: Read, forwards: Passed | None = None, guess: Guess | None = None
) -> list[Tensor]:
    """What each member says of every value of a piece, ``(rows, length, n_quantiles)``.

    Args:
        model: A network that imputes.
        read: The piece, as if nothing came before or after it.
        forwards: What reading it found, if it was read before.
        guess: The linear estimate, if it was made before.
    """
    forwards = forwards or model.walk(read)
    backwards = model.walk(turned(read), from_end=True)
    line, around = between(read.values, read.elapsed), near(read.values, reach_of(model.config))
    return fill_from(model, forwards, backwards, around, line, guess or guessed(model, read))


def guessed(model: StreamForecaster, read: Read) -> Guess:
    """The linear estimate of every value of a piece."""
    assert model.neighbours is not None
    base = between(read.values, read.elapsed).base
    scale = scale_of(read.values, read.series, model.unknown)
    return model.neighbours(read.values, base, scale)


def fill_from(
    model: StreamForecaster, forwards: Passed, backwards: Passed, around: Tensor, line: Between, guess: Guess
) -> list[Tensor]:
    """What each member says of every value, ``(rows, length, n_quantiles)``.

    Args:
        model: A network that imputes.
        forwards: What reading the piece found.
        backwards: What reading it from its end found, in that order.
        around, line: From ``near`` and ``between``.
        guess: From ``model.neighbours``.
    """
    levels = forwards.level, Level(*(one.flip(1) for one in backwards.level))
    said = []
    for member, one, other in zip(model.members, forwards.hidden, backwards.hidden, strict=True):
        assert member.imputer is not None
        said.append(
            member.imputer(member.dropout(one), member.dropout(other.flip(1)), levels, around, line, guess)
        )
    return said


class ImputationHead(nn.Module):
    """Quantiles of each row's value from both directions' hidden states.

    Args:
        config: The network and the data it is for.
    """

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        model = config.model
        self.n_mixed = config.n_mixed
        self.reach = reach_of(config)
        self.from_end = nn.Parameter(torch.randn(model.d_model) * 0.02)
        self.from_end._no_weight_decay = True  # type: ignore[attr-defined]
        self.join = nn.Linear(2 * model.d_model + _N_FACTS + 2 * (2 * self.reach + 1), model.d_model)
        if config.n_mixed > 1:
            made = backbone_config(config, both_ways=True)
        else:
            made = BackboneConfig(d_model=model.d_model, layers=["mlp"], dropout=model.dropout)
        self.mix = Backbone(made)
        self.head = QuantileHead(d_model=model.d_model, quantiles=sorted(model.quantiles))
        self._begin_at_the_line()

    def forward(
        self,
        forwards: Tensor,
        backwards: Tensor,
        levels: tuple[Level, Level],
        near: Tensor,
        line: Between,
        guess: Guess,
    ) -> Tensor:
        """``(rows, length, n_quantiles)`` in the series' scaled units, increasing along the last dimension.

        Args:
            forwards, backwards: Hidden states of each direction, both in the order of the rows,
                ``(rows, length, d_model)``.
            levels: Running levels of each direction, in the order of the rows.
            near: Values about each row, ``(rows, length, 2 * reach + 1)``, NaN where missing.
            line: The neighbours of each row.
            guess: The linear estimate.
        """
        deviation = torch.maximum(levels[0].deviation, levels[1].deviation)
        fitted = guess.spread > 0
        spread = torch.where(fitted, guess.spread.clamp(min=_LEAST_SPREAD), _FIRST_SPREAD * deviation)
        around = (near - line.base[..., None]) / deviation[..., None]
        there = around.isfinite()
        facts = [
            line.is_left.to(deviation),
            line.is_right.to(deviation),
            torch.log1p(line.before),
            torch.log1p(line.after),
            torch.asinh(guess.shift / deviation),
            (spread / deviation).log().clamp(-_FARTHEST, _FARTHEST),
            torch.asinh((line.left - line.base) / deviation),
            torch.asinh((line.right - line.base) / deviation),
            *(torch.asinh((one.mean - line.base) / deviation) for one in levels),
            *((one.deviation / deviation).log().clamp(min=-_FARTHEST) for one in levels),
        ]
        parts = [forwards, backwards, torch.stack(facts, -1)]
        parts += [torch.where(there, torch.asinh(around), 0.0), there.to(deviation)]
        x = F.silu(self.join(torch.cat(parts, -1)))
        if self.n_mixed > 1:
            at_once = x.unflatten(0, (-1, self.n_mixed)).transpose(1, 2)  # [b, l, c, d]
            mixed, _ = self.mix(at_once.flatten(0, 1))
            y = mixed.view(at_once.shape).transpose(1, 2).flatten(0, 1)
        else:
            y, _ = self.mix(x)
        return self.head(x + y)[..., 0, :] * spread[..., None] + (line.base + guess.shift)[..., None]

    @torch.no_grad()
    def _begin_at_the_line(self) -> None:
        self.head.proj.weight.zero_()
        self.head.begin_at_normal(1.0)


def reach_of(config: StreamConfig) -> int:
    """Rows on each side of a row whose values it sees directly."""
    return config.model.context // 2


def near(values: Tensor, reach: int) -> Tensor:
    """Values about each row, ``(rows, length, 2 * reach + 1)``; missing beyond the ends."""
    return F.pad(values, (reach, reach), value=torch.nan).unfold(1, 2 * reach + 1, 1)
