"""Speakers apart: a learned filter bank, Mamba blocks, and a mask for each speaker.

In the spirit of Mamba-TasNet (Jiang et al. 2024, arXiv:2407.09732), which puts Mamba blocks in the place of
Conv-TasNet's convolutions (Luo & Mesgarani 2019, arXiv:1809.07454).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import RMSNorm
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.speech.separate.config import SeparateConfig


class Separator(nn.Module, HubModel):
    """One channel at ``config.rate_hz`` to as many as there are speakers.

    Args:
        config: The network.
    """

    def __init__(self, config: SeparateConfig) -> None:
        super().__init__()
        self.config = config
        hop = config.kernel // 2
        self.encode = nn.Conv1d(1, config.n_filters, config.kernel, hop, bias=False)
        self.norm = RMSNorm(config.n_filters)
        self.narrow = nn.Linear(config.n_filters, config.d_model)
        self.backbone = Backbone(
            BackboneConfig(
                d_model=config.d_model,
                layers=[config.block],
                repeat=config.n_layers,
                block_options={config.block: config.block_options},
                bidirectional=not config.causal,
            )
        )
        self.masks = nn.Linear(config.d_model, config.n_sources * config.n_filters)
        self.decode = nn.ConvTranspose1d(config.n_filters, 1, config.kernel, hop, bias=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Mixtures ``(batch, n)`` to speakers ``(batch, n_sources, n)``, at the mixtures' level.

        Raises:
            ValueError: If it is not of two dimensions.
        """
        if samples.dim() != 2:
            raise ValueError(f"samples: expected shape (batch, n), got {tuple(samples.shape)}")
        batch, n = samples.shape
        if not n:
            return samples[:, None].expand(batch, self.config.n_sources, 0)
        hop = self.config.kernel // 2
        # half a window of silence before, so that the first samples are in two frames as all others are
        framed = F.pad(samples, (hop, hop + -n % hop))
        if self.config.causal:
            return self._apart(framed, None)[0][..., hop : hop + n]
        level = samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)
        return self._apart(framed / level, None)[0][..., hop : hop + n] * level[..., None]

    def _apart(self, framed: Tensor, state: State | None) -> tuple[Tensor, State]:
        """``(batch, m)`` to ``(batch, n_sources, m)``, and the state of the blocks."""
        filtered = F.relu(self.encode(framed[:, None])).transpose(1, 2)
        seen, state = self.backbone(self.narrow(self.norm(filtered)), state)
        masks = torch.sigmoid(self.masks(seen)).unflatten(-1, (self.config.n_sources, -1))
        masked = (masks * filtered[:, :, None]).permute(0, 2, 3, 1).flatten(0, 1)
        return self.decode(masked)[:, 0].unflatten(0, (len(framed), -1)), state
