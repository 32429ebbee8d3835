"""Utterances by a card's name, a manifest or a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mambakit.core.data import Card, card_names, fetch, fetch_pack, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech import made
from mambakit.domains.speech.layouts import published
from mambakit.domains.speech.utterances import (
    Utterances,
    joined,
    read_folder,
    read_manifest,
    utterance_table,
)

Task = Literal["classify", "recognize", "language", "enhance", "separate"]
# What each task learns from, of an utterance.
_NEEDS: dict[str, str | None] = {
    "classify": "label",
    "recognize": "text",
    "language": "text",
    "enhance": None,
    "separate": None,
}


def speech_cards() -> list[str]:
    """Names of the cards of this domain."""
    return [name for name in card_names() if load_card(name).domain == "speech"]


def load_utterances(source: Path | str, task: Task | None = None) -> Utterances:
    """The utterances of a card, a manifest (CSV or JSON lines) or a folder with one folder a label.

    Args:
        source: A card's name, or a path; a card where both have that name. A folder that is laid out like a
            published corpus is read as that (``layouts``). Of several, between commas, the first is split and
            measured, and the others are learned from too (``joined``).
        task: What they are for: rows that lack what it learns from are left out and listed. spoken-digits
            has strings of digits for recognize and language.

    Raises:
        UsageError: If there is neither such a card nor such a path, or no row serves the task.
        DataError: If files can't be fetched or read.
    """
    text = str(source)
    if "," in text and not Path(source).exists():
        return joined(*(load_utterances(one.strip(), task) for one in text.split(",")))
    if text.lower() in {name.lower() for name in card_names()} and "/" not in text:
        card = load_card(text)
        if card.domain != "speech":
            raise UsageError(f"data: {card.name} is a data set of {card.domain}, not of speech")
        return _serving(_of_card(card, task), task)
    path = Path(source)
    if path.is_dir():
        return _serving(published(path) or read_folder(path), task)
    if path.exists():
        if path.suffix.lower() not in (".csv", ".jsonl", ".json"):
            raise UsageError(f"data: {path} is no manifest (.csv, .jsonl) and no folder of recordings")
        return _serving(read_manifest(path), task)
    if "/" in text or path.suffix:
        raise DataError(f"no such file or folder: {text}")
    load_card(text)  # raises, with close names
    raise AssertionError("unreachable")


def noise_recordings(source: str | None, rate_hz: int) -> list[Tensor]:
    """Recordings of noise from a card or folder; none without a source."""
    if source is None:
        return []
    noises = load_utterances(source)
    return [noises.audio(i, rate_hz=rate_hz).samples for i in range(len(noises))]


def _of_card(card: Card, task: Task | None) -> Utterances:
    if card.name == "spoken-digits":
        found = made.spoken_strings() if task in ("recognize", "language") else made.spoken_digits()
        return dataclasses.replace(found, name=card.name)
    if card.name == "connected-digits":
        return made.connected_digits(*(_of_card(load_card(name), None) for name in card.made_from))
    rows = _pack_rows(card) if card.packs else _file_rows(card)
    if len(rows) != card.rows:
        raise DataError(f"{card.name}: its card promises {card.rows} rows, there are {len(rows)}")
    parts = np.empty(len(rows), dtype="<U10")
    for part, (start, stop) in card.splits.items():
        parts[start:stop] = part
    return Utterances(card.name, utterance_table(rows), parts)


def _pack_rows(card: Card) -> list[dict[str, Any]]:
    (pack,) = card.packs
    folder = fetch_pack(card, pack)
    if card.name == "voicebank-demand-20":
        names = pack.values["name"]
        return [
            {
                "path": folder / f"ref_noisy/{name}.wav",
                "clean_path": folder / f"ref_clean/{name}.wav",
                "speaker": name.partition("_")[0],
            }
            for name in names
        ]
    return [
        {
            "path": folder / name,
            "label": keys["digit"],
            "text": made.WORDS[int(keys["digit"])],
            "speaker": keys["speaker"],
        }
        for name, keys in pack.members()
    ]


def _file_rows(card: Card) -> list[dict[str, Any]]:
    rows = []
    for name, path in fetch(card).items():
        stem = name.partition(".")[0]
        said = card.texts.get(stem)
        of_speech = {"text": said, "speaker": stem.partition("-")[0]}
        rows.append({"path": path, **({"label": stem} if said is None else of_speech)})
    return rows


def _serving(found: Utterances, task: Task | None) -> Utterances:
    needed = None if task is None else _NEEDS[task]
    if needed is None:
        return found
    there = found.table[needed].notna().to_numpy()
    if not there.any():
        raise UsageError(f"data: {found.name} has no {needed}, which {task} learns from")
    if there.all():
        return found
    lost = [(str(found.table["path"].iloc[i]), f"has no {needed}") for i in np.flatnonzero(~there)]
    return dataclasses.replace(found.rows(there), left_out=[*found.left_out, *lost])
