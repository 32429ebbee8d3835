"""Pictures to vectors: patches, read in four orders by state-space layers, and pooled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.errors import UsageError

_READ_OUTS = 8


class ImageAdapter(nn.Module):
    """Embeds a picture as one vector.

    Patches go through a linear map, get a learned place each (Dosovitskiy et al. 2021, arXiv:2010.11929,
    section 3.1), are scanned along rows and columns, forwards and backwards (Liu et al. 2024,
    arXiv:2401.10166), and what comes out is read by eight attentions, so that where something lies is not
    lost as it would be in a mean. What they look for depends on the instruction, where there is one.

    Args:
        size: Height and width of the pictures.
        patch: Side of a patch.
        d_model: Width of the vector.
        width: Of the patches, while they are scanned.
        n_layers: Scans.
        dropout: Share that is dropped of each layer's output while training.
        told: Whether an instruction says what to look for.

    Raises:
        UsageError: If the patches do not tile the picture.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        patch: int,
        d_model: int,
        width: int,
        n_layers: int,
        dropout: float,
        told: bool = False,
    ) -> None:
        super().__init__()
        if size[0] % patch or size[1] % patch:
            raise UsageError(
                f"patch: patches of {patch} pixels do not tile pictures of {size[0]} x {size[1]}; "
                "choose a divisor of both"
            )
        grid = (size[0] // patch, size[1] // patch)
        n_patches = grid[0] * grid[1]
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.place = nn.Parameter(torch.zeros(n_patches, width))
        nn.init.normal_(self.place, std=0.02)
        inner = {"d_state": 16, "head_dim": min(32, 2 * width)}
        self.scan = Backbone(
            BackboneConfig(
                d_model=width,
                layers=["grid_scan"],
                repeat=n_layers,
                block_options={"grid_scan": {"grid": list(grid), "share": "all", "inner_options": inner}},
                dropout=dropout,
            )
        )
        self.pool = nn.Linear(width, _READ_OUTS)
        self.ask = nn.Linear(d_model, _READ_OUTS * width) if told else None
        self.out = nn.Linear(_READ_OUTS * width, d_model)

    def forward(self, image: Tensor, told: Tensor | None = None) -> Tensor:
        """``(..., height, width, 3)`` uint8, and what was told ``(..., d_model)``, to ``(..., d_model)``."""
        leading = image.shape[:-3]
        pixels = image.flatten(0, -4) if len(leading) else image[None]
        x = pixels.movedim(-1, 1).to(self.place.dtype) / 127.5 - 1.0
        cells, _ = self.scan(self.patches(x).flatten(2).transpose(1, 2) + self.place)
        scores = self.pool(cells)
        if self.ask is not None and told is not None:
            wanted = self.ask(told.reshape(-1, told.shape[-1])).unflatten(1, (_READ_OUTS, -1))
            scores = scores + torch.einsum("bnd,bkd->bnk", cells, wanted) / cells.shape[-1] ** 0.5
        pooled = torch.einsum("bnk,bnd->bkd", scores.softmax(1), cells).flatten(1)
        return self.out(pooled).view(*leading, -1)
