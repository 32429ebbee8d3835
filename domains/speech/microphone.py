"""Sound from a microphone, through the sound device's library that the package sounddevice brings."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mambakit.core.errors import UserError


def microphone_chunks(rate_hz: int, chunk_s: float) -> Iterator[Tensor]:
    """Samples ``(n,)`` float32 as they come, ``chunk_s`` at once, without an end.

    The device is opened before the first chunk; what comes while the caller works waits in memory.

    Raises:
        UserError: If sounddevice or its library is missing, or there is no device, or it has another rate.
    """
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise UserError("mic: needs sounddevice; install it with pip install sounddevice") from error
    except OSError as error:  # the package is there, the library PortAudio is not
        raise UserError(f"mic: sounddevice does not load ({error}); install PortAudio") from error
    heard: queue.SimpleQueue[Tensor] = queue.SimpleQueue()

    def take(samples: Any, n: int, time: Any, status: Any) -> None:
        heard.put(torch.from_numpy(samples[:, 0].copy()))  # the device writes over its buffer

    size = max(1, round(chunk_s * rate_hz))
    try:
        device = sounddevice.InputStream(
            samplerate=rate_hz, channels=1, dtype="float32", blocksize=size, callback=take
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"mic: no microphone can be opened at {rate_hz} Hz ({error})") from error
    with device:
        while True:
            yield heard.get()
