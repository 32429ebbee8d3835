"""The data-frame forecaster: neuralforecast's names, honest origins, ragged and broken series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.api import Forecaster
from mambakit.domains.timeseries.config import StreamLossConfig, StreamModelConfig

MODEL = StreamModelConfig(members=1, context=4, d_model=16, head_dim=8, d_state=8, n_layers=1, d_ahead=8)
LOSS = StreamLossConfig(window=64, origins=8, validation_stride=6)


def frame_of(n: int = 240) -> pd.DataFrame:
    """Two hourly series that follow a covariate known ahead; the second begins late and lacks values."""
    rng = np.random.default_rng(0)
    frames = []
    for name, begin in (("north", 0), ("south", 60)):
        load = rng.normal(size=n - begin)
        stamps = pd.date_range("2024-01-01", periods=n, freq="h")[begin:]
        y = 5 + 2 * load + np.sin(np.arange(begin, n) * 2 * np.pi / 24) + 0.1 * rng.normal(size=n - begin)
        frames.append(pd.DataFrame({"unique_id": name, "ds": stamps, "y": y, "load": load}))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[frame.index[300:306], "y"] = np.nan
    return frame


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    frame = frame_of()
    history = frame[frame.ds < "2024-01-10 18:00"]
    forecaster = Forecaster(
        6, "h", input_size=24, futr_exog_list=["load"], max_steps=30, random_seed=1, model=MODEL, loss=LOSS
    )
    return forecaster.fit(history, val_size=48)


def test_it_predicts_with_covariates_and_calibrated_intervals(fitted: Forecaster) -> None:
    frame = frame_of()
    ahead = frame[frame.ds >= "2024-01-10 18:00"]
    made = fitted.predict(futr_df=ahead.drop(columns="y"), level=[80])
    assert list(made.columns) == ["unique_id", "ds", "Mamba", "Mamba-lo-80", "Mamba-hi-80"]
    both = made.merge(ahead, on=["unique_id", "ds"])
    assert len(both) == len(made) == 12
    # the covariate explains nearly all: without it nothing could be this near
    assert (both.Mamba - both.y).abs().mean() < 0.5 * both.y.std()
    assert (made["Mamba-lo-80"] < made["Mamba-hi-80"]).all()


def test_cross_validation_names_cutoffs_and_does_not_see_what_it_forecasts(fitted: Forecaster) -> None:
    forecaster = Forecaster(
        6, input_size=24, futr_exog_list=["load"], max_steps=4, random_seed=1, model=MODEL, loss=LOSS
    )
    frame = frame_of()
    made = forecaster.cross_validation(frame, n_windows=2, level=[80])
    assert {"unique_id", "ds", "cutoff", "y", "Mamba", "Mamba-lo-80", "Mamba-hi-80"} <= set(made.columns)
    assert made.groupby("unique_id").cutoff.nunique().tolist() == [2, 2]
    assert (made.ds > made.cutoff).all()
    spoilt = frame.assign(y=np.where(frame.ds > made.cutoff.min(), 1e3, frame.y))
    again = forecaster.cross_validation(spoilt, n_windows=2)
    first = made.cutoff == made.cutoff.min()
    np.testing.assert_array_equal(made.Mamba[first], again.Mamba[first])


def test_it_saves_and_predicts_for_new_series(fitted: Forecaster, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = Forecaster.load(tmp_path)
    new = frame_of().query("unique_id == 'north'").assign(unique_id="west")
    history, ahead = new.iloc[:100], new.iloc[100:106].drop(columns="y")
    made, wanted = (one.predict(history, futr_df=ahead) for one in (again, fitted))
    pd.testing.assert_frame_equal(made, wanted)
    with pytest.raises(UsageError, match="give it df"):
        Forecaster.load(tmp_path).predict()


def test_what_cannot_be_is_said(fitted: Forecaster) -> None:
    with pytest.raises(UsageError, match="call fit"):
        Forecaster(6).predict()
    with pytest.raises(DataError, match="covariate"):
        fitted.predict(frame_of().iloc[:50])
    with pytest.raises(DataError, match="'D' was said"):
        Forecaster(6, "D", model=MODEL, loss=LOSS, max_steps=1).fit(frame_of())
    broken = frame_of().astype({"y": object})
    broken.loc[0, "y"] = "n/a?"
    forecaster = Forecaster(6, max_steps=1, input_size=24, model=MODEL, loss=LOSS).fit(broken)
    assert list(forecaster.left_out) == ["north"]
    assert forecaster.predict().unique_id.unique().tolist() == ["south"]
