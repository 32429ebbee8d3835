"""The recurrent state between the pieces of a stream: in a bare loop, and through a Lightning checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mambakit.core.state import State
from mambakit.core.training.streams import Piece

_KEY = "carried_state"


class Stateful(Protocol):
    """A block, backbone or model that streams."""

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token."""


def begin_rows(module: Stateful, state: State | None, fresh: Tensor) -> State:
    """The state a piece begins with: the one carried, and ``module.init_state`` in the rows that are fresh.

    Args:
        module: Its learned starts, if it has them, get gradients through this.
        state: After the piece before; None before the first.
        fresh: ``(batch,)`` bool, ``Piece.fresh``.

    Raises:
        ValueError: If the state is of another batch size or model.
    """
    start = module.init_state(len(fresh), device=fresh.device)
    if state is None:
        return start
    if state.batch not in (None, len(fresh)):
        raise ValueError(f"state: it is for a batch of {state.batch} rows, but fresh has {len(fresh)}")
    try:
        return state.to(fresh.device).where_rows(fresh, start)
    except ValueError as error:
        raise ValueError(f"state: it belongs to another model ({error})") from error


class CarriedState:
    """Mixin before ``LightningModule`` for training on ``DocumentStreams``, in one process.

    The state goes into checkpoints, and Lightning keeps the streams' place itself, so that a resumed run
    continues inside its documents:

        class Task(CarriedState, pl.LightningModule):
            def training_step(self, piece: Piece, batch_idx: int) -> Tensor:
                logits, state = self.model(piece.values, self.take_state(self.model, piece), piece.seq_idx)
                self.keep_state(state)
                return self.model.loss(logits, piece.targets, piece.mask)
    """

    _carried: State | None = None

    def take_state(self, module: Stateful, piece: Piece) -> State:
        """The state before ``piece``; see ``begin_rows``."""
        return begin_rows(module, self._carried, piece.fresh)

    def keep_state(self, state: State) -> None:
        """Detach the state after a piece and carry it to the next."""
        self._carried = state.detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: writes the state as plain tensors."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self._carried is not None:
            checkpoint[_KEY] = self._carried.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: reads what ``on_save_checkpoint`` wrote."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if _KEY in checkpoint:
            self._carried = State.from_dict(checkpoint[_KEY])
