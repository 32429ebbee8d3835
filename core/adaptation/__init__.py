"""Adapting a trained model to a new task by few parameters: LoRA, DoRA, initial states, a prefix.

config = AdaptConfig("lora", rank=4)
print(adapt(model, config))                # 2,304 of 31,040 parameters learn (...)
...                                        # train
save_adapter(model, "runs/small", base="runs/base")
merge(model)                               # the plain model again, as fast as before

What needs torch is imported on first use, as command lines make their flags from ``AdaptConfig``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mambakit.core.adaptation.config import AdaptConfig

if TYPE_CHECKING:
    from mambakit.core.adaptation.adapting import adapt, merge
    from mambakit.core.adaptation.files import load_adapter, save_adapter
    from mambakit.core.adaptation.places import projections_of
    from mambakit.core.adaptation.record import Learning

_LATER = {
    "Learning": "mambakit.core.adaptation.record",
    "adapt": "mambakit.core.adaptation.adapting",
    "load_adapter": "mambakit.core.adaptation.files",
    "merge": "mambakit.core.adaptation.adapting",
    "projections_of": "mambakit.core.adaptation.places",
    "save_adapter": "mambakit.core.adaptation.files",
}

__all__ = [
    "AdaptConfig",
    "Learning",
    "adapt",
    "load_adapter",
    "merge",
    "projections_of",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
