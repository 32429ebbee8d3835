"""From a property to a reward between 0 and 1: the transforms of an objective's components.

sigmoid, reverse_sigmoid, double_sigmoid and the steps are REINVENT's (Blaschke et al. 2020, J. Chem. Inf.
Model. 60, 5918), which Saturn (Guo & Schwaller 2024, arXiv:2405.17066) takes over; the Gaussians and linear,
its clipped score, are GuacaMol's (Brown et al. 2019). Powers of ten are taken as logistic functions, which
neither overflow nor change the value.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mambakit.core.cli import did_you_mean
from mambakit.core.errors import UsageError

Values = NDArray[np.float64]
Transform = Callable[[Values], Values]

_LN10 = math.log(10.0)


def sigmoid(x: Values, *, low: float, high: float, k: float) -> Values:
    """1 / (1 + 10^(10 k (x - (low + high) / 2) / (low - high))): rises from low to high."""
    return expit(10 * k * _LN10 * (x - (low + high) / 2) / (high - low))


def reverse_sigmoid(x: Values, *, low: float, high: float, k: float) -> Values:
    """1 - sigmoid: falls from low to high."""
    return expit(-10 * k * _LN10 * (x - (low + high) / 2) / (high - low))


def double_sigmoid(
    x: Values,
    *,
    low: float,
    high: float,
    coef_div: float = 500.0,
    coef_si: float = 250.0,
    coef_se: float = 250.0,
) -> Values:
    """Rises at low with coef_se / coef_div decades a unit, and falls at high with coef_si / coef_div."""
    return expit(_LN10 * coef_se / coef_div * (x - low)) - expit(_LN10 * coef_si / coef_div * (x - high))


def step(x: Values, *, low: float, high: float) -> Values:
    """1 from low to high, both included, else 0."""
    return ((x >= low) & (x <= high)).astype(np.float64)


def right_step(x: Values, *, low: float) -> Values:
    """1 from low on, else 0."""
    return (x >= low).astype(np.float64)


def left_step(x: Values, *, high: float) -> Values:
    """1 up to high, else 0."""
    return (x <= high).astype(np.float64)


def linear(x: Values, *, low: float, high: float) -> Values:
    """(x - low) / (high - low), cut to 0 and 1; falls where low is above high."""
    return np.clip((x - low) / (high - low), 0.0, 1.0)


def gaussian(x: Values, *, mu: float, sigma: float) -> Values:
    """exp(-((x - mu) / sigma)^2 / 2)."""
    return np.exp(-0.5 * ((x - mu) / sigma) ** 2)


def min_gaussian(x: Values, *, mu: float, sigma: float) -> Values:
    """1 up to mu, above it gaussian: the lower the better."""
    return gaussian(np.maximum(x, mu), mu=mu, sigma=sigma)


def max_gaussian(x: Values, *, mu: float, sigma: float) -> Values:
    """1 from mu on, below it gaussian: the higher the better."""
    return gaussian(np.minimum(x, mu), mu=mu, sigma=sigma)


TRANSFORMS: dict[str, Callable[..., Values]] = {
    "sigmoid": sigmoid,
    "reverse_sigmoid": reverse_sigmoid,
    "double_sigmoid": double_sigmoid,
    "step": step,
    "right_step": right_step,
    "left_step": left_step,
    "linear": linear,
    "gaussian": gaussian,
    "min_gaussian": min_gaussian,
    "max_gaussian": max_gaussian,
}
_POSITIVE = ("k", "sigma", "coef_div", "coef_si", "coef_se")


def make_transform(spec: Any, at: str) -> Transform:
    """The transform that an objective file describes: ``{kind: sigmoid, low: 75, high: 350, k: 0.15}``.

    Args:
        spec: What stands in the file.
        at: Where it stands, for messages, such as ``components[0].transform``.

    Raises:
        UsageError: On an unknown kind, a missing, unknown or impossible value; named by its key.
    """
    if not isinstance(spec, Mapping):
        raise UsageError(f"{at}: expected a mapping such as {{kind: step, low: 2, high: 5}}, got {spec!r}")
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise UsageError(
            f"{at}.kind: expected one of {', '.join(TRANSFORMS)}, got {kind!r}"
            f"{did_you_mean(str(kind), TRANSFORMS)}"
        )
    function = TRANSFORMS[kind]
    parameters = dict(list(inspect.signature(function).parameters.items())[1:])
    given = {str(key): value for key, value in spec.items() if key != "kind"}
    for key in given:
        if key not in parameters:
            raise UsageError(
                f"{at}.{key}: {kind} has no such value; it takes {', '.join(parameters)}"
                f"{did_you_mean(key, list(parameters))}"
            )
    for key, parameter in parameters.items():
        if key not in given and parameter.default is parameter.empty:
            raise UsageError(f"{at}.{key}: {kind} needs it; it takes {', '.join(parameters)}")
    for key, value in given.items():
        given[key] = number(value, f"{at}.{key}", positive=key in _POSITIVE)
    low, high = given.get("low"), given.get("high")
    if low is not None and high is not None:
        fits = {"linear": low != high, "step": low <= high}.get(kind, low < high)
        if not fits:
            raise UsageError(f"{at}: low has to be below high, got low {low:g} and high {high:g}")
    return lambda x: function(x, **given)


def number(value: Any, at: str, *, positive: bool = False) -> float:
    """A finite number of an objective file.

    Raises:
        UsageError: If it is none.
    """
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    if not fits or (positive and float(value) <= 0):
        raise UsageError(f"{at}: expected a {'positive ' if positive else ''}number, got {value!r}")
    return float(value)
