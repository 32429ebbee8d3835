"""Is somebody speaking? Energy above a floor that follows the noise; and when a line of text is over."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mambakit.core.errors import UsageError

_FRAME_S = 0.02
_QUIETEST_DB = -100.0
_LOUDEST_FLOOR_DB = -25.0


@dataclass(frozen=True)
class EndpointConfig:
    """When a line of text is over."""

    silence_s: float = 0.6
    """After so much silence behind words."""
    blank_s: float = 1.5
    """After so long without a symbol, in noise that the energy doesn't tell from speech."""
    longest_s: float = 20.0
    """A line that is longer ends with its word."""
    margin_db: float = 9.0
    """Speech is so much louder than the noise."""
    floor_rise_db_per_s: float = 4.0
    """How fast the noise's level may be thought to rise."""

    def __post_init__(self) -> None:
        for name in ("silence_s", "blank_s", "longest_s", "margin_db", "floor_rise_db_per_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")


class VoiceActivity:
    """Speech or not, every 20 ms, the same for chunks of any size.

    A frame is speech if its energy lies ``margin_db`` above a floor, which falls at once to the quietest
    frame and rises slowly.

    Args:
        rate_hz: Sampling rate.
        config: The options.
    """

    def __init__(self, rate_hz: int, config: EndpointConfig) -> None:
        self._size = max(1, round(_FRAME_S * rate_hz))
        self.frame_s = self._size / rate_hz
        self._config = config
        self._floor_db = _LOUDEST_FLOOR_DB
        self._rest = torch.zeros(0)

    def __call__(self, samples: Tensor) -> list[bool]:
        """Of every frame that is complete with these samples ``(n,)``."""
        samples = torch.cat([self._rest, samples.detach().float().cpu()])
        n = len(samples) // self._size
        self._rest = samples[n * self._size :].clone()
        power = samples[: n * self._size].view(n, self._size).double().square().mean(1)
        levels = (10 * torch.log10(power + 10 ** (_QUIETEST_DB / 10))).tolist()
        rise = self._config.floor_rise_db_per_s * self.frame_s
        said = []
        for level in levels:
            self._floor_db = min(level, self._floor_db + rise, _LOUDEST_FLOOR_DB)
            said.append(level > self._floor_db + self._config.margin_db)
        return said


class LineEnds:
    """Says of every frame of the recogniser whether a line of text is over with it.

    Args:
        frame_s: Seconds a frame of the recogniser.
        activity_s: Seconds a frame of the voice activity.
        config: The options.
    """

    def __init__(self, frame_s: float, activity_s: float, config: EndpointConfig) -> None:
        self._frame_s, self._activity_s, self._config = frame_s, activity_s, config
        self._waiting: deque[bool] = deque()
        self._n_heard = 0  # frames of activity that were taken
        self._quiet_s = 0.0

    def hear(self, activity: list[bool]) -> None:
        """Take the voice activity, which is ahead of the recogniser."""
        self._waiting.extend(activity)

    def over(self, frame: int, line_begin: int | None, last_symbol: int, between_words: bool) -> bool:
        """Whether the line is over with this frame.

        Args:
            frame: Its number; they come in order.
            line_begin: Frame of the line's first symbol; None while there is none.
            last_symbol: Frame of its last.
            between_words: Whether a word has just ended.
        """
        now_s = (frame + 1) * self._frame_s
        while self._waiting and (self._n_heard + 1) * self._activity_s <= now_s + 1e-9:
            self._n_heard += 1
            self._quiet_s = 0.0 if self._waiting.popleft() else self._quiet_s + self._activity_s
        if line_begin is None:
            return False
        since_s = (frame - last_symbol) * self._frame_s
        if since_s <= 0:  # a symbol is being said
            return False
        config = self._config
        if self._quiet_s >= config.silence_s - 1e-9 and since_s >= min(0.2, config.silence_s):
            return True
        if since_s >= config.blank_s - 1e-9:
            return True
        return (frame - line_begin) * self._frame_s >= config.longest_s and between_words
