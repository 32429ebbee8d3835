"""Work on many audio files: where each result goes, and what was wrong with those that could not be read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mambakit.core.errors import UsageError
from mambakit.domains.speech.audio import AUDIO_SUFFIXES, Audio, read_audio, soundfile_module
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
    if len({job.target for job in found}) < len(found):
        raise UsageError(f"output: two files in {source} differ by their suffix alone; rename one")
    return found


def read_at(path: Path, rate_hz: int) -> tuple[Audio, str]:
    """A file as one channel at a rate, and in words what was done to it; ``""`` if nothing.

    Raises:
        DataError: As ``read_audio`` does.
    """
    audio = read_audio(path, rate_hz=rate_hz)
    info = soundfile_module().info(str(path))
    done = []
    if info.channels > 1:
        done.append(f"{info.channels} channels averaged")
    if info.samplerate != rate_hz:
        done.append(f"resampled from {info.samplerate:,} Hz to {rate_hz:,} Hz")
    return audio, f"{path}: {', '.join(done)}" if done else ""
