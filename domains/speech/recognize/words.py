"""From a CTC path to words with times and a confidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

Said = tuple[int, float]
"""A symbol that a frame says, and its log-probability."""


class Spoken(NamedTuple):
    """One symbol of a path.

    Attributes:
        id: The symbol.
        begin, end: Its frames, ``begin <= frame < end``.
        log_probability: Of the symbol in these frames, summed.
    """

    id: int
    begin: int
    end: int
    log_probability: float


class Word(NamedTuple):
    """A word.

    Attributes:
        text: What it says.
        start_s, end_s: In seconds; of ``words_of`` its first symbol's begin and its last one's end, which
            may lie inside its sound (see ``reaching``).
        confidence: Geometric mean of the symbols' probabilities in its frames, 0 to 1.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


def spoken(path: Sequence[int], log_probabilities: Sequence[float], first_frame: int = 0) -> list[Spoken]:
    """The symbols of a path: equal neighbours are one, blanks none.

    Args:
        path: A symbol a frame.
        log_probabilities: Of that symbol in that frame.
        first_frame: Number of the path's first frame.
    """
    found: list[Spoken] = []
    before = BLANK_ID
    for frame, (symbol, value) in enumerate(zip(path, log_probabilities, strict=True), first_frame):
        if symbol != BLANK_ID:
            if symbol == before:
                last = found[-1]
                found[-1] = last._replace(end=frame + 1, log_probability=last.log_probability + value)
            else:
                found.append(Spoken(symbol, frame, frame + 1, value))
        before = symbol
    return found


def spoken_in_frames(said: Sequence[Sequence[Said]], *, repeats: bool, first_frame: int = 0) -> list[Spoken]:
    """The symbols that frames say.

    Args:
        said: Of every frame what it says, which may be nothing.
        repeats: Whether a symbol of two frames in turn is two symbols, as in a transducer, or one, as in CTC.
        first_frame: Number of the first frame.
    """
    if not repeats:
        path = [frame[0] if frame else (BLANK_ID, 0.0) for frame in said]
        return spoken([symbol for symbol, _ in path], [value for _, value in path], first_frame)
    return [
        Spoken(symbol, i, i + 1, value)
        for i, frame in enumerate(said, first_frame)
        for symbol, value in frame
    ]


def spoken_along(path: Tensor, log_probabilities: Tensor) -> list[Spoken]:
    """The symbols of a path ``(n_frames,)`` through ``(n_frames, n_symbols)`` log-probabilities."""
    values = log_probabilities.gather(1, path[:, None].to(log_probabilities.device))[:, 0]
    return spoken(path.tolist(), values.tolist())


def words_of(
    symbols: Iterable[Spoken],
    pieces: Sequence[str],
    frame_s: float,
    spelled: Callable[[str], str] = str,
    seconds: float = math.inf,
) -> list[Word]:
    """The words that symbols spell, none over another.

    A transducer may write two words in one frame: they share it.

    Args:
        symbols: In their order.
        pieces: The text of each symbol's id; a space in it ends the word before.
        frame_s: Seconds from one frame to the next.
        spelled: What a word is written as; as its pieces by default.
        seconds: How long the recording is; what was written behind it was said at its end.
    """
    words: list[Word] = []
    letters, parts = "", []  # type: tuple[str, list[Spoken]]

    def close() -> None:
        if letters:
            frames = sum(part.end - part.begin for part in parts)
            mean = sum(part.log_probability for part in parts) / frames
            start_s = min(parts[0].begin * frame_s, max(0.0, seconds - frame_s))
            end_s = min(parts[-1].end * frame_s, seconds)
            if words and start_s < words[-1].end_s:
                border_s = (max(start_s, words[-1].start_s) + min(end_s, words[-1].end_s)) / 2
                words[-1] = words[-1]._replace(end_s=border_s)
                start_s = border_s
            words.append(Word(spelled(letters), start_s, end_s, min(1.0, math.exp(mean))))

    for symbol in symbols:
        for character in pieces[symbol.id]:
            if character == " ":
                close()
                letters, parts = "", []
            else:
                letters += character
                if not parts or parts[-1] is not symbol:
                    parts.append(symbol)
    close()
    return words
