"""Rolling origins of forecasters whose answers are known: cuts, refits, ragged and broken series."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.domains.timeseries import report
from mambakit.domains.timeseries.backtesting import plots as backtest_plots
from mambakit.domains.timeseries.backtesting.backtest import backtest
from mambakit.domains.timeseries.backtesting.local_forecasts import LOCAL, predictor
from mambakit.domains.timeseries.tables.table import Series, series_of

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


def naive_model(_: list[Series]):
    return predictor(LOCAL["naive"], season_length=1, levels=LEVELS)


def ramp(name: str, n: int, slope: float = 1.0) -> Series:
    stamps = pd.date_range("2024-01-01", periods=n, freq="D")
    return Series(name, stamps, slope * np.arange(n, dtype=np.float64), "D")


def test_table_and_errors_by_hand():
    found = backtest(naive_model, [ramp("a", 20)], horizon=2, windows=3, step_size=1, baselines=["drift"])
    table = found.table
    assert list(table.columns[:5]) == ["unique_id", "cutoff", "ds", "y", "mambakit"]
    assert {"mambakit-lo-80", "mambakit-hi-95", "mambakit-median", "drift-lo-95"} <= set(table.columns)
    assert table.y.tolist() == [16, 17, 17, 18, 18, 19]
    assert table.mambakit.tolist() == [15, 15, 16, 16, 17, 17]
    assert (table.ds - table.cutoff).dt.days.tolist() == [1, 2] * 3
    ours, drift = found.rows
    assert (ours["mse"], ours["mae"], ours["mase"]) == (2.5, 1.5, 1.5)
    assert ours["smape"] == pytest.approx(
        np.mean(200 * abs(table.y - table.mambakit) / (table.y + table.mambakit))
    )
    assert found.mse_by_step["mambakit"] == [1, 4]
    # sigma is 1: the 80 % interval of step 1 reaches 1.28, that of step 2 1.28 sqrt(2) < 2
    assert (ours["coverage-80"], ours["coverage-95"]) == (0.5, 1.0)
    assert ours["msis"] == pytest.approx(2 * 1.959964 * (1 + np.sqrt(2)) / 2)
    assert drift["mse"] == pytest.approx(0, abs=1e-20)
    # three of the five levels lie under a rise of 1, four under a rise of 2
    assert found.ranks["mambakit"] == [0, 0, 0, 3, 3, 0]


def test_what_comes_after_an_origin_does_not_matter_to_it():
    rng = np.random.default_rng(0)
    whole = Series("a", pd.RangeIndex(120), rng.standard_normal(120).cumsum(), "1")
    poisoned = Series("a", whole.stamps, np.r_[whole.values[:-5], whole.values[-5:] + 100], "1")
    options = {
        "horizon": 5,
        "windows": 3,
        "lookback": 10,
        "baselines": ["linear", *LOCAL],
        "season_length": 4,
    }
    first, second = (backtest(naive_model, [one], **options).table for one in (whole, poisoned))
    pd.testing.assert_frame_equal(first.drop(columns="y"), second.drop(columns="y"))


def test_a_model_sees_its_past_and_the_covariates_of_the_horizon_only():
    future = pd.DataFrame({"known": np.arange(30.0)})
    past = pd.DataFrame({"past": np.arange(30.0)})
    one = Series("a", pd.RangeIndex(30), np.arange(30.0), "1", past=past, future=future, static={"x": 1})
    seen = []

    def make(histories: list[Series]):
        seen.append(("fit", len(histories[0].values), len(histories[0].past), len(histories[0].future)))

        def predict(histories: list[Series], horizon: int):
            (h,) = histories
            assert h.static == {"x": 1}
            seen.append(("ask", len(h.values), len(h.past), len(h.future), float(h.values[0])))
            return naive_model([])(histories, horizon)

        return predict

    backtest(make, [one], horizon=4, windows=2, baselines=[])
    assert seen == [("fit", 22, 22, 22), ("ask", 22, 22, 26, 0.0), ("ask", 26, 26, 30, 0.0)]
    seen.clear()
    backtest(make, [one], horizon=4, windows=2, baselines=[], input_size=10)
    assert seen == [("fit", 10, 10, 10), ("ask", 10, 10, 14, 12.0), ("ask", 10, 10, 14, 16.0)]


@pytest.mark.parametrize(
    ("refit", "fits"),
    [(False, [10]), (0, [10]), (True, [10, 12, 14, 16, 18]), (1, [10, 12, 14, 16, 18]), (2, [10, 14, 18])],
)
def test_refits_at_every_so_many_origins(refit, fits):
    seen = []

    def make(histories: list[Series]):
        seen.append(len(histories[0].values))
        return naive_model(histories)

    backtest(make, [ramp("a", 20)], horizon=2, windows=5, refit=refit, baselines=["linear"], lookback=3)
    assert seen == fits


def test_ragged_series_take_part_where_they_can():
    series = [ramp("long", 30), ramp("young", 9), ramp("short", 5), ramp("empty", 30)]
    series[3].values[-9:] = np.nan
    found = backtest(naive_model, series, horizon=3, windows=3, least=3, baselines=[])
    assert found.table.groupby("unique_id").cutoff.nunique().to_dict() == {"long": 3, "young": 2, "empty": 3}
    assert found.left_out == {
        "short": "5 rows are too few for 3 ahead after 3 rows of history",
        "empty": "none of its targets is there",
    }
    assert found.partly == {"young": 2}
    assert found.by_series.n.tolist() == [9, 6]
    with pytest.raises(
        DataError, match="no series can be backtested; the first, 'short': 5 rows are too few"
    ):
        backtest(naive_model, series[2:3], horizon=3, windows=3, least=3)


def test_missing_targets_do_not_count_and_the_averages_differ_as_documented():
    a, b = ramp("a", 20), ramp("b", 20, slope=10)
    a.values[-1] = np.nan
    options = {"horizon": 2, "baselines": [], "levels": (80,)}
    by_series = backtest(naive_model, [a, b], average="series", **options).rows[0]
    pooled = backtest(naive_model, [a, b], average="pooled", **options).rows[0]
    assert by_series["mae"] == (1 + 15) / 2
    assert pooled["mae"] == pytest.approx((1 + 10 + 20) / 3)
    assert by_series["mase"] == (1 + 1.5) / 2
    assert pooled["mase"] == pytest.approx((1 + 1 + 2) / 3)
    assert by_series["wql"] == pooled["wql"]


def test_baselines_cope_with_gaps_in_the_history():
    rng = np.random.default_rng(0)
    values = 10 + np.sin(np.arange(80) * np.pi / 6) + 0.1 * rng.standard_normal(80)
    values[[3, 17, 18, 40, 66]] = np.nan
    one = Series("a", pd.RangeIndex(80), values, "1")
    found = backtest(
        None, [one], horizon=6, windows=2, season_length=12, lookback=24, baselines=["linear", *LOCAL]
    )
    table = pd.DataFrame(found.rows).set_index("forecaster")
    assert np.isfinite(table.to_numpy()).all()
    assert table.mase["linear"] < table.mase["naive"]
    assert table.owa["naive2"] == 1


def test_refuses_in_one_sentence():
    one = ramp("a", 20)
    for options, said in (
        ({"horizon": 0}, "horizon: expected at least 1, got 0"),
        ({"horizon": 2, "windows": 0}, "windows: expected at least 1"),
        ({"horizon": 2, "step_size": 0}, "step_size: expected at least 1"),
        ({"horizon": 2, "refit": -1}, "refit: expected True, False or a number"),
        ({"horizon": 2, "baselines": ["arima"]}, "baselines: expected some of linear, .* got 'arima'"),
        ({"horizon": 2, "levels": [95, 100]}, "levels: expected per cents inside"),
        ({"horizon": 2, "average": "mean"}, "average: expected one of series, pooled"),
    ):
        with pytest.raises(UsageError, match=said):
            backtest(naive_model, [one], **options)

    def of_nothing(histories: list[Series], horizon: int):
        made = naive_model([])(histories, horizon)
        made[0].point[1] = np.nan
        return made

    with pytest.raises(DataError, match="mambakit: its forecast of series 'a' is NaN at step 2"):
        backtest(lambda _: of_nothing, [one], horizon=2)


def test_pictures_and_report(tmp_path: Path):
    rng = np.random.default_rng(0)
    series = [
        Series(f"s{i}", pd.date_range("2024", periods=60, freq="D"), rng.standard_normal(60).cumsum(), "D")
        for i in range(4)
    ]
    found = backtest(naive_model, series, horizon=5, windows=2, baselines=["drift"])
    order = found.by_series[found.by_series.forecaster == "mambakit"].sort_values("mase").unique_id.tolist()
    figure = backtest_plots.extremes_figure(found, series)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert [title.split(" from")[0] for title in titles] == [
        f"best: {order[0]}", f"median: {order[1]}", f"worst: {order[3]}",
    ]  # fmt: skip
    one = backtest(naive_model, series[:1], horizon=5, windows=5, baselines=[])
    assert len(backtest_plots.extremes_figure(one, series).axes) == 3  # its origins instead
    report.write_backtest(tmp_path / "b.html", found, series, title="T", settings={"windows": 2})
    page = (tmp_path / "b.html").read_text()
    assert page.count("data:image/png;base64,") == 3


def test_calibration_figure_shows_what_was_counted():
    figure = backtest_plots.calibration_figure([10, 30, 40, 20], (0.1, 0.5, 0.9))
    found = figure.axes[0].lines[1]
    assert found.get_xydata().tolist() == [[0, 0], [80, 70]]
    assert [round(bar.get_height(), 6) for bar in figure.axes[1].patches] == [1.0, 0.75, 1.0, 2.0]


@pytest.mark.slow
def test_a_trained_forecaster_beats_naive(trained, wide_table):
    model, _ = trained
    found = backtest(
        lambda _: model,
        series_of(wide_table()),
        horizon=24,
        windows=2,
        least=48,
        lookback=48,
        season_length=24,
    )
    scores = {row["forecaster"]: row for row in found.rows}
    assert scores["mambakit"]["mase"] < scores["naive"]["mase"]
    assert "coverage-80" in scores["mambakit"]
    assert "coverage-95" not in scores["mambakit"]  # neither a level of the network nor calibrated


def test_statsforecast_forecasts_with_intervals_and_gaps():
    pytest.importorskip("statsforecast")
    values = 50 + 10 * np.sin(2 * np.pi * np.arange(96) / 12) + np.random.default_rng(0).standard_normal(96)
    values[[0, 1, 30]] = np.nan
    one = Series("a", pd.date_range("2020", periods=96, freq="MS"), values, "MS")
    names = ["AutoETS", "seasonal naive"]
    found = backtest(naive_model, [one], horizon=12, season_length=12, baselines=names)
    scores = {row["forecaster"]: row for row in found.rows}
    assert scores["AutoETS"]["msis"] < scores["seasonal naive"]["msis"]
    assert (found.table["AutoETS-hi-95"] > found.table["AutoETS-hi-80"]).all()
    np.testing.assert_allclose(found.table["AutoETS-median"], found.table["AutoETS"])


def test_without_statsforecast_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "statsforecast", None)
    with pytest.raises(UserError, match=r'pip install "mambakit\[baselines\]"'):
        backtest(naive_model, [ramp("a", 20)], horizon=2, baselines=["AutoETS"])


def test_m4_hourly_gives_the_published_figures():
    """Official sMAPE, MASE and OWA of seasonal naive and Naive 2, and the 95 % MSIS of naive.

    "Evaluation and Ranks.xlsx" of Mcompetitions/M4-methods. The weighted quantile loss of seasonal naive is
    .038 in GIFT-Eval, with statsforecast's intervals; as a point forecast .0483.
    """
    mirror = os.environ.get("MAMBAKIT_DATA_MIRROR")
    if not mirror:
        pytest.skip("needs MAMBAKIT_DATA_MIRROR")
    folder = Path(mirror) / "timeseries/m4_hourly"
    train, test = (pd.read_csv(folder / f"Hourly-{part}.csv").set_index("V1") for part in ("train", "test"))
    series = []
    for name, row in train.iterrows():
        values = np.r_[row.dropna().to_numpy(np.float64), test.loc[name].to_numpy(np.float64)]
        series.append(Series(str(name), pd.RangeIndex(len(values)), values, "1"))
    names = ["seasonal naive", "naive", "naive2"]
    found = backtest(None, series, horizon=48, season_length=24, baselines=names)
    scores = {row["forecaster"]: row for row in found.rows}
    seasonal = scores["seasonal naive"]
    assert (round(seasonal["smape"], 3), round(seasonal["mase"], 3)) == (13.912, 1.193)
    assert seasonal["owa"] == pytest.approx(0.627, abs=1e-3)  # published of rounded figures
    assert round(seasonal["wql"], 3) == 0.038
    assert (round(scores["naive2"]["smape"], 3), round(scores["naive2"]["mase"], 3)) == (18.383, 2.395)
    assert round(scores["naive"]["msis"], 3) == 71.245
    table = found.table
    point = (table.y - table.seasonal_naive).abs().sum() / table.y.abs().sum()
    assert round(point, 4) == 0.0483
    assert len(found.by_series) == 3 * 414
