"""Log-mel frames from samples, whole or in chunks of any size, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import padding_mask
from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.state import State
from mambakit.core.torchaudio_parts import torchaudio
from mambakit.domains.speech.augment import tilts
from mambakit.domains.speech.chance import Chance

Normalise = Literal["global", "running", "utterance", "none"]
# Below 16-bit audio's own rounding noise in a mel band: digital silence becomes this, not minus infinity.
_FLOOR = 1e-7
_AT_ONCE = 128  # frames of a moving mean: one product of matrices


@dataclass(frozen=True)
class FrontEndConfig:
    """How samples become frames; see each field."""

    rate_hz: int = 8000
    """Sample rate that is heard; other audio is resampled."""
    n_mels: int = 40
    """Mel bands."""
    window_s: float = 0.025
    """Seconds of a window."""
    hop_s: float = 0.010
    """Seconds from a frame to the next."""
    low_hz: float = 20.0
    """The lowest band begins there; the highest ends at half the sample rate."""
    normalise: Normalise = "global"
    """global: each band by mean and deviation over the training set, which streams; running: by the
    deviation, and by a mean that follows the sound, which streams too, but in pauses of many seconds forgets
    how loud speech was; utterance: each band's own mean in the utterance is taken off first, which needs the
    whole of it; none."""
    running_s: float = 3.0
    """With running: seconds in which the mean forgets all but a share of 1/e of what was before, at the
    beginning the training set's mean."""

    def __post_init__(self) -> None:
        if self.normalise not in get_args(Normalise):
            raise UsageError(f"normalise: expected {', '.join(get_args(Normalise))}, got {self.normalise!r}")
        for name in ("rate_hz", "n_mels", "window_s", "hop_s", "running_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.hop > self.window:
            raise UsageError(
                f"hop_s: {self.hop_s} is longer than window_s, {self.window_s}: it would skip sound"
            )

    @property
    def hop(self) -> int:
        """Samples from a frame to the next."""
        return round(self.rate_hz * self.hop_s)

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(self.rate_hz * self.window_s)

    @property
    def n_fft(self) -> int:
        """Points of the transform: the power of two that holds a window."""
        return 1 << (self.window - 1).bit_length()


def check_bands(front_end: FrontEndConfig, n_mels: int) -> None:
    """Raise a UsageError unless an encoder of so many bands takes what the front end makes."""
    if n_mels != front_end.n_mels:
        raise UsageError(f"encoder.n_mels: {n_mels} is not front_end.n_mels, {front_end.n_mels}; set both")


class FrontEnd(nn.Module):
    """``log(mel)`` of each frame, normalised.

    Frame k ends with sample ``(k + 1) * hop``: it needs nothing that comes later, and n samples make
    ``n // hop`` frames. Before the first sample there are zeros.

    Args:
        config: How samples become frames.
    """

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = torchaudio().transforms.MelSpectrogram(
            sample_rate=config.rate_hz,
            n_fft=config.n_fft,
            win_length=config.window,
            hop_length=config.hop,
            f_min=config.low_hz,
            n_mels=config.n_mels,
            power=2.0,
            center=False,
        )
        for name in ("spectrogram.window", "mel_scale.fb"):  # made anew by the config, not saved
            owner, _, buffer = name.rpartition(".")
            self.mel.get_submodule(owner)._non_persistent_buffers_set.add(buffer)
        self.mean: Tensor
        self.deviation: Tensor
        self.weights: Tensor | None  # with running
        keep = math.exp(-config.hop_s / config.running_s)
        weights = moving_mean_weights(keep) if config.normalise == "running" else None
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("deviation", torch.ones(config.n_mels))

    def frames_of(self, n_samples: Tensor) -> Tensor:
        """How many frames so many samples make."""
        return n_samples // self.config.hop

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole utterances.

        Args:
            samples: ``(batch, n_samples)`` float32, right-padded.
            lengths: ``(batch,)`` int64 samples of each; all are whole by default.

        Returns:
            Frames ``(batch, n_frames, n_mels)`` float32, zero at padding, and their ``lengths``.

        Raises:
            ValueError: If samples are no ``(batch, n_samples)``.
        """
        frames, counts = self.log_mel(samples, lengths)
        return self.normalised(frames, counts), counts

    def log_mel(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ``forward``, not normalised; what stands at padding says nothing."""
        if samples.dim() != 2:
            raise ValueError(f"samples: expected shape (batch, n_samples), got {tuple(samples.shape)}")
        if lengths is None:
            lengths = torch.full((len(samples),), samples.shape[1], device=samples.device)
        frames, _ = self._frames(F.pad(samples, (self._before, 0)))
        return frames, self.frames_of(lengths)

    def normalised(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel frames ``(batch, n_frames, n_mels)`` as the config says; zero at padding."""
        pads = padding_mask(lengths, frames.shape[1])[..., None]
        frames = frames.masked_fill(pads, 0.0)
        if self.config.normalise == "utterance":
            frames = frames - frames.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
        means = self._means(frames, self.mean.expand(len(frames), -1))
        return self._scaled(frames, means).masked_fill(pads, 0.0)

    def init_state(self, batch: int) -> State:
        """Before the first sample."""
        kept = {"samples": torch.zeros(batch, self._before, device=self.mean.device)}
        if self.weights is not None:
            kept["mean"] = self.mean.expand(batch, -1).clone()
        return State.of(**kept)

    def step(self, samples: Tensor, state: State, by: int = 1) -> tuple[Tensor, State]:
        """The next samples ``(batch, n)``, any n, and the frames ``(batch, m, n_mels)`` that they complete.

        Args:
            samples: Those.
            state: What is kept of those before.
            by: m is a multiple of it; samples of further frames wait.

        Raises:
            RuntimeError: If frames are normalised by the utterance, which is not known yet.
        """
        if self.config.normalise == "utterance":
            raise RuntimeError(
                "normalise is utterance: that needs the whole of it; global streams, and so does running"
            )
        frames, rest = self._frames(torch.cat([state["samples"], samples], dim=1), by)
        if self.weights is None:
            return self._scaled(frames, self.mean), State.of(samples=rest)
        means = self._means(frames, state["mean"])
        mean = means[:, -1].clone() if means.shape[1] else state["mean"]
        return self._scaled(frames, means), State.of(samples=rest, mean=mean)

    @torch.no_grad()
    def fit(self, utterances: Iterable[Tensor]) -> None:
        """Mean and deviation of each band over training utterances ``(n_samples,)``."""
        count = 0
        total = torch.zeros(self.config.n_mels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for samples in utterances:
            frames = self.log_mel(samples[None])[0][0].cpu().double()
            if self.config.normalise == "utterance":
                frames = frames - frames.mean(0, keepdim=True)
            frames = frames[frames.isfinite().all(1)]
            count += len(frames)
            total += frames.sum(0)
            squares += frames.square().sum(0)
        if count == 0:
            raise ValueError("utterances: they hold no frame to take a mean of")
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp(min=1e-4).sqrt())

    @property
    def _before(self) -> int:
        return self.config.n_fft - self.config.hop

    def _means(self, frames: Tensor, mean: Tensor) -> Tensor:
        """What is taken off the frames: with running, means that follow them from ``mean``."""
        if self.weights is None:
            return self.mean
        # autocast would compute the means in half precision
        with torch.autocast(frames.device.type, enabled=False):
            return moving_mean(frames.to(mean.dtype), mean, self.weights)

    def _scaled(self, frames: Tensor, means: Tensor) -> Tensor:
        return frames if self.config.normalise == "none" else (frames - means) / self.deviation

    def _frames(self, samples: Tensor, by: int = 1) -> tuple[Tensor, Tensor]:
        """Frames of samples that begin with a frame's first, and the samples that later ones need."""
        n = max(0, (samples.shape[1] - self.config.n_fft) // self.config.hop + 1) // by * by
        rest = samples[:, n * self.config.hop :]
        if n == 0:
            return samples.new_zeros(len(samples), 0, self.config.n_mels), rest
        used = samples[:, : (n - 1) * self.config.hop + self.config.n_fft]
        # autocast would compute the filter bank in half precision, where quiet bands vanish
        with torch.autocast(samples.device.type, enabled=False):
            power = self.mel(used.float())
        return power.clamp(min=_FLOOR).log().transpose(1, 2), rest


def moving_mean(x: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """``m[t] = keep * m[t - 1] + (1 - keep) * x[t]`` along the frames, ``(batch, n, width)``.

    Args:
        x: ``(batch, n, width)``.
        mean: ``(batch, width)`` before the first.
        weights: Of ``moving_mean_weights``.
    """
    means = []
    for frames in x.split(len(weights), dim=1):
        n = frames.shape[1]
        means.append(
            torch.baddbmm(
                weights[:n, :1] * mean[:, None], weights[:n, 1 : n + 1].expand(len(x), n, n), frames
            )
        )
        mean = means[-1][:, -1] if n else mean
    return torch.cat(means, dim=1)


def moving_mean_weights(keep: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(n, 1 + n)``: what each of n means takes of the mean before them, and of each of n frames.

    Args:
        keep: Share of the mean that stays, a frame.
        dtype: Of the frames.
    """
    place = torch.arange(_AT_ONCE, dtype=torch.float64)
    behind = place[:, None] - place
    shares = torch.where(behind >= 0, (1 - keep) * keep ** behind.clamp(min=0), 0.0)
    return torch.cat([keep ** (place[:, None] + 1), shares], dim=1).to(dtype)


@dataclass(frozen=True)
class StripesConfig:
    """What is done to frames while training (SpecAugment and other voices); see each field."""

    tilt_db: float = 6.0
    """How far the microphone's frequency response is bent at random: the deviation of each of three slow
    waves over the bands. No effect with normalise utterance, which takes it off again."""
    warp: float = 0.0
    """Share by which the bands' places are stretched or squeezed at most, as by a shorter or longer vocal
    tract."""
    n_bands: int = 2
    """Stripes of bands that are hidden, over all times."""
    band_width: int = 6
    """Bands of a stripe at most."""
    n_times: int = 2
    """Stripes of times that are hidden, over all bands."""
    time_share: float = 0.12
    """Share of the recording that each is at most."""

    def __post_init__(self) -> None:
        check_shares(self, "time_share")
        check_shares(self, "warp", below_one=True)
        check_least(self, 0, "tilt_db", "n_bands", "band_width", "n_times")


def heard_in_training(
    front_end: FrontEnd, samples: Tensor, lengths: Tensor, stripes: StripesConfig
) -> tuple[Tensor, Tensor]:
    """What ``front_end`` gives, through other microphones, by other voices, and with stripes hidden."""
    frames, lengths = front_end.log_mel(samples, lengths)
    if stripes.tilt_db:
        n_mels = frames.shape[2]
        at = (torch.arange(n_mels, device=frames.device) + 0.5) / n_mels
        frames = frames + tilts(len(frames), at, stripes.tilt_db, Chance(frames.device))[:, None]
    return spec_augment(front_end.normalised(frames, lengths), lengths, stripes), lengths


def spec_augment(frames: Tensor, lengths: Tensor, stripes: StripesConfig) -> Tensor:
    """Frames with stripes of bands and times set to zero, the mean (Park et al. 2019, arXiv:1904.08779), and
    before it with warped bands.

    Args:
        frames: ``(batch, n_frames, n_mels)``, normalised.
        lengths: ``(batch,)`` frames of each.
        stripes: How many and how wide.
    """
    batch, n_frames, n_mels = frames.shape
    place = torch.arange(n_mels, device=frames.device)
    if stripes.warp:
        frames = warped(frames, 1 + stripes.warp * (2 * torch.rand(batch, device=frames.device) - 1))
    for _ in range(stripes.n_bands):
        width = torch.randint(0, stripes.band_width + 1, (batch, 1), device=frames.device)
        start = (torch.rand(batch, 1, device=frames.device) * (n_mels - width + 1)).long()
        frames = frames.masked_fill(((place >= start) & (place < start + width))[:, None, :], 0.0)
    time = torch.arange(n_frames, device=frames.device)
    for _ in range(stripes.n_times):
        most = lengths[:, None] * stripes.time_share
        width = (torch.rand(batch, 1, device=frames.device) * (most + 1)).long()
        start = (torch.rand(batch, 1, device=frames.device) * (lengths[:, None] - width + 1)).long()
        frames = frames.masked_fill(((time >= start) & (time < start + width))[:, :, None], 0.0)
    return frames


def warped(frames: Tensor, factors: Tensor) -> Tensor:
    """Frames ``(batch, n, n_mels)`` whose band ``k`` holds what was at ``k * factor``, between two bands.

    That is how a vocal tract of another length would sound (Jaitly & Hinton 2013, ICML Workshop on Deep
    Learning for Audio, Speech and Language), but that they warp Hz. Above the highest band its value stays.
    """
    n_mels = frames.shape[2]
    place = (torch.arange(n_mels, device=frames.device) * factors[:, None]).clamp(max=n_mels - 1)
    low = place.long()
    share = (place - low)[:, None, :].to(frames.dtype)
    low = low[:, None, :].expand_as(frames)
    below, above = frames.gather(2, low), frames.gather(2, (low + 1).clamp(max=n_mels - 1))
    return below + share * (above - below)
