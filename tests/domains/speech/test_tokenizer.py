"""The waveform's tokenizer keeps the adapter layer's contract."""

from __future__ import annotations

import torch

from mambakit.core.adapters.adapter import ContinuousAdapter
from mambakit.core.adapters.testing import check_adapter
from mambakit.domains.speech.tokenizer import WaveTokenizer


def test_contract() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(n, generator=generator) for n in (16, 33, 40, 7)]
    bad = [torch.tensor([0.0, float("nan")]), torch.zeros(2, 2), torch.tensor([1, 2])]
    tokenizer = WaveTokenizer(8)
    check_adapter(tokenizer, lambda: ContinuousAdapter(8, 12), samples, bad, empty_sample=torch.zeros(0))
