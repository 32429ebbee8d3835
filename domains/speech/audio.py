"""Audio in and out: files by soundfile (wav, flac, ogg, mp3), raw PCM from a stream."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.core.torchaudio_parts import torchaudio

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au")
# A stream that was cut off, or written to a pipe, says one of these for its size.
_UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)


class Audio(NamedTuple):
    """One channel of sound."""

    samples: Tensor
    """``(n,)`` float32; full scale is 1, and files of floats may go beyond."""
    rate_hz: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate_hz


def read_audio(
    path: Path | str, *, rate_hz: int | None = None, start_s: float = 0.0, end_s: float | None = None
) -> Audio:
    """A file, or a stretch of it, as one channel.

    Any sample width and rate that libsndfile reads; channels are averaged. What a file is, its content says:
    a flac called .wav is read as a flac.

    Args:
        path: The file.
        rate_hz: Rate to resample to; the file's own by default.
        start_s, end_s: The stretch, in seconds; to the end by default.

    Raises:
        DataError: If there is no such file, it is empty, cut off, not audio, holds NaN or infinite samples,
            or the stretch is not in it.
    """
    soundfile = soundfile_module()
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such audio file: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    _refuse_cut_wav(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            own_rate, n = int(file.samplerate), int(file.frames)
            first, last = round(start_s * own_rate), n if end_s is None else round(end_s * own_rate)
            if n and not 0 <= first < last <= n + own_rate // 100:  # times in manifests are rounded
                raise DataError(
                    f"{path}: {n / own_rate:.2f} s long, has no stretch from {start_s:g} s to "
                    f"{'its end' if end_s is None else f'{end_s:g} s'}"
                )
            last = min(last, n)
            file.seek(first)
            data = file.read(last - first, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: cannot be read as audio ({str(error.error_string).rstrip('.')}); "
            "wav, flac, ogg and mp3 can"
        ) from error
    if n == 0 or len(data) == 0:
        raise DataError(f"{path}: holds no samples")
    if len(data) < last - first:
        raise DataError(f"{path}: cut off: it promises {last - first:,} samples and holds {len(data):,}")
    return Audio(
        resample(checked(data.mean(axis=1), str(path)), own_rate, rate_hz or own_rate), rate_hz or own_rate
    )


def checked(samples: np.ndarray | Tensor, name: str) -> Tensor:
    """Samples as a float32 tensor ``(n,)``.

    Raises:
        DataError: If one is NaN or infinite.
    """
    tensor = torch.as_tensor(samples, dtype=torch.float32)
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        raise DataError(f"{name}: {int(bad.sum()):,} samples are NaN or infinite, the first is number {at:,}")
    return tensor


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """``(..., n)`` at another rate, band-limited."""
    if from_hz == to_hz:
        return samples
    resampled: Tensor = _resampler(from_hz, to_hz, samples.device)(samples)
    return resampled


@functools.lru_cache(maxsize=64)
def _resampler(from_hz: int, to_hz: int, device: torch.device) -> nn.Module:
    """Holds the filter, which takes longer to make than a short recording to pass through."""
    module: nn.Module = torchaudio().transforms.Resample(from_hz, to_hz).to(device)
    return module


def write_audio(path: Path | str, audio: Audio) -> None:
    """Writes 16-bit wav or flac, ogg or mp3, by the name; what is beyond full scale is clipped.

    Raises:
        UsageError: If the name says no format that can be written.
        UserError: If the file can't be written.
    """
    soundfile = soundfile_module()
    path = Path(path)
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(AUDIO_SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        soundfile.write(str(path), audio.samples.detach().cpu().clamp(-1, 1).numpy(), audio.rate_hz)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from error


def pcm_chunks(stream: BinaryIO, rate_hz: int, chunk_s: float = 0.1) -> Iterator[Tensor]:
    """Chunks ``(n,)`` of float32 from signed 16-bit little-endian mono PCM, until the stream ends.

    Args:
        stream: Such as ``sys.stdin.buffer``; whatever it has is handed on, at most ``chunk_s`` at once.
        rate_hz: Its sample rate.
        chunk_s: Seconds of a chunk at most.

    Raises:
        DataError: If the stream ends inside a sample, or begins as a wav file does.
    """
    wanted = 2 * max(1, round(rate_hz * chunk_s))
    read = getattr(stream, "read1", stream.read)
    rest, is_first = b"", True
    while more := read(wanted):
        if is_first and more[:4] == b"RIFF":
            raise DataError("the stream is a wav file, and raw PCM is expected; name the file as the input")
        rest, is_first = rest + more, False
        whole = len(rest) // 2 * 2
        if whole:
            yield torch.from_numpy(np.frombuffer(rest[:whole], dtype="<i2").astype(np.float32) / 32768)
        rest = rest[whole:]
    if rest:
        raise DataError("the PCM stream ends inside a sample; 16-bit little-endian mono is expected")


def soundfile_module() -> ModuleType:
    """The soundfile package.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise UserError(
            "mambakit speech needs soundfile; install it with pip install 'mambakit[speech]'"
        ) from error
    return soundfile


def _refuse_cut_wav(path: Path) -> None:
    """libsndfile reads what is there of a wav that was cut off, and does not say so."""
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    (promised,) = struct.unpack("<I", head[4:8])
    there = path.stat().st_size - 8
    if promised not in _UNKNOWN_SIZES and there + 1 < promised:  # some leave out the last padding byte
        raise DataError(f"{path}: cut off: its header promises {promised:,} bytes, there are {there:,}")
