"""Series that grow row by row: a state of fixed size for each, and forecasts at any moment.

live = LiveSeries(model)
for row in rows:                       # unique_id, ds, y and covariates
    live.update(row)
    live.forecast(horizon=24)          # what a batch forecast of all rows so far would say
live.save("live")                      # and go on tomorrow: LiveSeries.load("live", model)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from mambakit.core.adapters import SampleError
from mambakit.core.errors import DataError
from mambakit.core.folders import read_json_object, replaced
from mambakit.core.state import State
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.stream.forecasting import made_forecast, read_all, roll
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import Begun, Rows
from mambakit.domains.timeseries.tables.stamps import offset_of
from mambakit.domains.timeseries.tables.table import Series, next_stamps

_STATE_FILE, _SERIES_FILE = "stream.safetensors", "stream.json"
# A longer gap is an error: of what was read before it nothing would be left.
_MOST_SKIPPED = 100_000


@dataclass
class _Place:
    """Where one series stands: its state, its last stamp, and what its values are taken relative to."""

    state: State | None = None
    last: Any = None
    n_rows: int = 0
    begun: Begun = field(default_factory=Begun)
    constant: float | None = None
    static: dict[str, Any] = field(default_factory=dict)


class LiveSeries:
    """Any number of series under one model, each with a state of its own.

    Args:
        model: The forecaster, in evaluation mode. One that reads several series together wants a row of each
            at every stamp.
    """

    def __init__(self, model: StreamForecaster) -> None:
        self.model = model
        self._places: dict[str, _Place] = {}

    @property
    def ids(self) -> list[str]:
        """The series seen so far."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of all states: they do not grow with the rows read."""
        return sum(place.state.nbytes for place in self._places.values() if place.state is not None)

    def n_rows(self, unique_id: str) -> int:
        """Rows read of a series, skipped ones among them."""
        return self._place(unique_id).n_rows

    def last(self, unique_id: str) -> Any:
        """The last stamp of a series."""
        return self._place(unique_id).last

    def update(self, rows: pd.DataFrame | Mapping[str, Any]) -> list[str]:
        """Read the next row of a series, or several rows in order of time.

        Rows that a regular series skips are read as missing. A missing ``y`` is NaN or None. If a row is
        refused, nothing of the call has been read.

        Args:
            rows: ``ds``, ``y`` and the model's covariates, for more than one series ``unique_id``.

        Returns:
            The names of the series.

        Raises:
            DataError: On a stamp that is not later than the last or off a regular series' step, a value that
                is no number, or a covariate that is missing.
        """
        frame = pd.DataFrame([dict(rows)]) if isinstance(rows, Mapping) else rows
        for name in ("ds", "y"):
            if name not in frame.columns:
                raise DataError(
                    f"a row needs the column {name!r}; there are {', '.join(map(str, frame.columns))}"
                )
        if "unique_id" in frame.columns:
            parts = {
                str(name): part for name, part in frame.groupby(frame["unique_id"].astype(str), sort=False)
            }
        else:
            parts = {self._only(): frame}
        pieces: dict[str, tuple[_Place, Series, Rows]] = {}
        for name, part in parts.items():
            place = replace(self._places.get(name, _Place()))
            pieces[name] = (place, *self._piece(name, place, part))
        for names in self._batches(pieces):
            places = [pieces[name][0] for name in names]
            begun = [place.state or self.model.init_state(1, self._device) for place in places]
            state = read_all(self.model, [pieces[name][2] for name in names], State.cat(begun))
            for i, name in enumerate(names):
                place, one, _ = pieces[name]
                place.state = state.index_select([i])
                place.last, place.n_rows = one.stamps[-1], place.n_rows + len(one.values)
                self._places[name] = place
        return list(pieces)

    def forecast(
        self,
        horizon: int | None = None,
        *,
        ids: Sequence[str] | None = None,
        future: pd.DataFrame | None = None,
    ) -> list[Forecast]:
        """Forecasts after the last row of each series: what a batch forecast of all its rows would say.

        Args:
            horizon: Steps; the trained horizon by default, more by rolling on.
            ids: Series; all by default.
            future: ``ds`` and the covariates known ahead of the next ``horizon`` rows, if the model has such;
                for more than one series ``unique_id``.

        Raises:
            DataError: On a series without a row, or covariates that are missing.
        """
        horizon = horizon or self.model.config.horizon
        beyond = -horizon % self.model.config.horizon
        ready: dict[str, tuple[_Place, Series, Rows]] = {}
        for name in self._places if ids is None else map(str, ids):
            place = self._place(name)
            ready[name] = (place, *self._after(name, place, horizon, beyond, future))
        made: dict[str, Forecast] = {}
        groups = (
            [list(self.model.tokenizer.ids)] if self.model.config.n_mixed > 1 else [[name] for name in ready]
        )
        for names in groups:
            state = State.cat(self._place(name).state for name in names)  # type: ignore[misc]
            quantiles, _ = roll(self.model, state, [ready[name][2] for name in names], horizon)
            for name, scaled in zip(names, quantiles, strict=True):
                place, sample, rows = ready[name]
                values = np.array([] if place.constant is None else [place.constant])
                made[name] = made_forecast(self.model, replace(sample, values=values), rows, scaled)
        return [made[name] for name in ready]

    def embedding(self, unique_id: str) -> np.ndarray:
        """What ``embed`` says of the rows so far, ``(members * d_model,)``: a part of the state.

        Raises:
            DataError: On a series without a row.
        """
        state = self._place(unique_id).state
        assert state is not None
        hidden = [state[f"hidden{i}"][0] for i in range(len(self.model.members))]
        return torch.cat(hidden).cpu().numpy()

    def save(self, folder: Path | str) -> None:
        """Write all states, and where each series stands, into a folder."""
        places = {
            name: {
                "last": str(place.last) if isinstance(place.last, pd.Timestamp) else int(place.last),
                "n_rows": place.n_rows,
                "offset": place.begun.offset,
                "unit": place.begun.unit,
                "constant": place.constant,
                "static": {
                    key: one.item() if hasattr(one, "item") else one for key, one in place.static.items()
                },
            }
            for name, place in self._places.items()
        }
        with replaced(Path(folder), {_STATE_FILE: 0, _SERIES_FILE: 2}) as staging:
            content = {"fingerprint": _fingerprint(self.model), "series": places}
            (staging / _SERIES_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
            if places:
                State.cat(self._place(name).state for name in places).save(staging / _STATE_FILE)  # type: ignore[misc]

    @classmethod
    def load(cls, folder: Path | str, model: StreamForecaster) -> Self:
        """The stream that ``save`` wrote, to go on with the same model.

        Raises:
            DataError: If the folder holds no stream, or one of another model.
        """
        live, path = cls(model), Path(folder) / _SERIES_FILE
        if not path.is_file():
            raise DataError(f"{os.fspath(folder)} holds no stream: {_SERIES_FILE} is missing")
        content = read_json_object(path)
        if content.get("fingerprint") != _fingerprint(model):
            raise DataError(f"{os.fspath(folder)} holds the stream of another model; begin a new one")
        if not content["series"]:
            return live
        states = State.load(Path(folder) / _STATE_FILE, live._device)
        for i, (name, one) in enumerate(content["series"].items()):
            last = pd.Timestamp(one["last"]) if isinstance(one["last"], str) else int(one["last"])
            begun = Begun(one["offset"], one.get("unit", 1.0))  # which an earlier version took for all
            place = _Place(
                states.index_select([i]), last, one["n_rows"], begun, one["constant"], one["static"]
            )
            live._places[name] = place
        return live

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    @property
    def _frequency(self) -> str:
        return "" if self.model.config.irregular else self.model.tokenizer.frequency

    def _only(self) -> str:
        """The name of the series where a row doesn't say it."""
        if len(self._places) > 1:
            raise DataError(f"a row needs unique_id: there are {len(self._places)} series")
        known = list(self.model.tokenizer.ids)
        return next(iter(self._places), known[0] if len(known) == 1 else "y")

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise DataError(f"series {name!r} has no row yet; seen are {', '.join(self.ids[:5]) or 'none'}")
        return self._places[name]

    def _stamps(self, stamps: Any) -> pd.Index:
        return pd.DatetimeIndex(stamps) if isinstance(stamps[0], pd.Timestamp) else pd.Index(stamps)

    def _piece(self, name: str, place: _Place, part: pd.DataFrame) -> tuple[Series, Rows]:
        """The new rows of one series on its grid, encoded; ``place`` learns offset and statics."""
        tokenizer, where = self.model.tokenizer, f"series {name!r}"
        stamps, values = _stamps(part["ds"], where), _values(part["y"], where)
        before = [place.last] if place.last is not None else []
        order = self._stamps([*before, *stamps])
        if not order.is_monotonic_increasing or order.has_duplicates:
            raise DataError(
                f"{where}: rows come in order of time, but {stamps[0]} does not follow {order[0]}"
            )
        if place.last is None and tokenizer.static.names:
            absent = [one for one in tokenizer.static.names if one not in part.columns]
            if absent:
                raise DataError(f"{where}: its first row needs {absent[0]!r}, which never changes")
            place.static = {one: part[one].iloc[0] for one in tokenizer.static.names}
        covariates = part.drop(columns=[c for c in ("unique_id", "ds", "y") if c in part.columns])
        covariates.index = stamps
        if self._frequency:
            grid = self._grid(where, place, stamps)
            values = pd.Series(values, stamps).reindex(grid).to_numpy()
            covariates, stamps = covariates.reindex(grid), grid
        beside = covariates.reset_index(drop=True)
        one = Series(name, stamps, values, self._frequency, beside, beside, place.static)
        try:
            rows = tokenizer.rows(one, begun=place.begun)
        except SampleError as error:
            raise DataError(error.reason) from None
        there = values[np.isfinite(values)]
        if len(there):
            first = float(there[0]) if place.begun.offset is None else place.constant
            place.constant = first if first is not None and bool((there == first).all()) else None
        place.begun = place.begun.after(values)
        if not self._frequency and place.last is not None:
            rows.elapsed[0] = tokenizer.elapsed(order[:2], "")[1]
        return one, rows

    def _grid(self, where: str, place: _Place, stamps: pd.Index) -> pd.Index:
        """The stamps from the last one's successor on; skipped ones are in it."""
        begin = stamps[0] if place.last is None else next_stamps(place.last, self._frequency, 1)[0]
        if isinstance(stamps, pd.DatetimeIndex):
            grid: pd.Index = pd.date_range(begin, stamps[-1], freq=offset_of(self._frequency))
        else:
            grid = pd.RangeIndex(int(begin), int(stamps[-1]) + 1, int(self._frequency))
        stray = ~stamps.isin(grid)
        if stray.any():
            raise DataError(
                f"{where}: {stamps[int(np.flatnonzero(stray)[0])]} is not on its step of {self._frequency!r} "
                f"after {place.last if place.last is not None else stamps[0]}"
            )
        if len(grid) - len(stamps) > _MOST_SKIPPED:
            raise DataError(
                f"{where}: {len(grid) - len(stamps)} rows are skipped before {stamps[-1]}; begin it anew"
            )
        return grid

    def _batches(self, pieces: Mapping[str, tuple[_Place, Series, Rows]]) -> list[list[str]]:
        """Series with as many new rows together; all of them for a model that reads them so."""
        if self.model.config.n_mixed > 1:
            ids = list(self.model.tokenizer.ids)
            same = set(ids) == set(pieces)
            if not same or any(not pieces[name][1].stamps.equals(pieces[ids[0]][1].stamps) for name in ids):
                raise DataError(
                    f"the model reads {len(ids)} series together: it needs a row of each at every stamp"
                )
            return [ids]
        by_length: dict[int, list[str]] = {}
        for name, (_, one, _) in pieces.items():
            by_length.setdefault(len(one.values), []).append(name)
        return list(by_length.values())

    def _after(
        self, name: str, place: _Place, horizon: int, beyond: int, future: pd.DataFrame | None
    ) -> tuple[Series, Rows]:
        """A series that ends with its last row, and the rows after it."""
        tokenizer, where = self.model.tokenizer, f"series {name!r}"
        last = self._stamps([place.last])
        one = Series(name, last, np.array([np.nan]), self._frequency, static=place.static)
        wanted = tokenizer.future.names
        known = None
        if wanted:
            stamps = tokenizer.next_stamps(one, horizon)
            if future is None:
                raise DataError(f"{where}: the model wants {', '.join(wanted)} of the {horizon} rows ahead")
            own = future[future["unique_id"].astype(str) == name] if "unique_id" in future.columns else future
            own = own.set_index(_stamps(own["ds"], f"{where}, future"))
            late = ~stamps.isin(own.index)
            if late.any():
                first = stamps[int(np.flatnonzero(late)[0])]
                raise DataError(f"{where}: covariates of {first} are missing ahead")
            known = own.reindex(last.append(stamps)).reset_index(drop=True)
        past = pd.DataFrame({column: [np.nan] for column in tokenizer.past.names})
        one = replace(one, past=past, future=known)
        try:
            rows = tokenizer.rows(one, ahead=horizon, beyond=beyond, begun=place.begun)
        except SampleError as error:
            raise DataError(error.reason) from None
        # the last row itself has been read
        return one, replace(
            rows, values=rows.values[1:], past=rows.past[1:], known=rows.known[1:], elapsed=rows.elapsed[1:]
        )


def _stamps(column: pd.Series, where: str) -> pd.Index:
    if pd.api.types.is_integer_dtype(column):
        return pd.Index(column.to_numpy())
    stamps = pd.to_datetime(column, errors="coerce")
    if stamps.isna().any():
        bad = column[stamps.isna()].iloc[0]
        raise DataError(f"{where}: {str(bad)!r} is not a date; write dates as 2024-01-31 14:00")
    return pd.DatetimeIndex(stamps)


def _values(column: pd.Series, where: str) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce")
    bad = (numbers.isna() & column.notna()) | np.isinf(numbers)
    if bad.any():
        raise DataError(f"{where}: {str(column[bad].iloc[0])!r} in y is not a finite number")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _fingerprint(model: StreamForecaster) -> str:
    """Of the weights: a state means something to them alone."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
