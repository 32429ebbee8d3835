"""The tokenizers of text by the name of their units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mambakit.domains.speech.recognize.phones import PhoneTokenizer
from mambakit.domains.speech.recognize.tokenizer import BpeTokenizer, CharacterTokenizer, TextTokenizer, Units

TOKENIZERS: dict[Units, type[CharacterTokenizer] | type[BpeTokenizer] | type[PhoneTokenizer]] = {
    "characters": CharacterTokenizer,
    "bpe": BpeTokenizer,
    "phones": PhoneTokenizer,
}


def fit_tokenizer(
    units: Units,
    texts: Sequence[str],
    *,
    n_pieces: int = 256,
    lexicon: str | None = None,
    voice: str = "en-us",
) -> TextTokenizer:
    """A tokenizer of training transcripts.

    Args:
        units: Its kind.
        texts: The transcripts.
        n_pieces: Of bpe, at most.
        lexicon, voice: Of phones.
    """
    if units == "bpe":
        return BpeTokenizer(n_pieces).fit(texts)
    if units == "phones":
        return PhoneTokenizer(lexicon, voice).fit(texts)
    return CharacterTokenizer().fit(texts)


def load_tokenizer(folder: Path, units: Units) -> TextTokenizer:
    """The tokenizer that lies in a model's folder.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    return TOKENIZERS[units].load(folder)
