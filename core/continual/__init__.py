"""Learning on without forgetting: a memory of earlier batches that are replayed, and elastic weights.

In every ``train`` verb: a run with ``--train.continual.keep 32`` leaves a folder ``memory`` beside its model,
and a later run on new data goes on from it with ``--train.continual.kind replay --train.continual.base RUN``.

What needs torch is imported on first use, as command lines make their flags from ``ContinualConfig``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mambakit.core.continual.config import ContinualConfig

if TYPE_CHECKING:
    from mambakit.core.continual.fisher import elastic_penalty, fisher_information
    from mambakit.core.continual.measures import Stream
    from mambakit.core.continual.memory import Memory

_LATER = {
    "Memory": "mambakit.core.continual.memory",
    "Stream": "mambakit.core.continual.measures",
    "elastic_penalty": "mambakit.core.continual.fisher",
    "fisher_information": "mambakit.core.continual.fisher",
}

__all__ = ["ContinualConfig", "Memory", "Stream", "elastic_penalty", "fisher_information"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
