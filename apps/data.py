"""Data sets from the command line.

mambakit data list
mambakit data show ETTh1
mambakit data fetch ETTh1 --output data/
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mambakit.core.cli import format_table, print_json, run_app
from mambakit.core.data import cards


def list_cards(*, domain: str | None = None, json: bool = False) -> None:
    """Lists the data sets that have a card.

    Args:
        domain: Only this domain's.
        json: Print JSON for machines.

    Examples:
        mambakit data list
        mambakit data list --domain timeseries --json
    """
    rows = [
        {
            "name": card.name,
            "domain": card.domain,
            "rows": card.rows,
            "download": _download(card),
            "licence": card.head.get("license_name", card.license),
            "title": card.title,
        }
        for card in map(cards.load_card, cards.card_names())
        if domain in (None, card.domain)
    ]
    if json:
        print_json(rows)
    else:
        print(format_table(rows, ["name", "domain", "rows", "download", "licence", "title"]))


def show(name: str, *, json: bool = False) -> None:
    """Shows a data set's card: what it is, its columns, splits, licence and known traps.

    Args:
        name: The data set's name, as `mambakit data list` prints it.
        json: Print the card's head as JSON for machines.

    Examples:
        mambakit data show ETTh1
    """
    card = cards.load_card(name)
    if json:
        print_json(card.head)
    else:
        print(cards.render_card(card), end="")


def fetch(name: str, *, output: Path | None = None, json: bool = False) -> None:
    """Downloads a data set, checks its sha256 and prints where the files are.

    The environment variable MAMBAKIT_DATA names the cache folder; MAMBAKIT_DATA_MIRROR names a local
    folder to look in before the network.

    Args:
        name: The data set's name.
        output: Also copy the files into this folder.
        json: Print JSON for machines.

    Examples:
        mambakit data fetch ETTh1
        mambakit data fetch Weather --output data/
    """
    from mambakit.core.data.fetch import fetch as fetch_files  # requests takes a moment to import
    from mambakit.core.data.packs import fetch_pack

    card = cards.load_card(name)
    if card.embedded:
        print(f"{card.name} comes with {card.embedded}: nothing to download", file=sys.stderr)
    if card.made_from:
        made = ", ".join(card.made_from)
        print(f"{card.name} is made from {made} when it is used: fetch these", file=sys.stderr)
    paths = fetch_files(card)
    folders = {pack.name: fetch_pack(card, pack) for pack in card.packs}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        paths = {file: Path(shutil.copyfile(path, output / file)) for file, path in paths.items()}
        folders = {
            name: Path(shutil.copytree(path, output / name, dirs_exist_ok=True))
            for name, path in folders.items()
        }
    paths |= folders
    if json:
        print_json(paths)
    else:
        for path in paths.values():
            print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """``mambakit data``."""
    return run_app(
        "mambakit data",
        {"list": list_cards, "show": show, "fetch": fetch},
        argv,
        description="Data sets by name. Each has a card: what it is, where it comes from, its splits.",
        examples="mambakit data list\nmambakit data show ETTh1\nmambakit data fetch ETTh1",
    )


def _download(card: cards.Card) -> str:
    if card.embedded:
        return "none, embedded"
    return f"of {', '.join(card.made_from)}" if card.made_from else f"{_megabytes(card):.1f} MB"


def _megabytes(card: cards.Card) -> float:
    return (sum(file.sources[0].size for file in card.files) + sum(pack.size for pack in card.packs)) / 1e6
