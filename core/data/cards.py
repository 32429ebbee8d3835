"""Data cards: Markdown files with a YAML head that say what a data set is; the code reads them.

The head has the fields of a Hugging Face dataset card and, under ``mambakit``, what loaders need: files
with URLs and sha256, columns, units, frequency, season and splits. ``data_cards/schema.json`` validates it.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import itertools
import json
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from mambakit.core.errors import DataError, UsageError


@dataclass(frozen=True)
class Source:
    """One place that serves a file. ``sha256`` and ``size`` (bytes) are those of what is served."""

    url: str
    sha256: str
    size: int
    mirror: str | None = None
    """Where a mirror folder holds it: ``<domain>/<dataset>/<file>``."""
    compression: str | None = None
    """``gzip``, ``zip``, ``tar`` (also compressed) or None."""
    member: str | None = None
    """The file's path inside an archive."""


@dataclass(frozen=True)
class CardFile:
    """One plain file of a data set. ``sha256`` and ``size`` (bytes) are those of the plain bytes."""

    name: str
    sha256: str
    size: int
    sources: tuple[Source, ...]
    split: str | None = None
    """The split that it holds, where each has a file of its own."""


@dataclass(frozen=True)
class CardPack:
    """Many small files of a data set, such as recordings, whose names follow a pattern.

    A mirror holds them as one tar archive; the network serves each by itself. ``manifest_sha256`` is over the
    lines ``<sha256>  <member>``, in order of the member's name.
    """

    name: str
    """Of the folder that they come to lie in."""
    pattern: str
    """A member's name with ``{keys}``: ``recordings/{digit}_{speaker}_{take}.wav``."""
    values: dict[str, tuple[str, ...]]
    """What each key stands for; the first key changes slowest in the order of the rows."""
    manifest_sha256: str
    size: int
    """Bytes of the archive, about what a download takes."""
    url: str
    """Of a member, with ``{member}`` for its name."""
    mirror: str
    """Where a mirror folder holds the archive: ``<domain>/<dataset>/<file>``."""
    mirror_sha256: str

    def members(self) -> list[tuple[str, dict[str, str]]]:
        """Name and keys of each, in the order of the rows."""
        keys = [dict(zip(self.values, one, strict=True)) for one in itertools.product(*self.values.values())]
        return [(self.pattern.format(**one), one) for one in keys]


@dataclass(frozen=True)
class Protocol:
    """A second way to split a data set, in files of its own, with columns as the card's or its own."""

    files: dict[str, str]
    """The file of each part: train, validation and test."""
    rows: dict[str, int]
    """How many rows each has."""
    labels: dict[str, str]
    """Label columns, and whether each is of ``regression`` or ``classification``."""
    units: dict[str, str]
    unreadable: int = 0
    """Rows among them whose sample can't be read."""


@dataclass(frozen=True)
class Card:
    """A data set as its card describes it."""

    name: str
    title: str
    domain: str
    license: str
    homepage: str
    version: str
    tags: tuple[str, ...]
    files: tuple[CardFile, ...]
    """Those of ``packs`` are not among them."""
    columns: tuple[str, ...]
    units: dict[str, str]
    splits: dict[str, tuple[int, int]]
    """Half-open row ranges by split name; empty if ``fractions`` or ``horizon`` split each series."""
    rows: int | None = None
    time_column: str | None = None
    first_stamp: str | None = None
    """The first row's stamp, for files that carry no dates."""
    frequency: str | None = None
    """A pandas offset alias."""
    season_length: int | None = None
    """Rows in the season that a seasonal-naive forecast repeats."""
    classes: tuple[str, ...] = ()
    """What labelled series are sorted into; a row is then a whole series."""
    embedded: str | None = None
    """Provider inside a dependency (``statsmodels.co2``); None for data sets that are downloaded."""
    layout: str = "wide"
    """``wide``, a column a series; ``long``, a row a series and stamp; ``rows``, a row a series; ``pairs``,
    lines of user and item; ``sequences``, a line a user; ``labelled``, a row a sample and its labels;
    ``lines``, a line a sample."""
    id_column: str | None = None
    """The series' names, where a file holds several."""
    time_parts: tuple[str, ...] = ()
    """Columns that make up a stamp together: year, month, day, hour."""
    target: str | None = None
    """Of a long table, the column to forecast; of a labelled one, the label meant if none is named."""
    past: tuple[str, ...] = ()
    """Covariates known up to now."""
    future: tuple[str, ...] = ()
    """Covariates known ahead."""
    static: tuple[str, ...] = ()
    """What never changes in a series."""
    label_column: str | None = None
    """1 in rows that are anomalous."""
    fractions: dict[str, float] = field(default_factory=dict)
    """Shares of each series by split name, in order of time."""
    horizon: int | None = None
    """So many rows at the end of each series are test, and as many before them validation."""
    roles: dict[str, str] = field(default_factory=dict)
    """Of files that hold something else than rows: ``test``, ``future``, ``labels``, ``extra``, ``items``,
    ``users``, ``times``, ``item_names`` or ``user_names``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of interactions: ``users``, ``items`` and ``events``."""
    sample_column: str | None = None
    """Of a labelled table, the samples."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label columns, and whether each is of ``regression`` or ``classification``."""
    unreadable: int = 0
    """Rows whose sample can't be read, such as SMILES of broken valence."""
    protocols: dict[str, Protocol] = field(default_factory=dict)
    """Splits beside the card's own, by name."""
    packs: tuple[CardPack, ...] = ()
    """Files by the hundred."""
    made_from: tuple[str, ...] = ()
    """The cards that the code makes it from, on the user's machine."""
    texts: dict[str, str] = field(default_factory=dict)
    """What is said in recordings, by the file's name without its suffix."""
    text: str = ""
    """The Markdown below the head."""
    head: dict[str, Any] = field(default_factory=dict, repr=False)
    """The YAML head as it stands, for machines."""


