"""What the cards of models of time series say of them."""

from __future__ import annotations

from mambakit.core.trust.about import About

_SHIFT = (
    "It takes for granted that what comes is like what was: after a break in the series (a new meter, "
    "a crisis, another policy) neither forecasts nor intervals hold."
)
FORECASTER = About(
    task="time series forecasting",
    tag="time-series-forecasting",
    use="Forecasts with quantiles, of the series that it was trained on or their like, at their frequency.",
    limits=(
        _SHIFT,
        "Quantiles and calibrated intervals hold on average over windows, not for each hour; extremes "
        "rarer than the training's are underestimated.",
        "What it is worth on series that it was not trained on, `mambakit timeseries backtest` says.",
        "A forecast is no cause: it does not say what would come if something was done.",
    ),
    commands=("mambakit timeseries forecast --model FOLDER --input my.csv --output forecast.csv",),
)
CLASSIFIER = About(
    task="time series classification",
    use="Naming the class of whole series like those of the training, with probabilities.",
    limits=(
        "It names one of the classes that it knows, whatever it is shown.",
        _SHIFT,
        "Probabilities were calibrated on series that were held out; of other sensors, people or sites they "
        "are too sure.",
    ),
    commands=("mambakit timeseries classify --model FOLDER --input series.ts --output classes.csv",),
)
