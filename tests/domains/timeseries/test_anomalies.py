"""Anomaly scores: tails, smoothing, one row at a time as all at once, no look ahead, planted anomalies."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.timeseries.anomalies.parts import PARTS, Leads, RowScorer
from mambakit.domains.timeseries.anomalies.plots import anomaly_figure
from mambakit.domains.timeseries.anomalies.scoring import (
    COLUMNS,
    StreamScorer,
    alarms,
    anomaly_scores,
    threshold,
)
from mambakit.domains.timeseries.anomalies.surprise import CAP, Usual, surprise
from mambakit.domains.timeseries.config import (
    PRESET_TRAIN,
    StreamConfig,
    StreamLossConfig,
    StreamModelConfig,
)
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.stream.training import train_stream
from mambakit.domains.timeseries.tables.table import Series

LEVELS = (0.05, 0.2, 0.5, 0.8, 0.95)
LAPLACE = torch.tensor([math.copysign(math.log(2 * min(p, 1 - p)), p - 0.5) for p in LEVELS])
SMALL = StreamModelConfig(members=1, context=4, d_model=16, n_layers=1, d_state=8, head_dim=8, d_ahead=8)


def wave(n_rows: int = 360, name: str = "wave", seed: int = 0) -> Series:
    rng = np.random.default_rng(seed)
    t = np.arange(n_rows)
    values = 20 + 4 * np.sin(2 * np.pi * t / 12) + 0.3 * rng.standard_normal(n_rows)
    return Series(name, pd.date_range("2024-01-01", periods=n_rows, freq="h"), values, "h")


def untrained(*series: Series, mixed: bool = False) -> StreamForecaster:
    tokenizer = RowTokenizer("h", 12).fit(series)
    config = StreamConfig(
        lookback=24,
        horizon=6,
        n_series=len(series),
        n_mixed=len(series) if mixed else 1,
        n_calendar=2 * len(tokenizer.cycles),
        season_length=12,
        model=SMALL,
    )
    torch.manual_seed(0)
    model = StreamForecaster(config)
    model.tokenizer = tokenizer
    return model.eval()


def piece(one: Series, first: int, end: int) -> Series:
    return dataclasses.replace(one, stamps=one.stamps[first:end], values=one.values[first:end])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StreamForecaster:
    config = dataclasses.replace(
        PRESET_TRAIN, max_epochs=1, max_steps=20, batch_size=8, lr=3e-3, device="cpu"
    )
    model, _ = train_stream(
        [wave()],
        [(200, 260, 260)],
        RunFolder(tmp_path_factory.mktemp("runs") / "wave"),
        lookback=24,
        horizon=12,
        season_length=12,
        mixed=False,
        model_config=SMALL,
        loss_config=StreamLossConfig(window=64),
        train_config=config,
    )
    return model


@given(st.floats(-60, 60, allow_nan=False, width=32))
def test_tails_of_a_laplace_distribution_are_exact(value: float):
    found = float(surprise(torch.tensor(value), LAPLACE, LEVELS))
    exact = abs(value)  # -log(2 * tail) of a Laplace distribution of scale 1
    if exact >= float(LAPLACE[-1]):
        assert found == pytest.approx(exact, rel=1e-4)
    else:  # linear between levels, exact on them
        inner = [p for p in map(abs, LAPLACE.tolist()) if p <= exact]
        outer = [p for p in map(abs, LAPLACE.tolist()) if p >= exact]
        assert max(inner) - 1e-4 <= found <= min(outer) + 1e-4


def test_surprise_is_missing_with_the_value_or_the_forecast():
    value = torch.tensor([math.nan, 0.0, 100.0])
    quantiles = torch.stack([LAPLACE, LAPLACE * math.nan, LAPLACE * 0])
    found = surprise(value, quantiles, LEVELS)
    assert found[:2].isnan().all()
    assert found[2] > 1000  # a forecast without spread


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 25), st.integers(0, 10_000))
def test_a_score_is_of_the_rows_around_its_row(smooth: int, season: int, n_rows: int, seed: int):
    rng = np.random.default_rng(seed)
    raw = np.where(rng.random((n_rows, 3)) < 0.2, np.nan, rng.exponential(size=(n_rows, 3)))
    raw[rng.random(n_rows) < 0.2] = np.nan
    values = np.where(np.isnan(raw).all(1), np.nan, rng.standard_normal(n_rows))
    leads, scorer = Leads(3), RowScorer(3, smooth, season)
    plain = np.array([leads.add(row) for row in raw])
    found = [
        scored
        for row, value in zip(raw, values, strict=True)
        if (scored := scorer.add(row, value)) is not None
    ]
    found += list(scorer.finish())
    assert [scored.row for scored in found] == list(range(n_rows))
    for row, score, parts in found:
        after = smooth // 2
        around = plain[max(0, row - (smooth - 1 - after)) : row + after + 1]
        expected = math.nan if np.isnan(plain[row]) else np.nanmean(around)
        np.testing.assert_allclose(parts[0], expected, rtol=1e-12)
        there = [part for part in parts if not math.isnan(part)]
        np.testing.assert_allclose(score, np.sqrt(np.mean(np.square(there))) if there else math.nan)


def test_a_lead_that_is_often_wrong_counts_less():
    leads = Leads(2)
    for _ in range(4000):
        leads.add(np.array([1.0, 5.0]))
    assert leads.add(np.array([1.0, 5.0])) == pytest.approx(1.0, abs=0.05)


def test_what_is_usual_is_a_normal_distribution_of_the_past():
    rng = np.random.default_rng(0)
    usual = Usual()
    before = [usual.surprise(x) for x in 1e6 + 3 * rng.standard_normal(4000)]
    assert np.isnan(before[:24]).all()
    assert not np.isnan(before[24:]).any()
    assert np.mean(before[1000:]) == pytest.approx(1, abs=0.2)  # Exp(1), fatter: the tails are not learned
    kept = dict(vars(usual))

    def of(x: float, **options: bool) -> float:
        usual.__dict__.update(kept)
        return usual.surprise(x, **options)

    assert of(1e6 + 9) == pytest.approx(of(1e6 - 9), abs=0.8)
    assert of(1e6 + 9) > 5
    assert of(1e6 - 9, above=True) < 0.01
    assert of(1e6 + 9, above=True) > 5
    assert of(2e6) == CAP
    assert math.isnan(of(math.nan))
    assert usual.mean == kept["mean"]


@settings(deadline=None, max_examples=25)
@given(st.integers(40, 400), st.floats(-40, 40))
def test_the_next_of_few_numbers_is_students(n: int, t: float):
    usual = Usual(window=12)
    for x in np.resize([-1.0, 1.0], n):
        usual.surprise(x)
    kept, independent = usual.mean, usual.weight / 12
    deviation = math.sqrt(usual.squares / usual.weight)
    exact = stats.t.logsf(abs(t) / math.sqrt(1 + 1 / independent), independent - 1) + math.log(2)
    assert usual.surprise(kept + t * deviation) == pytest.approx(min(CAP, -exact), rel=0.1, abs=0.1)


@pytest.mark.parametrize(("kind", "part"), [("slow", "level"), ("flat", "steps"), ("rough", "steps")])
def test_a_part_says_what_is_unusual(kind: str, part: str):
    """Whatever a forecaster says of it: here it is never surprised."""
    rng = np.random.default_rng(0)
    t, odd = np.arange(1000), slice(800, 860)
    values = np.sin(2 * np.pi * t / 12) + 0.1 * rng.standard_normal(1000)
    if kind == "slow":
        values[odd] += np.linspace(0, 2, 60)
    elif kind == "flat":
        values[odd] = 0.0
    else:
        values[odd] += 0.7 * (-1) ** t[odd]
    scorer = RowScorer(1, 12, 12)
    found = [scored for x in values if (scored := scorer.add(np.ones(1), x)) is not None]
    parts = {name: np.array([scored.parts[i] for scored in found]) for i, name in enumerate(PARTS)}
    score = np.array([scored.score for scored in found])
    assert 794 <= int(score.argmax()) < 866
    highest = {name: np.nanmax(values[810:850]) for name, values in parts.items()}
    assert max(highest, key=highest.__getitem__) == part
    assert np.nanmean(score[830:850]) > 3 * np.nanmean(score[100:790])


def test_row_by_row_equals_all_at_once():
    one, sizes = wave(90), (20, *(1,) * 12, 40, 18)
    one.values[[30, 31, 44]] = np.nan
    model = untrained(one)
    scorer, parts, first = StreamScorer(model), [], 0
    for size in sizes:
        parts.append(scorer.update([piece(one, first, first + size)]))
        first += size
    parts.append(scorer.finish())
    streamed = pd.concat(parts, ignore_index=True)
    whole = anomaly_scores(model, [one], normal=90, rate=0.2, smooth=6).drop(columns="anomaly")
    pd.testing.assert_frame_equal(streamed, whole, rtol=2e-4)
    assert list(whole.columns) == list(COLUMNS[:-1])
    assert whole["score"].isna().to_numpy()[[30, 31, 44]].all()
    assert whole["score"].notna().sum() > 60


@pytest.mark.parametrize("sizes", [(90,), (1,) * 90])
def test_the_unit_of_an_unseen_series_does_not_matter(sizes: tuple[int, ...]):
    model, one = untrained(wave(90)), wave(90, "new", seed=1)
    one.values[:3] = one.values[3]
    wanted = anomaly_scores(model, [one], normal=90)["score"]
    tiny = dataclasses.replace(one, values=1e-7 * one.values)
    scorer, parts, first = StreamScorer(model), [], 0
    for size in sizes:
        parts.append(scorer.update([piece(tiny, first, first + size)]))
        first += size
    made = pd.concat([*parts, scorer.finish()])["score"].to_numpy(float)
    np.testing.assert_allclose(made, wanted, rtol=5e-3)


def test_nothing_looks_further_ahead_than_the_smoothing(trained: StreamForecaster):
    one, other = wave(), wave()
    other.values[300:] += 50
    a, b = (anomaly_scores(trained, [s], normal=200)["score"].to_numpy() for s in (one, other))
    wait = trained.config.horizon // 2
    np.testing.assert_array_equal(a[: 300 - wait], b[: 300 - wait])
    assert (b[300 - wait : 300] != a[300 - wait : 300]).all()


@pytest.mark.parametrize("kind", ["shift", "flat", "season"])
def test_planted_anomalies_have_the_highest_score(trained: StreamForecaster, kind: str):
    one = wave()
    change = {
        "shift": one.values[300:312] + 6,
        "flat": np.full(12, one.values[300]),
        "season": one.values[294:306].copy(),
    }[kind]
    one.values[300:312] = change
    table = anomaly_scores(trained, [one], normal=260)
    assert 294 <= int(table["score"].argmax()) <= 318
    found = alarms(table)
    assert len(found) >= 1
    assert table["anomaly"].to_numpy()[300:312].any()
    assert table["anomaly"].to_numpy()[100:280].mean() < 0.05
    inside = table.iloc[100:280]
    assert ((inside["lo"] < inside["y_hat"]) & (inside["y_hat"] < inside["hi"])).all()
    assert len(anomaly_figure(table).axes) == 2


def test_the_threshold_lets_through_the_rate():
    rng = np.random.default_rng(0)
    score = 1 + rng.exponential(0.3, size=20_000)
    few = threshold(score[:2000], 1e-3)
    assert 2e-4 < (score > few).mean() < 5e-3
    assert (score > threshold(score, 0.25)).mean() == pytest.approx(0.25, abs=1e-3)


def test_series_read_together_are_scored_together():
    pair = [wave(80, "a"), wave(80, "b", seed=1)]
    model = untrained(*pair, mixed=True)
    table = anomaly_scores(model, pair[::-1], normal=80, rate=0.2)
    assert list(table["unique_id"].unique()) == ["b", "a"]
    with pytest.raises(DataError, match="reads 2 series together, but 'b' is missing"):
        anomaly_scores(model, pair[:1])
    with pytest.raises(DataError, match="other stamps than 'a'"):
        anomaly_scores(model, [pair[0], piece(pair[1], 1, 80)])


def test_a_series_that_can_t_be_scored_is_said_and_the_rest_are_scored():
    good, short = wave(90, "good"), wave(40, "short")
    empty = dataclasses.replace(wave(90, "empty"), values=np.full(90, np.nan))
    model, options = untrained(good), {"normal": 90, "rate": 0.2}
    left_out: list[tuple[str, str]] = []
    table = anomaly_scores(model, [short, good, empty], **options, left_out=left_out)
    pd.testing.assert_frame_equal(table, anomaly_scores(model, [good], **options))
    assert [name for name, _ in left_out] == ["short", "empty"]
    assert all(f"series {name!r} has" in reason for name, reason in left_out)
    with pytest.raises(DataError, match="series 'short' has 28 scored rows"):
        anomaly_scores(model, [short, good], **options)
    with pytest.raises(DataError, match="series 'short' has 28 scored rows"):
        anomaly_scores(model, [short, empty], **options, left_out=[])


def test_wrong_calls_say_what_is_wrong():
    one = wave(60)
    model = untrained(one)
    for options, message in (
        ({"rate": 0.0}, "rate: expected a share"),
        ({"normal": 0.0}, "normal: expected a share"),
        ({"smooth": 0}, "smooth: expected at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            anomaly_scores(model, [one], **options)
    with pytest.raises(DataError, match="'wave' has 0 scored rows among its normal ones"):
        anomaly_scores(model, [one], normal=0.1)
    scorer = StreamScorer(model)
    scorer.update([one])
    with pytest.raises(DataError, match="expected rows of wave, got other"):
        scorer.update([dataclasses.replace(one, unique_id="other")])


def test_the_verb_writes_a_table_and_a_picture(trained: StreamForecaster, tmp_path: Path, capsys):
    from mambakit.apps.timeseries import main

    one = wave()
    one.values[300:312] += 6
    table = tmp_path / "wave.csv"
    pd.DataFrame({"unique_id": "wave", "ds": one.stamps, "y": one.values}).to_csv(table, index=False)
    trained.save_pretrained(tmp_path / "model")
    words = ["anomalies", "--model", str(tmp_path / "model"), "--input", str(table), "--device", "cpu"]
    files = ["--output", str(tmp_path / "scores.csv"), "--plot", str(tmp_path / "scores.png")]
    assert main([*words, "--normal", "260", *files]) == 0
    assert "rows flagged, in" in capsys.readouterr().out
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns) == list(COLUMNS)
    assert scores["anomaly"][300:312].any()
    assert (tmp_path / "scores.png").stat().st_size > 10_000
    assert main([*words, "--rate", "2"]) == 2
    assert "rate: expected a share" in capsys.readouterr().err
    daily = tmp_path / "daily.csv"
    stamps = pd.date_range("2024-01-01", periods=360)
    pd.DataFrame({"unique_id": "wave", "ds": stamps, "y": one.values}).to_csv(daily, index=False)
    assert main([*words[:4], str(daily), *words[5:]]) == 1
    assert "has the step 'D', but the model was trained on 'h'" in capsys.readouterr().err
