"""Frames to vectors: causal convolutions that thin them out, and a stack of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import RMSNorm
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.state import State
from mambakit.domains.speech.blocks import block_sizes

_WIDTH = 3


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; see each field."""

    n_mels: int = 40
    """Bands of a frame."""
    d_model: int = 96
    """Width of the stack."""
    subsampling: Literal[1, 2, 4] = 2
    """Frames that become one vector."""
    channels: int = 32
    """Of the two convolutions over time and bands."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2"])
    """Kinds of block in a layer."""
    n_layers: int = 2
    """How many times they are stacked."""
    d_state: int = 32
    """State size of the Mamba blocks."""
    head_dim: int = 32
    """Channels a head of the Mamba-2 blocks."""
    bidirectional: bool = True
    """Read both ways; an encoder that streams can't."""
    dropout: float = 0.1
    """Share of each block's output that is dropped while training."""

    def __post_init__(self) -> None:
        if self.subsampling not in (1, 2, 4):
            raise UsageError(f"subsampling: expected 1, 2 or 4, got {self.subsampling}")
        check_least(self, 1, "n_mels", "d_model", "channels", "n_layers", "d_state", "head_dim")
        check_shares(self, "dropout", below_one=True)

    def backbone(self) -> BackboneConfig:
        """The stack after the convolutions."""
        options: dict[str, dict[str, Any]] = {
            kind: {"n_heads": max(1, self.d_model // self.head_dim)}
            if kind == "attention"
            else dict(block_sizes(kind, d_state=self.d_state, head_dim=self.head_dim))
            for kind in self.blocks
        }
        return BackboneConfig(
            d_model=self.d_model,
            layers=list(self.blocks),
            repeat=self.n_layers,
            block_options={kind: sizes for kind, sizes in options.items() if sizes},
            bidirectional=self.bidirectional,
            dropout=self.dropout,
        )


def transformer_like(config: EncoderConfig) -> EncoderConfig:
    """A transformer (attention with rotary positions, and a gated MLP) of about as many parameters."""
    wanted = _size(config)
    layers = (replace(config, blocks=["attention", "mlp"], n_layers=n) for n in range(1, 65))
    return min(layers, key=lambda one: abs(_size(one) - wanted))


def _size(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Encoder(config).parameters())


class Encoder(nn.Module):
    """Convolutions and a backbone; the two together stream where the backbone is causal.

    The convolutions look only back, also where the backbone reads both ways: their output depends on no
    padding, and they are the same whether an encoder streams or not.

    Args:
        config: The shape.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[config.subsampling]
        self.convolutions = nn.ModuleList()
        bands, channels = config.n_mels, 1
        self._bands: list[tuple[int, int]] = []
        for stride in self.strides:
            self._bands.append((channels, bands))
            self.convolutions.append(
                nn.Conv2d(channels, config.channels, (_WIDTH, 3), stride=(stride, 2), padding=(0, 1))
            )
            bands, channels = (bands + 1) // 2, config.channels
        self.norm = RMSNorm(channels * bands)
        self.project = nn.Linear(channels * bands, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone = Backbone(config.backbone())

    @property
    def causal(self) -> bool:
        """Whether it can stream."""
        return self.backbone.causal

    def lengths_of(self, lengths: Tensor) -> Tensor:
        """How many vectors so many frames make."""
        for stride in self.strides:
            lengths = lengths // stride
        return lengths

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances.

        Args:
            frames: ``(batch, n_frames, n_mels)``, right-padded.
            lengths: ``(batch,)`` int64 frames of each.

        Returns:
            ``(batch, n, d_model)``, zero at padding, with ``n = n_frames // subsampling``, and their lengths.
        """
        x, _ = self._thinned(frames, self._before(len(frames), frames))
        lengths = self.lengths_of(lengths)
        y, _ = self.backbone(x, lengths=lengths)
        return y, lengths

    def init_state(self, batch: int) -> State:
        """Before the first frame.

        Raises:
            RuntimeError: If a layer is not causal.
        """
        state = self.backbone.init_state(batch)
        return State.of(backbone=state, **self._before(batch, self.project.weight))

    def step(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """The next frames ``(batch, n, n_mels)``, any n, and the vectors ``(batch, m, d_model)`` completed.

        Over a sequence it gives what ``forward`` gives, whatever the pieces.

        Raises:
            RuntimeError: If a layer is not causal.
        """
        x, kept = self._thinned(frames, {name: state[name] for name in ("first", "second")})
        y, inner = self.backbone(x, state["backbone"])
        return y, State.of(backbone=inner, **kept)

    def _before(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Zeros before the first frame, so many that a stride's frames make a vector."""
        return {
            name: like.new_zeros(batch, _WIDTH - stride, channels, bands)
            for name, stride, (channels, bands) in zip(
                ("first", "second"), self.strides, self._bands, strict=True
            )
        }

    def _thinned(self, frames: Tensor, kept: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Vectors ``(batch, n, d_model)`` and each convolution's inputs that later ones need."""
        x, rests = frames[:, :, None, :], {}  # [b, t, channels, bands]
        layers = zip(kept.items(), self.convolutions, self.strides, strict=True)
        for (name, before), conv, stride in layers:
            x = torch.cat([before.to(x.dtype), x], dim=1)
            n = max(0, (x.shape[1] - _WIDTH) // stride + 1)
            rests[name] = x[:, n * stride :]
            if n:
                x = x[:, : (n - 1) * stride + _WIDTH].transpose(1, 2)
                x = torch.nn.functional.silu(conv(x)).transpose(1, 2)
            else:
                x = x.new_zeros(len(x), 0, self.config.channels, (x.shape[3] + 1) // 2)
        return self.dropout(self.project(self.norm(x.flatten(2)))), rests
