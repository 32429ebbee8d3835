"""Pictures to vectors: patches that state-space layers read in four orders, or convolutions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.backbone_config import BackboneConfig
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.errors import UsageError

_READ_OUTS = 8
_PIXEL_CHANNELS = 16
# a scan mixes the whole picture into each patch, and whole pictures are easily learned by heart: at first,
# patches speak of themselves
_SCAN_SCALE = 0.1
_LEAST_SIDE = 36


class ImageAdapter(nn.Module):
    """Embeds a picture as one vector that says what lies where.

    A small convolution and a linear map make patches (early convolutions: Xiao et al. 2021,
    arXiv:2106.14881), which are scanned along rows and columns, forwards and backwards (Liu et al. 2024,
    arXiv:2401.10166). Eight attentions look for things among them; what they look for depends on the
    instruction, where there is one. Each gives what it found and the mean place of its attention (Levine et
    al. 2016, arXiv:1504.00702, section 5.2): so the place of a thing is told in the same way wherever it
    lies. Places learned for every patch would rather be learned by heart, scene by scene.

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

    places: Tensor

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
        self.d_model = d_model
        grid = (size[0] // patch, size[1] // patch)
        self.patches = nn.Sequential(
            nn.Conv2d(3, _PIXEL_CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(_PIXEL_CHANNELS, width, patch, stride=patch),
        )
        self.norm = RMSNorm(width)
        inner = {"d_state": 16, "head_dim": min(32, 2 * width)}
        self.scan = Backbone(
            BackboneConfig(
                d_model=width,
                layers=["grid_scan"],
                repeat=n_layers,
                block_options={"grid_scan": {"grid": list(grid), "share": "all", "inner_options": inner}},
                residual_scale={"grid_scan": _SCAN_SCALE},
                dropout=dropout,
            )
        )
        sides = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in grid]
        places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
        self.register_buffer("places", places, persistent=False)  # [n, 2]: they follow from the size
        self.pool = nn.Linear(width, _READ_OUTS)
        self.ask = nn.Linear(d_model, _READ_OUTS * width) if told else None
        self.out = nn.Linear(_READ_OUTS * (width + 2), d_model)

    def forward(self, image: Tensor, told: Tensor | None = None) -> Tensor:
        """``(..., height, width, 3)`` uint8, and what was told ``(..., d_model)``, to ``(..., d_model)``."""
        leading = image.shape[:-3]
        pixels = image.flatten(0, -4) if len(leading) else image[None]
        x = pixels.movedim(-1, 1).to(self.out.weight.dtype) / 127.5 - 1.0
        cells, _ = self.scan(self.norm(self.patches(x).flatten(2).transpose(1, 2)))
        scores = self.pool(cells)
        if self.ask is not None and told is not None:
            wanted = self.ask(told.reshape(-1, told.shape[-1])).unflatten(1, (_READ_OUTS, -1))
            scores = scores + torch.einsum("bnd,bkd->bnk", cells, wanted) / cells.shape[-1] ** 0.5
        held = torch.cat([cells, self.places.to(cells.dtype).expand(len(cells), -1, -1)], dim=-1)
        found = torch.einsum("bnk,bnd->bkd", scores.softmax(1), held).flatten(1)
        return self.out(found).view(*leading, -1)


class ConvolutionAdapter(nn.Module):
    """Embeds a picture as one vector by three convolutions and a linear map of all they give.

    The network of Mnih et al. 2015 (doi:10.1038/nature14236, Methods); it is not told what to look for.

    Args:
        size: Height and width of the pictures.
        d_model: Width of the vector.

    Raises:
        UsageError: If the pictures are too small for it.
    """

    def __init__(self, *, size: tuple[int, int], d_model: int) -> None:
        super().__init__()
        if min(size) < _LEAST_SIDE:
            raise UsageError(
                f"pictures: cnn needs pictures of {_LEAST_SIDE} x {_LEAST_SIDE} or more, "
                f"these are {size[0]} x {size[1]}; scan reads them"
            )
        self.d_model = d_model
        layers = ((3, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1))
        self.convolutions = nn.Sequential(
            *itertools.chain.from_iterable(
                (nn.Conv2d(given, made, side, stride=stride), nn.ReLU())
                for given, made, side, stride in layers
            ),
            nn.Flatten(),
        )
        with torch.no_grad():
            n_features = self.convolutions(torch.zeros(1, 3, *size)).shape[1]
        self.out = nn.Linear(n_features, d_model)

    def forward(self, image: Tensor, told: Tensor | None = None) -> Tensor:
        """``(..., height, width, 3)`` uint8 to ``(..., d_model)``; ``told`` is not looked at."""
        leading = image.shape[:-3]
        pixels = image.flatten(0, -4) if len(leading) else image[None]
        x = pixels.movedim(-1, 1).to(self.out.weight.dtype) / 127.5 - 1.0
        return self.out(self.convolutions(x)).view(*leading, -1)
