"""Checks that the config dataclasses of the domains share, each error naming the field."""

from __future__ import annotations

from mambakit.core.errors import UsageError


def check_least(config: object, least: float, *names: str) -> None:
    """Refuse fields below a number, and NaN; None is whatever the config says it is.

    Raises:
        UsageError: On the first that is.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UsageError(f"{name}: expected at least {least}, got {value}")


def check_shares(config: object, *names: str, below_one: bool = False) -> None:
    """Refuse fields outside of [0, 1]; with ``below_one`` outside of [0, 1).

    Raises:
        UsageError: On the first that is.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise UsageError(f"{name}: expected a share from 0 to {'below ' * below_one}1, got {value}")
