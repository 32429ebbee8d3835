"""What a forecaster is made of, and the frozen preset that every data set is trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

# Rows in the natural season of a frequency: a day of minutes or hours, a week of days, a year of the rest.
SEASONS = {"D": 7, "B": 5, "W": 52, "MS": 12, "ME": 12, "QS": 4, "QE": 4}
_SECONDS_A_DAY = {"h": 3600, "min": 60, "s": 1}
_LONGEST_SEASON = 1440
# Weights a step that a linear map may have: with more covariates it sees them ahead only, or not at all.
MOST_LINEAR = 4096
Output = Literal["quantiles", "normal", "student-t"]
VIEWS = ("window", "window-level", "anchor", "anchor-level")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network; the defaults are the frozen preset."""

    members: int = 4
    """Networks, begun and trained apart, whose forecasts are averaged; each costs as much as the first."""
    patch_length: int = 16
    """Rows in a token; the lookback is a multiple of it."""
    d_time: int = 64
    """Width of the stack that reads a series' patches over time."""
    time_blocks: list[str] = field(default_factory=lambda: ["mamba2"])
    """Kinds of its layers; empty reads the whole lookback with one linear map instead."""
    d_series: int = 128
    """Width of the stack that reads across series."""
    series_blocks: list[str] = field(default_factory=lambda: ["mamba2", "mlp"])
    """Kinds of its layers, both directions; [mlp] keeps the series apart."""
    d_state: int = 16
    """State size of the Mamba blocks."""
    head_dim: int = 16
    """Channels a head of the Mamba blocks."""
    dropout: float = 0.1
    """Share of activations that is dropped while training."""
    quantiles: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    """Levels that are forecast; the point forecast is their mean."""
    output: Output = "quantiles"
    """quantiles are learned each by itself; normal and student-t are fitted by likelihood, and say them."""
    use_season: bool = True
    """Learn a pattern a series and season, taken out before the network and put back behind it."""
    use_linear: bool = True
    """Add a linear map from lookback to horizon, begun at its least-squares solution."""
    use_phase: bool = True
    """Tell the network the season's phase."""
    views: list[str] = field(default_factory=lambda: ["window", "anchor-level", "anchor", "window-level"])
    """How the members read, in turn, for errors that differ: the window as it is, or what closed-form
    forecasts leave of it, ``anchor``, which they then correct; with ``-level`` they are also told the mean
    and deviation that the window is normalised by."""

    def __post_init__(self) -> None:
        check_least(self, 1, "members", "patch_length")
        if not self.quantiles or any(not 0 < level < 1 for level in self.quantiles):
            raise UsageError(f"quantiles: expected levels inside (0, 1), got {self.quantiles}")
        if self.output not in get_args(Output):
            raise UsageError(f"output: expected one of {', '.join(get_args(Output))}, got {self.output!r}")
        if not self.views or any(view not in VIEWS for view in self.views):
            raise UsageError(f"views: expected some of {', '.join(VIEWS)}, got {self.views}")

    def view(self, member: int) -> str:
        """How one member reads."""
        return self.views[member % len(self.views)]


@dataclass(frozen=True)
class ForecasterConfig:
    """A network and the data it is for: what ``config.json`` holds."""

    lookback: int
    """Rows that are read."""
    horizon: int
    """Rows that are forecast at once."""
    n_series: int
    """Series that it learns of."""
    season_length: int = 1
    """Rows in a season; 1 for none."""
    mix_series: bool = True
    """Read across the series; else each is forecast from itself alone."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The shape of the network."""

    def __post_init__(self) -> None:
        check_least(self, 1, "lookback", "horizon", "n_series", "season_length")
        if self.lookback % self.model.patch_length:
            raise UsageError(
                f"lookback: expected a multiple of the patch length {self.model.patch_length}, "
                f"got {self.lookback}"
            )


