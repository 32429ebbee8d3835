"""Recognition of sound as it comes: chunks of any size in, lines of text as events out, memory flat.

Many streams go through the network in one step. A stream's sound is taken in whole frames of symbols, so that
all states have one shape whatever the chunks were.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.core.state import State
from mambakit.domains.speech.audio import checked
from mambakit.domains.speech.recognize.decoding import PRESET_DECODE, DecodeConfig, Decoder
from mambakit.domains.speech.recognize.endpoints import EndpointConfig
from mambakit.domains.speech.recognize.lines import Event, Lines
from mambakit.domains.speech.recognize.model import Recognizer

__all__ = ["Event", "StreamBatch", "StreamingRecognizer"]

_MOST_S = 20.0  # of sound that is run at once


class StreamBatch:
    """Streams that come and go, each with a state of its own, stepped together.

    What a stream says is what it would say alone: a state goes on over lines and is never reset, so that what
    frames say is that of the whole recording whatever the chunks. Completed lines too are the same for all
    chunks; only how often a line changes before depends on them. With a beam, a line's words are searched
    anew when it ends.

    Args:
        model: One that streams, in evaluation mode.
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
        if not model.streams:
            raise UsageError(
                "model: its attention decoder looks at the whole recording, so it can't stream; train one "
                "with --model.head ctc or rnnt, or transcribe the whole recording"
            )
        self.model = model
        self._endpoints, self._decoder = endpoints or EndpointConfig(), Decoder(model, decode)
        self._device = model.head.proj.weight.device
        self._rows: list[int] = []  # the streams, in the order of the state's rows
        self._state: State | None = None
        self._lines: dict[int, Lines] = {}
        self._waiting: dict[int, Tensor] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Memory of all states; it grows with the number of streams, not with their length."""
        return 0 if self._state is None else self._state.nbytes

    @torch.no_grad()
    def join(self) -> int:
        """A new stream; the number it is called by."""
        new = State.of(network=self.model.init_state(1), text=self.model.said_before(1))
        self._state = new if self._state is None else State.cat([self._state, new])
        stream, self._next = self._next, self._next + 1
        self._rows.append(stream)
        self._lines[stream] = Lines(self.model, self._endpoints, self._decoder)
        self._waiting[stream] = torch.zeros(0)
        return stream

    @torch.no_grad()
    def leave(self, stream: int) -> list[Event]:
        """A stream is over: what is still to be written of it is, and the line that is open is completed.

        Raises:
            KeyError: If there is no such stream.
        """
        lines, size = self._lines[stream], self.model.frame_samples
        events: list[Event] = []
        if lines.n_heard >= size:
            tail = torch.zeros(self.model.n_tail)
            lines.hear_tail(tail)
            self._waiting[stream] = torch.cat([self._waiting[stream], tail])
            if n := len(self._waiting[stream]) // size * size:
                ((_, events),) = self._step([self._rows.index(stream)], n)
        events += lines.finish()
        del self._lines[stream], self._waiting[stream]
        kept = [i for i, one in enumerate(self._rows) if one != stream]
        self._state = self._state.index_select(kept) if kept and self._state is not None else None
        self._rows = [self._rows[i] for i in kept]
        return events

    def n_held(self, stream: int) -> int:
        """Frames that are held of a stream's open line; bounded, however long it goes on."""
        return self._lines[stream].n_held

    @torch.no_grad()
    def feed(self, samples: Mapping[int, Tensor]) -> dict[int, list[Event]]:
        """Go on by samples ``(n,)`` of some streams, each however many; what is new in each.

        Raises:
            KeyError: If there is no such stream.
            ValueError: If samples are no ``(n,)`` floats.
            DataError: If one is NaN or infinite, which its stream would never get over. No stream goes on.
        """
        given = {stream: self._checked(stream, new) for stream, new in samples.items()}
        events: dict[int, list[Event]] = {}
        for stream, new in given.items():
            self._lines[stream].hear(new)
            self._waiting[stream] = torch.cat([self._waiting[stream], new])
            events[stream] = []
        size = self.model.frame_samples
        while ready := [i for i, one in enumerate(self._rows) if len(self._waiting[one]) >= size]:
            shortest = min(len(self._waiting[self._rows[i]]) for i in ready)
            n = size * min(shortest // size, max(1, round(_MOST_S / self.model.frame_s)))
            for stream, completed in self._step(ready, n):
                events.setdefault(stream, []).extend(completed)
        for stream in samples:
            events[stream] += self._lines[stream].changes()
        return events

    def _checked(self, stream: int, samples: Tensor) -> Tensor:
        if stream not in self._lines:
            raise KeyError(stream)
        if samples.dim() != 1 or not samples.is_floating_point():
            raise ValueError(
                f"samples: expected (n,) floats with full scale 1, got {tuple(samples.shape)} {samples.dtype}"
            )
        return checked(samples.detach().cpu(), f"stream {stream}")

    def _step(self, rows: list[int], n: int) -> list[tuple[int, list[Event]]]:
        """Run the next n samples of some rows together; the events of each."""
        assert self._state is not None
        streams = [self._rows[i] for i in rows]
        heard = torch.stack([self._waiting[one][:n] for one in streams]).to(self._device)
        for one in streams:
            self._waiting[one] = self._waiting[one][n:].clone()
        state = self._state if len(rows) == len(self._rows) else self._state.index_select(rows)
        vectors, network = self.model.step_vectors(heard.to(self._dtype), state["network"])
        said, text = self.model.said(vectors, state["text"])
        after = State.of(network=network, text=text)
        self._state = after if len(rows) == len(self._rows) else self._state.put_rows(rows, after)
        return [(stream, self._lines[stream].take(vectors[i], said[i])) for i, stream in enumerate(streams)]

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.head.proj.weight.dtype


class StreamingRecognizer:
    """One stream; arguments and errors as ``StreamBatch``.

    Args:
        model: One that streams, in evaluation mode.
        endpoints: When lines end.
        decode: How the words of a line that is complete are chosen.
    """

    def __init__(
        self,
        model: Recognizer,
        *,
        endpoints: EndpointConfig | None = None,
        decode: DecodeConfig = PRESET_DECODE,
    ) -> None:
        self._streams = StreamBatch(model, endpoints=endpoints, decode=decode)
        self._stream = self._streams.join()

    def feed(self, samples: Tensor) -> list[Event]:
        """Go on by samples ``(n,)`` at the model's rate, however many; what is new."""
        return self._streams.feed({self._stream: samples})[self._stream]

    def finish(self) -> list[Event]:
        """The stream is over: the line that is open is completed."""
        return self._streams.leave(self._stream)

    @property
    def n_held(self) -> int:
        """Frames that are held of the open line; bounded, however long the stream."""
        return self._streams.n_held(self._stream)

    @property
    def nbytes(self) -> int:
        """Memory of the network's state."""
        return self._streams.nbytes
