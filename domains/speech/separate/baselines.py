"""Conv-TasNet of torchaudio, of about the size of another network."""

from __future__ import annotations

from bisect import bisect_left

from torch import Tensor, nn

from mambakit.core.torchaudio_parts import torchaudio
from mambakit.domains.speech.separate.config import SeparateConfig


class ConvTasNet(nn.Module):
    """Luo & Mesgarani 2019, arXiv:1809.07454: dilated convolutions in the place of the Mamba blocks.

    Args:
        config: Filters, their length and the sources are taken from it.
        n_parameters: The width of the convolutions is chosen so that there are about so many.
    """

    def __init__(self, config: SeparateConfig, n_parameters: int) -> None:
        super().__init__()
        self.config = config
        widths = range(8, 1025, 8)
        at = bisect_left(widths, n_parameters, key=lambda width: _size(_of_width(config, width)))
        near = (_of_width(config, width) for width in widths[max(at - 1, 0) : at + 1])
        self.net = min(near, key=lambda net: abs(_size(net) - n_parameters))

    def forward(self, samples: Tensor) -> Tensor:
        """``(batch, n)`` to ``(batch, n_sources, n)``."""
        level = samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)
        said: Tensor = self.net((samples / level)[:, None])
        return said * level[..., None]


def _of_width(config: SeparateConfig, width: int) -> nn.Module:
    """Two stacks of six dilations; the inner width is twice the outer."""
    net: nn.Module = torchaudio().models.ConvTasNet(
        num_sources=config.n_sources,
        enc_kernel_size=config.kernel,
        enc_num_feats=config.n_filters,
        msk_kernel_size=3,
        msk_num_feats=width,
        msk_num_hidden_feats=2 * width,
        msk_num_layers=6,
        msk_num_stacks=2,
    )
    return net


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
