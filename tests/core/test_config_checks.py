"""The checks of config dataclasses: what is refused, and in which words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError

NAN = float("nan")


@pytest.mark.parametrize("value", [1, 2.5, None])
def test_enough_is_accepted(value: float | None) -> None:
    check_least(SimpleNamespace(a=1, b=value), 1, "a", "b")


@pytest.mark.parametrize("value", [0, -1, NAN])
def test_too_little_is_named(value: float) -> None:
    with pytest.raises(UsageError, match=f"^b: expected at least 1, got {value}$"):
        check_least(SimpleNamespace(a=1, b=value), 1, "a", "b")


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_no_share_is_named(value: float) -> None:
    with pytest.raises(UsageError, match=f"^b: expected a share from 0 to 1, got {value}$"):
        check_shares(SimpleNamespace(a=0, b=value), "a", "b")


def test_one_is_a_share_where_it_may_be() -> None:
    config = SimpleNamespace(a=1.0)
    check_shares(config, "a")
    with pytest.raises(UsageError, match=r"^a: expected a share from 0 to below 1, got 1\.0$"):
        check_shares(config, "a", below_one=True)
