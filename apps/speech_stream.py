"""Live recognition: what `mambakit speech stream` does."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.apps.speech_transcribe import load_recognizer
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.recognize.decoding import PRESET_DECODE, DecodeConfig
from mambakit.domains.speech.recognize.endpoints import EndpointConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mambakit.domains.speech.recognize.lines import Event

PRESET_ENDPOINTS = EndpointConfig()


def stream(
    *,
    model: Path,
    input: str | None = None,
    mic: bool = False,
    rate_hz: int | None = None,
    chunk_s: float = 0.1,
    endpoints: EndpointConfig = PRESET_ENDPOINTS,
    decode: DecodeConfig = PRESET_DECODE,
    device: str = "cpu",
) -> None:
    """Recognises sound as it comes, and prints an event a line as JSON.

    An event is started (a line of text has its first words), changed, or completed (the words of this line
    stay as they are, and have times and a confidence). A line ends after a silence. Completed lines are the
    same for chunks of any size. The memory that is used does not grow with the stream.

    Args:
        model: Folder of a saved recogniser that streams.
        input: - for signed 16-bit little-endian mono PCM on standard input (the default), or an audio file.
        mic: Listen to the microphone, until Ctrl-C; needs the package sounddevice.
        rate_hz: Of the PCM; the model's by default, and no other can be streamed.
        chunk_s: Seconds that are taken at once at most.
        endpoints: When a line is over.
        decode: How the words of a completed line are chosen.
        device: auto, cpu, cuda or mps.

    Examples:
        mambakit speech stream --model runs/asr --input - < audio.pcm
        arecord -q -t raw -f S16_LE -r 8000 -c 1 | mambakit speech stream --model runs/asr
        mambakit speech stream --model runs/asr --mic
        mambakit speech stream --model runs/asr --input call.wav --endpoints.silence_s 0.4
    """
    from mambakit.domains.speech.microphone import microphone_chunks
    from mambakit.domains.speech.recognize.streaming import StreamingRecognizer

    if not chunk_s > 0:
        raise UsageError(f"chunk_s: expected more than 0, got {chunk_s}")
    if mic and input is not None:
        raise UsageError(f"mic, input: give one of them; --mic listens to the microphone, not to {input}")
    recognizer = load_recognizer(model, device)
    if rate_hz not in (None, recognizer.rate_hz):
        raise UsageError(
            f"rate_hz: the model hears {recognizer.rate_hz} Hz and a stream is not resampled, got {rate_hz}; "
            f"convert it first (sox -r {recognizer.rate_hz}, ffmpeg -ar {recognizer.rate_hz})"
        )
    listener = StreamingRecognizer(recognizer, endpoints=endpoints, decode=decode)
    source = microphone_chunks(recognizer.rate_hz, chunk_s) if mic else None
    ended: BaseException | None = None
    try:
        for samples in source or _chunks(input or "-", recognizer.rate_hz, chunk_s):
            _tell(listener.feed(samples))
    except (DataError, KeyboardInterrupt) as error:  # what was heard before is written even so
        ended = None if mic and isinstance(error, KeyboardInterrupt) else error
    _tell(listener.finish())
    if ended is not None:
        raise ended


def _tell(events: Sequence[Event]) -> None:
    for event in events:
        print(json_module.dumps(event.plain(), ensure_ascii=False), flush=True)


def _chunks(source: str, rate_hz: int, chunk_s: float) -> Iterator[Tensor]:
    from mambakit.domains.speech.audio import pcm_chunks, read_audio

    if source == "-":
        yield from pcm_chunks(sys.stdin.buffer, rate_hz, chunk_s)
    else:
        yield from read_audio(source, rate_hz=rate_hz).samples.split(max(1, round(chunk_s * rate_hz)))
