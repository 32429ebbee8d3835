"""Long signals in windows that overlap: nothing is lost, and speakers keep their names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.training import seed_everything
from mambakit.domains.speech import stitching
from mambakit.domains.speech.enhance.config import EnhanceConfig
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.stitching import stitched

RATE_HZ = 10  # windows of 300 samples, 20 of which are the next one's too


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 1500), swaps=st.lists(st.booleans(), min_size=6, max_size=6))
def test_speakers_keep_their_names_in_whatever_order_windows_have_them(n: int, swaps: list[bool]) -> None:
    generator = torch.Generator().manual_seed(n)
    sources = torch.randn(2, 2, n, generator=generator, dtype=torch.float64)
    at, calls = torch.arange(n, dtype=torch.float64), []

    def read(places: torch.Tensor) -> torch.Tensor:
        """Knows the sources; of later windows the rows come in an order of chance."""
        cut = sources[..., int(places[0, 0]) :][..., : places.shape[1]]
        calls.append(places.shape[1])
        turned = len(calls) > 1 and swaps[len(calls) - 2]
        return torch.stack([cut[0].flip(0) if turned else cut[0], cut[1]])

    said = stitched(read, at.expand(2, n), RATE_HZ)
    torch.testing.assert_close(said, sources, rtol=1e-12, atol=1e-12)
    assert max(calls) <= 300
    assert len(calls) == 1 + max(0, -(-(n - 300) // 280))


@torch.no_grad()
def test_a_model_that_reads_both_ways_reads_long_signals_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_everything(0)
    config = EnhanceConfig(
        rate_hz=1000, n_fft=64, hop=32, d_model=8, n_layers=1, patch=16, causal=False,
        block_options={"head_dim": 8, "d_state": 4},
    )  # fmt: skip
    model = Enhancer(config).eval()
    torch.nn.init.normal_(model.readout.weight, std=0.1)
    x = torch.randn(2, 5000)
    monkeypatch.setattr(stitching, "WINDOW_S", 3.0)
    monkeypatch.setattr(stitching, "OVERLAP_S", 1.0)
    first, second = model(x[:, :3000]), model(x[:, 2000:])
    fade = torch.linspace(0, 1, 1000)
    over = first[:, 2000:] * (1 - fade) + second[:, :1000] * fade
    torch.testing.assert_close(model(x), torch.cat([first[:, :2000], over, second[:, 1000:]], 1))
