"""AdamW for state-space models: which parameters decay, and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mambakit.core.training.config import TrainConfig
from mambakit.core.training.devices import choose_precision

# Parameters of the recurrence itself: decay would pull the time constants towards one fixed value.
NO_DECAY_NAMES = frozenset({"A_log", "D", "dt_bias"})


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: what decays and what does not.

    No decay for ``A_log``, ``D`` and ``dt_bias``, for anything with fewer than two dimensions (biases,
    norms), and for parameters that carry ``_no_weight_decay = True``. Frozen parameters are left out; a
    shared one appears once.

    Args:
        module: Whose parameters.
        weight_decay: The decay of the first group.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = (
            parameter.ndim < 2
            or name.rpartition(".")[2] in NO_DECAY_NAMES
            or getattr(parameter, "_no_weight_decay", False)
        )
        (kept if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def warmup_cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup: int, final_fraction: float = 0.0
) -> LambdaLR:
    """A linear rise over ``warmup`` steps, then half a cosine down to ``final_fraction`` of the peak.

    Args:
        optimizer: Its learning rates are the peak.
        total_steps: Steps until the end of the cosine; it stays there afterwards.
        warmup: Steps of the rise; 0 starts at the peak.
        final_fraction: Where the cosine ends, as a share of the peak.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def configure_optimizer(
    module: nn.Module,
    config: TrainConfig,
    total_steps: int,
    *,
    slower: Iterable[nn.Parameter] = (),
    share: float = 1.0,
) -> dict[str, Any]:
    """What a LightningModule's ``configure_optimizers`` returns: AdamW and its schedule, moved every step.

    Args:
        module: Whose parameters to train.
        config: lr, weight_decay, warmup_fraction, final_lr_fraction, schedule and precision are read.
        total_steps: Optimizer steps in the whole run: ``self.trainer.estimated_stepping_batches``.
        slower: Parameters that learn at ``share`` of the learning rate: those of a pretrained part.
        share: See there.
    """
    slow = {id(one) for one in slower}
    groups = []
    for group in parameter_groups(module, config.weight_decay):
        for inside, factor in ((False, 1.0), (True, share)):
            if chosen := [one for one in group["params"] if (id(one) in slow) == inside]:
                groups.append({**group, "params": chosen, "lr": config.lr * factor})
    parameters = [one for group in groups for one in group["params"]]
    # one pass, much faster; but in mixed precision Lightning does not clip gradients for a fused optimizer
    fused = all(one.device.type in ("cpu", "cuda") for one in parameters) and "mixed" not in choose_precision(
        config.precision, parameters[0].device
    )
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused or None)
    warmup = round(config.warmup_fraction * total_steps)
    last = 1.0 if config.schedule == "constant" else config.final_lr_fraction
    scheduler = warmup_cosine(optimizer, total_steps, warmup, last)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
