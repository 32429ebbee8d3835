"""A saved property model as an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mambakit.core.errors import UsageError
from mambakit.domains.molecules.design.objective import Scorer


def predictor_scorer(folder: Path, task: Any, at: str) -> Scorer:
    """Predictions of one task of the model in a folder.

    Raises:
        UsageError: If the model has no such task, or several and none is named.
        DataError: If the folder holds no property model.
    """
    raise UsageError(f"{at}.oracle: property models can't be used yet")
