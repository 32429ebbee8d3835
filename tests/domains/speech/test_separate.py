"""Separation: the pairing of outputs with sources, and a network that learns to take tones apart."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.audio import permutation_invariant_training, scale_invariant_signal_noise_ratio

from mambakit.core.errors import UsageError
from mambakit.core.training import seed_everything
from mambakit.domains.speech.separate.baselines import ConvTasNet
from mambakit.domains.speech.separate.config import SeparateConfig
from mambakit.domains.speech.separate.metrics import best_si_snr, pairing_loss, si_snr, si_snr_gain
from mambakit.domains.speech.separate.model import Separator, at_level_of

SMALL = SeparateConfig(
    n_filters=16, kernel=8, d_model=16, n_layers=1, block_options={"head_dim": 8, "d_state": 4}
)
SPECTRAL = dataclasses.replace(SMALL, domain="time-frequency", n_fft=32, hop=8, d_model=8, patch=4)
BOTH = pytest.mark.parametrize("config", [SMALL, SPECTRAL], ids=["time", "time-frequency"])


def test_the_score_is_that_of_torchmetrics_and_of_the_best_order() -> None:
    torch.manual_seed(0)
    said, clean = torch.randn(5, 3, 200).double(), torch.randn(5, 3, 200).double()
    torch.testing.assert_close(
        si_snr(said, clean), scale_invariant_signal_noise_ratio(said, clean), rtol=1e-5, atol=1e-5
    )
    best, order = best_si_snr(said, clean)
    theirs, _ = permutation_invariant_training(
        said, clean, scale_invariant_signal_noise_ratio, eval_func="max"
    )
    torch.testing.assert_close(best, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pairing_loss(said, clean, 1e9), -best.mean())
    most = float(best.median())
    torch.testing.assert_close(pairing_loss(said, clean, most), -best.clamp(max=most).mean())
    ordered = said.gather(1, order[..., None].expand_as(said))
    torch.testing.assert_close(si_snr(ordered, clean).mean(1), best)


def test_the_order_of_the_outputs_does_not_matter() -> None:
    torch.manual_seed(0)
    said, clean = torch.randn(2, 3, 100), torch.randn(2, 3, 100)
    values = [best_si_snr(said[:, list(order)], clean)[0] for order in permutations(range(3))]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


def test_the_gain_of_the_mixture_itself_is_nothing_and_silence_is_finite() -> None:
    sources = torch.randn(2, 2, 300)
    mixture = sources.sum(1)
    same = mixture[:, None].expand_as(sources)
    assert si_snr_gain(same, sources, mixture).abs().max() < 1e-5
    assert torch.isfinite(best_si_snr(torch.zeros(1, 2, 50), torch.zeros(1, 2, 50))[0]).all()
    with pytest.raises(ValueError, match="expected shape"):
        best_si_snr(torch.zeros(1, 2, 50), torch.zeros(1, 2, 51))


@settings(max_examples=40, deadline=None)
@given(
    gains=st.lists(st.floats(0.01, 100), min_size=3, max_size=3), signs=st.lists(st.booleans(), min_size=3)
)
def test_speakers_get_the_levels_that_they_have_in_the_mixture(gains: list[float], signs: list[bool]) -> None:
    torch.manual_seed(0)
    sources = torch.randn(2, 3, 4000, dtype=torch.float64)
    turned = torch.tensor([-g if sign else g for g, sign in zip(gains, signs, strict=False)])[:, None]
    found = at_level_of(sources.sum(1), sources * turned)
    assert (found - sources).norm() < 0.01 * sources.norm()


def test_outputs_that_are_alike_share_the_mixture_and_silence_stays() -> None:
    mixture = torch.randn(1, 500)
    alike = 7 * torch.stack([mixture, mixture], 1)
    torch.testing.assert_close(at_level_of(mixture, alike), alike / 14, rtol=2e-3, atol=1e-3)
    one = torch.stack([3 * mixture, torch.zeros(1, 500)], 1)
    torch.testing.assert_close(at_level_of(mixture, one), one / 3, rtol=2e-3, atol=1e-3)


@BOTH
def test_a_network_learns_to_take_two_tones_apart(config: SeparateConfig) -> None:
    seed_everything(0)
    model = Separator(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    t = torch.arange(400) / 8000

    def mixtures() -> torch.Tensor:
        low, high = 200 + 100 * torch.rand(4, 1), 1500 + 500 * torch.rand(4, 1)
        return torch.stack([torch.sin(6.2832 * f * t + 6 * torch.rand(4, 1)) for f in (low, high)], 1)

    for _ in range(40):
        sources = mixtures()
        loss = -best_si_snr(model(sources.sum(1)), sources)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sources = mixtures()
    assert si_snr_gain(model(sources.sum(1)).detach(), sources, sources.sum(1)).mean() > 8


@BOTH
@pytest.mark.parametrize("n", [0, 1, 7, 8, 101])
@torch.no_grad()
def test_any_length_comes_back_at_the_level_of_the_mixture(config: SeparateConfig, n: int) -> None:
    seed_everything(0)
    model = Separator(config).eval()
    x = torch.randn(2, n)
    said = model(x)
    assert said.shape == (2, 2, n)
    torch.testing.assert_close(model(5 * x), 5 * said, rtol=1e-3, atol=1e-4)


@BOTH
@torch.no_grad()
def test_a_causal_model_does_not_look_ahead(config: SeparateConfig) -> None:
    x = torch.randn(1, 200)
    changed = x.clone()
    changed[:, 100:] = 3.0
    for causal, ahead in ((True, False), (False, True)):
        model = Separator(dataclasses.replace(config, causal=causal)).eval()
        differs = (model(x) - model(changed))[..., : 100 - model.delay].abs().max() > 1e-5
        assert bool(differs) == ahead


def test_the_baseline_has_about_as_many_parameters() -> None:
    model = Separator(SeparateConfig())
    n = sum(parameter.numel() for parameter in model.parameters())
    beside = ConvTasNet(model.config, n)
    assert sum(parameter.numel() for parameter in beside.parameters()) == pytest.approx(n, rel=0.1)
    assert beside(torch.randn(1, 800)).shape == (1, 2, 800)


def test_configs_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError, match="even"):
        SeparateConfig(kernel=15)
    with pytest.raises(UsageError, match="n_sources"):
        SeparateConfig(n_sources=1)
    with pytest.raises(UsageError, match="domain: expected time or time-frequency, got 'both'"):
        SeparateConfig(domain="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="n_fft: expected a multiple of the hop 100"):
        SeparateConfig(hop=100)


CAUSAL = dataclasses.replace(SMALL, causal=True, n_layers=2)
CAUSAL_SPECTRAL = dataclasses.replace(SPECTRAL, causal=True, n_layers=2)
STREAMING = pytest.mark.parametrize("config", [CAUSAL, CAUSAL_SPECTRAL], ids=["time", "time-frequency"])


def stream_and_whole(
    config: SeparateConfig, pieces: list[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a causal model says of noise in pieces, its delay taken off, and of the whole."""
    seed_everything(0)
    model = Separator(config).eval().to(dtype)
    x = torch.randn(2, sum(pieces), generator=torch.Generator().manual_seed(sum(pieces))).to(dtype)
    state, outputs = model.init_state(2), []
    for piece in x.split(pieces, 1):
        said, state = model.step(piece, state)
        outputs.append(said)
    return torch.cat([*outputs, model.finish(state)], -1)[..., model.overlap :], model(x)


