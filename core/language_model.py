"""A causal model over ids: an embedding, a backbone, and logits over the vocabulary.

The smallest whole model of the core: what generates text, what other projects' checkpoints are read into,
and what a domain whose tokens are plain ids (characters, SMILES, items) can train as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks.base import check_lengths, padding_mask
from mambakit.core.hub import HubModel
from mambakit.core.state import State


@dataclass(frozen=True)
class LanguageModelConfig:
    """What a language model is made of; see each field."""

    n_ids: int
    """Size of the vocabulary."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The stack between embedding and logits; every layer of it causal."""
    tie_embeddings: bool = True
    """The logits' weights are the embedding's."""

    def __post_init__(self) -> None:
        if self.n_ids < 1:
            raise ValueError(f"n_ids: expected at least 1, got {self.n_ids}")
        if not isinstance(self.backbone, BackboneConfig):
            raise TypeError(
                f"backbone: expected a BackboneConfig, got {type(self.backbone).__name__}; "
                "BackboneConfig.from_dict makes one of a dict"
            )


class LanguageModel(nn.Module, HubModel):
    """Logits of the next id at every position.

    Args:
        config: What to build.

    Raises:
        ValueError: If a layer is not causal, or cannot be built as the config says.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.n_ids, config.backbone.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(config.backbone)
        if not self.backbone.causal:
            raise ValueError("backbone: a language model needs causal layers, and one looks both ways")
        self.head = nn.Linear(config.backbone.d_model, config.n_ids, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token; see ``Backbone.init_state``."""
        return self.backbone.init_state(batch, device, dtype)

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        seq_idx: Tensor | None = None,
        lengths: Tensor | None = None,
        padding: str = "right",
    ) -> tuple[Tensor, State]:
        """Logits of a sequence, or of the next piece of one.

        Args:
            ids: ``(batch, length)`` int64; what padding holds does not matter.
            state, seq_idx, lengths, padding: See ``Backbone.forward``.

        Returns:
            Logits ``(batch, length, n_ids)`` and the state after each row's last real token.

        Raises:
            TypeError: If the ids are no int64 tensor.
            ValueError: On a wrong shape, an id outside the vocabulary (checked on the CPU), or as
                ``Backbone.forward``.
        """
        y, state = self._embed_and_mix(ids, state, seq_idx, lengths, padding)
        return self.head(y), state

    def prefill(
        self, ids: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits ``(batch, n_ids)`` after each row's last real token alone, and the state: a prompt, read.

        Those of a row of no tokens mean nothing.

        Raises:
            TypeError, ValueError: As ``forward``; also if there are no tokens at all.
        """
        y, state = self._embed_and_mix(ids, state, None, lengths, "right")
        if y.shape[1] == 0:
            raise ValueError("ids: expected at least one token to go on from, got none")
        if lengths is None:
            return self.head(y[:, -1]), state
        last = (lengths.to(y.device) - 1).clamp(min=0)
        return self.head(y[torch.arange(len(y), device=y.device), last]), state

    def _embed_and_mix(
        self, ids: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None, padding: str
    ) -> tuple[Tensor, State]:
        self._check(ids, 2)
        if lengths is not None:
            pads = padding_mask(check_lengths(lengths, *ids.shape).to(ids.device), ids.shape[1])
            ids = ids.masked_fill(pads.flip(1) if padding == "left" else pads, 0)
        self._check_range(ids)
        return self.backbone(self.embedding(ids), state, seq_idx, lengths, padding)

    def step(self, ids: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Logits ``(batch, n_ids)`` after one more token ``(batch,)``, and the next state.

        With ``inplace`` the state's tensors may be overwritten, see ``Block.step``.

        Raises:
            TypeError, ValueError: As ``forward``.
        """
        self._check(ids, 1)
        self._check_range(ids)
        y, state = self.backbone.step(self.embedding(ids), state, inplace=inplace)
        return self.head(y), state

    def loss(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per token, of logits ``(..., n_ids)`` and targets ``(...)``.

        ``mask`` is True where a target counts; over no targets at all the loss is zero.
        """
        values = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
        if mask is None:
            return values.mean() if values.numel() else values.sum()
        return torch.where(mask.flatten(), values, 0.0).sum() / mask.sum().clamp(min=1)

    def _check(self, ids: Tensor, dims: int) -> None:
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ids: expected an int64 tensor, got {got}")
        if ids.dim() != dims:
            wanted = "(batch, length)" if dims == 2 else "(batch,)"
            raise ValueError(f"ids: expected shape {wanted}, got {tuple(ids.shape)}")

    def _check_range(self, ids: Tensor) -> None:
        if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.n_ids:
            raise ValueError(
                f"ids: {low if low < 0 else high} is outside the vocabulary of n_ids={self.config.n_ids}"
            )
