"""Work on many audio files: where each result goes, and what was wrong with those that could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import AUDIO_SUFFIXES, Audio, read_audio, soundfile_module, write_audio
from mambakit.domains.speech.utterances import audio_files

_WRITTEN = (".wav", ".flac", ".ogg", ".mp3")


class Job(NamedTuple):
    """One file to read and the place of what comes of it."""

    source: Path
    target: Path


def jobs(source: Path, target: Path) -> list[Job]:
    """A file to a file, or all audio files below a folder to a folder of the same layout.

    Results in a folder are wav files, whatever was read.

    Raises:
        DataError: If there is nothing to read.
        UsageError: If one of the two is a file and the other a folder, or a result would overwrite what
            it is made of.
    """
    files = audio_files(source)
    if source.is_file():
        if target.is_dir() or not target.suffix:
            target = target / f"{source.stem}.wav"
        elif target.suffix.lower() not in _WRITTEN:
            raise UsageError(f"output: expected a folder or a name in {', '.join(_WRITTEN)}, got {target}")
        found = [Job(source, target)]
    else:
        if target.is_file() or target.suffix.lower() in AUDIO_SUFFIXES:
            raise UsageError(f"output: {source} is a folder, so a folder is expected, got {target}")
        found = [Job(one, (target / one.relative_to(source)).with_suffix(".wav")) for one in files]
    for job in found:
        if job.target.exists() and job.target.samefile(job.source):
            raise UsageError(f"output: {job.target} is the input; choose another place")
    places: dict[Path, Path] = {}
    for job in found:
        if (other := places.setdefault(job.target, job.source)) != job.source:
            raise UsageError(f"output: {other} and {job.source} would both become {job.target}; rename one")
    return found


@dataclass
class Bulk:
    """What came of the work on many files."""

    done: list[dict[str, object]] = field(default_factory=list)
    """Of each file that was done, what a person is told."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Files that could not be read, and why."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""

    def readable(self, todo: Sequence[Job], rate_hz: int) -> Iterator[tuple[Job, Audio]]:
        """Each file that can be read, as one channel at a rate; what was done to it becomes a note."""
        for job in todo:
            try:
                audio, note = _read_at(job.source, rate_hz)
            except DataError as error:
                self.failed.append((job.source, str(error)))
                continue
            self.notes += [note] if note else []
            yield job, audio

    def write(self, path: Path, audio: Audio) -> None:
        """As ``write_audio``; that samples are clipped becomes a note."""
        beyond = int((audio.samples.abs() > 1).sum())
        if beyond:
            self.notes.append(f"{path}: {beyond:,} samples are beyond full scale and were clipped")
        write_audio(path, audio)


def _read_at(path: Path, rate_hz: int) -> tuple[Audio, str]:
    """A file as one channel at a rate, and in words what was done to it; ``""`` if nothing."""
    audio = read_audio(path, rate_hz=rate_hz)
    info = soundfile_module().info(str(path))
    done = []
    if info.channels > 1:
        done.append(f"{info.channels} channels averaged")
    if info.samplerate != rate_hz:
        done.append(f"resampled from {info.samplerate:,} Hz to {rate_hz:,} Hz")
    return audio, f"{path}: {', '.join(done)}" if done else ""
