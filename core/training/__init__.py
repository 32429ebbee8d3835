"""Training: options, optimizer groups, Lightning runs, run folders and reports.

Lightning takes seconds to import, so what needs it is imported on first use: a command line can build its
flags from ``TrainConfig`` at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mambakit.core.training.config import TrainConfig, parse_duration
from mambakit.core.training.report import Report
from mambakit.core.training.result import FitResult
from mambakit.core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from mambakit.core.training.callbacks import AveragedWeights, DivergedError
    from mambakit.core.training.carried import CarriedState, begin_rows
    from mambakit.core.training.devices import choose_precision, resolve_device, seed_everything
    from mambakit.core.training.fitting import fit, load_weights
    from mambakit.core.training.graphs import GraphedLoss
    from mambakit.core.training.members import MemberTraining
    from mambakit.core.training.optim import configure_optimizer, parameter_groups, warmup_cosine
    from mambakit.core.training.streams import DocumentStreams, Piece

_LATER = {
    "AveragedWeights": "mambakit.core.training.callbacks",
    "CarriedState": "mambakit.core.training.carried",
    "DivergedError": "mambakit.core.training.callbacks",
    "DocumentStreams": "mambakit.core.training.streams",
    "GraphedLoss": "mambakit.core.training.graphs",
    "MemberTraining": "mambakit.core.training.members",
    "Piece": "mambakit.core.training.streams",
    "begin_rows": "mambakit.core.training.carried",
    "choose_precision": "mambakit.core.training.devices",
    "configure_optimizer": "mambakit.core.training.optim",
    "fit": "mambakit.core.training.fitting",
    "load_weights": "mambakit.core.training.fitting",
    "parameter_groups": "mambakit.core.training.optim",
    "resolve_device": "mambakit.core.training.devices",
    "seed_everything": "mambakit.core.training.devices",
    "warmup_cosine": "mambakit.core.training.optim",
}

__all__ = [
    "AveragedWeights",
    "CarriedState",
    "DivergedError",
    "DocumentStreams",
    "FitResult",
    "GraphedLoss",
    "MemberTraining",
    "Piece",
    "Report",
    "RunFolder",
    "TrainConfig",
    "begin_rows",
    "choose_precision",
    "configure_optimizer",
    "fit",
    "load_weights",
    "parameter_groups",
    "parse_duration",
    "resolve_device",
    "seed_everything",
    "warmup_cosine",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
