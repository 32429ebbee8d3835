"""Several networks trained at once in one task, each as if it were trained alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mambakit.core.training.optim import configure_optimizer


class MemberTraining:
    """Mixin before ``LightningModule`` for a task whose ``model.members`` are trained side by side.

    The task has ``model`` and ``train_config``; its loss is the sum of the members'.
    """

    def configure_gradient_clipping(
        self: Any,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each member's gradient by itself, as if it were trained alone."""
        for member in self.model.members:
            if gradient_clip_val:
                nn.utils.clip_grad_norm_(member.parameters(), gradient_clip_val)

    def configure_optimizers(self: Any) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )
