"""What enhancement and separation learn from: pools of speech by part, recordings of noise, and pairs.

``spoken-sentences`` is made by espeak-ng: sentences of made-up words, so that all sounds are heard
in all orders, by many voices. Other names are cards, manifests and folders; several stand between commas.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import torch

from mambakit.core.data import cache_folder
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import read_audio, resample
from mambakit.domains.speech.cards import Task, load_utterances, noise_recordings
from mambakit.domains.speech.espeak import speak
from mambakit.domains.speech.layouts import Mixture, paired_folders, two_speaker_mixtures
from mambakit.domains.speech.mixtures import SpeechPool, Spoken
from mambakit.domains.speech.noises import Signal
from mambakit.domains.speech.saved import DataSpec, save_spec
from mambakit.domains.speech.utterances import Utterances, audio_files, split_utterances, utterance_table

SENTENCES = "spoken-sentences"
_PARTS = ("train", "validation", "test")
_ONSETS = (
    *("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "ch", "sh", "th"),
    *("bl", "br", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "pl", "pr", "sk", "sl", "sm", "sn", "sp", "st"),
    *("str", "sw", "tr"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "oo", "ou", "ow", "ay", "igh", "er", "ar", "or")
_CODAS = (
    *("b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "x", "z", "ck", "ft", "ld", "lt", "mp"),
    *("nd", "ng", "nk", "rd", "rk", "rm", "rn", "sh", "sk", "sp", "st", "th", "ch"),
)
_LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "de", "fr", "es", "it", "nl", "sv", "pl")
_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
_VOICES = {"train": 40, "validation": 5, "test": 5}
_SENTENCES_A_VOICE = 8
_KEPT_HZ = 16_000
_VERSION = 1


class Pools(NamedTuple):
    """Speech by part, in which no speaker of spoken-sentences is heard twice."""

    name: str
    train: SpeechPool
    validation: SpeechPool
    test: SpeechPool
    given: dict[str, list[Mixture]] | None = None
    """Mixtures that the data themselves hold, by part; they choose and measure instead of made ones."""
    no_test: bool = False
    """Whether ``test`` is the validation part, as there is none of its own."""

    @property
    def notes(self) -> list[str]:
        """What a figure of the test part is to be read with."""
        known = set(self.train.speakers) & set(self.test.speakers)
        said = []
        if self.no_test:
            said.append("there is no test part: what chose the weights is measured")
        if "unknown" in self.test.speakers:
            said.append("not all voices are named: some of the test may be heard in training too")
        elif known:
            n = len(self.test.speakers)
            said.append(f"{len(known)} of the test's {n} voices are heard in training too, in other takes")
        return said


def load_pools(names: str, rate_hz: int, *, seed: int = 0, task: Task = "enhance") -> Pools:
    """Clean speech of one or several sources.

    Args:
        names: Cards, manifests, folders or ``spoken-sentences``, between commas. Of rows that have a
            clean_path, that is taken.
        rate_hz: The rate wanted.
        seed: Of the parts, where the data name none.
        task: What for.

    Raises:
        UsageError: If a name means nothing.
        DataError: If nothing can be read, or there is no part to learn from.
    """
    spoken: dict[str, list[Spoken]] = {part: [] for part in _PARTS}
    for name in (word.strip() for word in names.split(",") if word.strip()):
        for part, some in _parts_of(name, rate_hz, seed, task).items():
            spoken[part] += some
    for part in ("train", "validation"):
        if not spoken[part]:
            raise DataError(
                f"{names}: there is no speech in the part {part}; data of a test alone can't train"
            )
    train, validation, test = (SpeechPool(spoken[part] or spoken["validation"], rate_hz) for part in _PARTS)
    given = two_speaker_mixtures(Path(names)) if Path(names).is_dir() else None
    return Pools(names, train, validation, test, given, no_test=not spoken["test"])


def _parts_of(name: str, rate_hz: int, seed: int, task: Task) -> dict[str, list[Spoken]]:
    if name == SENTENCES:
        return spoken_sentences(rate_hz)
    if Path(name).is_dir() and (mixtures := two_speaker_mixtures(Path(name))) is not None:
        return {part: sources_of(mixtures.get(part, []), rate_hz) for part in _PARTS}
    utterances = load_utterances(name, task)
    if utterances.parts is not None:
        places = {part: np.flatnonzero(utterances.parts == part) for part in _PARTS}
        if not len(places["train"]):
            raise DataError(f"{utterances.name}: all of it is for testing; train on something else")
        if not len(places["validation"]):
            chosen = np.random.default_rng(seed).permutation(places["train"])
            n = max(1, len(chosen) // 20)
            places["validation"], places["train"] = chosen[:n], np.sort(chosen[n:])
    else:
        split = split_utterances(utterances, "random", seed=seed)
        places = {"train": split.train, "validation": split.validation, "test": split.test}
    return {
        part: SpeechPool.of(utterances, rows, rate_hz).spoken if len(rows) else []
        for part, rows in places.items()
    }


def sources_of(mixtures: Sequence[Mixture], rate_hz: int) -> list[Spoken]:
    """The speakers of mixtures, every utterance once."""
    places = {
        utterance: (path, speaker)
        for one in mixtures
        for utterance, path, speaker in zip(one.utterances, one.sources, one.speakers, strict=True)
    }
    rows = [{"path": path, "speaker": speaker} for path, speaker in places.values()]
    if not rows:
        return []
    return SpeechPool.of(Utterances("sources", utterance_table(rows)), np.arange(len(rows)), rate_hz).spoken


def spoken_sentences(rate_hz: int, sentences: int = _SENTENCES_A_VOICE) -> dict[str, list[Spoken]]:
    """Sentences of made-up words by 50 synthetic voices, of which each is in one part.

    What espeak-ng says depends on what the process had it say before, so what it said lies in the cache.

    Args:
        rate_hz: The rate wanted.
        sentences: Of each voice.

    Raises:
        UserError: If espeak-ng is missing.
    """
    home = cache_folder() / "speech"
    home.mkdir(parents=True, exist_ok=True)
    kept = home / f"{SENTENCES}-{_VERSION}-{sentences}.npz"
    with filelock.FileLock(home / f".{kept.name}.lock"):
        if not kept.is_file():
            partial = kept.with_name(f".{kept.stem}-{os.getpid()}.npz")
            np.savez(partial, **dict(_sentences(sentences)))  # type: ignore[arg-type]
            partial.replace(kept)
    made: dict[str, list[Spoken]] = {part: [] for part in _PARTS}
    with np.load(kept) as file:
        for name in file.files:
            part, voice, _ = name.split("-")
            samples = torch.from_numpy(file[name].astype(np.float32) / 32768)
            at_rate = resample(samples, _KEPT_HZ, rate_hz).numpy()
            made[part].append(Spoken(at_rate, f"{part}-{voice}", min(_KEPT_HZ, rate_hz) / 2))
    return made


def _sentences(sentences: int) -> Iterator[tuple[str, np.ndarray]]:
    """Part, voice and number of each, and its samples, int16 with a peak at half of full scale."""
    chance = random.Random(0)
    for part, n_voices in _VOICES.items():
        for i in range(n_voices):
            voice = f"{chance.choice(_LANGUAGES)}+{chance.choice(_VARIANTS)}"
            pitch, speed = chance.randint(20, 80), chance.randint(130, 210)
            for k in range(sentences):
                text = " ".join(_word(chance) for _ in range(chance.randint(4, 9)))
                sound = speak(text, voice=voice, words_per_minute=speed, pitch=pitch)
                samples = resample(sound.samples, sound.rate_hz, _KEPT_HZ).numpy()
                scale = 16384 / max(float(np.abs(samples).max()), 1e-6)
                yield f"{part}-{i}-{k}", np.round(samples * scale).astype(np.int16)


def _word(chance: random.Random) -> str:
    """One to three syllables."""
    syllables = (
        (chance.choice(_ONSETS) if chance.random() < 0.9 else "")
        + chance.choice(_VOWELS)
        + (chance.choice(_CODAS) if chance.random() < 0.7 else "")
        for _ in range(chance.choice((1, 1, 2, 2, 3)))
    )
    return "".join(syllables)


def load_noises(names: str, rate_hz: int) -> list[Signal]:
    """Recordings of noise: a card, a folder or a file, or several between commas; none of an empty name.

    Of a folder of pairs (see ``paired_folders``) the noise is what a noisy recording of training has more
    than its clean one.

    Raises:
        DataError: If one can't be read.
    """
    noises = []
    for name in (word.strip() for word in names.split(",") if word.strip()):
        path = Path(name)
        pairs = paired_folders(path) if path.is_dir() else None
        if pairs is not None and pairs.parts is not None:
            noises += [n - c for n, c in _signals(pairs, np.flatnonzero(pairs.parts == "train"), rate_hz)]
        elif path.exists():
            noises += [read_audio(one, rate_hz=rate_hz).samples.numpy() for one in audio_files(path)]
        else:
            noises += [one.numpy() for one in noise_recordings(name, rate_hz)]
    return noises


def load_pairs(source: str, rate_hz: int) -> Iterator[tuple[str, Signal, Signal]]:
    """Name, noisy and clean signal of each test pair of a card, manifest or folder.

    Raises:
        UsageError: If its rows have no clean_path.
    """
    utterances = load_utterances(source)
    has = utterances.table["clean_path"].notna().to_numpy()
    if not has.any():
        raise UsageError(f"data: {utterances.name} has no clean_path to measure against")
    chosen = has if utterances.parts is None else has & (utterances.parts == "test")
    places = np.flatnonzero(chosen if chosen.any() else has)
    for place, (noisy, clean) in zip(places, _signals(utterances, places, rate_hz), strict=True):
        yield Path(str(utterances.table["path"].iloc[place])).stem, noisy, clean


def _signals(
    utterances: Utterances, places: Sequence[int] | np.ndarray, rate_hz: int
) -> Iterator[tuple[Signal, Signal]]:
    for place in places:
        noisy = utterances.audio(int(place), rate_hz=rate_hz).samples.numpy()
        clean = utterances.clean_audio(int(place), rate_hz=rate_hz).samples.numpy()
        if len(noisy) != len(clean):
            row = utterances.table.iloc[int(place)]
            raise DataError(
                f"{row['path']}: has {len(noisy):,} samples, its clean recording {len(clean):,}; "
                "pairs are of the same length"
            )
        yield noisy, clean


def save_source(folder: Path, task: Task, names: str, seed: int, unseen: Sequence[str] = ()) -> None:
    """Writes into a run folder what ``load_pools`` was given, as ``saved.load_spec`` reads it."""
    save_spec(folder, DataSpec(task, names, seed=seed, unseen=list(unseen)))
