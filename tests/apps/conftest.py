"""Events of a made-up shop, for the tests that call the recommendation app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

Events = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def shop_events() -> Events:
    """Makes them: users mostly go on to the next item."""

    def made(n_users: int = 60, n_items: int = 15) -> pd.DataFrame:
        rng = np.random.default_rng(0)
        rows = []
        for u in range(n_users):
            x, now = int(rng.integers(n_items)), 1_700_000_000
            for _ in range(int(rng.integers(4, 15))):
                x = (x + 1) % n_items if rng.random() < 0.8 else int(rng.integers(n_items))
                now += int(rng.integers(0, 5000))
                rows.append((f"u{u}", f"i{x}", now))
        return pd.DataFrame(rows, columns=["user", "item", "timestamp"])

    return made


@pytest.fixture(scope="session")
def shop_table(shop_events: Events, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "events.csv"
    shop_events().to_csv(path, index=False)
    return path
