"""A data frame in, forecasts out: the argument names are neuralforecast's, so that either can be swapped in.

    python examples/own_frame.py

Two hourly series of different lengths, with a covariate that is known ahead and values that are missing.
Where neuralforecast is installed, a model of its own, such as ``NHITS(h=6, input_size=24,
futr_exog_list=["load"])`` in ``NeuralForecast(models=[...], freq="h")``, takes the same frame in place of
``Forecaster``, once the missing values are filled.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mambakit.domains.timeseries.api import Forecaster

H = 6


def frame_of(n: int = 400) -> pd.DataFrame:
    """``unique_id, ds, y, load``: y follows the load and the hour."""
    rng = np.random.default_rng(0)
    frames = []
    for name, begin in (("north", 0), ("south", 150)):
        stamps = pd.date_range("2024-01-01", periods=n, freq="h")[begin:]
        load = rng.normal(size=len(stamps))
        y = (
            5
            + 2 * load
            + np.sin(2 * np.pi * stamps.hour.to_numpy() / 24)
            + 0.1 * rng.normal(size=len(stamps))
        )
        frames.append(pd.DataFrame({"unique_id": name, "ds": stamps, "y": y, "load": load}))
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[frame.index[200:206], "y"] = np.nan
    return frame


def main(max_steps: int = 60) -> pd.DataFrame:
    """Fits, forecasts the last six hours, and compares with what came."""
    df = frame_of()
    ahead = df.groupby("unique_id").tail(H)
    forecaster = Forecaster(h=H, freq="h", input_size=24, futr_exog_list=["load"], max_steps=max_steps)
    forecaster.fit(df.drop(ahead.index))
    made = forecaster.predict(futr_df=ahead.drop(columns="y"), level=[80])
    return made.merge(ahead[["unique_id", "ds", "y"]], on=["unique_id", "ds"])


if __name__ == "__main__":
    print(main().to_string(index=False))
