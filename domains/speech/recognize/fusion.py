"""What a beam search weighs beside the sound: a language model, a bonus a word, and hotwords."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mambakit.core.errors import UsageError
from mambakit.domains.speech.recognize.ngram import END
from mambakit.domains.speech.recognize.text_models import TextScores
from mambakit.domains.speech.recognize.tokenizer import TextTokenizer, normalised


class FusionState(NamedTuple):
    """Where a hypothesis stands.

    Attributes:
        fixed: Score of what is complete.
        pending: Score of a hotword that has begun, which goes again if it doesn't go on.
        place: Where the language model stands.
        word: Letters of the word that is being said.
        before: The words before it that a hotword may have begun with.
    """

    fixed: float
    pending: float
    place: Any
    word: str
    before: tuple[str, ...]

    @property
    def score(self) -> float:
        """What is added to the sound's log-probability."""
        return self.fixed + self.pending


class Fusion:
    """Scores of hypotheses, piece by piece.

    ``log p(sound) + lm_weight * log p(text) + word_bonus * words`` is what Hannun et al. 2014
    (arXiv:1408.2873, equation 6) rank by; a word counts when it is complete. A hotword brings
    ``hotword_boost`` nats, in equal parts with each of its letters, so that it isn't pruned before its end.

    Args:
        lm: A language model of words or characters.
        lm_weight, word_bonus: As above.
        hotwords: Words or phrases.
        hotword_boost: Nats a hotword brings.
        tokenizer: What the pieces stand for, where they are not the letters of words.
    """

    def __init__(
        self,
        lm: TextScores | None = None,
        *,
        lm_weight: float = 0.5,
        word_bonus: float = 0.0,
        hotwords: Sequence[str] = (),
        hotword_boost: float = 4.0,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        self.lm, self.lm_weight, self.word_bonus, self.boost = lm, lm_weight, word_bonus, hotword_boost
        letters = normalised if tokenizer is None else tokenizer.letters
        self._spelled = str if tokenizer is None else tokenizer.spelled
        self.hotwords = {phrase for phrase in map(letters, hotwords) if phrase}
        self._longest = max((phrase.count(" ") for phrase in self.hotwords), default=0)

    def start(self) -> FusionState:
        """Before the first piece."""
        return FusionState(0.0, 0.0, self.lm.start if self.lm else None, "", ())

    def extended(self, state: FusionState, piece: str) -> FusionState:
        """After one more piece of text; a space in it ends a word."""
        for character in piece:
            if character == " " and not state.word:
                continue  # pieces may begin words with a space, and a text has none before its first
            if self.lm is not None and self.lm.unit == "characters":
                state = self._scored(state, character)
            state = self._closed(state) if character == " " else state._replace(word=state.word + character)
        return state._replace(pending=self._pending(state))

    def finished(self, state: FusionState) -> FusionState:
        """After the last piece: the last word is complete, and the text ends."""
        state = self._closed(state)._replace(pending=0.0)
        return self._scored(state, END) if self.lm is not None else state

    def _closed(self, state: FusionState) -> FusionState:
        if not state.word:
            return state
        if self.lm is not None and self.lm.unit == "words":
            state = self._scored(state, self._spelled(state.word))
        said = (*state.before, state.word)
        found = sum(" ".join(said[i:]) in self.hotwords for i in range(len(said)))
        before = said[len(said) - min(len(said), self._longest) :]
        gain = self.word_bonus + found * self.boost
        return state._replace(fixed=state.fixed + gain, word="", before=before)

    def _scored(self, state: FusionState, item: str) -> FusionState:
        assert self.lm is not None
        value, place = self.lm.scored(item, state.place)
        return state._replace(fixed=state.fixed + self.lm_weight * value, place=place)

    def _pending(self, state: FusionState) -> float:
        """The share of the boost for the longest beginning of a hotword that was said."""
        if not self.hotwords or not (state.word or state.before):
            return 0.0
        best = 0.0
        for i in range(len(state.before) + 1):
            begun = " ".join((*state.before[i:], state.word))
            for phrase in self.hotwords:
                if begun and phrase.startswith(begun):
                    best = max(best, self.boost * len(begun) / len(phrase))
        return best


def check_hotwords(tokenizer: TextTokenizer, hotwords: Sequence[str]) -> None:
    """Raise a UsageError at one that the model can never write: it would have no effect, unsaid."""
    for phrase in hotwords:
        unknown = tokenizer.unknown(phrase)
        if unknown or not normalised(phrase):
            why = f"the model knows no {unknown[0]!r}" if unknown else "it is empty"
            raise UsageError(f"hotwords: {phrase!r} can't be written: {why}")
