"""Recordings in a table: manifests, folders, and how they are split into parts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import AUDIO_SUFFIXES, Audio, read_audio

Protocol = Literal["official", "random", "speaker"]
COLUMNS = ("path", "start_s", "end_s", "text", "label", "speaker", "clean_path")
_SAME_AS = {"start": "start_s", "end": "end_s", "clean": "clean_path", "file": "path", "transcript": "text"}
_PARTS = ("train", "validation", "test")


class WordTime(NamedTuple):
    """When a word is heard, in seconds from the row's start."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Utterances:
    """Recordings, or stretches of them, and what is known of each."""

    name: str
    """What they are called in messages and reports."""
    table: pd.DataFrame
    """A row each: ``path``, ``start_s`` (0), ``end_s`` (NaN: to the end), ``text``, ``label``, ``speaker``,
    and ``clean_path`` (None where unknown); further columns of a manifest follow, of which ``word_times`` is
    read: lists of (word, start, end)."""
    parts: NDArray[np.str_] | None = None
    """train, validation or test of each row, where the data say so."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Rows that are not in the table: which, and why."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""
    only_taught: NDArray[np.bool_] | None = None
    """Rows that are learned from whatever the split, and are in no other part; None for none."""

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, keep: NDArray[np.bool_]) -> Utterances:
        """Those rows alone."""
        return replace(
            self,
            table=self.table[keep].reset_index(drop=True),
            parts=None if self.parts is None else self.parts[keep],
            only_taught=None if self.only_taught is None else self.only_taught[keep],
        )

    def audio(self, row: int, *, rate_hz: int | None = None) -> Audio:
        """One row's sound. Raises DataError as ``read_audio`` does."""
        return self._read("path", row, rate_hz)

    def clean_audio(self, row: int, *, rate_hz: int | None = None) -> Audio:
        """The same without noise, from ``clean_path``.

        Raises:
            DataError: If the row has none, or as ``read_audio`` does.
        """
        if not isinstance(self.table["clean_path"].iloc[row], (str, Path)):
            raise DataError(f"{self.name}: row {row + 1} has no clean_path")
        return self._read("clean_path", row, rate_hz)

    def word_times(self, row: int) -> list[WordTime] | None:
        """When each word of a row is heard; None where the data do not say."""
        times = self.table["word_times"].iloc[row] if "word_times" in self.table else None
        return [WordTime(*one) for one in times] if isinstance(times, list) else None

    def _read(self, column: str, row: int, rate_hz: int | None) -> Audio:
        path, start, end = (self.table[name].iloc[row] for name in (column, "start_s", "end_s"))
        return read_audio(
            path, rate_hz=rate_hz, start_s=float(start), end_s=None if pd.isna(end) else float(end)
        )


@dataclass(frozen=True)
class Split:
    """Places of utterances by part."""

    name: str
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def utterance_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as ``Utterances.table``, columns that are missing filled in."""
    table = pd.DataFrame(list(rows))
    for name in COLUMNS:
        if name not in table:
            table[name] = 0.0 if name == "start_s" else np.nan if name == "end_s" else None
    table["start_s"] = pd.to_numeric(table["start_s"]).fillna(0.0).astype(float)
    table["end_s"] = pd.to_numeric(table["end_s"]).astype(float)
    for name in ("path", "text", "label", "speaker", "clean_path"):
        table[name] = pd.Series(
            [None if pd.isna(value) else str(value) for value in table[name]], index=table.index, dtype=object
        )
    return table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]]


def joined(measured: Utterances, *taught: Utterances) -> Utterances:
    """Several sources as one: the first is split and measured; of the others the part for training teaches.

    Where a source names no parts, all of it teaches.
    """
    if not taught:
        return measured
    more = [one if one.parts is None else one.rows(one.parts == "train") for one in taught]
    found = [measured, *more]
    return Utterances(
        ",".join(one.name for one in found),
        pd.concat([one.table for one in found], ignore_index=True),
        None
        if measured.parts is None
        else np.concatenate([measured.parts, *(np.full(len(one), "train") for one in more)]),
        [bad for one in found for bad in one.left_out],
        [note for one in found for note in one.notes],
        np.repeat([False, True], [len(measured), sum(map(len, more))]),
    )


def read_manifest(path: Path | str) -> Utterances:
    """A CSV or JSON-lines file: path, and any of text, label, speaker, start, end, clean_path, part.

    ``word_times`` says when words are heard: a list of [word, start, end] in seconds, in CSV its JSON.
    Paths are relative to the manifest; start and end are seconds. Rows that name no file that is there, or
    have times that make no sense, are left out and listed.

    Raises:
        DataError: If the file is missing, can't be read, has no column path, or no row is good.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such manifest: {path}")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    good: list[dict[str, Any]] = []
    left_out: list[tuple[str, str]] = []
    for line, row in rows:
        try:
            good.append(_checked_row({_SAME_AS.get(name, name): value for name, value in row.items()}, path))
        except DataError as error:
            left_out.append((f"line {line}", str(error)))
    if not good:
        first = f"; the first, {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DataError(f"{path}: no row can be used{first}")
    table = utterance_table(good)
    parts = None
    if "part" in table:
        parts = table.pop("part").astype(str).to_numpy(dtype=str)
        unknown = sorted(set(parts) - set(_PARTS))
        if unknown:
            raise DataError(f"{path}: part: expected train, validation or test, got {unknown[0]!r}")
    return Utterances(path.stem, table, parts, left_out)


def read_folder(folder: Path | str) -> Utterances:
    """All audio files below a folder; those in folders of their own have its name as label.

    Raises:
        DataError: If there is none.
    """
    folder = Path(folder)
    rows = [
        {"path": one, "label": one.parent.name if one.parent != folder else None}
        for one in audio_files(folder)
    ]
    return Utterances(folder.name or str(folder), utterance_table(rows))


def audio_files(path: Path | str) -> list[Path]:
    """The file, or the audio files below the folder in order of name.

    Raises:
        DataError: If there is nothing there.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}")
    found = sorted(
        one
        for one in path.rglob("*")
        if one.suffix.lower() in AUDIO_SUFFIXES and one.is_file() and not one.name.startswith(".")
    )
    if not found:
        raise DataError(f"{path}: holds no audio files ({', '.join(AUDIO_SUFFIXES)})")
    return found


def split_utterances(
    utterances: Utterances,
    protocol: Protocol,
    *,
    seed: int = 0,
    test_speaker: str | None = None,
    validation_speaker: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> Split:
    """Which utterances are trained on, which choose, and which measure.

    Rows that are ``only_taught`` are trained on in every split.

    Args:
        utterances: All of them.
        protocol: official, the parts that the data name; random; or speaker, where ``test_speaker`` is heard
            in no other part.
        seed: Of the random choice.
        test_speaker: With speaker, the one to test on; by default the last by name.
        validation_speaker: With speaker, one that chooses, heard in no other part; by default a share of the
            others' utterances does.
        validation_share, test_share: Shares, where they are chosen at random.

    Raises:
        UsageError: If the protocol is unknown, the data name no parts or speakers, or there is no such one.
        DataError: If a part to learn from or choose by is empty.
    """
    if protocol not in get_args(Protocol):
        raise UsageError(f"split: expected {', '.join(get_args(Protocol))}, got {protocol!r}")
    if protocol != "speaker" and (test_speaker or validation_speaker):
        raise UsageError(f"test_speaker, validation_speaker: these go with split speaker, not {protocol}")
    if utterances.only_taught is not None:
        measured, taught = (np.flatnonzero(utterances.only_taught == flag) for flag in (False, True))
        split = split_utterances(
            replace(utterances.rows(~utterances.only_taught), only_taught=None),
            protocol,
            seed=seed,
            test_speaker=test_speaker,
            validation_speaker=validation_speaker,
            validation_share=validation_share,
            test_share=test_share,
        )
        train, validation, test = (measured[getattr(split, part)] for part in _PARTS)
        return Split(split.name, np.concatenate([train, taught]), validation, test)
    places, order = np.arange(len(utterances)), np.random.default_rng(seed).permutation(len(utterances))
    if protocol == "official":
        if utterances.parts is None:
            raise UsageError(f"split: {utterances.name} names no parts; use random or speaker")
        train, validation, test = (places[utterances.parts == part] for part in _PARTS)
        return _checked(utterances.name, Split("official", train, validation, test))
    if protocol == "random":
        n_test, n_validation = (max(1, round(share * len(order))) for share in (test_share, validation_share))
        test, validation, train = np.split(order, [n_test, n_test + n_validation])
        return _checked(utterances.name, Split("random", np.sort(train), np.sort(validation), np.sort(test)))
    speakers = utterances.table["speaker"].to_numpy(dtype=object)
    known = sorted({one for one in speakers if one is not None})
    if len(known) < 2:
        raise UsageError(f"split: {utterances.name} names {len(known)} speakers; to split by them takes two")
    test_speaker = test_speaker or known[-1]
    for flag, one in (("test_speaker", test_speaker), ("validation_speaker", validation_speaker)):
        if one is not None and one not in known:
            raise UsageError(f"{flag}: {one!r} is none of {', '.join(known)}")
    if test_speaker == validation_speaker:
        raise UsageError(f"validation_speaker: {test_speaker} is the test speaker; take another")
    is_test = speakers == test_speaker
    if validation_speaker is not None:
        is_validation = speakers == validation_speaker
    else:
        others = order[~is_test[order]]
        is_validation = np.isin(places, others[: max(1, round(validation_share * len(others)))])
    train = places[~is_test & ~is_validation]
    return _checked(
        utterances.name, Split(f"speaker-{test_speaker}", train, places[is_validation], places[is_test])
    )


def _checked(name: str, split: Split) -> Split:
    for part in ("train", "validation"):
        if not len(getattr(split, part)):
            raise DataError(f"{name}: split {split.name}: the part {part} is empty")
    return split


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        # none and null are words too: only an empty cell is missing
        table = pd.read_csv(
            path, dtype={"label": str, "text": str, "speaker": str}, keep_default_na=False, na_values=[""]
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: is no CSV ({' '.join(str(error).split())})") from error
    if not {"path", "file"} & set(table):
        raise DataError(f"{path}: has no column path; it has {', '.join(map(str, table.columns))}")
    return [(i + 2, row) for i, row in enumerate(table.to_dict(orient="records"))]


def _json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start:,})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: is no JSON ({error}); a manifest is .csv or .jsonl"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        rows.append((number, row))
    return rows


def _checked_row(row: dict[str, Any], manifest: Path) -> dict[str, Any]:
    if not isinstance(row.get("path"), str):
        raise DataError("has no path")
    for name in ("path", "clean_path"):
        value = row.get(name)
        if isinstance(value, str):
            row[name] = manifest.parent / value
            if not row[name].is_file():
                raise DataError(f"{name}: there is no file {value}")
    try:
        start, end = (
            empty if row.get(name) in (None, "") else float(row[name])
            for name, empty in (("start_s", 0.0), ("end_s", float("nan")))
        )
    except (TypeError, ValueError):
        raise DataError(
            f"start, end: expected seconds, got {row.get('start_s')}, {row.get('end_s')}"
        ) from None
    if start < 0 or end <= start:
        raise DataError(f"start, end: from {start:g} s to {end:g} s is no stretch")
    times = row.pop("word_times", None)
    if isinstance(times, (str, list)) or not pd.isna(times):
        row["word_times"] = _checked_times(times)
    return row


def _checked_times(given: Any) -> list[list[Any]]:
    """Words with start and end, from a list or, in CSV, its JSON."""
    wanted = "word_times: expected a list of [word, start, end] in seconds, one after the other"
    try:
        times = json.loads(given) if isinstance(given, str) else given
        made = [(str(word), float(start), float(end)) for word, start, end in times]
    except (TypeError, ValueError):
        raise DataError(f"{wanted}, got {str(given)[:60]}") from None
    at = 0.0
    for word, start, end in made:
        if not (at <= start < end < math.inf):
            raise DataError(f"{wanted}, got {word!r} from {start:g} to {end:g} s after {at:g} s")
        at = start
    return [list(one) for one in made]
