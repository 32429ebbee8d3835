"""The enhancement network: the transform gives samples back, and a stream equals the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mambakit.core.errors import UsageError
from mambakit.core.training import seed_everything
from mambakit.domains.speech.enhance.config import EnhanceConfig
from mambakit.domains.speech.enhance.contrast import importance, stretched
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.spectral.stft import CausalSTFT, compress, expand

SMALL = {"n_fft": 64, "hop": 16, "d_model": 8, "n_layers": 2, "patch": 8}
SMALL_BLOCK = {"block_options": {"head_dim": 8, "d_state": 4}}


def small(**options: object) -> Enhancer:
    """A small network whose output is not its input."""
    seed_everything(0)
    model = Enhancer(EnhanceConfig(**{**SMALL, **SMALL_BLOCK, **options}))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.readout.weight, std=0.3)
    return model.eval()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300), shape=st.sampled_from([(64, 32), (64, 16), (48, 12), (32, 8)]))
def test_overlapping_and_adding_gives_the_samples_back(n: int, shape: tuple[int, int]) -> None:
    stft = CausalSTFT(*shape)
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(stft.back(stft.whole(x), n), x, rtol=0, atol=2e-6)


def test_compression_is_undone_and_keeps_the_phase() -> None:
    spectra = torch.randn(3, 5, dtype=torch.complex64) * 10
    pairs = compress(spectra, 0.3)
    torch.testing.assert_close(torch.linalg.vector_norm(pairs, dim=-1), spectra.abs() ** 0.3)
    torch.testing.assert_close(expand(pairs, 0.3), spectra, rtol=1e-4, atol=1e-4)


def stream_and_whole(
    pieces: list[int], dtype: torch.dtype, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says of noise in pieces, its delay taken off, and of the whole."""
    model = small(**options).to(dtype)
    n = sum(pieces)
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    state = model.init_state(2)
    outputs = []
    for piece in x.split(pieces, 1):
        y, state = model.step(piece, state)
        outputs.append(y)
    streamed = torch.cat([*outputs, model.finish(state)], 1)
    assert streamed.shape == (2, n + model.overlap)
    return streamed[:, model.overlap :], model(x)


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(0, 90), min_size=1, max_size=8))
@example([25, 90, 90, 90, 90])  # float32 rounds this one to 2.4e-5, where a bin is all but empty
def test_a_stream_in_pieces_of_any_size_equals_the_whole(pieces: list[int]) -> None:
    torch.testing.assert_close(*stream_and_whole(pieces, torch.float64), rtol=1e-9, atol=1e-10)
    both = stream_and_whole(pieces, torch.float64, contrast=0.4)
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[0], [1] * 40, [63], [90, 1, 0, 77, 5], [16, 32, 64]])
def test_a_stream_in_float32_equals_the_whole(pieces: list[int]) -> None:
    torch.testing.assert_close(*stream_and_whole(pieces, torch.float32), rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"levels": 2, "n_layers": 1, "patch": 4, "time_factor": 2}])
