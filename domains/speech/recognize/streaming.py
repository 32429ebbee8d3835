"""Recognition of sound as it comes: chunks of any size in, lines of text as events out, memory flat."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.speech.recognize.decoding import PRESET_DECODE, DecodeConfig, Decoder
from mambakit.domains.speech.recognize.endpoints import EndpointConfig, LineEnds, VoiceActivity
from mambakit.domains.speech.recognize.formats import Line, plain_line
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.search import best_path
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID
from mambakit.domains.speech.recognize.words import Spoken, spoken_along, words_of

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


class StreamingRecognizer:
    """One stream.

    The network's state goes on over lines and is never reset, so that its log-probabilities are those of
    the whole recording whatever the chunks. Completed lines too are the same for all chunks; only how often
    a line changes before depends on them. With a beam, a line's words are searched anew when it ends.

    Args:
        model: A causal one, in evaluation mode.
        endpoints: When lines end.
        decode: How the words of a line that is complete are chosen.

    Raises:
        UsageError: If the model can't stream.
    """

    def __init__(
        self,
        model: Recognizer,
        *,
        endpoints: EndpointConfig | None = None,
        decode: DecodeConfig = PRESET_DECODE,
    ) -> None:
        if not model.causal:
            raise UsageError(
                "model: it reads both ways, so it can't stream; train one with --model.encoder.bidirectional "
                "false, or transcribe the whole recording"
            )
        self.model = model
        self._config = endpoints or EndpointConfig()
        self._decoder = Decoder(model, decode)
        self._device = model.head.proj.weight.device
        self._activity = VoiceActivity(model.rate_hz, self._config)
        self._ends = LineEnds(model.frame_s, self._activity.frame_s, self._config)
        self._state = model.init_state(1)
        self._frame = 0
        self._number = 0
        self._before = BLANK_ID  # the symbol of the frame before this line
        self._begin_line()

    @torch.no_grad()
    def feed(self, samples: Tensor) -> list[Event]:
        """Go on by samples ``(n,)`` at the model's rate, however many; what is new."""
        said, self._state = self.model.step(samples[None].to(self._device), self._state)
        self._ends.hear(self._activity(samples))
        rows = said[0].cpu()
        events: list[Event] = []
        for row, symbol in zip(rows, best_path(rows).tolist(), strict=True):
            self._take(row, symbol)
            if self._over():
                events += self._complete()
        return events + self._changes()

    def finish(self) -> list[Event]:
        """The stream is over: the line that is open is completed."""
        return self._complete()

    @property
    def n_held(self) -> int:
        """Frames that are held of the open line; bounded, however long the stream."""
        return len(self._rows)

    def _begin_line(self) -> None:
        self._rows: list[Tensor] = []
        self._first = self._frame
        self._begin: int | None = None
        self._last = -1
        self._last_symbol = BLANK_ID
        self._shown: str | None = None

    def _take(self, row: Tensor, symbol: int) -> None:
        if symbol == self._before and not self._rows:
            symbol = BLANK_ID  # the tail of the line before
        else:
            self._before = BLANK_ID
        if symbol != BLANK_ID:
            if self._begin is None:
                self._begin = self._frame
            self._last, self._last_symbol = self._frame, symbol
        if self._begin is not None:
            if not self._rows:
                self._first = self._frame
            self._rows.append(row)
        self._frame += 1

    def _over(self) -> bool:
        frame_s = self.model.frame_s
        quiet_s = (self._frame - 1 - self._last) * frame_s
        ends_word = self.model.tokenizer.pieces[self._last_symbol].endswith(" ")
        if self._ends.over(self._frame - 1, self._begin, self._last, ends_word or quiet_s >= _WORD_GAP_S):
            return True
        return self._begin is not None and len(self._rows) * frame_s >= 2 * self._config.longest_s

    def _symbols(self, greedy: bool) -> list[Spoken]:
        if not self._rows:
            return []
        rows = torch.stack(self._rows)
        found = spoken_along(best_path(rows), rows) if greedy else self._decoder(rows)
        return [one._replace(begin=one.begin + self._first, end=one.end + self._first) for one in found]

    def _line(self, greedy: bool) -> Line | None:
        words = words_of(self._symbols(greedy), self.model.tokenizer.pieces, self.model.frame_s)
        return Line(tuple(words)) if words else None

    def _changes(self) -> list[Event]:
        line = self._line(greedy=True) if self._begin is not None else None
        if line is None or line.text == self._shown:
            return []
        kind: Literal["started", "changed"] = "started" if self._shown is None else "changed"
        self._shown = line.text
        return [Event(kind, self._number, line)]

    def _complete(self) -> list[Event]:
        line = self._line(self._decoder.greedy)
        events: list[Event] = []
        if line is not None:
            if self._shown is None:
                events.append(Event("started", self._number, line))
            events.append(Event("completed", self._number, line))
            self._number += 1
        if self._rows:
            self._before = int(best_path(self._rows[-1]))
        self._begin_line()
        return events
