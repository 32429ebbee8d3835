"""Transcripts as SubRip, WebVTT, text, JSON and Praat TextGrid."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mambakit.core.errors import UsageError
from mambakit.domains.speech.recognize.words import Word

_LEAST_SHOWN_S = 1.0


class Line(NamedTuple):
    """A line of a transcript.

    Attributes:
        words: Its words, at least one.
    """

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def start_s(self) -> float:
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        return self.words[-1].end_s

    @property
    def confidence(self) -> float:
        """Mean of its words'."""
        return sum(word.confidence for word in self.words) / len(self.words)


class Transcript(NamedTuple):
    """What was said in a recording.

    Attributes:
        lines: In their order.
        duration_s: Of the recording.
    """

    lines: tuple[Line, ...]
    duration_s: float

    @property
    def text(self) -> str:
        return " ".join(line.text for line in self.lines)

    @property
    def words(self) -> list[Word]:
        return [word for line in self.lines for word in line.words]


def lines_of(words: Sequence[Word], *, gap_s: float = 0.6, longest_s: float = 7.0) -> tuple[Line, ...]:
    """Lines as subtitles want them: a new one after a pause, or where one gets too long to read."""
    lines: list[list[Word]] = []
    for word in words:
        last = lines[-1] if lines else None
        if last is None or word.start_s - last[-1].end_s >= gap_s or word.end_s - last[0].start_s > longest_s:
            lines.append([word])
        else:
            last.append(word)
    return tuple(Line(tuple(line)) for line in lines)


def as_text(transcript: Transcript) -> str:
    """A line of text each."""
    return "".join(f"{line.text}\n" for line in transcript.lines)


def as_srt(transcript: Transcript) -> str:
    """SubRip; a line is shown for a second at least, if the next leaves it so long."""
    return "\n".join(
        f"{i}\n{_clock(start_s, ',')} --> {_clock(end_s, ',')}\n{text}\n"
        for i, (start_s, end_s, text) in enumerate(_shown(transcript), 1)
    )


def as_vtt(transcript: Transcript) -> str:
    """WebVTT; lines are shown as in SubRip."""
    cues = "\n".join(
        f"{_clock(start_s, '.')} --> {_clock(end_s, '.')}\n{_escaped(text)}\n"
        for start_s, end_s, text in _shown(transcript)
    )
    return f"WEBVTT\n\n{cues}"


def _shown(transcript: Transcript) -> list[tuple[float, float, str]]:
    """When a reader sees each line: CTC may say a word in one frame, too short to read."""
    lines = transcript.lines
    latest = [*(line.start_s for line in lines[1:]), transcript.duration_s]
    return [
        (line.start_s, max(line.end_s, min(line.start_s + _LEAST_SHOWN_S, before_s)), line.text)
        for line, before_s in zip(lines, latest, strict=False)
    ]


def as_json(transcript: Transcript) -> str:
    """Text, and every line and word with its times (seconds) and confidence."""
    return json.dumps(plain(transcript), indent=2, ensure_ascii=False) + "\n"


def plain(transcript: Transcript) -> dict[str, object]:
    """The same as mappings and lists."""
    return {
        "text": transcript.text,
        "duration_s": round(transcript.duration_s, 3),
        "lines": [plain_line(line) for line in transcript.lines],
    }


def plain_line(line: Line) -> dict[str, object]:
    """A line as mappings and lists."""
    return {
        "text": line.text,
        "start_s": round(line.start_s, 3),
        "end_s": round(line.end_s, 3),
        "confidence": round(line.confidence, 4),
        "words": [
            {
                "text": word.text,
                "start_s": round(word.start_s, 3),
                "end_s": round(word.end_s, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in line.words
        ],
    }


def as_textgrid(transcript: Transcript) -> str:
    """Praat's TextGrid in its long form: a tier of lines and one of words, without gaps, as Praat wants."""
    end = max([transcript.duration_s, *(word.end_s for word in transcript.words)])
    tiers = {
        "lines": [(line.start_s, line.end_s, line.text) for line in transcript.lines],
        "words": [(word.start_s, word.end_s, word.text) for word in transcript.words],
    }
    out = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.6f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, spans) in enumerate(tiers.items(), 1):
        intervals = _without_gaps(spans, end)
        out += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {end:.6f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for i, (start, stop, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            out += [
                f"        intervals [{i}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {stop:.6f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(out) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    ".txt": as_text,
    ".srt": as_srt,
    ".vtt": as_vtt,
    ".json": as_json,
    ".textgrid": as_textgrid,
}


def check_format(path: Path) -> None:
    """Raise a UsageError unless its name says a format we write."""
    if path.suffix.lower() not in FORMATS:
        names = ", ".join(FORMATS).replace(".textgrid", ".TextGrid")
        raise UsageError(f"output: expected a name that ends in one of {names}, got {path}")


def write_transcript(transcript: Transcript, path: Path) -> None:
    """Write in the format that the name says.

    Raises:
        UsageError: If it says none.
    """
    check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FORMATS[path.suffix.lower()](transcript), encoding="utf-8")


_DIGITS = 6


def _without_gaps(spans: Sequence[tuple[float, float, str]], end: float) -> list[tuple[float, float, str]]:
    intervals: list[tuple[float, float, str]] = []
    at = 0.0
    for start, stop, text in spans:
        first, last = (round(one, _DIGITS) for one in (start, stop))  # as they are printed
        if first > at:
            intervals.append((at, first, ""))
        intervals.append((at, last, text) if first <= at else (first, last, text))
        at = last
    if round(end, _DIGITS) > at or not intervals:
        intervals.append((at, end, ""))
    return intervals


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