@dataclass(frozen=True)
class StreamModelConfig:
    """The shape of the network that reads row by row; the defaults are the frozen preset."""

    members: int = 3
    """Networks, begun and trained apart, whose forecasts are averaged; each costs as much as the first."""
    context: int = 24
    """Rows that a token is made of: its own and those before it."""
    d_model: int = 64
    """Width of the stack."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2", "mlp"])
    """Kinds of block in a layer; they must be causal, and recurrent for a state of fixed size."""
    n_layers: int = 2
    """Layers; with series read together each is followed by one across the series."""
    d_state: int = 32
    """State size of the Mamba blocks."""
    head_dim: int = 16
    """Channels a head of the Mamba blocks."""
    d_ahead: int = 32
    """Width at which each step ahead is joined with what is known of it."""
    dropout: float = 0.1
    """Share of activations that is dropped while training."""
    quantiles: list[float] = field(
        default_factory=lambda: [0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975]
    )
    """Levels that are forecast; the point forecast is their mean."""
    output: Output = "quantiles"
    """quantiles are learned each by itself; normal and student-t are fitted by likelihood, and say them."""
    use_linear: bool = True
    """Add a linear map of the last rows and of what is known ahead, begun at its least-squares solution."""

    def __post_init__(self) -> None:
        check_least(self, 1, "members", "context", "n_layers")
        if not self.quantiles or any(not 0 < level < 1 for level in self.quantiles):
            raise UsageError(f"quantiles: expected levels inside (0, 1), got {self.quantiles}")
        if self.output not in get_args(Output):
            raise UsageError(f"output: expected one of {', '.join(get_args(Output))}, got {self.output!r}")


@dataclass(frozen=True)
class StreamConfig:
    """A network that reads row by row and the data it is for: what ``config.json`` holds."""

    lookback: int
    """Rows that the linear map sees; the network remembers more."""
    horizon: int
    """Rows that are forecast at once."""
    n_series: int
    """Series that it learns of."""
    n_mixed: int = 1
    """Series that are read together; 1 reads each alone."""
    n_past: int = 0
    """Channels of covariates known up to now."""
    n_future: int = 0
    """Channels of covariates known ahead."""
    n_calendar: int = 0
    """Channels of the calendar."""
    n_static: int = 0
    """Channels of what never changes."""
    irregular: bool = False
    """Whether gaps between rows differ: they drive dt."""
    season_length: int = 1
    """Rows in a season; 1 for none."""
    imputes: bool = False
    """Read from both ends too, to say what a missing value was."""
    model: StreamModelConfig = field(default_factory=StreamModelConfig)
    """The shape of the network."""

    def __post_init__(self) -> None:
        check_least(self, 1, "lookback", "horizon", "n_series", "n_mixed", "season_length")

    @property
    def n_known(self) -> int:
        """Channels known ahead."""
        return self.n_future + self.n_calendar

    @property
    def n_seasons(self) -> int:
        """Whole seasons in the lookback: a step ahead sees the values of its own phase in each."""
        return min(16, self.lookback // self.season_length) if self.season_length > 1 else 0

    @property
    def memory(self) -> float:
        """Steps over which the running level forgets: some seasons, neither a handful of rows nor years."""
        return float(min(512, max(32, 4 * self.season_length)))

    @property
    def linear_sees_back(self) -> bool:
        """Whether the linear map sees covariates of the lookback too, not of the steps ahead alone."""
        return self.lookback + self.n_future * (self.lookback + self.horizon) <= MOST_LINEAR

    @property
    def n_linear(self) -> int:
        """Weights of the linear map for each step."""
        if self.linear_sees_back:
            return self.lookback + self.n_future * (self.lookback + self.horizon)
        ahead = self.n_future * self.horizon
        return self.lookback + (ahead if self.lookback + ahead <= MOST_LINEAR else 0)


@dataclass(frozen=True)
class LossConfig:
    """What training minimises."""

    step_weight_power: float = 0.5
    """Step h of the horizon weighs h to the minus this: near steps carry more signal. 0 weighs all alike."""
    solo_share: float = 0.1
    """Share of training steps that read each series alone and unnamed, as a series unknown so far is."""


@dataclass(frozen=True)
class StreamLossConfig:
    """What training minimises, and on what, for the network that reads row by row."""

    window: int = 512
    """Rows that are read at once in training."""
    origins: int = 16
    """Rows of each window that are forecast from, chosen at random."""
    step_weight_power: float = 0.0
    """Step h of the horizon weighs h to the minus this. 0 weighs all alike."""
    solo_share: float = 0.1
    """Share of windows that are read as of a series unknown so far."""
    season_weight: float = 0.0
    """A series weighs its mean seasonal step to the minus this: with 1 the loss is MASE's."""
    validation_stride: int = 1
    """Rows from one forecast to the next in validation."""
    validation_series: int = 512
    """Series that validation reads at most."""
    mask_share: float = 0.0
    """Share of windows in which values are hidden, singly or in blocks, to learn what missing ones mean."""
    impute_weight: float = 0.0
    """What saying the hidden values counts beside forecasting; more than 0 makes a model that imputes."""

    def __post_init__(self) -> None:
        check_shares(self, "mask_share")
        check_least(self, 0, "impute_weight")
        if self.impute_weight and not self.mask_share:
            raise UsageError("impute_weight: imputing is learned from hidden values; set mask_share too")


PRESET_MODEL = ModelConfig()
PRESET_STREAM = StreamModelConfig()
PRESET_STREAM_LOSS = StreamLossConfig()
PRESET_LOSS = LossConfig()
# Chosen by validation error alone, over ETTh1, ETTm1 and Weather together; nothing is tuned for one set.
PRESET_TRAIN = TrainConfig(
    max_epochs=4,
    batch_size=128,
    weight_decay=0.05,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    ema_decay=0.995,
    patience=3,
    precision="32-true",
)
PRESET_STREAM_TRAIN = dataclasses.replace(PRESET_TRAIN, max_epochs=10, batch_size=32)
# Small tables get smaller batches, for an epoch of this many steps, and more epochs, for so many in all.
LEAST_EPOCH = 32
LEAST_STEPS = 160


def season_of(frequency: str) -> int:
    """Rows in the natural season of a frequency: 24 for ``h``, 96 for ``15min``, 7 for ``D``, 12 for ``MS``.

    1, no season, where none is natural or it would be longer than 1440 rows.
    """
    name = frequency.partition("-")[0]
    digits = "".join(letter for letter in name if letter.isdigit())
    unit, n = name[len(digits) :], int(digits or 1)
    if unit in _SECONDS_A_DAY:
        rows, rest = divmod(86400, _SECONDS_A_DAY[unit] * n)
        return rows if rest == 0 and 1 < rows <= _LONGEST_SEASON else 1
    season, rest = divmod(SEASONS.get(unit, 1), n)
    return season if season > 1 and rest == 0 else 1


# Steps after which the network that reads row by row has learned what a large table has to say.
MOST_STEPS = 3000
