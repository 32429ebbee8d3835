"""Text to phones: words by a lexicon file (such as CMUdict, ARPAbet) or by espeak-ng (IPA), and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch

from mambakit.core.adapters import SampleError, Tokens
from mambakit.core.errors import DataError, UserError
from mambakit.domains.speech.recognize.tokenizer import TextTokenizer, normalised

_SPACE_ID = 1
_END = "."  # behind each phone in a piece, so that pieces side by side are still told apart


def read_lexicon(path: Path) -> dict[str, tuple[str, ...]]:
    """Words and how they are said: a word a line, then its phones, all apart by spaces or tabs.

    Lines that begin with ``;;;`` or ``#`` say nothing, and of a word's several ways the first counts,
    also where the others are written ``word(2)``.

    Raises:
        DataError: If it can't be read, holds no word, or a word has no phone.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as a lexicon ({error})") from error
    found: dict[str, tuple[str, ...]] = {}
    for row, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith((";;;", "#")):
            continue
        word, *phones = line.split()
        if not phones:
            raise DataError(f"{path}, line {row}: {word!r} has no phones; expected WORD PHONE PHONE ...")
        found.setdefault(word.partition("(")[0].lower() or word.lower(), tuple(phones))
    if not found:
        raise DataError(f"{path}: it holds no word")
    return found


class PhoneTokenizer(TextTokenizer):
    """One id a phone of the training transcripts' words, and one for the space between words.

    Phones become the word again that is said so; of several the one that the training transcripts have most
    often. What is no word is written as its phones, ``w.ʌ.n``. With a lexicon, all its words are known whose
    phones the training transcripts have; without one espeak-ng says also words that come later.

    Args:
        lexicon: A file for ``read_lexicon``; espeak-ng without one.
        voice: Of espeak-ng.
    """

    kind = "speech-phones"
    wanting = "words that can't be said in the phones of the training transcripts"

    def __init__(self, lexicon: Path | str | None = None, voice: str = "en-us") -> None:
        self._file, self._voice, self._asks = lexicon, voice, lexicon is None
        self._set({})

    @property
    def lossy(self) -> str:
        """Words that sound alike, and what all tokenizers of text lose."""
        return f"which of the words that sound alike it is; {super().lossy}"

    @property
    def is_fitted(self) -> bool:
        """True once there are words."""
        return bool(self._lexicon)

    @property
    def pieces(self) -> list[str]:
        """Nothing for the blank, the space, then the phones, each with a dot behind it."""
        return self._pieces

    @property
    def characters(self) -> set[str]:
        """Those of the known words."""
        return {" ", *(c for word in self._lexicon for c in word)}

    def fit(self, samples: Iterable[str]) -> Self:
        """Find how the words of the training transcripts are said.

        Raises:
            DataError: If there is no word, or the lexicon has not one of them.
            UserError: If espeak-ng is needed and missing.
        """
        counts = Counter(word for text in samples for word in normalised(text).split())
        if not counts:
            raise DataError("there is no transcript to learn phones from")
        words = [word for word, _ in counts.most_common()]
        if self._file is None:
            said = {word: phones for word in words if (phones := self._heard(word))}
        else:
            lexicon = read_lexicon(Path(self._file))
            said = {word: lexicon[word] for word in words if word in lexicon}
            inventory = {phone for phones in said.values() for phone in phones}
            said |= {word: p for word, p in lexicon.items() if word not in said and inventory >= set(p)}
        if not said or not any(word in said for word in words):
            raise DataError(f"{self._file or 'espeak-ng'} has no word of the training transcripts")
        self._set(said)
        return self

    def unknown(self, text: str) -> list[str]:
        """The words of a text that can't be said, each once, in their order."""
        return [word for word in dict.fromkeys(normalised(text).split()) if self._said(word) is None]

    def encode(self, sample: str) -> Tokens:
        """Ids, ``(length,)`` int64.

        Raises:
            SampleError: On a word that can't be said in these phones, with its number.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        if not isinstance(sample, str):
            raise SampleError(f"expected a text, got {type(sample).__name__}", sample=sample)
        ids: list[int] = []
        for i, word in enumerate(normalised(sample).split()):
            phones = self._said(word)
            if phones is None:
                raise SampleError(
                    f"unknown word {word!r}, number {i}: no phones of it are known", sample=sample
                )
            ids += [_SPACE_ID] * (i > 0) + [self._ids[phone] for phone in phones]
        return Tokens(torch.tensor(ids, dtype=torch.int64))

    def letters(self, text: str) -> str:
        """The pieces of a text, joined."""
        return "".join(self._pieces[i] for i in self.encode(text).values.tolist())

    def spelled(self, letters: str) -> str:
        """The word that pieces say."""
        return self._words.get(letters, letters.rstrip(_END))

    def same(self, sample: str, other: str) -> bool:
        """Whether both sound alike."""
        return self.encode(sample).equals(self.encode(other))

    def state(self) -> dict[str, Any]:
        """The words and their phones, and the voice."""
        lexicon = {word: list(phones) for word, phones in self._lexicon.items()}
        return {"lexicon": lexicon, "voice": self._voice, "asks": self._asks}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """From ``state()``."""
        tokenizer = cls(voice=str(state["voice"]))
        tokenizer._asks = bool(state["asks"])
        tokenizer._set({word: tuple(phones) for word, phones in state["lexicon"].items()})
        return tokenizer

    def _set(self, lexicon: dict[str, tuple[str, ...]]) -> None:
        self._lexicon = lexicon
        phones = sorted({phone for said in lexicon.values() for phone in said})
        self._pieces = ["", " ", *(phone + _END for phone in phones)] if lexicon else []
        self._ids = {phone: i + 2 for i, phone in enumerate(phones)}
        self._words: dict[str, str] = {}
        for word, said in lexicon.items():
            self._words.setdefault("".join(phone + _END for phone in said), word)
        self._later: dict[str, tuple[str, ...]] = {}

    def _said(self, word: str) -> tuple[str, ...] | None:
        """The phones of a word, if all are known."""
        if word in self._lexicon or not self._asks:
            return self._lexicon.get(word)
        if word not in self._later:
            try:
                self._later[word] = self._heard(word)
            except UserError:  # a model that is used where espeak-ng is not: it knows the words it learned
                return None
        phones = self._later[word]
        return phones if phones and all(phone in self._ids for phone in phones) else None

    def _heard(self, word: str) -> tuple[str, ...]:
        from mambakit.domains.speech.espeak import phones

        return tuple(phones(word, voice=self._voice))