def test_one_stream_says_what_each_of_two_says(options: dict[str, object]) -> None:
    """The blocks of one stream run as one compiled call, where there is numba."""
    model = small(**options)
    x = torch.randn(1, 700)
    alone, together = model.init_state(1), model.init_state(2)
    for piece in x.split([16, 40, 64, 128, 1, 200, 251], 1):
        one, alone = model.step(piece, alone)
        two, together = model.step(piece.expand(2, -1), together)
        torch.testing.assert_close(one.expand(2, -1), two, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_long_signals_are_read_by_pieces_with_the_same_result() -> None:
    model = small()
    x = torch.randn(1, 16 * 1100 + 3)
    with torch.enable_grad():
        whole = model(x)
    torch.testing.assert_close(model(x), whole.detach(), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_no_output_of_a_causal_model_depends_on_later_samples_than_its_delay() -> None:
    model = small()
    x = torch.randn(1, 400)
    changed = x.clone()
    changed[:, 200:] = 5.0
    same = model(x)[:, : 200 - model.delay] - model(changed)[:, : 200 - model.delay]
    assert same.abs().max() < 1e-5
    both = small(causal=False)
    assert (both(x)[:, :100] - both(changed)[:, :100]).abs().max() > 1e-3


@torch.no_grad()
def test_the_output_scales_with_the_input() -> None:
    for options in ({"causal": True}, {"causal": False}, {"contrast": 0.4}):
        model = small(**options)
        x = 0.1 * torch.randn(1, 500)
        torch.testing.assert_close(model(8 * x), 8 * model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_silence_stays_silent_and_finite() -> None:
    model = small()
    assert model(torch.zeros(1, 300)).abs().max() < 1e-3
    assert model(torch.zeros(1, 0)).shape == (1, 0)


def test_a_fresh_model_changes_nothing() -> None:
    model = Enhancer(EnhanceConfig(**SMALL, **SMALL_BLOCK))  # type: ignore[arg-type]
    x = torch.randn(1, 300)
    torch.testing.assert_close(model(x).detach(), x, rtol=0, atol=1e-3)


def test_contrast_lifts_what_is_loud_where_speech_is_and_leaves_phases() -> None:
    weights = importance(257, 16_000)
    assert weights[0] == 0
    assert weights[64] == 1  # 2 kHz
    assert 0 < weights[-1] < 1
    quiet, loud = torch.full((257,), 0.1 + 0.1j), torch.full((257,), -6.0 + 8.0j)
    torch.testing.assert_close(stretched(loud, weights, 0.0), loud)
    (less, more) = (stretched(one, weights, 0.3) for one in (quiet, loud))
    torch.testing.assert_close(less.angle(), quiet.angle())
    torch.testing.assert_close(more.angle(), loud.angle())
    assert more[64].abs() > 1.2 * loud[64].abs()
    assert less[64].abs() < quiet[64].abs()
    at_level = torch.full((257,), 3.0 + 0.0j)
    torch.testing.assert_close(stretched(at_level, weights, 0.3)[64], at_level[64])
    assert stretched(torch.zeros(257, dtype=torch.complex64), weights, 0.3).abs().max() == 0


@torch.no_grad()
def test_training_does_not_see_the_contrast() -> None:
    plain, lifted = small(), small(contrast=0.4)
    x = 0.1 * torch.randn(1, 500)
    assert torch.equal(plain.signals(*plain.spectra(x), 500), lifted.signals(*lifted.spectra(x), 500))
    assert not torch.allclose(plain(x), lifted(x), atol=1e-3)


def test_models_that_read_both_ways_do_not_stream() -> None:
    with pytest.raises(UsageError, match="causal"):
        small(causal=False).init_state()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hop": 300}, "multiple"), ({"block": "mamba7"}, "block"), ({"compression": 0.0}, "power")],
)
def test_configs_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EnhanceConfig(**options)  # type: ignore[arg-type]


U_SHAPED = {"levels": 3, "n_layers": 1, "patch": 4, "n_fft": 56}  # 29 bins in 8 patches, then 4 and 2


@torch.no_grad()
@pytest.mark.parametrize("time_factor", [1, 2, 3])
@pytest.mark.parametrize("pieces", [[0], [1] * 40, [63], [90, 1, 0, 77, 5], [16, 32, 64, 7, 200]])
def test_a_stream_through_a_u_equals_the_whole(time_factor: int, pieces: list[int]) -> None:
    model = small(**{**U_SHAPED, "hop": 14, "time_factor": time_factor}).double()
    x = torch.randn(2, sum(pieces), generator=torch.Generator().manual_seed(3)).double()
    state, outputs = model.init_state(2), []
    for piece in x.split(pieces, 1):
        y, state = model.step(piece, state)
        outputs.append(y)
    streamed = torch.cat([*outputs, model.finish(state)], 1)[:, model.overlap :]
    torch.testing.assert_close(streamed, model(x), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_coarse_levels_of_a_u_are_heard() -> None:
    for causal in (True, False):
        model = small(**{**U_SHAPED, "hop": 14, "time_factor": 2, "causal": causal})
        x = torch.randn(1, 300)
        said = model(x)
        model.pairs.below.frequency.up_proj.weight.zero_()
        assert (model(x) - said).abs().max() > 1e-4


def test_a_u_learns_to_remove_noise() -> None:
    model = small(levels=2, n_layers=1, time_factor=2).train()
    torch.nn.init.zeros_(model.readout.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator, t = torch.Generator().manual_seed(0), torch.arange(800) / 64
    found = []
    for _ in range(25):
        pitch = 1 + 6 * torch.rand(4, 1, generator=generator)
        clean = torch.sin(2 * torch.pi * pitch * t)
        noisy = clean + 0.5 * torch.randn(4, 800, generator=generator)
        loss = (model(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert sum(found[-5:]) < 0.6 * sum(found[:5])


def test_a_u_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="levels: 33 patches of 8 bins cannot be halved 7 times"):
        EnhanceConfig(levels=8)
    with pytest.raises(UsageError, match="time_factor: a straight stack"):
        EnhanceConfig(time_factor=2)
