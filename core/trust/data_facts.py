"""What is known of the data that a model was trained on, from what its run calls them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mambakit.core.data.cards import Card, card_names, load_card
from mambakit.core.data.download import sha256_of
from mambakit.core.data.packs import manifest_hash

# Folders above this are known by their names and sizes: to read them through again would take minutes.
_MOST_READ_BYTES = 2 << 30


@dataclass(frozen=True)
class DataFacts:
    """One data set of a model card."""

    name: str
    """A data card's name, or the last part of a path: where the data lie on a person's machine is theirs."""
    is_card: bool
    title: str = ""
    license: str | None = None
    """None where it is not known."""
    homepage: str = ""
    version: str = ""
    fingerprints: tuple[tuple[str, str], ...] = ()
    """What, and its sha256 in hex."""


def facts_of(data: str) -> list[DataFacts]:
    """What ``--data`` named: cards, files or folders, several between commas."""
    known = {name.lower() for name in card_names()}

    def one(name: str) -> DataFacts:
        path = Path(name)
        if name.lower() in known:
            return _of_card(load_card(name))
        if path.is_file():
            return DataFacts(path.name, False, fingerprints=((path.name, sha256_of(path)),))
        if path.is_dir():
            return DataFacts(path.resolve().name, False, fingerprints=(_of_folder(path),))
        return DataFacts(path.name, False)

    if data.lower() in known or Path(data).exists():
        return [one(data)]
    return [one(word.strip()) for word in data.split(",") if word.strip()]


def _of_card(card: Card) -> DataFacts:
    files = [(file.name, file.sha256) for file in card.files]
    packs = [(f"{pack.name}, all its files", pack.manifest_sha256) for pack in card.packs]
    return DataFacts(
        card.name,
        True,
        title=card.title,
        license=card.head.get("license_name", card.license),
        homepage=card.homepage,
        version=card.version,
        fingerprints=(*files, *packs),
    )


def _of_folder(folder: Path) -> tuple[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in files]
    sizes = [path.stat().st_size for path in files]
    if sum(sizes) <= _MOST_READ_BYTES:
        return f"{len(names)} files, by their contents", manifest_hash(folder, names)
    lines = "".join(f"{size}  {name}\n" for size, name in zip(sizes, names, strict=True))
    return f"{len(names)} files, by their sizes alone", hashlib.sha256(lines.encode()).hexdigest()
