"""Reading and writing audio: every width, rate and channel count; bad files in one sentence."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, pcm_chunks, read_audio, resample, write_audio


def tone(rate_hz: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize(
    ("name", "subtype", "rate_hz", "step"),
    [
        ("a.wav", "PCM_U8", 8000, 2**-7),
        ("a.wav", "PCM_16", 22050, 2**-15),
        ("a.wav", "PCM_24", 44100, 2**-23),
        ("a.wav", "FLOAT", 48000, 2**-24),
        ("a.flac", "PCM_16", 16000, 2**-15),
    ],
)
def test_lossless_formats_come_back(
    tmp_path: Path, name: str, subtype: str, rate_hz: int, step: float
) -> None:
    soundfile.write(tmp_path / name, tone(rate_hz), rate_hz, subtype=subtype)
    audio = read_audio(tmp_path / name)
    assert audio.rate_hz == rate_hz
    assert audio.samples.dtype == torch.float32
    assert np.abs(audio.samples.numpy() - tone(rate_hz)).max() <= step


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_hold_the_tone(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(16000), 16000)
    audio = read_audio(tmp_path / name, rate_hz=8000)
    spectrum = torch.fft.rfft(audio.samples).abs()
    assert abs(float(spectrum.argmax()) * 8000 / len(audio.samples) - 440) < 4


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(8000), 0 * tone(8000)], 1), 8000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav").samples, tone(8000) / 2, atol=1e-7)


def test_a_stretch_is_that_stretch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000, subtype="FLOAT")
    piece = read_audio(tmp_path / "a.wav", start_s=0.1, end_s=0.25)
    assert np.array_equal(piece.samples, tone(8000)[800:2000].astype(np.float32))


def test_content_says_the_format_not_the_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(8000), 8000)
    (tmp_path / "a.flac").rename(tmp_path / "a.wav")
    assert len(read_audio(tmp_path / "a.wav").samples) == 4000


def spoiled(path: Path, what: str) -> Path:
    good = path.with_name("good.wav")
    soundfile.write(good, tone(8000), 8000)
    if what == "empty":
        path.write_bytes(b"")
    elif what == "cut":
        path.write_bytes(good.read_bytes()[:-3000])
    elif what == "text":
        path.write_text("no audio at all, but long enough to have a header " * 5)
    elif what == "no samples":
        soundfile.write(path, np.zeros(0), 8000)
    elif what == "nan":
        soundfile.write(path, np.where(np.arange(4000) == 7, np.nan, tone(8000)), 8000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no such audio file"),
        ("empty", "the file is empty"),
        ("cut", r"cut off: its header promises .* there are"),
        ("text", "cannot be read as audio"),
        ("no samples", "holds no samples"),
        ("nan", "1 samples are NaN or infinite, the first is number 7"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_audio(spoiled(tmp_path / "bad.wav", what))
    assert "bad.wav" in str(caught.value)


def test_a_stretch_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.50 s long, has no stretch from 0\.4 s to 3 s"):
        read_audio(spoiled(tmp_path / "a.wav", "good").with_name("good.wav"), start_s=0.4, end_s=3)


def test_resampling_keeps_a_tone_and_removes_what_cannot_be_held() -> None:
    low, high = (torch.from_numpy(tone(16000, hz=hz)).float() for hz in (1000.0, 6000.0))
    made = resample(low, 16000, 8000)[200:-200]
    assert float((made - torch.from_numpy(tone(8000, hz=1000.0))[200:-200].float()).abs().max()) < 2e-3
    assert float(resample(high, 16000, 8000)[200:-200].abs().max()) < 5e-3


def test_written_audio_is_clipped_and_read_back(tmp_path: Path) -> None:
    write_audio(tmp_path / "new" / "a.wav", Audio(torch.tensor([0.0, 2.0, -2.0, 0.25]), 8000))
    back = read_audio(tmp_path / "new" / "a.wav").samples
    assert torch.allclose(back, torch.tensor([0.0, 1.0, -1.0, 0.25]), atol=2**-14)
    with pytest.raises(UsageError, match=r"ends in \.wav"):
        write_audio(tmp_path / "a.txt", Audio(torch.zeros(5), 8000))


@pytest.mark.parametrize("chunk_s", [0.0001, 0.013, 10.0])
def test_pcm_comes_whole_in_any_chunks(chunk_s: float) -> None:
    samples = np.round(tone(8000) * 32767).astype("<i2")
    made = torch.cat(list(pcm_chunks(io.BytesIO(samples.tobytes()), 8000, chunk_s)))
    assert np.array_equal(made.numpy(), samples.astype(np.float32) / 32768)
    assert math.isclose(float(made.abs().max()), 0.5, abs_tol=1e-3)


def test_half_a_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="ends inside a sample"):
        list(pcm_chunks(io.BytesIO(b"\x00\x01\x02"), 8000))
