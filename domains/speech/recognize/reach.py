"""Times of words, from what is written of them to the sound around it.

CTC and transducers write a symbol in a frame or two somewhere inside its sound, pieces of words above all: a
word's sound begins before what is written of it and goes on behind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.domains.speech.recognize.endpoints import EndpointConfig, VoiceActivity
from mambakit.domains.speech.recognize.words import Word

REACH_S = 0.5  # at most: there is noise that the energy doesn't tell from speech
_REST = 0.7  # of the sound between two words without a pause, the first one's share: it is written early
_NEARLY = 1e-6


class Activity(NamedTuple):
    """Where somebody speaks.

    Attributes:
        said: Of each frame, whether.
        frame_s: Seconds of a frame.
        first: Number of the first frame; before it and behind the last there is silence.
    """

    said: Sequence[bool]
    frame_s: float
    first: int = 0

    def since(self, time_s: float) -> float:
        """When the sound before a time began, if not ``REACH_S`` before it; the time itself in silence."""
        frame = math.ceil(time_s / self.frame_s - _NEARLY) - 1 - self.first
        begin, least = frame, max(0, frame - self._reach)
        while least <= begin < len(self.said) and self.said[begin]:
            begin -= 1
        return time_s if begin == frame else min(time_s, (begin + 1 + self.first) * self.frame_s)

    def until(self, time_s: float) -> float:
        """When the sound behind a time is over, if not ``REACH_S`` behind it; the time itself in silence."""
        frame = math.floor(time_s / self.frame_s + _NEARLY) - self.first
        end, most = frame, min(len(self.said), frame + self._reach)
        while 0 <= end < most and self.said[end]:
            end += 1
        return time_s if end == frame else max(time_s, (end + self.first) * self.frame_s)

    @property
    def _reach(self) -> int:
        return math.ceil(REACH_S / self.frame_s) + 1


def activity_of(samples: Tensor, rate_hz: int) -> Activity:
    """Of a whole recording ``(n,)``."""
    listener = VoiceActivity(rate_hz, EndpointConfig())
    silence = torch.zeros(round(listener.frame_s * rate_hz) - 1)  # the last frame is heard, too
    return Activity(listener(torch.cat([samples.cpu(), silence])), listener.frame_s)


def reaching(
    words: Sequence[Word], activity: Activity, seconds: float = math.inf, since_s: float = 0.0
) -> list[Word]:
    """Words whose times reach over the sound before and behind what is written, none over another.

    Args:
        words: With the times of what is written of them, in their order.
        activity: Where somebody speaks.
        seconds: When the recording is over.
        since_s: When the word before these was over.
    """
    starts, ends = [], []
    for i, word in enumerate(words):
        before_s = words[i - 1].end_s if i else since_s
        behind_s = words[i + 1].start_s if i + 1 < len(words) else seconds
        # both walks go a frame further, so that the bound is the same wherever frames begin
        start_s = max(activity.since(word.start_s), word.start_s - REACH_S, before_s)
        end_s = min(activity.until(word.end_s), word.end_s + REACH_S, behind_s)
        starts.append(min(start_s, word.start_s))
        ends.append(max(end_s, word.end_s))
    for i, (one, after) in enumerate(itertools.pairwise(words)):
        if ends[i] > starts[i + 1]:
            ends[i] = starts[i + 1] = one.end_s + _REST * (after.start_s - one.end_s)
    return [
        word._replace(start_s=start_s, end_s=end_s)
        for word, start_s, end_s in zip(words, starts, ends, strict=True)
    ]
