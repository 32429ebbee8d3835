"""Real series that come inside a dependency: examples that need no download."""

from __future__ import annotations

import pandas as pd

from mambakit.core.errors import DataError


def load(provider: str) -> pd.DataFrame:
    """The table of a card's ``embedded`` provider.

    Raises:
        DataError: If the provider is unknown, or the package that carries it isn't installed.
    """
    if provider != "statsmodels.co2":
        raise DataError(f"no embedded data set is called {provider!r}; there is: statsmodels.co2")
    try:
        from statsmodels.datasets import co2
    except ImportError:
        raise DataError('co2 comes with statsmodels: pip install "mambakit[timeseries]"') from None
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    return pd.DataFrame({"date": monthly.index, "co2": monthly.to_numpy()})
