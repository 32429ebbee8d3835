"""Data cards, and fetching what they describe."""

from mambakit.core.data.cards import Card, CardFile, Source, card_names, load_card, read_card, render_card
from mambakit.core.data.fetch import cache_folder, fetch

__all__ = [
    "Card",
    "CardFile",
    "Source",
    "cache_folder",
    "card_names",
    "fetch",
    "load_card",
    "read_card",
    "render_card",
]
