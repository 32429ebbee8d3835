"""Corpora in the folders that they are published in: LibriSpeech, VoiceBank-DEMAND, WSJ0-2mix, Libri2Mix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambakit.core.errors import DataError
from mambakit.domains.speech.utterances import Utterances, audio_files, utterance_table

_LIBRISPEECH_PARTS = {"train": "train", "dev": "validation", "test": "test"}
_MIXTURE_PARTS = {
    "tr": "train",
    "cv": "validation",
    "tt": "test",
    "train-100": "train",
    "train-360": "train",
    "dev": "validation",
    "test": "test",
}
_MIXTURE_FOLDERS = ("mix", "mix_clean")


def published(folder: Path) -> Utterances | None:
    """The utterances of a folder laid out like one of these corpora; None of another folder.

    Raises:
        DataError: If it is laid out so, and something of it is missing.
    """
    return librispeech(folder) or paired_folders(folder)


def librispeech(folder: Path) -> Utterances | None:
    """LibriSpeech (Panayotov et al. 2015, openslr.org/12), the whole or one of its sets.

    ``train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` with ``SPEAKER-CHAPTER.trans.txt`` beside.
    Sets that begin with train, dev and test are the parts; a set alone, such as ``LibriSpeech/test-other``,
    has none.
    """
    sets = [one for one in sorted(folder.glob("*")) if _part_of(one.name) and _transcripts(one)]
    alone = not sets
    if alone and (not _part_of(folder.name) or not _transcripts(folder)):
        return None
    rows: list[dict[str, Any]] = []
    parts: list[str] = []
    left_out: list[tuple[str, str]] = []
    for one in sets or [folder]:
        for transcripts in _transcripts(one):
            for line in transcripts.read_text(encoding="utf-8").splitlines():
                name, _, text = line.partition(" ")
                path = transcripts.parent / f"{name}.flac"
                if not path.is_file():
                    left_out.append((f"{transcripts}: {name}", f"there is no file {path.name}"))
                    continue
                rows.append({"path": path, "text": text, "speaker": name.partition("-")[0]})
                parts.append(_part_of(one.name) or "")
    if not rows:
        raise DataError(f"{folder}: there are transcripts, and none of the recordings that they name")
    return Utterances(folder.name, utterance_table(rows), None if alone else np.array(parts), left_out)


def _part_of(name: str) -> str | None:
    head, dash, _ = name.partition("-")
    return _LIBRISPEECH_PARTS.get(head) if dash else None


def _transcripts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.trans.txt"))


def paired_folders(folder: Path) -> Utterances | None:
    """VoiceBank-DEMAND as it is published, or any folder laid out like it; None of another folder.

    Folders beside each other whose names begin with clean and noisy and else agree, such as
    ``clean_trainset_28spk_wav`` and ``noisy_trainset_28spk_wav``, hold files of the same names. Those that
    have test in their name are the test part.
    """
    rows, parts = [], []
    left_out: list[tuple[str, str]] = []
    for clean in sorted(folder.glob("clean*")):
        noisy = clean.with_name("noisy" + clean.name.removeprefix("clean"))
        if not noisy.is_dir():
            continue
        part = "test" if "test" in clean.name else "train"
        for path in audio_files(noisy):
            other = clean / path.relative_to(noisy)
            if not other.is_file():
                left_out.append((str(path), f"there is no {other}"))
                continue
            speaker = re.split(r"[_-]", path.stem)[0]
            rows.append({"path": path, "clean_path": other, "speaker": speaker})
            parts.append(part)
    if not rows:
        return None
    return Utterances(folder.name, utterance_table(rows), np.array(parts), left_out)


class Mixture(NamedTuple):
    """A mixture of two speakers and each of them alone, of the same length."""

    path: Path
    sources: tuple[Path, Path]
    speakers: tuple[str, str]
    utterances: tuple[str, str]
    """What each says, by name: a source may be in several mixtures."""


def two_speaker_mixtures(folder: Path) -> dict[str, list[Mixture]] | None:
    """WSJ0-2mix (Hershey et al. 2016, arXiv:1508.04306) or Libri2Mix (Cosentino et al. 2020,
    arXiv:2005.11262) by part; None of another folder.

    ``tr``, ``cv`` and ``tt`` (or ``train-100``, ``train-360``, ``dev`` and ``test``) hold folders ``mix`` (or
    ``mix_clean``), ``s1`` and ``s2`` of files of the same names.

    Raises:
        DataError: If a source of a mixture is missing, or a name does not say the speakers.
    """
    found: dict[str, list[Mixture]] = {}
    for name, part in _MIXTURE_PARTS.items():
        for mixed in (folder / name / one for one in _MIXTURE_FOLDERS):
            if mixed.is_dir():
                found.setdefault(part, []).extend(_mixture(path) for path in audio_files(mixed))
    return found or None


def _mixture(path: Path) -> Mixture:
    one, two = (path.parent.with_name(name) / path.name for name in ("s1", "s2"))
    for source in (one, two):
        if not source.is_file():
            raise DataError(f"{path}: there is no source {source}")
    words = path.stem.split("_")
    # WSJ0: UTTERANCE_dB_UTTERANCE_dB, the first three letters of an utterance are the speaker; LibriSpeech's
    # utterances are SPEAKER-CHAPTER-NUMBER
    said = (words[0], words[2]) if len(words) == 4 else tuple(words)
    if len(said) != 2:
        raise DataError(
            f"{path}: expected a name of two utterances, such as 40na010x_1.98_01xo031a_-1.98.wav"
        )
    who = tuple(one.partition("-")[0] if "-" in one else one[:3] for one in said)
    return Mixture(path, (one, two), (who[0], who[1]), (said[0], said[1]))
