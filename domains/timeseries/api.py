"""A forecaster for data frames, with neuralforecast's argument names: fit, predict, cross_validation.

from mambakit.domains.timeseries.api import Forecaster

forecaster = Forecaster(h=24, freq="h", futr_exog_list=["load"], stat_exog_list=["zone"])
forecaster.fit(df, static_df=static, val_size=168)
tomorrow = forecaster.predict(futr_df=futr, level=[80, 95])          # unique_id, ds, Mamba, Mamba-lo-80, ...
past = forecaster.cross_validation(df, n_windows=5, refit=False)
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.timeseries import forecasting
from mambakit.domains.timeseries.calibration import calibrate_stream
from mambakit.domains.timeseries.config import (
    PRESET_STREAM,
    PRESET_STREAM_LOSS,
    PRESET_STREAM_TRAIN,
    StreamLossConfig,
    StreamModelConfig,
    season_of,
)
from mambakit.domains.timeseries.model import load_stream
from mambakit.domains.timeseries.stream.data import Bounds
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.training import lay_out, train_stream
from mambakit.domains.timeseries.tables.series import Columns, Series, Table
from mambakit.domains.timeseries.tables.table import read_table

NAME = "Mamba"
_LAST_SHARE = 8  # an eighth of each series validates where nobody says how much


class Forecaster:
    """One global model of all series of a long frame, which may lack values, be short, and differ in length.

    Args:
        h: Rows to forecast.
        freq: A pandas offset alias or an integer step; None finds it in the frame.
        input_size: Rows that the linear part reads, the network remembers more; by default seven seasons.
        hist_exog_list, futr_exog_list, stat_exog_list: Covariates known up to now, known ahead, and static.
        season_length: Rows in a season; by default the natural one of the frequency.
        model, loss, train: The network and its training.
        max_steps, learning_rate, batch_size, random_seed: Go over ``train``.

    Raises:
        UsageError: On an option that can't work.
    """

    def __init__(
        self,
        h: int,
        freq: str | int | None = None,
        *,
        input_size: int | None = None,
        hist_exog_list: Sequence[str] = (),
        futr_exog_list: Sequence[str] = (),
        stat_exog_list: Sequence[str] = (),
        season_length: int | None = None,
        max_steps: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        random_seed: int | None = None,
        model: StreamModelConfig = PRESET_STREAM,
        loss: StreamLossConfig = PRESET_STREAM_LOSS,
        train: TrainConfig = PRESET_STREAM_TRAIN,
    ) -> None:
        if h < 1 or (input_size is not None and input_size < 1):
            raise UsageError(f"h, input_size: expected at least 1, got {h} and {input_size}")
        self.h, self.freq, self.input_size, self.season_length = h, freq, input_size, season_length
        self.exog = {
            "past": tuple(hist_exog_list),
            "future": tuple(futr_exog_list),
            "static": tuple(stat_exog_list),
        }
        self.model_config, self.loss_config = model, loss
        self.train_config = dataclasses.replace(
            train,
            max_steps=train.max_steps if max_steps is None else max_steps,
            lr=train.lr if learning_rate is None else learning_rate,
            batch_size=train.batch_size if batch_size is None else batch_size,
            seed=train.seed if random_seed is None else random_seed,
        )
        self._model: StreamForecaster | None = None
        self._table: Table | None = None

    @property
    def model(self) -> StreamForecaster:
        """The trained network.

        Raises:
            UsageError: Before ``fit`` or ``load``.
        """
        if self._model is None:
            raise UsageError("the forecaster is not fitted yet: call fit(df) first, or Forecaster.load(path)")
        return self._model

    @property
    def left_out(self) -> dict[str, str]:
        """Series of the last frame that could not be used, and why."""
        return {} if self._table is None else {one.unique_id: one.reason for one in self._table.left_out}

    def fit(
        self,
        df: pd.DataFrame,
        static_df: pd.DataFrame | None = None,
        val_size: int | None = None,
        *,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> Self:
        """Trains on all but the last ``val_size`` rows of each series, which choose the weights.

        Args:
            df: Rows ``unique_id, ds, y`` and the covariates, in any order.
            static_df: A row a series.
            val_size: Rows that validate; by default an eighth of each series.
            id_col, time_col, target_col: Other names of the columns.

        Raises:
            DataError: If no series of the frame can be used.
        """
        self.columns = self._columns(id_col, time_col, target_col, static_df)
        table = read_table(df, columns=self.columns, static_table=static_df, name="df")
        self._static = static_df
        self._model = self._fitted(table.series, val_size)
        self._table = table
        return self

    def predict(
        self,
        df: pd.DataFrame | None = None,
        *,
        h: int | None = None,
        futr_df: pd.DataFrame | None = None,
        static_df: pd.DataFrame | None = None,
        level: Sequence[float] = (),
        quantiles: bool = False,
    ) -> pd.DataFrame:
        """Forecasts after the last row of each series of ``df``, or of the frame of ``fit``.

        Args:
            df: Histories, of other series too.
            h: Rows to forecast, more than ``h`` of the constructor by rolling on.
            futr_df: ``unique_id, ds`` and the covariates of those rows, if the model has such.
            static_df: A row a series; that of ``fit`` by default.
            level: Calibrated central intervals in per cent: columns ``Mamba-lo-80``, ``Mamba-hi-80``.
            quantiles: A column for each level that the network forecasts, ``Mamba-q10``.

        Returns:
            ``unique_id, ds, Mamba`` and what was asked for.

        Raises:
            DataError: If a series lacks what the model needs; those that can't be read are in ``left_out``.
        """
        model = self.model
        if df is None and self._table is None:
            raise UsageError("predict: a loaded forecaster has no frame of its own; give it df")
        if df is not None or futr_df is not None:
            if df is None:
                df = self._frame
            static = static_df if static_df is not None else self._static
            self._table = read_table(
                df, columns=self.columns, static_table=static, future_table=futr_df, name="df"
            )
        assert self._table is not None
        made = forecasting.forecast(model, self._table.series, h or self.h)
        if level:
            made = forecasting.with_intervals(model, made, level)
        frame = forecasting.to_frame(made)
        unwanted = [] if quantiles else [name for name in frame.columns if name.startswith("q")]
        frame = frame.drop(columns=unwanted).rename(columns={"y_hat": NAME, **_renamed(frame.columns)})
        return frame.rename(columns={"unique_id": self.columns.id, "ds": self.columns.time})

    def cross_validation(
        self,
        df: pd.DataFrame,
        static_df: pd.DataFrame | None = None,
        *,
        n_windows: int = 1,
        step_size: int | None = None,
        refit: bool | int = False,
        val_size: int | None = None,
        level: Sequence[float] = (),
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> pd.DataFrame:
        """Forecasts from ``n_windows`` past origins, each by a model that has not seen what it forecasts.

        Args:
            df, static_df, id_col, time_col, target_col: As in ``fit``.
            n_windows: Origins.
            step_size: Rows from one to the next; ``h`` by default.
            refit: False trains once, before the first origin; True at each; a number at every so many.
            val_size: As in ``fit``.
            level: As in ``predict``.

        Returns:
            ``unique_id, ds, cutoff, y, Mamba`` and the intervals.
        """
        from mambakit.domains.timeseries.backtesting.backtest import backtest

        self.columns = self._columns(id_col, time_col, target_col, static_df)
        table = read_table(df, columns=self.columns, static_table=static_df, name="df")
        result = backtest(
            lambda histories: self._fitted(histories, val_size),
            table.series,
            horizon=self.h,
            windows=n_windows,
            step_size=step_size,
            refit=refit,
            least=2,
            season_length=self._season(table.series),
            baselines=(),
            levels=level,
        )
        frame = result.table.rename(columns={"mambakit": NAME})
        frame.columns = [name.replace("mambakit-", f"{NAME}-") for name in frame.columns]
        return frame.rename(columns={"unique_id": id_col, "ds": time_col, "y": target_col})

    def embed(
        self,
        df: pd.DataFrame | None = None,
        *,
        every: int | None = None,
        pool: str = "last",
        unnamed: bool = False,
        static_df: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """What the network has made of each series after its last row, as numbers: see ``embedding.embed``.

        Args:
            df: Histories, of other series too; the frame of ``fit`` by default.
            every: One after every so many rows, counted from the last.
            pool: ``"last"``, or ``"mean"`` over the rows.
            unnamed: Read each series as one unknown so far, whatever its name.
            static_df: A row a series; that of ``fit`` by default.

        Returns:
            ``unique_id, ds, e0, e1, ...``.

        Raises:
            DataError: If a series lacks what the model needs; those that can't be read are in ``left_out``.
        """
        from mambakit.domains.timeseries.embedding import embed

        model = self.model
        if df is not None:
            static = static_df if static_df is not None else self._static
            self._table = read_table(df, columns=self.columns, static_table=static, name="df")
        if self._table is None:
            raise UsageError("embed: a loaded forecaster has no frame of its own; give it df")
        frame = embed(model, self._table.series, every=every, pool=pool, unnamed=unnamed)
        return frame.rename(columns={"unique_id": self.columns.id, "ds": self.columns.time})

    def save(self, path: Path | str) -> None:
        """Write the model as a hub folder, which the command line reads too."""
        self.model.save_pretrained(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A forecaster of a saved model.

        Raises:
            DataError: If the folder holds none.
        """
        model = load_stream(path, verb="Forecaster")
        known = model.tokenizer
        made = cls(
            model.config.horizon,
            known.frequency or None,
            input_size=model.config.lookback,
            hist_exog_list=known.past.names,
            futr_exog_list=known.future.names,
            stat_exog_list=known.static.names,
            season_length=model.config.season_length,
            model=model.config.model,
        )
        made._model, made._static = model, None
        made.columns = made._columns("unique_id", "ds", "y", None)
        return made

    @property
    def _frame(self) -> pd.DataFrame:
        """The frame of ``fit`` again, from its series."""
        assert self._table is not None
        names = self.columns
        frames = []
        for one in self._table.series:
            frame = pd.DataFrame({names.id: one.unique_id, names.time: one.stamps, names.target: one.values})
            for part in (one.past, one.future):
                if part is not None:
                    frame = pd.concat([frame, part.iloc[: len(frame)].reset_index(drop=True)], axis=1)
            frames.append(frame.assign(**dict(one.static)) if self._static is None else frame)
        return pd.concat(frames, ignore_index=True)

    def _columns(self, id_col: str, time_col: str, target_col: str, static: pd.DataFrame | None) -> Columns:
        exog = {**self.exog, "static": ()} if static is not None else self.exog
        return Columns(id=id_col, time=time_col, target=target_col, **exog)

    def _season(self, series: Sequence[Series]) -> int:
        return self.season_length or (season_of(series[0].frequency) if series[0].frequency else 1)

    def _fitted(self, series: Sequence[Series], val_size: int | None) -> StreamForecaster:
        if self.freq is not None and str(self.freq) != series[0].frequency:
            raise DataError(
                f"freq: {self.freq!r} was said, but the frame has a step of {series[0].frequency!r}"
            )
        bounds: list[Bounds] = []
        for one in series:
            n = len(one.values)
            held = min(n - 1, max(1, n // _LAST_SHARE) if val_size is None else val_size)
            bounds.append((n - held, n, n))
        season = self._season(series)
        lookback = self.input_size or max(2, min(7 * season if season > 1 else 96, 336))
        laid_out = lay_out(series, bounds, season)
        options: dict[str, Any] = {
            "laid_out": laid_out,
            "model_config": self.model_config,
            "loss_config": self.loss_config,
            "train_config": self.train_config,
        }
        with tempfile.TemporaryDirectory() as folder:
            model, _ = train_stream(
                series, bounds, RunFolder(Path(folder) / "run"), lookback=lookback, horizon=self.h,
                season_length=season, mixed=False, **options,
            )  # fmt: skip
        calibrate_stream(model, laid_out.store)
        return model


def _renamed(columns: Sequence[str]) -> dict[str, str]:
    return {name: f"{NAME}-{name}" for name in columns if name.startswith(("q", "lo-", "hi-"))}
