"""Speech and phones from text by the espeak-ng library that the package espeakng-loader brings."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import torch

from mambakit.core.errors import UserError
from mambakit.domains.speech.audio import Audio

# From espeak-ng's speak_lib.h: espeak_AUDIO_OUTPUT, espeak_PARAMETER and the flags of espeak_Synth.
_SYNCHRONOUS, _RATE, _PITCH, _UTF8 = 2, 1, 3, 1
# Of espeak_TextToPhonemes: the alphabet, and what stands between phones.
_IPA, _BETWEEN = 2, "_"
_NO_STRESS = str.maketrans("", "", "\u02c8\u02cc\u200d")
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, *, voice: str = "en-us", words_per_minute: int = 160, pitch: int = 50) -> Audio:
    """The text, spoken.

    The library flutters as a voice does, by a chance that goes on from call to call and that nothing resets:
    the same call a second time sounds a little different, and the same calls in the same order in a new
    process sound the same.

    Args:
        text: What to say.
        voice: A voice of espeak-ng, with a variant after a plus: ``en-us+f2``.
        words_per_minute: From 80 to 450.
        pitch: From 0 to 99.

    Raises:
        UserError: If the package is missing, the library does not start, or has no such voice.
    """
    return _engine()(text, voice, words_per_minute, pitch)


def phones(word: str, *, voice: str = "en-us") -> list[str]:
    """How a word is said, in the phones of the International Phonetic Alphabet, without stress.

    Raises:
        UserError: As ``speak``.
    """
    library, _ = _library()
    _set_voice(library, voice)
    at = ctypes.c_char_p(word.encode())
    found: list[str] = []
    while at.value:  # a clause at a time; the library moves the pointer on, and to null at the end
        said = library.espeak_TextToPhonemes(ctypes.byref(at), _UTF8, _IPA | ord(_BETWEEN) << 8)
        for part in (said or b"").decode().replace(" ", _BETWEEN).split(_BETWEEN):
            found.append(part.translate(_NO_STRESS))
    return [phone for phone in found if phone]


def _set_voice(library: ctypes.CDLL, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(f"espeak-ng has no voice {voice!r}")


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The library and its sampling rate, started once: it holds one voice at a time, for the process."""
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise UserError(
            "espeakng-loader, which speaks, is missing; install it with pip install 'mambakit[speech]'"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate_hz <= 0:
        raise UserError(f"espeak-ng does not start with the data in {espeakng_loader.get_data_path()}")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    return library, rate_hz


@functools.cache
def _engine() -> Callable[[str, str, int, int], Audio]:
    library, rate_hz = _library()
    pieces: list[np.ndarray] = []

    def collect(samples: ctypes._Pointer, n: int, events: int | None) -> int:
        if samples and n:
            pieces.append(np.ctypeslib.as_array(samples, shape=(n,)).astype(np.float32) / 32768)
        return 0

    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)

    def say(text: str, voice: str, words_per_minute: int, pitch: int) -> Audio:
        assert callback  # the library keeps only its address
        _set_voice(library, voice)
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        pieces.clear()
        raw = text.encode()
        library.espeak_Synth(raw, ctypes.c_size_t(len(raw) + 1), 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        if not pieces:
            raise UserError(f"espeak-ng made no sound of {text!r}")
        return Audio(torch.from_numpy(np.concatenate(pieces)), rate_hz)

    return say
