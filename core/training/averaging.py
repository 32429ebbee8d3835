"""The average of several checkpoints' weights, as speech recognition and translation take it.

An exponential average (``ema_decay``) weighs steps by their age alone. This one takes whole checkpoints, the
last or those of the best validations, however far apart, and can be judged before it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mambakit.core.training.config import TrainConfig
from mambakit.core.training.run_folder import RunFolder


class KeptCheckpoints(ModelCheckpoint):
    """The checkpoints that are averaged in the end.

    Args:
        config: How many, and which.
        run: The folder whose checkpoints they are.
        monitor: The metric that says which are best.
        mode: Whether less or more of it is better.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, monitor: str, mode: Literal["min", "max"]
    ) -> None:
        of_best = config.average_of == "best"
        super().__init__(
            dirpath=run.checkpoints,
            filename="kept-{step}",
            monitor=monitor if of_best else "step",
            mode=mode if of_best else "max",
            save_top_k=config.average,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def paths(self) -> list[Path]:
        """Those that there are, the oldest first."""
        return sorted(
            (Path(path) for path in self.best_k_models), key=lambda path: (len(path.name), path.name)
        )


def averaged_weights(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each floating tensor, worked out in float64; others are the last checkpoint's.

    Raises:
        ValueError: If there is none.
    """
    if not checkpoints:
        raise ValueError("checkpoints: expected at least one to average, got none")
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for path in checkpoints:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + tensor.double()
    return {
        name: (sums[name] / len(checkpoints)).to(tensor.dtype) if name in sums else tensor
        for name, tensor in weights.items()
    }
