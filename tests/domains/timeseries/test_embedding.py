"""Embeddings are what the networks read, see no later row, and tell series apart by what they do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.api import Forecaster
from mambakit.domains.timeseries.classification.config import ClassifierConfig, ClassifierModelConfig
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.config import StreamConfig, StreamLossConfig, StreamModelConfig
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.embedding import embed, embed_labelled
from mambakit.domains.timeseries.forecasting import forecast
from mambakit.domains.timeseries.forecasts import until
from mambakit.domains.timeseries.stream.forecasting import as_read
from mambakit.domains.timeseries.stream.live import LiveSeries
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.tables.labelled import LabelledSeries, labelled_of
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window import WindowForecaster

SMALL = StreamModelConfig(members=2, context=4, d_model=16, n_layers=1, d_state=8, head_dim=8, d_ahead=8)


def series_of(seed: int, n_rows: int = 60, name: str = "a") -> Series:
    rng = np.random.default_rng(seed)
    values = 20 + np.sin(np.arange(n_rows) / 3) + 0.3 * rng.standard_normal(n_rows)
    values[10:13] = np.nan
    return Series(name, pd.date_range("2024-01-01", periods=n_rows, freq="h"), values, "h")


@pytest.fixture(scope="module")
def stream() -> StreamForecaster:
    torch.manual_seed(0)
    series = [series_of(0), series_of(1, name="b")]
    tokenizer = RowTokenizer("h", 24).fit(series)
    sizes = {"lookback": 8, "horizon": 3, "n_series": 2, "n_calendar": 2 * len(tokenizer.cycles)}
    model = StreamForecaster(StreamConfig(**sizes, model=SMALL)).eval()
    model.tokenizer = tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def vectors_of(frame: pd.DataFrame) -> np.ndarray:
    return frame.filter(regex="^e[0-9]+$").to_numpy()


def read_by(head: nn.Module) -> list[Tensor]:
    """What a module reads from now on."""
    found: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    return found


def test_a_stream_model_embeds_what_it_forecasts_from(stream: StreamForecaster) -> None:
    series = [series_of(0), series_of(2, 47, "new")]
    frame = embed(stream, series)
    assert frame["unique_id"].tolist() == ["a", "new"]
    assert frame["ds"].tolist() == [one.stamps[-1] for one in series]
    for one, vector in zip(series, vectors_of(frame), strict=True):
        rows = stream.tokenizer.rows(one)
        with torch.no_grad():
            origin, _ = stream.read(as_read(stream, [rows], 0, len(one.values)))
        wanted = torch.cat(origin.hidden, -1)[0, 0].numpy()
        np.testing.assert_allclose(vector, wanted, atol=1e-5)
        live = LiveSeries(stream)
        for n in range(len(one.values)):
            live.update({"unique_id": one.unique_id, "ds": one.stamps[n], "y": one.values[n]})
        np.testing.assert_allclose(live.embedding(one.unique_id), wanted, atol=1e-4)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_an_embedding_sees_no_later_row(stream: StreamForecaster, pool: str) -> None:
    one = series_of(0, 700)
    frame = embed(stream, [one], every=250, pool=pool)
    assert frame["ds"].tolist() == [one.stamps[n] for n in (199, 449, 699)]
    first = embed(stream, [until(one, 200)], pool=pool)
    np.testing.assert_allclose(vectors_of(frame)[:1], vectors_of(first), atol=1e-4)


def test_the_mean_is_over_the_rows_since(stream: StreamForecaster) -> None:
    one = series_of(0)
    each = vectors_of(embed(stream, [one], every=1))
    assert len(each) == 60
    made = vectors_of(embed(stream, [one], every=25, pool="mean"))
    for mean, rows in zip(made, (each[:10], each[10:35], each[35:]), strict=True):
        np.testing.assert_allclose(mean, rows.mean(0), atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(scale=st.floats(-9, 9).map(lambda power: 10**power), shift=st.floats(-1e3, 1e3))
def test_scale_and_level_do_not_matter(scale: float, shift: float, stream: StreamForecaster) -> None:
    one = series_of(3, name="new")
    other = dataclasses.replace(one, values=scale * one.values + scale * shift)
    a, b = (vectors_of(embed(stream, [each])) for each in (one, other))
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())
    different = vectors_of(embed(stream, [series_of(4, name="new")]))
    assert np.abs(a - b).max() < 0.2 * np.abs(a - different).max()


def test_names_matter_unless_left_out(stream: StreamForecaster) -> None:
    one = series_of(0)
    renamed = [one, dataclasses.replace(one, unique_id="b"), dataclasses.replace(one, unique_id="c")]
    named, unnamed = vectors_of(embed(stream, renamed)), vectors_of(embed(stream, renamed, unnamed=True))
    assert np.abs(named[0] - named[1]).max() > 0.01
    np.testing.assert_allclose(unnamed[:2], named[[2, 2]], atol=1e-3)


def test_a_window_model_embeds_what_its_head_reads(
    trained: tuple[WindowForecaster, Path], data: SeriesData
) -> None:
    model, _ = trained
    read = read_by(model.members[0].head)
    forecast(model, data.series, 5)
    frame = embed(model, data.series)
    np.testing.assert_allclose(vectors_of(frame), read[0][0].numpy(), atol=1e-6)
    alone = embed(model, data.series, unnamed=True)
    stranger = dataclasses.replace(data.series[0], unique_id="new", values=3 * data.series[0].values - 100)
    np.testing.assert_allclose(vectors_of(alone)[0], vectors_of(embed(model, [stranger]))[0], atol=1e-3)
    many = embed(model, data.series, every=100)
    n = len(data.series[0].values)
    assert many["ds"].tolist() == [one.stamps[i] for one in data.series for i in range(n - 301, n, 100)]
    earlier = embed(model, [until(one, n - 100) for one in data.series])
    found = many[many["ds"] == data.series[0].stamps[n - 101]]
    np.testing.assert_allclose(vectors_of(found), vectors_of(earlier), atol=1e-5)


def test_a_gap_does_not_change_how_the_other_series_are_read(
    trained: tuple[WindowForecaster, Path], data: SeriesData
) -> None:
    model, _ = trained
    assert model.config.mix_series
    whole = embed(model, data.series, every=50)
    values = data.series[0].values.copy()
    values[240:245] = np.nan
    gap = embed(model, [dataclasses.replace(data.series[0], values=values), data.series[1]], every=50)
    over = data.series[0].stamps[[249]]  # the one window of 48 rows that the gap lies in
    wanted = whole[~whole["ds"].isin(over)]
    assert len(wanted) == len(whole) - 2
    pd.testing.assert_frame_equal(gap, wanted.reset_index(drop=True), atol=1e-5)


def test_a_classifier_embeds_what_its_logits_are_read_from() -> None:
    torch.manual_seed(0)
    config = ClassifierModelConfig(members=2, d_model=8, blocks=["mamba2"], d_state=4, head_dim=4)
    channels = {"channels": ["x", "y"], "mean": [0.0, 1.0], "deviation": [1.0, 2.0]}
    model = SeriesClassifier(ClassifierConfig(**channels, classes=["a", "b"], model=config)).eval()
    rng = np.random.default_rng(0)
    series = [LabelledSeries(f"s{n}", rng.standard_normal((n, 2))) for n in (9, 4, 7)]
    read = [read_by(member.head.proj) for member in model.members]
    model.probabilities(series)
    frame = embed_labelled(model, series)
    assert frame["ds"].tolist() == [8, 3, 6]
    wanted = torch.cat([one[0] for one in read], -1)[[2, 0, 1]]  # it reads short ones first
    np.testing.assert_allclose(vectors_of(frame), wanted.numpy(), atol=1e-6)
    table = pd.DataFrame(
        {"unique_id": "s", "ds": ["2024-01-02", "2024-01-01"], "y": [1.0, 2.0], "x": [0.0, 1.0]}
    )
    data = labelled_of(table)
    assert embed_labelled(model, data.series, channels=data.channels)["ds"].tolist() == ["2024-01-02"]


def test_families_lie_apart(tmp_path: Path) -> None:
    """A forecaster that never saw labels, nor these series: nearest neighbours are of the same family."""

    def frame_of(seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        frames = []
        for i in range(20):
            steps = rng.standard_normal(80)
            slow, fast = steps.copy(), steps.copy()
            for n in range(1, 80):
                slow[n] += 0.7 * slow[n - 1]
                fast[n] -= 0.7 * fast[n - 1]
            own = (slow, fast)[i % 2] * rng.uniform(1, 100) + rng.normal() * 100
            stamps = pd.date_range("2024-01-01", periods=80, freq="D")
            frames.append(pd.DataFrame({"unique_id": f"{seed}-{i}", "ds": stamps, "y": own}))
        return pd.concat(frames)

    options = {"max_steps": 30, "learning_rate": 3e-3, "input_size": 8, "season_length": 1}
    forecaster = Forecaster(2, "D", **options, model=SMALL, loss=StreamLossConfig(window=64)).fit(frame_of(0))
    assert len(forecaster.embed()) == 20
    frame = forecaster.embed(frame_of(1), pool="mean")
    assert frame["unique_id"].tolist() == [f"1-{i}" for i in range(20)]
    right = cross_val_score(KNeighborsClassifier(3), vectors_of(frame), np.arange(20) % 2, cv=5).mean()
    assert right >= 0.85
    forecaster.save(tmp_path / "model")
    again = Forecaster.load(tmp_path / "model")
    np.testing.assert_allclose(
        vectors_of(again.embed(frame_of(1), pool="mean")), vectors_of(frame), atol=1e-5
    )
    with pytest.raises(UsageError, match="embed: a loaded forecaster has no frame"):
        Forecaster.load(tmp_path / "model").embed()


def test_bad_calls_say_so(stream: StreamForecaster, trained: tuple[WindowForecaster, Path]) -> None:
    with pytest.raises(UsageError, match="every: expected at least 1 row, got 0"):
        embed(stream, [series_of(0)], every=0)
    for model in (stream, trained[0]):
        with pytest.raises(UsageError, match="series: expected at least one to embed, got none"):
            embed(model, [])
    with pytest.raises(UsageError, match="pool: expected one of last, mean, got 'max'"):
        embed(stream, [series_of(0)], pool="max")
    with pytest.raises(UsageError, match="pool: this model makes one vector of a window"):
        embed(trained[0], [series_of(0)], pool="mean")
    with pytest.raises(DataError, match="series 'a' has 20 rows, but the model reads 48"):
        embed(trained[0], [series_of(0, 20)])
    left_out: list[tuple[str, str]] = []
    empty = dataclasses.replace(series_of(0, name="none"), values=np.full(60, np.nan))
    assert embed(stream, [series_of(0), empty], left_out=left_out)["unique_id"].tolist() == ["a"]
    assert left_out == [("none", "series 'none' has no value at all: there is nothing to read")]
