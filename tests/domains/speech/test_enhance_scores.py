"""Scores, log-MMSE and the picture, on signals whose answer is known."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.core.errors import UserError
from mambakit.domains.speech.enhance import metrics
from mambakit.domains.speech.enhance.baseline import log_mmse
from mambakit.domains.speech.enhance.metrics import scores, si_sdr
from mambakit.domains.speech.enhance.plots import before_after_figure, spectrogram_db

needs_data = pytest.mark.skipif(
    not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="set MAMBAKIT_DATA_MIRROR to a folder with the data"
)


def buzz(seconds: float = 1.0, rate_hz: int = 16_000) -> torch.Tensor:
    """A tone with harmonics that comes and goes four times a second."""
    t = torch.arange(int(seconds * rate_hz)) / rate_hz
    tone = sum(torch.sin(2 * math.pi * 140 * k * t) / k for k in range(1, 20))
    return 0.1 * tone * (torch.sin(2 * math.pi * 4 * t) > 0)


def test_si_sdr_is_the_ratio_of_orthogonal_noise_and_ignores_the_level() -> None:
    clean = torch.tensor([1.0, 0.0, 1.0, 0.0])
    said = clean + 0.1 * torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert float(si_sdr(said, clean)) == pytest.approx(20.0, abs=1e-3)
    assert float(si_sdr(7 * said, clean)) == pytest.approx(20.0, abs=1e-3)


def test_log_mmse_takes_steady_noise_away_and_leaves_a_tone_in_silence() -> None:
    torch.manual_seed(0)
    clean = torch.cat([torch.zeros(4000), buzz(2.0)])
    noisy = clean + 0.03 * torch.randn(len(clean))
    better = si_sdr(log_mmse(noisy, 16_000), clean) - si_sdr(noisy, clean)
    assert better > 3
    assert log_mmse(noisy, 16_000)[:4000].square().mean() < 0.1 * noisy[:4000].square().mean()
    for n in (1, 130, 1000):
        assert log_mmse(noisy[:n], 16_000).shape == (n,)


def test_a_short_or_silent_signal_has_no_stoi() -> None:
    assert math.isnan(scores(torch.randn(1000), torch.randn(1000), 16_000, pesq=False).stoi)
    assert math.isnan(scores(torch.randn(16_000), torch.zeros(16_000), 16_000, pesq=False).stoi)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(metrics, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'mambakit\[speech-metrics\]'"):
        scores(torch.randn(100), torch.randn(100), 16_000)


@needs_data
def test_scores_of_the_noisy_pairs_are_those_of_the_card() -> None:
    """Measured with the same packages elsewhere: PESQ 1.295, STOI 0.902, SI-SDR 4.64 over the 20 pairs."""
    pytest.importorskip("pesq")
    from mambakit.domains.speech.enhance.data import load_pairs

    pairs = list(load_pairs("voicebank-demand-20", 16_000))
    assert len(pairs) == 20
    sdr = [float(si_sdr(torch.from_numpy(noisy), torch.from_numpy(clean))) for _, noisy, clean in pairs]
    assert np.mean(sdr) == pytest.approx(4.642, abs=2e-3)
    _, noisy, clean = pairs[0]
    same = scores(torch.from_numpy(clean), torch.from_numpy(clean), 16_000)
    worse = scores(torch.from_numpy(noisy), torch.from_numpy(clean), 16_000)
    assert same.pesq > 4.5 > worse.pesq > 1
    assert same.stoi > 0.999 > worse.stoi


def test_the_spectrogram_has_a_tone_where_it_is(tmp_path: Path) -> None:
    rate = 8000
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(rate) / rate)
    levels = spectrogram_db(tone, rate)
    assert levels.mean(1).argmax() == 32  # bins of 31.25 Hz
    assert -12 < levels[32].max() < 12
    figure = before_after_figure({"before": tone, "after": 0.1 * tone}, rate)
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
