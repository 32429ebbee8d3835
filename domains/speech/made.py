"""Data sets made on the user's machine: digits by synthetic voices, and strings of recorded digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambakit.core.data import cache_folder
from mambakit.core.errors import DataError
from mambakit.domains.speech.audio import Audio, resample, write_audio
from mambakit.domains.speech.augment import (
    coloured_noise,
    mix,
    reverberate,
    room_response,
    stretch,
)
from mambakit.domains.speech.espeak import speak
from mambakit.domains.speech.utterances import Utterances, read_manifest

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = (
    *("en-us+m1", "en-us+f2", "en+m3", "en+f4"),
    *("en-gb-scotland+m4", "en-gb-x-rp+f3", "en-us+m7", "en-gb-x-gbcwmd+f5"),
)
RATE_HZ = 8000
# Of a change in how they are made: what lies in a user's cache is then made anew.
_VERSION = 1
_STRINGS = {"train": 180, "validation": 30, "test": 30}

Made = Iterator[tuple[Tensor, Tensor, dict[str, Any]]]


def spoken_digits() -> Utterances:
    """Each digit by each voice in twelve takes: 8 for training, 2 for validation, 2 for test."""
    return _kept("spoken-digits", _spoken, ".wav")


def spoken_strings() -> Utterances:
    """Strings of 3 to 7 digits by the same voices."""
    return _kept("spoken-strings", _spoken_strings, ".wav")


def connected_digits(fsdd: Utterances, noises: Utterances) -> Utterances:
    """Strings of 3 to 9 recorded digits of one speaker, with pauses, in noise.

    Args:
        fsdd: The recordings; a string's digits are of the part that it is in.
        noises: Recordings of noise.
    """
    return _kept("connected-digits", lambda: _connected(fsdd, noises), ".flac")


def _kept(name: str, make: Callable[[], Made], suffix: str) -> Utterances:
    """What was made lies in the cache; its manifest is written last."""
    import filelock

    home = cache_folder() / "speech" / f"{name}-{_VERSION}"
    manifest = home / f"{name}.jsonl"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to the data cache {home} ({error}); set MAMBAKIT_DATA") from error
    with filelock.FileLock(home.with_name(f".{home.name}.lock")):
        if not manifest.is_file():
            shutil.rmtree(home)
            home.mkdir()
            rows = []
            for i, (clean, heard, row) in enumerate(make()):
                for folder, samples in (("clean", clean), ("heard", heard)):
                    write_audio(home / folder / f"{i:04d}{suffix}", Audio(samples, RATE_HZ))
                paths = {"path": f"heard/{i:04d}{suffix}", "clean_path": f"clean/{i:04d}{suffix}"}
                rows.append(json.dumps(paths | row) + "\n")
            manifest.write_text("".join(rows), encoding="utf-8")
    return read_manifest(manifest)


def _spoken() -> Made:
    generator = torch.Generator().manual_seed(0)
    for part, takes in (("train", range(8)), ("validation", range(8, 10)), ("test", range(10, 12))):
        for voice in VOICES:
            for digit, word in enumerate(WORDS):
                for _ in takes:
                    clean, heard = _said(word, voice, generator)
                    yield clean, heard, {"text": word, "label": str(digit), "speaker": voice, "part": part}


def _spoken_strings() -> Made:
    generator = torch.Generator().manual_seed(1)
    for part, n in (("train", 40), ("validation", 10), ("test", 10)):
        for voice in VOICES:
            for _ in range(n):
                digits = _digits(3, 7, generator)
                text = " ".join(WORDS[digit] for digit in digits)
                clean, heard = _said(text, voice, generator)
                yield (
                    clean,
                    heard,
                    {"text": text, "label": "".join(map(str, digits)), "speaker": voice, "part": part},
                )


def _said(text: str, voice: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A text by a voice at a rate and pitch of chance; and the same in a room and noise."""
    rate, pitch = (int(torch.randint(*limits, (), generator=generator)) for limits in ((120, 221), (25, 76)))
    sound = speak(text, voice=voice, words_per_minute=rate, pitch=pitch)
    clean = resample(sound.samples, sound.rate_hz, RATE_HZ)
    clean = clean * 0.5 / clean.abs().max().clamp(min=1e-6)
    heard = clean
    if _uniform(0, 1, generator) < 0.5:
        heard = reverberate(heard, room_response(RATE_HZ, _uniform(0.1, 0.4, generator), generator))
    noise = coloured_noise(len(clean), _uniform(0, 2, generator), generator)
    return clean, mix(heard, noise, _uniform(15, 35, generator))


def _connected(fsdd: Utterances, noises: Utterances) -> Made:
    if fsdd.parts is None:
        raise DataError(f"{fsdd.name}: names no parts, which the strings are made by")
    generator = torch.Generator().manual_seed(2)
    hiss = [noises.audio(i, rate_hz=RATE_HZ).samples for i in range(len(noises))]
    speakers, labels = (fsdd.table[name].to_numpy(dtype=object) for name in ("speaker", "label"))
    for part, n in _STRINGS.items():
        for speaker in sorted(set(speakers)):
            of_digit = [
                np.flatnonzero((fsdd.parts == part) & (speakers == speaker) & (labels == str(digit)))
                for digit in range(10)
            ]
            for _ in range(n):
                digits = _digits(3, 9, generator)
                takes = [
                    int(of_digit[d][int(torch.randint(0, len(of_digit[d]), (), generator=generator))])
                    for d in digits
                ]
                clean, times = _joined(
                    [fsdd.audio(take, rate_hz=RATE_HZ).samples for take in takes], generator
                )
                noise = hiss[int(torch.randint(0, len(hiss), (), generator=generator))]
                heard = mix(clean, stretch(noise, len(clean), generator), _uniform(15, 30, generator))
                words = [WORDS[digit] for digit in digits]
                yield (
                    clean,
                    heard,
                    {
                        "text": " ".join(words),
                        "label": "".join(map(str, digits)),
                        "speaker": speaker,
                        "part": part,
                        "word_times": [[word, *time] for word, time in zip(words, times, strict=True)],
                    },
                )


def _joined(takes: list[Tensor], generator: torch.Generator) -> tuple[Tensor, list[tuple[float, float]]]:
    """Takes one after the other with pauses, peak at 0.5; and each one's start and end in seconds."""
    pieces, times, at = [], [], 0
    for take in takes:
        pause = round(_uniform(0.05, 0.4, generator) * RATE_HZ)
        pieces += [torch.zeros(pause), take]
        times.append(((at + pause) / RATE_HZ, (at + pause + len(take)) / RATE_HZ))
        at += pause + len(take)
    pieces.append(torch.zeros(round(_uniform(0.05, 0.4, generator) * RATE_HZ)))
    whole = torch.cat(pieces)
    return whole * 0.5 / whole.abs().max().clamp(min=1e-6), times


def _digits(least: int, most: int, generator: torch.Generator) -> list[int]:
    n = int(torch.randint(least, most + 1, (), generator=generator))
    drawn: list[int] = torch.randint(0, 10, (n,), generator=generator).tolist()
    return drawn


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
