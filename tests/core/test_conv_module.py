"""The convolution module by its equations, in one direction and in both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mambakit.core.blocks import ConvModule


def sample(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [1, 3, 7, 31])
def test_by_its_equations(width, causal, norm):
    torch.manual_seed(0)
    block = ConvModule(d_model=8, width=width, causal=causal, norm=norm, expand=1.5).double()
    x = sample(2, 9, 8)
    a, gate = block.in_proj(x).chunk(2, dim=-1)
    u = a * torch.sigmoid(gate)
    ends = (width - 1, 0) if causal else (width // 2, width // 2)
    mixed = F.conv1d(F.pad(u.mT, ends), block.conv_weight[:, None], block.conv_bias, groups=12).mT
    if norm == "rms":
        normed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    else:
        normed = F.layer_norm(mixed, (12,))
    torch.testing.assert_close(block(x)[0], block.out_proj(F.silu(normed)), atol=1e-12, rtol=0)


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    block, x = ConvModule(d_model=8, width=5).double(), sample(3, 9, 8)
    assert block.training
    torch.testing.assert_close(block(x)[0][1:2], block(x[1:2])[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "d_model, d_inner, width: expected at least 1"),
        (
            {"width": 4, "causal": False},
            "width: a convolution that looks both ways needs an odd width, got 4",
        ),
        ({"norm": "batch"}, "norm: expected one of rms, layer, got 'batch'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ConvModule(d_model=8, **options)
