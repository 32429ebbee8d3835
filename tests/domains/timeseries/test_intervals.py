"""Conformal intervals of quantile forecasts: coverage, any horizon, saved with the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.calibration import calibrate_model, held_out_forecasts
from mambakit.domains.timeseries.data import series_in
from mambakit.domains.timeseries.forecasting import forecast, to_frame, until, with_intervals
from mambakit.domains.timeseries.window import WindowForecaster


def drawn(n: int, seed: int, horizon: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Skewed targets whose spread differs by row and step; quantiles half as wide as they should be."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 50, (n, 1)) * np.sqrt(np.arange(1, horizon + 1))
    targets = 100 + scale * rng.exponential(1, (n, horizon)) * np.linspace(1, 2, horizon)
    z = np.array([0.05, 0.7, 1.2])
    return 100 + scale[..., None] * z, targets


@pytest.mark.parametrize("by_step", [True, False])
def test_coverage_is_what_is_asked_for(by_step: bool):
    made = conformal.calibrate(*drawn(2000, 0), by_step=by_step)
    quantiles, targets = drawn(2000, 1)
    raw = ((quantiles[..., 0] <= targets) & (targets <= quantiles[..., -1])).mean()
    assert raw < 0.65
    for level in (50, 80, 95):
        low, high = conformal.interval(made, quantiles, level)
        inside = ((low <= targets) & (targets <= high)).mean(0)
        assert inside.mean() == pytest.approx(level / 100, abs=0.02)
        if by_step:  # each step on its own: a standard error of 1.5 % with both samples
            np.testing.assert_allclose(inside, level / 100, atol=0.05)
    found = conformal.coverages(quantiles, targets, [80], made)
    assert found[80] == pytest.approx(0.8, abs=0.02)


def test_intervals_are_nested_hold_the_median_and_follow_the_units():
    made = conformal.calibrate(*drawn(300, 0))
    quantiles, _ = drawn(50, 1)
    low, high = conformal.interval(made, quantiles, 90)
    narrow_low, narrow_high = conformal.interval(made, quantiles, 10)
    assert (low <= narrow_low).all()
    assert (narrow_low <= quantiles[..., 1]).all()
    assert (quantiles[..., 1] <= narrow_high).all()
    assert (narrow_high <= high).all()
    scaled_low, _ = conformal.interval(made, 7 * quantiles - 3, 90)
    np.testing.assert_allclose(scaled_low, 7 * low - 3)


def test_other_horizons_take_the_first_steps_or_the_last_width():
    made = conformal.calibrate(*drawn(300, 0), by_step=True)
    quantiles, _ = drawn(5, 1, horizon=9)
    low, high = conformal.interval(made, quantiles, 80)
    short_low, _ = conformal.interval(made, quantiles[:, :4], 80)
    np.testing.assert_allclose(short_low, low[:, :4])
    width = quantiles[..., -1] - quantiles[..., 0]
    share = (high - quantiles[..., -1]) / width
    np.testing.assert_allclose(share[:, 6:], np.broadcast_to(share[:, 5:6], (5, 3)))


def test_missing_targets_and_constant_series_do_not_count():
    quantiles, targets = drawn(200, 0)
    broken = np.concatenate([targets, np.full((40, 6), np.nan), np.full((40, 6), 9.0)])
    flat = np.full((40, 6, 3), 5.0)
    more = np.concatenate([quantiles, quantiles[:40], flat])
    a, b = conformal.calibrate(quantiles, targets), conformal.calibrate(more, broken)
    np.testing.assert_allclose(conformal.interval(a, quantiles, 80), conformal.interval(b, quantiles, 80))
    assert conformal.interval(a, flat, 80)[1].max() == 5.0


def test_refuses_in_one_sentence():
    quantiles, targets = drawn(10, 0)
    with pytest.raises(UsageError, match=r"expected \(n, horizon, n_levels >= 2\)"):
        conformal.calibrate(quantiles[..., :1], targets)
    with pytest.raises(DataError, match="there is no target"):
        conformal.calibrate(quantiles, np.full_like(targets, np.nan))
    made = conformal.calibrate(quantiles, targets, by_step=True)
    with pytest.raises(
        DataError, match="the 95 % interval needs 19 held-out targets, the calibration has 10"
    ):
        conformal.interval(made, quantiles, 95)
    with pytest.raises(UsageError, match=r"inside \(0, 100\), such as 80, got 0.8|got 100"):
        conformal.interval(made, quantiles, 100)


def test_calibrated_once_and_saved_with_the_model(trained, data, tmp_path):
    model = WindowForecaster(trained[0].config)
    model.load_state_dict(trained[0].state_dict())
    model.tokenizer = trained[0].tokenizer
    model.eval()
    series = series_in(data)
    made = forecast(model, series, 30)
    with pytest.raises(UsageError, match="no calibrated intervals"):
        with_intervals(model, made, [80])
    # rows 280..320 chose the weights; those after are the test's
    calibrate_model(model, [until(one, 320) for one in series], horizon=24, held_out=40, least=48)
    model.save_pretrained(tmp_path / "m")
    again = WindowForecaster.from_pretrained(tmp_path / "m")
    frame = to_frame(with_intervals(again, forecast(again, series, 30), [80, 95]))
    expected = to_frame(with_intervals(model, made, [80, 95]))
    np.testing.assert_allclose(frame[["lo-80", "hi-95"]], expected[["lo-80", "hi-95"]])
    assert (frame["lo-95"] <= frame["lo-80"]).all()
    quantiles, targets = held_out_forecasts(model, series, horizon=24, held_out=80, least=48)
    assert len(targets) == 2 * (80 - 24 + 1)
    raw = ((quantiles[..., 0] <= targets) & (targets <= quantiles[..., -1])).mean()
    found = conformal.coverages(quantiles, targets, [80], model.calibrators["interval"])[80]
    assert abs(found - 0.8) < max(0.1, abs(raw - 0.8))


def test_a_stream_that_drifts_keeps_its_coverage():
    quantiles, targets = (part[:, 0] for part in drawn(300, 0))
    adaptive = conformal.adaptive(80, quantiles, targets, gamma=0.05)
    state = adaptive.init_state(batch=1)
    drifted, came = (part[:, 0] for part in drawn(1500, 1))
    came = 100 + 3 * (came - 100)  # three times as far out as calibrated
    inside = []
    for pair, target in zip(
        torch.tensor(drifted[:, None, [0, -1]]), torch.tensor(came[:, None]), strict=True
    ):
        low, high = adaptive.interval(pair, state)
        inside.append(bool(low <= target <= high))
        state = adaptive.update(pair, target, state)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.03)
