"""Filling missing values: where it begins, what it leaves alone, and what it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.timeseries.config import (
    PRESET_TRAIN,
    StreamConfig,
    StreamLossConfig,
    StreamModelConfig,
)
from mambakit.domains.timeseries.imputation.imputing import impute
from mambakit.domains.timeseries.stream.data import forecasts, make_store
from mambakit.domains.timeseries.stream.imputer import between, turned
from mambakit.domains.timeseries.stream.masking import hidden_rows, hide_some
from mambakit.domains.timeseries.stream.neighbours import Neighbours, Scale
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Read
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.stream.training import train_stream
from mambakit.domains.timeseries.tables.table import Series

SMALL = StreamModelConfig(
    members=1, context=6, d_model=16, n_layers=1, d_state=8, head_dim=8, d_ahead=8, dropout=0.0
)


def waves(n_rows: int = 60, n_series: int = 2, *, irregular: bool = False, seed: int = 0) -> list[Series]:
    """Series of one pattern with noise that they share."""
    rng = np.random.default_rng(seed)
    hours = rng.integers(1, 4, n_rows).cumsum() if irregular else np.arange(n_rows)
    stamps = pd.Timestamp("2024-01-01") + pd.to_timedelta(hours, unit="h")
    common = np.sin(hours / 3) + 0.7 * rng.standard_normal(n_rows)
    return [
        Series(f"s{i}", pd.DatetimeIndex(stamps), 20.0 + 3 * (i + 1) * common, "" if irregular else "h")
        for i in range(n_series)
    ]


def with_gaps(series: list[Series], share: float = 0.3, seed: int = 1) -> list[Series]:
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(one, values=np.where(rng.random(len(one.values)) < share, np.nan, one.values))
        for one in series
    ]


def untrained(series: list[Series], *, mixed: bool = False, trained: bool = False) -> StreamForecaster:
    tokenizer = RowTokenizer(series[0].frequency, 1).fit(series)
    config = StreamConfig(
        lookback=8,
        horizon=2,
        n_series=len(series),
        n_mixed=len(series) if mixed else 1,
        n_calendar=2 * len(tokenizer.cycles),
        irregular=not series[0].frequency,
        imputes=True,
        model=SMALL,
    )
    torch.manual_seed(0)
    model = StreamForecaster(config).eval()
    model.tokenizer = tokenizer
    if trained:  # as if: what reads out is no longer zero
        for member in model.members:
            assert member.imputer is not None
            torch.nn.init.normal_(member.imputer.head.proj.weight, std=0.3)
    return model


def test_begins_as_a_straight_line_between_the_neighbours() -> None:
    whole = waves(irregular=True)
    series = with_gaps(whole)
    frame = impute(untrained(whole), series)
    for one in series:
        own = frame[frame["unique_id"] == one.unique_id]
        line = pd.Series(one.values, one.stamps).interpolate("time", limit_direction="both")
        # values are scaled to float32 before they are read
        room = 16 * np.finfo(np.float32).eps * np.ptp(line)
        np.testing.assert_allclose(own["y_hat"], line, atol=room + np.abs(line).max() * 1e-6, rtol=0)


def test_leaves_observed_values_alone_and_marks_filled_ones() -> None:
    whole = waves()
    series = with_gaps(whole)
    frame = impute(untrained(whole, mixed=True, trained=True), series)
    values = np.concatenate([one.values for one in series])
    there = np.isfinite(values)
    assert (frame["filled"].to_numpy() == ~there).all()
    levels = [name for name in frame if name.startswith("q")]
    for name in ["y_hat", *levels]:
        assert (frame[name].to_numpy()[there] == values[there]).all()
    assert (np.diff(frame[levels].to_numpy()[~there], axis=1) > 0).all()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("irregular", [False, True])
def test_pieces_say_what_the_whole_says(mixed: bool, irregular: bool) -> None:
    whole = waves(irregular=irregular)
    series = with_gaps(whole)
    model = untrained(whole, mixed=mixed, trained=True)
    at_once, apart = impute(model, series), impute(model, series, piece=7)
    scale = np.ptp(whole[0].values)
    columns = ["y_hat", "q10", "q90"]
    # the same sums in another order
    np.testing.assert_allclose(apart[columns], at_once[columns], atol=2e-5 * scale, rtol=0)
    filled = at_once["filled"]
    line = impute(untrained(whole, mixed=mixed), series)
    assert (at_once["y_hat"] - line["y_hat"])[filled].abs().max() > 1e-2 * scale


@given(st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_reversed_reading_is_its_own_inverse_and_sees_the_same_gaps(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, length, generator=generator)
    values[torch.rand(2, length, generator=generator) < 0.3] = torch.nan
    elapsed = torch.randint(1, 5, (2, length), generator=generator).float()
    elapsed[:, 0] = 1.0  # as every series begins
    more = torch.randn(2, length, 3, generator=generator)
    read = Read(values, more, more + 1, elapsed, torch.zeros(2, 0), torch.arange(2))
    for name, once, twice in zip(Read._fields, read, turned(turned(read)), strict=True):
        assert torch.equal(torch.nan_to_num(once), torch.nan_to_num(twice)), name
    one, other = between(values, elapsed), between(turned(read).values, turned(read).elapsed)
    assert torch.allclose(one.base, other.base.flip(1), atol=1e-5)
    assert torch.equal(one.before, other.after.flip(1))
    assert torch.equal(one.is_left, other.is_right.flip(1))


def test_a_palindrome_is_read_alike_from_both_ends() -> None:
    whole = waves(n_series=1)
    model = untrained(whole)
    values = torch.randn(1, 9)
    values = torch.cat([values, values.flip(1)], 1)
    known = torch.zeros(1, 18, model.config.n_known)
    read = Read(values, known[..., :0], known, torch.ones(1, 18), torch.zeros(1, 0), torch.zeros(1).long())
    with torch.no_grad():
        for member in model.members:
            assert member.imputer is not None
            member.imputer.from_end.zero_()  # what tells the directions apart
        forwards, backwards = model.walk(read), model.walk(turned(read), from_end=True)
    assert torch.equal(forwards.hidden[0], backwards.hidden[0])


def test_gaps_at_the_ends_take_the_nearest_value() -> None:
    whole = waves(n_series=1)
    values = whole[0].values.copy()
    values[:5] = values[-4:] = np.nan
    frame = impute(untrained(whole), [dataclasses.replace(whole[0], values=values)])
    np.testing.assert_allclose(frame["y_hat"][:5], values[5], rtol=1e-6)
    np.testing.assert_allclose(frame["y_hat"][-4:], values[-5], rtol=1e-6)


def test_the_unit_of_an_unseen_series_does_not_matter() -> None:
    whole = waves()
    model = untrained(whole, trained=True)
    one = dataclasses.replace(with_gaps(waves(seed=3))[0], unique_id="new")
    tiny = dataclasses.replace(one, values=1e-7 * one.values)
    wanted, made = (impute(model, [each])[["q10", "y_hat", "q90"]].to_numpy() for each in (one, tiny))
    np.testing.assert_allclose(1e7 * made, wanted, rtol=1e-3)


def test_a_series_without_a_value_is_named() -> None:
    whole = waves()
    nothing = dataclasses.replace(whole[1], values=np.full(60, np.nan))
    model = untrained(whole)
    with pytest.raises(DataError, match="series 's1' has no value at all: there is nothing to read"):
        impute(model, [whole[0], nothing])
    left_out: list[tuple[str, str]] = []
    frame = impute(model, [whole[0], nothing], left_out=left_out)
    assert set(frame["unique_id"]) == {"s0"}
    assert left_out[0][0] == "s1"
    assert not frame["filled"].any()


def test_a_model_that_was_not_trained_to_impute_says_so() -> None:
    whole = waves()
    tokenizer = RowTokenizer("h", 1).fit(whole)
    config = StreamConfig(
        lookback=8, horizon=2, n_series=2, n_calendar=2 * len(tokenizer.cycles), model=SMALL
    )
    model = StreamForecaster(config)
    model.tokenizer = tokenizer
    with pytest.raises(UsageError, match="not trained to impute; train it with mask_share"):
        impute(model, whole)
    with pytest.raises(UsageError, match="impute_weight: imputing is learned from hidden values"):
        StreamLossConfig(impute_weight=1.0)


def test_masks_are_the_seed_s_and_of_the_right_size() -> None:
    def draw(seed: int) -> torch.Tensor:
        return hidden_rows(64, 3, 96, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    share = draw(0).view(64, 3, 96).float().mean((1, 2))
    # between the least and the most that is drawn for a window, with what chance adds
    assert 0.1 < share.mean() < 0.5
    assert share.max() < 0.85
    runs = draw(0).int().diff(dim=1).clamp(min=0).sum(1)
    assert (runs < 12).any()
    assert (runs > 20).any()
    read = Read(torch.randn(8, 20), *torch.zeros(3, 8, 20, 1), torch.zeros(8, 0), torch.arange(8))
    masked, hidden = hide_some(read, 0.5, 2)
    assert hidden.shape == (4, 20)
    assert not masked.values[4:].isnan().any()
    assert torch.equal(torch.where(masked.values[:4].isnan(), hidden, masked.values[:4]), read.values[:4])
    assert hide_some(read, 0.0, 2)[0] is read


def test_linear_estimate_is_that_of_ordinary_kriging() -> None:
    config = StreamConfig(lookback=8, horizon=2, n_series=2, n_mixed=2, imputes=True, model=SMALL)
    neighbours = Neighbours(config)
    size, reach = neighbours.size, neighbours.reach
    block, n = size - 2 * reach, 2 * size
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(n, 40, generator=generator)
    neighbours.fit([torch.randn(4000, 40, generator=generator) @ root.T / 40**0.5 + 3])
    length = 2 * block + 5
    values = torch.randn(2, length, generator=generator) + 5
    values[torch.rand(2, length, generator=generator) < 0.4] = torch.nan
    line = between(values, torch.ones(2, length))
    scale = Scale(torch.zeros(2), torch.ones(2))
    shift, spread = neighbours(values, line.base, scale)
    covariance = neighbours.covariance.double().numpy()
    for t in (0, block - 1, block, length // 2, length - 1):
        first = t // block * block - reach
        rows = np.arange(first, first + size)
        inside = (rows >= 0) & (rows < length)
        around = np.where(inside, values.double().numpy()[:, rows.clip(0, length - 1)], np.nan).flatten()
        there = np.isfinite(around)
        for one in range(2):
            place = one * size + t - first
            weights = np.linalg.solve(covariance[np.ix_(there, there)], covariance[there, place])
            variance = max(0.0, covariance[place, place] - weights @ covariance[there, place])
            share = 1 - variance / covariance[place, place]
            mean = share * (weights @ around[there]) + (1 - share) * line.base[one, t].item()
            assert (line.base + shift)[one, t].item() == pytest.approx(mean, abs=5e-3)
            assert spread[one, t].item() == pytest.approx(variance**0.5, abs=5e-3)


def test_linear_estimate_follows_a_level_never_seen() -> None:
    config = StreamConfig(lookback=8, horizon=2, n_series=1, n_mixed=1, imputes=True, model=SMALL)
    neighbours = Neighbours(config)
    at = torch.arange(2000.0)
    wave = torch.sin(at / 4)
    neighbours.fit([wave.unfold(0, neighbours.size, 1)])
    values = wave[None, :300] + 7
    values[0, 60:66] = torch.nan
    base = between(values, torch.ones(1, 300)).base
    shift, _ = neighbours(values, base, Scale(torch.zeros(1), torch.ones(1)))
    torch.testing.assert_close((base + shift)[0, 60:66], wave[60:66] + 7, atol=0.03, rtol=0)


@pytest.mark.slow
def test_values_hidden_in_training_help_forecasts_from_incomplete_series(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole = waves(900, 1)
    pattern = np.sin(np.arange(900) / 3)  # without noise: what is missing can be told from what is there
    series = [dataclasses.replace(whole[0], values=pattern)]
    test = with_gaps(series, 0.5)
    errors = {}
    for share in (0.0, 0.75):
        model, _ = train_stream(
            series,
            [(600, 700, 900)],
            RunFolder(tmp_path / f"run{share}"),
            lookback=8,
            horizon=4,
            season_length=1,
            mixed=False,
            model_config=dataclasses.replace(SMALL, use_linear=False),
            loss_config=StreamLossConfig(window=64, origins=8, mask_share=share),
            train_config=dataclasses.replace(
                PRESET_TRAIN, device="cpu", lr=5e-3, max_epochs=20, max_steps=200, batch_size=8, ema_decay=0.9
            ),
        )
        store = make_store(model.tokenizer, test, [(600, 700, 896)])
        complete = torch.from_numpy((pattern - store.offset[0].item()) / store.unit[0].item())
        sums = []
        for found in forecasts(model, store, 2):
            goal = complete[found.origins[:, None] + 1 + torch.arange(4)]
            sums.append((model.point(found.quantiles)[0] - goal).square().mean().item())
        errors[share] = np.mean(sums)
    assert errors[0.75] < 0.8 * errors[0.0]


def test_learns_what_the_other_series_of_a_row_say(tmp_path) -> None:  # type: ignore[no-untyped-def]
    series = waves(400)
    bounds = [(280, 300, 400)] * 2
    model, _ = train_stream(
        series,
        bounds,
        RunFolder(tmp_path / "run"),
        lookback=8,
        horizon=1,
        season_length=1,
        mixed=True,
        model_config=SMALL,
        loss_config=StreamLossConfig(window=32, origins=2, mask_share=1.0, impute_weight=4.0),
        train_config=dataclasses.replace(
            PRESET_TRAIN, device="cpu", lr=1e-2, max_epochs=2, max_steps=20, batch_size=8, ema_decay=0.8
        ),
    )
    test = [dataclasses.replace(one, values=one.values[300:], stamps=one.stamps[300:]) for one in series]
    gaps = with_gaps(test, 0.25)
    first_gone = np.isnan(gaps[0].values)
    gaps[1].values[first_gone] = test[1].values[first_gone]  # one of the two is there
    model.save_pretrained(tmp_path / "model")
    frame = impute(StreamForecaster.from_pretrained(tmp_path / "model"), gaps)
    truth = np.concatenate([one.values for one in test])
    line = np.concatenate([pd.Series(one.values).interpolate(limit_direction="both") for one in gaps])
    filled = frame["filled"].to_numpy()
    ours = np.square(frame["y_hat"] - truth)[filled].mean()
    # the noise is shared, so that the other series tells it: a straight line can't know
    assert ours < 0.01 * np.square(line - truth)[filled].mean()