@STREAMING
@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(0, 30), min_size=1, max_size=10))
@torch.no_grad()
def test_a_stream_in_pieces_of_any_size_equals_the_whole(config: SeparateConfig, pieces: list[int]) -> None:
    torch.testing.assert_close(*stream_and_whole(config, pieces, torch.float64), rtol=1e-9, atol=1e-10)


@STREAMING
@pytest.mark.parametrize("pieces", [[0], [1] * 40, [63], [90, 1, 0, 77, 5], [4, 8, 16]])
@torch.no_grad()
def test_a_stream_in_float32_equals_the_whole(config: SeparateConfig, pieces: list[int]) -> None:
    torch.testing.assert_close(*stream_and_whole(config, pieces, torch.float32), rtol=1e-4, atol=2e-5)


@STREAMING
def test_output_never_lags_more_than_the_delay_it_names(config: SeparateConfig) -> None:
    seed_everything(0)
    model = Separator(config).eval()
    state, heard, said = model.init_state(), 0, 0
    for n in (1, 3, 8, 2, 5, 0, 20):
        out, state = model.step(torch.randn(1, n), state)
        heard, said = heard + n, said + out.shape[-1]
        assert heard - (said - model.overlap) <= model.delay


@STREAMING
def test_long_mixtures_are_read_by_pieces_with_the_same_result(
    config: SeparateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_everything(0)
    model = Separator(config).eval().double()
    x = torch.randn(1, 1003).double()
    whole = model(x).detach()  # with gradients, so not by pieces
    monkeypatch.setattr("mambakit.domains.speech.overlap._PIECE_S", 0.01)
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole, rtol=1e-9, atol=1e-10)


@BOTH
def test_a_model_that_reads_both_ways_cannot_stream(config: SeparateConfig) -> None:
    with pytest.raises(UsageError, match="cannot stream"):
        Separator(config).init_state()
