"""A stream says what a batch forecast of all its rows would say, from a state of fixed size."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.apps.timeseries import main
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.config import StreamConfig, StreamModelConfig
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.forecasting import forecast
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.stream.forecasting import sample_paths
from mambakit.domains.timeseries.stream.live import LiveSeries
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.stream.running import LEAST, running_level
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window import WindowForecaster

MODEL = StreamModelConfig(members=2, context=3, d_model=16, head_dim=8, d_state=8, n_layers=1, d_ahead=8)
N_ROWS, AHEAD = 40, 9


def series_of(name: str, seed: int, *, frequency: str = "h", covariates: bool = True) -> Series:
    rng = np.random.default_rng(seed)
    n = N_ROWS + AHEAD
    stamps = pd.date_range("2024-03-01", periods=n, freq="h")
    if not frequency:
        stamps = stamps + pd.to_timedelta(rng.integers(0, 50, n), unit="min")
    values = rng.normal(size=N_ROWS).cumsum() * 3 + 100 * seed
    values[5:9] = np.nan
    future = pd.DataFrame({"load": rng.normal(size=n), "kind": rng.choice(["a", "b"], n)})
    past = pd.DataFrame({"rain": np.where(rng.random(N_ROWS) < 0.2, np.nan, rng.random(N_ROWS))})
    if not covariates:
        return Series(name, stamps[:N_ROWS], values, frequency)
    return Series(name, stamps[:N_ROWS], values, frequency, past, future, {"site": "north", "size": seed})


def model_of(series: list[Series], *, mixed: bool = False, season: int = 4) -> StreamForecaster:
    torch.manual_seed(0)
    tokenizer = RowTokenizer(series[0].frequency, season).fit(series)
    config = StreamConfig(
        lookback=12,
        horizon=6,
        n_series=len(series),
        n_mixed=len(series) if mixed else 1,
        n_past=tokenizer.past.width,
        n_future=tokenizer.future.width,
        n_calendar=2 * len(tokenizer.cycles),
        n_static=tokenizer.static.width,
        irregular=not series[0].frequency,
        season_length=season,
        model=MODEL,
    )
    model = StreamForecaster(config).eval()
    model.tokenizer = tokenizer
    with torch.no_grad():
        model.least_squares.normal_(std=0.2)
        model.trust.fill_(0.7)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def rows_of(one: Series, begin: int, end: int) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"unique_id": one.unique_id, "ds": one.stamps[begin:end], "y": one.values[begin:end]}
    )
    for part in (one.past, one.future):
        if part is not None:
            frame = pd.concat([frame, part.iloc[begin:end].reset_index(drop=True)], axis=1)
    return frame.assign(**dict(one.static))


def future_of(model: StreamForecaster, one: Series, n: int) -> pd.DataFrame | None:
    if one.future is None:
        return None
    stamps = model.tokenizer.next_stamps(one, n)
    return one.future.iloc[N_ROWS : N_ROWS + n].assign(ds=stamps, unique_id=one.unique_id)


def assert_same(made: Forecast, wanted: Forecast, tolerance: float = 1e-4) -> None:
    assert made.unique_id == wanted.unique_id
    assert made.stamps.equals(wanted.stamps)
    scale = np.ptp(wanted.quantiles) + 1e-9
    np.testing.assert_allclose(made.quantiles / scale, wanted.quantiles / scale, atol=tolerance)


@pytest.mark.parametrize("pieces", [[1] * N_ROWS, [17, 1, 22], [N_ROWS]])
@pytest.mark.parametrize("frequency", ["h", ""])
def test_a_stream_forecasts_as_a_batch(pieces: list[int], frequency: str) -> None:
    known = series_of("a", 1, frequency=frequency)
    stranger = dataclasses.replace(series_of("b", 2, frequency=frequency), unique_id="b")
    model = model_of([known])
    live = LiveSeries(model)
    for one in (known, stranger):
        begin = 0
        for n in pieces:
            live.update(rows_of(one, begin, begin + n))
            begin += n
        for horizon in (4, 6, AHEAD):
            made = live.forecast(horizon, ids=[one.unique_id], future=future_of(model, one, horizon))[0]
            short = dataclasses.replace(one, future=one.future.iloc[: N_ROWS + horizon])  # type: ignore[union-attr]
            assert_same(made, forecast(model, [short], horizon)[0])


def test_a_mixed_stream_forecasts_as_a_batch() -> None:
    series = [series_of(name, i, covariates=False) for i, name in enumerate("abc")]
    model = model_of(series, mixed=True)
    live = LiveSeries(model)
    for begin in range(0, N_ROWS, 8):
        live.update(pd.concat([rows_of(one, begin, begin + 8) for one in series]))
    for made, wanted in zip(live.forecast(8), forecast(model, series, 8), strict=True):
        assert_same(made, wanted)
    with pytest.raises(DataError, match="row of each at every stamp"):
        live.update({"unique_id": "a", "ds": series[0].stamps[-1] + pd.Timedelta("1h"), "y": 1.0})


def test_the_state_does_not_grow_and_goes_on_after_a_save(tmp_path: Path) -> None:
    one = series_of("a", 1)
    model = model_of([one])
    live = LiveSeries(model)
    live.update(rows_of(one, 0, 10))
    size = live.nbytes
    live.update(rows_of(one, 10, 25))
    assert live.nbytes == size
    live.save(tmp_path / "live")
    again = LiveSeries.load(tmp_path / "live", model)
    assert again.n_rows("a") == 25
    for stream in (live, again):
        stream.update(rows_of(one, 25, N_ROWS))
    future = future_of(model, one, 6)
    assert_same(again.forecast(6, future=future)[0], live.forecast(6, future=future)[0], 0)
    with pytest.raises(DataError, match="another model"):
        LiveSeries.load(tmp_path / "live", model_of([series_of("a", 3)], season=5))


def test_skipped_rows_are_missing_ones() -> None:
    one = series_of("a", 1, covariates=False)
    model = model_of([one])
    live = LiveSeries(model)
    live.update(rows_of(one, 0, 5))
    live.update(rows_of(one, 9, N_ROWS))  # the rows between are NaN
    assert live.n_rows("a") == N_ROWS
    assert_same(live.forecast(6)[0], forecast(model, [one], 6)[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ds": "2024-03-02 14:00", "y": 1.0}, "does not follow"),
        ({"ds": "2024-03-02 16:30", "y": 1.0}, "is not on its step of 'h'"),
        ({"ds": "2054-03-02 16:00", "y": 1.0}, "rows are skipped"),
        ({"ds": "tomorrow-ish", "y": 1.0}, "is not a date"),
        ({"ds": "2024-03-02 16:00", "y": "high"}, "'high' in y is not a finite number"),
        ({"ds": "2024-03-02 16:00", "y": np.inf}, "'inf' in y is not a finite number"),
        ({"ds": "2024-03-02 16:00"}, "needs the column 'y'"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_read(row: dict[str, object], message: str) -> None:
    one = series_of("a", 1, covariates=False)
    model = model_of([one])
    live = LiveSeries(model)
    live.update(rows_of(one, 0, N_ROWS))
    before = live.forecast(6)[0]
    with pytest.raises(DataError, match=message):
        live.update(row)
    assert_same(live.forecast(6)[0], before, 0)


def test_missing_covariates_are_named() -> None:
    one = series_of("a", 1)
    model = model_of([one])
    live = LiveSeries(model)
    with pytest.raises(DataError, match="'rain'"):
        live.update(rows_of(one, 0, 3).drop(columns="rain"))
    live.update(rows_of(one, 0, N_ROWS))
    with pytest.raises(DataError, match="wants load, kind of the 6 rows ahead"):
        live.forecast(6)
    with pytest.raises(DataError, match=r"covariates of 2024-03-02 20:00:00 are missing ahead"):
        live.forecast(6, future=future_of(model, one, 4))
    with pytest.raises(DataError, match="has no row yet"):
        live.forecast(6, ids=["b"])


def test_paths_spread_as_the_forecast_does() -> None:
    one = series_of("a", 1, covariates=False)
    model = model_of([one])
    paths = sample_paths(model, [one], 6, 400, seed=3)["a"]
    assert paths.shape == (400, 6)
    assert (sample_paths(model, [one], 6, 400, seed=3)["a"] == paths).all()
    first = forecast(model, [one], 6)[0].quantiles[0]
    drawn = np.quantile(paths[:, 0], model.levels)
    assert np.abs(drawn - first).max() < 0.15 * (first[-1] - first[0])


def test_values_before_an_origin_alone_matter() -> None:
    one = series_of("a", 1, covariates=False)
    model = model_of([one])
    other = dataclasses.replace(one, values=np.where(np.arange(N_ROWS) < 30, one.values, one.values * 7 - 3))
    for n in (20, 30):
        short = [dataclasses.replace(s, values=s.values[:n], stamps=s.stamps[:n]) for s in (one, other)]
        made, wanted = (forecast(model, [s], 6)[0] for s in short)
        assert_same(made, wanted, 0)


@pytest.mark.parametrize("pieces", [[1] * 40, [13, 27], [40]])
def test_level_and_spread_outlast_a_gap(pieces: list[int]) -> None:
    values = torch.full((1, 40), torch.nan)
    values[0, :5] = torch.tensor([3.0, 5.0, 4.0, 6.0, 2.0])
    values[0, 30:] = 4.0 + torch.arange(10)
    elapsed = torch.full_like(values, 4.0)
    elapsed[0, 5:] = 32.0  # eight memories a row: nothing of a weight would be left before the next value
    sums, found, begin = None, [], 0
    for n in pieces:
        part = slice(begin, begin + n)
        level, sums = running_level(
            values[:, part], values[:, part].isfinite(), elapsed[:, part], sums, memory=4.0
        )
        found.append(torch.stack([*level], -1)[0])
        begin += n
    mean, deviation, _, _, growth = torch.cat(found).T
    weights = torch.exp(-torch.arange(5.0)).flip(0)
    wanted = (weights * values[0, :5]).sum() / weights.sum()
    torch.testing.assert_close(mean[4:30], wanted.expand(26))
    torch.testing.assert_close(deviation[5:30], deviation[4].expand(25))
    assert deviation[4] > 1.0
    assert float(growth[30].abs()) < 2.0  # the first value after the gap is measured by the spread before it
    torch.testing.assert_close(deviation[30], ((4.0 - wanted) ** 2 + LEAST**2).sqrt())


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e12])
def test_the_unit_of_an_unseen_series_does_not_matter(scale: float) -> None:
    model = model_of([series_of("a", 1, covariates=False)])
    one = dataclasses.replace(series_of("new", 2, covariates=False))
    one.values[:4] = one.values[4]  # nothing says how great its changes will be
    wanted = forecast(model, [one], 6)[0]
    assert np.ptp(wanted.quantiles) > 1
    other = dataclasses.replace(one, values=scale * one.values)
    made = forecast(model, [other], 6)[0]
    live = LiveSeries(model)
    for n in range(N_ROWS):
        live.update(rows_of(other, n, n + 1))
    for found in (made, live.forecast(6)[0]):
        assert_same(dataclasses.replace(found, quantiles=found.quantiles / scale), wanted, 1e-3)


@pytest.mark.slow
def test_the_order_of_a_file_s_series_does_not_matter(
    tmp_path: Path,
    trained: tuple[WindowForecaster, Path],
    data: SeriesData,
    capsys: pytest.CaptureFixture[str],
) -> None:
    series = [series_of(name, i, covariates=False) for i, name in enumerate("abc")]
    windows = copy.deepcopy(trained[0])
    windows.trust.fill_(1.0)
    for model, ones in ((model_of(series, mixed=True), series), (windows, data.series)):
        model.save_pretrained(tmp_path / "model")
        found = []
        for name, order in (("one", ones), ("other", ones[::-1])):
            frames = [
                pd.DataFrame({"unique_id": one.unique_id, "ds": one.stamps, "y": one.values}) for one in order
            ]
            table = tmp_path / f"{name}.csv"
            pd.concat(frames).to_csv(table, index=False)
            words = ["evaluate", "--model", str(tmp_path / "model"), "--data", str(table), "--device", "cpu"]
            assert main([*words, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out)["results"][0])
        assert found[0]["mse"] == pytest.approx(found[1]["mse"], rel=1e-5)


def test_long_series_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [series_of(name, i, covariates=False) for i, name in enumerate("abc")]
    model = model_of(series)
    wanted = forecast(model, series, 6)
    read: list[int] = []
    monkeypatch.setattr("mambakit.domains.timeseries.stream.forecasting._MOST_ROWS", 2 * N_ROWS)
    monkeypatch.setattr(model, "read", lambda piece, *given, _read=model.read: (
        read.append(piece.values.numel()) or _read(piece, *given)
    ))  # fmt: skip
    for made, one in zip(forecast(model, series, 6), wanted, strict=True):
        assert_same(made, one)
    assert read == [2 * N_ROWS, N_ROWS]
