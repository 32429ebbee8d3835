"""A learned filter bank, Mamba blocks, and a mask for each speaker.

In the spirit of Mamba-TasNet (Jiang et al. 2024, arXiv:2407.09732), which puts Mamba blocks in the place of
Conv-TasNet's convolutions (Luo & Mesgarani 2019, arXiv:1809.07454).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import RMSNorm
from mambakit.core.state import State
from mambakit.domains.speech.overlap import Overlapping
from mambakit.domains.speech.separate.config import SeparateConfig


class FilterNetwork(Overlapping):
    """One channel at ``config.rate_hz`` to as many as there are speakers, in the time domain.

    Args:
        config: The network.
    """

    def __init__(self, config: SeparateConfig) -> None:
        hop = config.kernel // 2
        super().__init__(
            config.rate_hz, hop=hop, overlap=hop, n_outputs=config.n_sources, causal=config.causal
        )
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

    def _whole(self, samples: Tensor) -> Tensor:
        hop, n = self.hop, samples.shape[1]
        # half a window of silence before, so that the first samples are in two frames as all others are
        framed = F.pad(samples, (hop, hop + -n % hop))
        if self.causal:
            return self._added(framed, None)[0][..., hop : hop + n]
        level = samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)
        return self._added(framed / level, None)[0][..., hop : hop + n] * level[..., None]

    def _begin(self, batch: int) -> State:
        return self.backbone.init_state(batch)

    def _added(self, samples: Tensor, memory: State | None) -> tuple[Tensor, State]:
        filtered = F.relu(self.encode(samples[:, None])).transpose(1, 2)
        seen, memory = self.backbone(self.narrow(self.norm(filtered)), memory)
        masks = torch.sigmoid(self.masks(seen)).unflatten(-1, (self.n_outputs, -1))
        masked = (masks * filtered[:, :, None]).permute(0, 2, 3, 1).flatten(0, 1)
        return self.decode(masked)[:, 0].unflatten(0, (len(samples), -1)), memory
