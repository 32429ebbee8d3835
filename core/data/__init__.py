"""Data cards, and fetching what they describe."""

from mambakit.core.data.cards import (
    Card,
    CardFile,
    CardPack,
    Source,
    card_names,
    load_card,
    read_card,
    render_card,
)
from mambakit.core.data.fetch import cache_folder, fetch
from mambakit.core.data.packs import fetch_pack

__all__ = [
    "Card",
    "CardFile",
    "CardPack",
    "Source",
    "cache_folder",
    "card_names",
    "fetch",
    "fetch_pack",
    "load_card",
    "read_card",
    "render_card",
]