def card_names() -> list[str]:
    """The names of all cards in this installation, in alphabetical order."""
    names = (entry.name.removesuffix(".md") for entry in _folder().iterdir() if entry.name.endswith(".md"))
    return sorted(names, key=str.lower)


def load_card(name: str) -> Card:
    """The card called ``name``; upper and lower case do not matter.

    Raises:
        UsageError: If no card has that name; the message lists close names.
        DataError: If the card itself breaks the schema.
    """
    by_key = {known.lower(): known for known in card_names()}
    known = by_key.get(name.lower())
    if known is None:
        close = difflib.get_close_matches(name.lower(), by_key, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(by_key[key] for key in close)}? " if close else ""
        raise UsageError(
            f"there is no data card called {name!r}; {hint}known cards: {', '.join(card_names())}"
        )
    return parse_card((_folder() / f"{known}.md").read_text(encoding="utf-8"), source=f"{known}.md")


def read_card(path: Path) -> Card:
    """A card from a file of the user's own. Raises DataError if it breaks the schema."""
    return parse_card(path.read_text(encoding="utf-8"), source=str(path))


def parse_card(text: str, source: str = "card") -> Card:
    """A card from its Markdown.

    Args:
        text: YAML head between two ``---`` lines, then Markdown.
        source: What to call the card in error messages.

    Raises:
        DataError: If the head is missing, is not YAML, or breaks ``schema.json``.
    """
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        raise DataError(f"{source}: a data card starts with a YAML head between two '---' lines")
    head_text, body = text[4:].split("\n---\n", 1)
    try:
        # JSON's types only: YAML would turn 1990-01-01 into a date.
        head = yaml.load(head_text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{source}: the head is not YAML: {' '.join(str(error).split())}") from error
    _validate(head, source)
    facts = head["mambakit"]
    unknown = set(facts.get("roles", {})) - {entry["name"] for entry in facts["files"]}
    if unknown:
        raise DataError(f"{source}: roles: there is no file {sorted(unknown)[0]!r}")
    for protocol, own in facts.get("protocols", {}).items():
        lost = set(own["files"].values()) - {entry["name"] for entry in facts["files"]}
        if lost:
            raise DataError(f"{source}: protocols: {protocol}: there is no file {sorted(lost)[0]!r}")
    for split, (start, stop) in facts.get("splits", {}).items():
        if not start < stop <= facts.get("rows", stop):
            raise DataError(f"{source}: split {split} [{start}, {stop}] is empty or ends after the last row")
    return Card(
        name=facts["name"],
        title=head["pretty_name"],
        domain=facts["domain"],
        license=head["license"],
        homepage=head["homepage"],
        version=facts["version"],
        tags=tuple(head["tags"]),
        files=tuple(_file(entry) for entry in facts["files"]),
        columns=tuple(facts["columns"]),
        units=dict(facts["units"]),
        splits={split: (start, stop) for split, (start, stop) in facts.get("splits", {}).items()},
        rows=facts.get("rows"),
        time_column=facts.get("time_column"),
        first_stamp=facts.get("first_stamp"),
        frequency=facts.get("frequency"),
        season_length=facts.get("season_length"),
        classes=tuple(facts.get("classes", ())),
        embedded=facts.get("embedded"),
        layout=facts.get("layout", "wide"),
        id_column=facts.get("id_column"),
        time_parts=tuple(facts.get("time_parts", ())),
        target=facts.get("target"),
        past=tuple(facts.get("past", ())),
        future=tuple(facts.get("future", ())),
        static=tuple(facts.get("static", ())),
        label_column=facts.get("label_column"),
        fractions=dict(facts.get("fractions", {})),
        horizon=facts.get("horizon"),
        roles=dict(facts.get("roles", {})),
        counts=dict(facts.get("counts", {})),
        sample_column=facts.get("sample_column"),
        labels=dict(facts.get("labels", {})),
        unreadable=facts.get("unreadable", 0),
        protocols={name: _protocol(own, facts) for name, own in facts.get("protocols", {}).items()},
        packs=tuple(_pack(entry) for entry in facts.get("packs", ())),
        made_from=tuple(facts.get("made_from", ())),
        texts=dict(facts.get("texts", {})),
        text=body.strip() + "\n",
        head=head,
    )


def render_card(card: Card) -> str:
    """The card as plain Markdown: a table of the facts in the head, then the card's own text."""
    of_what = "the rows" if card.layout in ("labelled", "lines") else "each series"
    facts = [
        ("name", f"{card.name} ({card.domain})"),
        ("licence", card.head.get("license_name", card.license)),
        ("home", card.homepage),
        ("version", card.version),
        ("rows", f"{card.rows:,}" if card.rows else None),
        *((what, f"{count:,}") for what, count in card.counts.items()),
        ("columns", ", ".join(card.columns)),
        ("classes", ", ".join(card.classes)),
        ("frequency", card.frequency),
        ("season", f"{card.season_length} rows" if card.season_length else None),
        ("target", card.target),
        ("known up to now", ", ".join(card.past)),
        ("known ahead", ", ".join(card.future)),
        ("static", ", ".join(card.static)),
        ("labels", card.label_column),
        *((f"label, {kind}", _with_unit(name, card.units)) for name, kind in card.labels.items()),
        ("not readable", f"{card.unreadable} rows" if card.unreadable else None),
        *((f"share, {split}", f"{share:.0%} of {of_what}") for split, share in card.fractions.items()),
        ("rows, test", f"the last {card.horizon} of each series" if card.horizon else None),
        *((f"rows, {split}", f"{start:,} to {stop:,}") for split, (start, stop) in card.splits.items()),
        *((f"protocol {name}", _rendered(own)) for name, own in card.protocols.items()),
        ("made from", ", ".join(card.made_from)),
        ("comes with", f"{card.embedded} (no download)" if card.embedded else None),
    ]
    for file in card.files:
        role = f" ({card.roles[file.name]})" if file.name in card.roles else ""
        facts += [("file", f"{file.name}, {file.size:,} bytes{role}"), ("sha256", file.sha256)]
        facts += [("url", source.url) for source in file.sources]
    for pack in card.packs:
        facts += [
            ("files", f"{pack.name}: {len(pack.members()):,} of {pack.pattern}, {pack.size:,} bytes"),
            ("sha256", f"{pack.manifest_sha256} (of the lines '<sha256>  <name>', sorted by name)"),
            ("url", pack.url),
        ]
    width = max(len(key) for key, _ in facts)
    lines = [f"    {key:<{width}}  {value}" for key, value in facts if value]
    title, _, rest = card.text.partition("\n")
    return "\n".join([title, "", f"{card.title}.", "", *lines, rest.rstrip()]) + "\n"


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without YAML's dates."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _protocol(own: dict[str, Any], facts: dict[str, Any]) -> Protocol:
    return Protocol(
        files=dict(own["files"]),
        rows=dict(own["rows"]),
        labels=dict(own.get("labels", facts.get("labels", {}))),
        units={**facts["units"], **own.get("units", {})},
        unreadable=own.get("unreadable", 0),
    )


def _rendered(protocol: Protocol) -> str:
    parts = ", ".join(f"{part} {protocol.rows[part]:,}" for part in protocol.files)
    labels = ", ".join(_with_unit(name, protocol.units) for name in protocol.labels)
    lost = f"; {protocol.unreadable} rows not readable" if protocol.unreadable else ""
    return f"{parts}; {labels}{lost}"


def _with_unit(name: str, units: dict[str, str]) -> str:
    return f"{name} ({units[name]})" if name in units else name


def _file(entry: dict[str, Any]) -> CardFile:
    sources = tuple(
        Source(
            url=source["url"],
            sha256=source.get("sha256", entry["sha256"]),
            size=source.get("bytes", entry["bytes"]),
            mirror=source.get("mirror"),
            compression=source.get("compression"),
            member=source.get("member"),
        )
        for source in entry["sources"]
    )
    return CardFile(
        name=entry["name"],
        sha256=entry["sha256"],
        size=entry["bytes"],
        sources=sources,
        split=entry.get("split"),
    )


def _pack(entry: dict[str, Any]) -> CardPack:
    return CardPack(
        name=entry["name"],
        pattern=entry["pattern"],
        values={key: tuple(map(str, values)) for key, values in entry["values"].items()},
        manifest_sha256=entry["manifest_sha256"],
        size=entry["bytes"],
        url=entry["url"],
        mirror=entry["mirror"],
        mirror_sha256=entry["mirror_sha256"],
    )


def _validate(head: Any, source: str) -> None:
    import jsonschema  # here: it takes a moment to import and only cards need it

    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(head))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "the head"
        raise DataError(f"{source}: {where}: {error.message}")


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of a card's head."""
    return json.loads((_folder() / "schema.json").read_text(encoding="utf-8"))


def _folder() -> Traversable:
    return importlib.resources.files("mambakit.data_cards")
