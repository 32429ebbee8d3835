"""The lines of text of one stream, from what its frames say: begun, changed and completed, memory flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mambakit.domains.speech.recognize.decoding import Decoder
from mambakit.domains.speech.recognize.endpoints import EndpointConfig, LineEnds, VoiceActivity
from mambakit.domains.speech.recognize.formats import Line, plain_line
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.reach import REACH_S, Activity
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID
from mambakit.domains.speech.recognize.words import Said, Spoken, spoken_in_frames

_WORD_GAP_S = 0.3  # without a symbol for so long, a word is over


class Event(NamedTuple):
    """What is new about a line.

    Attributes:
        kind: started, when a line has its first words; changed, when they changed; completed, for the last
            time: this line's words stay as they are.
        number: Of the line, from 0.
        line: Its words.
    """

    kind: Literal["started", "changed", "completed"]
    number: int
    line: Line

    def plain(self) -> dict[str, Any]:
        """As JSON has it; words with times only where they are final."""
        said = plain_line(self.line)
        if self.kind != "completed":
            said = {"text": said["text"], "start_s": said["start_s"], "end_s": said["end_s"]}
        return {"event": self.kind, "line": self.number, **said}


class Lines:
    """What one stream has said and says.

    Args:
        model: Whose symbols.
        config: When lines end.
        decoder: How the words of a line that is complete are chosen.

    Attributes:
        n_heard: Samples that came.
    """

    def __init__(self, model: Recognizer, config: EndpointConfig, decoder: Decoder) -> None:
        self._model, self._config, self._decoder = model, config, decoder
        self._activity = VoiceActivity(model.rate_hz, config)
        self._ends = LineEnds(model.frame_s, self._activity.frame_s, config)
        self._frame = 0
        self.n_heard = 0  # samples
        self._active: list[bool] = []  # frames of voice activity that a word of this line may reach over
        self._first_active = 0
        self._over_s = math.inf  # when the stream was over
        self._since_s = 0.0  # the end of the line before
        self._number = 0
        self._before = BLANK_ID  # the symbol of the frame before this line, under CTC
        self._begin_line()

    def hear(self, samples: Tensor) -> None:
        """Take samples ``(n,)`` at the model's rate before the frames that they complete."""
        self.n_heard += len(samples)
        self._listen(samples)

    def hear_tail(self, samples: Tensor) -> None:
        """The same of the silence behind the stream, in which nothing is said any more."""
        self._over_s = self.n_heard / self._model.rate_hz
        self._listen(samples)

    def _listen(self, samples: Tensor) -> None:
        found = self._activity(samples)
        self._ends.hear(found)
        self._active += found

    def take(self, vectors: Tensor, said: Sequence[list[Said]]) -> list[Event]:
        """Take the next frames: their vectors ``(m, d_model)`` and what they say; the lines that end."""
        events: list[Event] = []
        for vector, symbols in zip(vectors, said, strict=True):
            self._take(vector, symbols)
            if self._over():
                events += self.finish()
        return events

    @property
    def n_held(self) -> int:
        """Frames that are held of the open line; bounded, however long the stream."""
        return len(self._said)

    def _begin_line(self) -> None:
        self._vectors: list[Tensor] = []
        self._said: list[list[Said]] = []
        self._first = self._frame
        self._begin: int | None = None
        self._last = -1
        self._last_symbol = BLANK_ID
        self._shown: str | None = None
        self._read = -1  # the last symbol's frame when the line was read for that

    def _take(self, vector: Tensor, said: list[Said]) -> None:
        if not self._model.repeats:
            if said and said[0][0] == self._before and not self._said:
                said = []  # the tail of the line before
            else:
                self._before = BLANK_ID
        if said:
            if self._begin is None:
                self._begin = self._first = self._frame
            self._last, self._last_symbol = self._frame, said[-1][0]
        if self._begin is not None:
            if not self._decoder.greedy:
                self._vectors.append(vector.clone())  # of its own: what it is a view of holds all streams
            self._said.append(said)
        else:
            self._forget()
        self._frame += 1

    def _forget(self) -> None:
        """Voice activity that no word reaches over which is still to come."""
        first = math.floor((self._frame * self._model.frame_s - REACH_S) / self._activity.frame_s)
        if (over := first - self._first_active) > 0:
            del self._active[:over]
            self._first_active = first

    def _over(self) -> bool:
        frame_s = self._model.frame_s
        quiet_s = (self._frame - 1 - self._last) * frame_s
        ends_word = self._model.tokenizer.pieces[self._last_symbol].endswith(" ")
        if self._ends.over(self._frame - 1, self._begin, self._last, ends_word or quiet_s >= _WORD_GAP_S):
            return True
        return self._begin is not None and len(self._said) * frame_s >= 2 * self._config.longest_s

    def _symbols(self, greedy: bool) -> list[Spoken]:
        if greedy:
            return spoken_in_frames(self._said, repeats=self._model.repeats, first_frame=self._first)
        found = self._decoder(torch.stack(self._vectors)) if self._vectors else []
        return [one._replace(begin=one.begin + self._first, end=one.end + self._first) for one in found]

    def _line(self, greedy: bool) -> Line | None:
        # what the recogniser has not read yet counts for nothing, so that chunks make no difference
        n = math.floor(self._frame * self._model.frame_s / self._activity.frame_s) - self._first_active
        activity = Activity(self._active[: max(0, n)], self._activity.frame_s, self._first_active)
        words = self._model.words(self._symbols(greedy), activity, self._over_s, self._since_s)
        return Line(tuple(words)) if words else None

    def changes(self) -> list[Event]:
        """Whether the open line reads otherwise than when it was last shown."""
        if self._begin is None or self._last == self._read:  # blanks change no text
            return []
        self._read = self._last
        line = self._line(greedy=True)
        if line is None or line.text == self._shown:
            return []
        kind: Literal["started", "changed"] = "started" if self._shown is None else "changed"
        self._shown = line.text
        return [Event(kind, self._number, line)]

    def finish(self) -> list[Event]:
        """The line that is open is over."""
        line = self._line(self._decoder.greedy)
        events: list[Event] = []
        if line is not None:
            if self._shown is None:
                events.append(Event("started", self._number, line))
            events.append(Event("completed", self._number, line))
            self._number += 1
            self._since_s = line.end_s
        if self._said:
            self._before = self._said[-1][0][0] if self._said[-1] else BLANK_ID
        self._begin_line()
        return events
