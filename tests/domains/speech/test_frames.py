"""Front end and encoder: the same whole and in chunks of any size, and blind to padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.core.torchaudio_parts import has_extension, torchaudio
from mambakit.domains.speech.encoder import Encoder, EncoderConfig
from mambakit.domains.speech.frontend import (
    FrontEnd,
    FrontEndConfig,
    StripesConfig,
    heard_in_training,
    moving_mean,
    moving_mean_weights,
    spec_augment,
    warped,
)

N = 2500


def samples(n: int = N, batch: int = 1) -> Tensor:
    return 0.1 * torch.randn(batch, n, generator=torch.Generator().manual_seed(0))


def front_end(**options: object) -> FrontEnd:
    made = FrontEnd(FrontEndConfig(**options))  # type: ignore[arg-type]
    made.fit([samples()[0]])
    return made


def encoder(**options: object) -> Encoder:
    torch.manual_seed(1)
    small = {"d_model": 16, "channels": 4, "n_layers": 1, "d_state": 8, "head_dim": 8}
    return Encoder(EncoderConfig(**small | options)).eval()  # type: ignore[arg-type]


cuts = st.lists(st.integers(0, N), max_size=12).map(sorted)


def pieces(x: Tensor, at: list[int]) -> list[Tensor]:
    return list(torch.tensor_split(x, at, dim=1))


def test_shim_gives_torchaudio_without_its_library() -> None:
    assert torchaudio() is torchaudio()
    assert float(torchaudio().functional.amplitude_to_DB(torch.tensor([[10.0]]), 10.0, 1e-10, 0.0)) == 10
    if not has_extension():
        with pytest.raises(Exception, match=r"compiled library|not available|does not exist|no attribute"):
            torchaudio().functional.forced_align(
                torch.zeros(1, 4, 3),
                torch.ones(1, 1, dtype=torch.int32),
                torch.tensor([4]),
                torch.tensor([1]),
            )


def test_log_mel_is_the_definition() -> None:
    """Against Hann windows and a Fourier transform written out, frame by frame."""
    made, config = FrontEnd(FrontEndConfig(normalise="none")), FrontEndConfig()
    x = samples()
    frames, lengths = made(x, torch.tensor([N]))
    bank = torchaudio().functional.melscale_fbanks(
        config.n_fft // 2 + 1, config.low_hz, config.rate_hz / 2, config.n_mels, config.rate_hz
    ).double()  # fmt: skip
    side = (config.n_fft - config.window) // 2
    window = torch.nn.functional.pad(torch.hann_window(config.window, dtype=torch.float64), (side, side))
    padded = torch.cat([torch.zeros(config.n_fft - config.hop, dtype=torch.float64), x[0].double()])
    assert lengths.tolist() == [N // config.hop]
    for k in (0, 3, N // config.hop - 1):
        cut = padded[k * config.hop : k * config.hop + config.n_fft]
        power = torch.fft.rfft(cut * window).abs().square()
        wanted = (power @ bank).clamp(min=1e-7).log()
        assert torch.allclose(frames[0, k].double(), wanted, atol=1e-3)


@pytest.mark.parametrize("normalise", ["global", "running", "none"])
@settings(max_examples=25, deadline=None)
@given(cuts, st.sampled_from([1, 4]))
def test_frames_stream(normalise: str, at: list[int], by: int) -> None:
    made, x = front_end(normalise=normalise), samples(batch=2)
    whole, _ = made(x)
    state, found = made.init_state(2), []
    for piece in pieces(x, at):
        frames, state = made.step(piece, state, by)
        assert frames.shape[1] % by == 0
        found.append(frames)
    assert torch.allclose(torch.cat(found, 1), whole[:, : whole.shape[1] // by * by], atol=1e-5)


@pytest.mark.parametrize("subsampling", [1, 2, 4])
@pytest.mark.parametrize("blocks", [["mamba2"], ["attention"]])
@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 31), max_size=10).map(sorted))
def test_encoder_streams(subsampling: int, blocks: list[str], at: list[int]) -> None:
    made = encoder(subsampling=subsampling, blocks=blocks, bidirectional=False)
    x = torch.randn(2, 31, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, lengths = made(x, torch.tensor([31, 31]))
        state, found = made.init_state(2), []
        for piece in pieces(x, at):
            y, state = made.step(piece, state)
            found.append(y)
    assert lengths.tolist() == [31 // subsampling] * 2
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("normalise", ["global", "running", "utterance"])
def test_padding_reaches_nothing(bidirectional: bool, normalise: str) -> None:
    heard, made = front_end(normalise=normalise), encoder(bidirectional=bidirectional)
    x = samples(batch=2)
    with torch.no_grad():
        alone, n = made(*heard(x[1:, :1111], torch.tensor([1111])))
        x[1, 1111:] = 100.0
        together, lengths = made(*heard(x, torch.tensor([N, 1111])))
    assert lengths[1] == n[0]
    assert torch.allclose(together[1, : n[0]], alone[0], atol=1e-5)
    assert not together[1, n[0] :].any()


def test_normalised_by_training_has_mean_zero_and_deviation_one() -> None:
    frames, _ = front_end()(samples())
    assert torch.allclose(frames.mean(1), torch.zeros(1, 40), atol=1e-3)
    assert torch.allclose(frames.std(1), torch.ones(1, 40), atol=0.02)


def test_normalised_by_utterance_forgets_the_level_and_cannot_stream() -> None:
    made = front_end(normalise="utterance")
    assert torch.allclose(made(samples())[0], made(7 * samples())[0], atol=1e-3)
    with pytest.raises(RuntimeError, match="global streams"):
        made.step(samples(), made.init_state(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1))
def test_a_moving_mean_is_its_recurrence(n: int, keep: float) -> None:
    generator = torch.Generator().manual_seed(n)
    x, mean = (torch.randn(2, *size, dtype=torch.float64, generator=generator) for size in ((n, 3), (3,)))
    found = moving_mean(x, mean, moving_mean_weights(keep, torch.float64))
    assert found.shape == x.shape
    for t in range(n):
        mean = keep * mean + (1 - keep) * x[:, t]
        assert torch.allclose(found[:, t], mean, rtol=1e-12, atol=1e-12)


def test_normalised_by_a_running_mean_forgets_the_level_in_time() -> None:
    made = front_end(normalise="running", running_s=0.02)
    quiet, loud = made(samples())[0][0], made(7 * samples())[0][0]
    apart = (loud - quiet).abs().mean(1)
    assert apart[-1] < 1e-3
    assert apart[0] > 0.3


def test_warped_bands_move_as_far_as_the_factor_says() -> None:
    place = torch.arange(40.0).expand(3, 5, 40)
    moved = warped(place, torch.tensor([1.0, 1.1, 0.8]))
    assert torch.equal(moved[0], place[0])
    assert torch.allclose(moved[1], (1.1 * place[1]).clamp(max=39), atol=1e-5)
    assert torch.allclose(moved[2], 0.8 * place[2], atol=1e-5)


def test_bent_responses_change_bands_alike_at_all_times_and_utterances_without_their_mean_not() -> None:
    torch.manual_seed(0)
    sound, lengths = samples(batch=4), torch.full((4,), N)
    stripes = StripesConfig(tilt_db=6.0, n_bands=0, n_times=0)
    for normalise in ("global", "utterance"):
        end = front_end(normalise=normalise)
        frames, counts = end(sound, lengths)
        heard, again = heard_in_training(end, sound, lengths, stripes)
        assert torch.equal(counts, again)
        change = heard - frames
        assert torch.allclose(change, change[:, :1].expand_as(change), atol=1e-4)
        assert (change.abs().amax() > 1) == (normalise == "global")
        assert not torch.allclose(change[0], change[1]) or normalise == "utterance"


def test_each_recording_is_warped_by_a_factor_of_its_own() -> None:
    torch.manual_seed(0)
    place = torch.arange(40.0).expand(200, 3, 40)
    stripes = StripesConfig(warp=0.1, n_bands=0, n_times=0)
    factors = spec_augment(place, torch.full((200,), 3), stripes)[:, 0, 20] / 20
    assert 0.9 <= factors.min() < 0.91
    assert 1.09 < factors.max() <= 1.1


def test_digital_silence_is_finite() -> None:
    assert front_end()(torch.zeros(1, N))[0].isfinite().all()


def test_stripes_are_hidden_inside_the_utterance() -> None:
    torch.manual_seed(0)
    frames, lengths = torch.ones(200, 50, 40), torch.full((200,), 30)
    hidden = spec_augment(frames, lengths, StripesConfig(n_bands=0, n_times=1, time_share=0.2)) == 0
    n = hidden.all(2).sum(1)
    assert n.max() == 6  # 0.2 of 30 frames
    assert n.min() == 0
    assert not hidden[:, 30:].any()
    bands = spec_augment(frames, lengths, StripesConfig(n_bands=1, band_width=8, n_times=0)) == 0
    assert bands.all(1).sum(1).max() == 8


def test_bad_options_are_named() -> None:
    with pytest.raises(UsageError, match=r"hop_s: 0\.05 is longer"):
        FrontEndConfig(hop_s=0.05)
    with pytest.raises(UsageError, match="subsampling: expected 1, 2 or 4, got 3"):
        EncoderConfig(subsampling=3)  # type: ignore[arg-type]
