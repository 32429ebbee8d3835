"""The data side of an adapter: raw sample to tokens and back."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from mambakit.core.adapters.token_checks import SampleError
from mambakit.core.adapters.tokens import Tokens
from mambakit.core.errors import DataError

__all__ = ["BadSample", "Encoded", "NotFittedError", "SampleError", "Tokenizer"]

Sample = TypeVar("Sample")

_FILE = "tokenizer.json"
_log = logging.getLogger(__name__)


class NotFittedError(RuntimeError):
    """A tokenizer was used before ``fit`` (or ``load``) gave it what it needs."""


@dataclass(frozen=True)
class BadSample:
    """A sample that ``encode_many`` left out.

    Attributes:
        index: Its place among the samples given.
        reason: Why it can't be encoded.
    """

    index: int
    reason: str


class Encoded(NamedTuple):
    """What ``encode_many`` returns: the encoded samples in order, and those left out."""

    tokens: list[Tokens]
    bad: list[BadSample]

    @property
    def kept(self) -> list[int]:
        """Place among the samples given of each entry of ``tokens`` (to pick its target)."""
        left_out = {sample.index for sample in self.bad}
        return [i for i in range(len(self.tokens) + len(self.bad)) if i not in left_out]


class Tokenizer(ABC, Generic[Sample]):
    """Raw samples to ``Tokens`` and back, without parameters: picklable, runs in data-loader workers.

    Subclass it, name its file format (``kind``, and ``version`` whenever ``state`` changes shape) and
    write ``encode``, ``decode``, ``state`` and ``from_state``; one that learns from data writes ``fit``
    and ``is_fitted`` too, and calls ``require_fitted`` first in ``encode`` and ``decode``.

    What a tokenizer learns is part of the model: fit on the training split only, never on
    validation or test data.

    Attributes:
        kind: Name of the saved form, such as ``"vocabulary"``; ``load`` refuses any other.
        version: Version of the saved form.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def lossy(self) -> str:
        """What ``decode(encode(sample))`` loses, in words; "" (as here) when it loses nothing."""
        return ""

    @property
    def is_fitted(self) -> bool:
        """True when ``encode`` can run; always, for a tokenizer that learns nothing."""
        return True

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Learn what ``encode`` needs, from the training split only, replacing what was learned before."""
        return self

    @abstractmethod
    def encode(self, sample: Sample) -> Tokens:
        """Tokens of one sample; no padding.

        Raises:
            SampleError: Naming what is wrong with the sample, and where in it.
            NotFittedError: Before ``fit``, where the tokenizer needs one.
        """

    @abstractmethod
    def decode(self, tokens: Tokens) -> Sample:
        """The sample that ``tokens`` came from, but for what ``lossy`` declares."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that ``from_state`` needs, options and what was learned, as JSON-able values."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer that ``state()`` described."""

    def same(self, sample: Sample, other: Sample) -> bool:
        """True when two samples are the same to a user; the round trip is judged by it."""
        return bool(sample == other)

    def encode_many(self, samples: Iterable[Sample]) -> Encoded:
        """Encode every sample; bad ones are left out, listed in ``bad`` and counted in a log warning.

        Only a ``SampleError`` marks a sample as bad: any other exception is a fault of the code, and stops.
        """
        self.require_fitted()
        tokens, bad = [], []
        for index, sample in enumerate(samples):
            try:
                tokens.append(self.encode(sample))
            except SampleError as error:
                bad.append(BadSample(index, error.reason))
        if bad:
            _log.warning(
                "%s: %d of %d samples left out; the first is sample %d: %s",
                type(self).__name__, len(bad), len(tokens) + len(bad), bad[0].index, bad[0].reason,
            )  # fmt: skip
        return Encoded(tokens, bad)

    def require_fitted(self) -> None:
        """Raise a NotFittedError unless ``is_fitted``."""
        if not self.is_fitted:
            name = type(self).__name__
            raise NotFittedError(
                f"{name} is not fitted: call fit(samples) on the training split, or {name}.load(folder)"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json`` into ``folder`` (made if missing); an old one is replaced in one step.

        Raises:
            NotFittedError: Before ``fit``, where the tokenizer needs one.
        """
        self.require_fitted()
        path = Path(folder) / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"kind": self.kind, "version": self.version, "state": self.state()}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        partial = path.with_name(f".{_FILE}.{os.getpid()}")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: If there is no tokenizer, a damaged one, or one of another kind or version.
        """
        path = Path(folder) / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind, version, state = content["kind"], content["version"], content["state"]
        except FileNotFoundError:
            raise DataError(f"no saved tokenizer: {path} does not exist") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a saved tokenizer ({type(error).__name__}: {error})") from error
        if kind != cls.kind:
            raise DataError(
                f"{path} holds a tokenizer of kind {kind!r}, but {cls.__name__} reads {cls.kind!r}"
            )
        if version != cls.version:
            raise DataError(
                f"{path} has version {version} of the {kind!r} tokenizer, this code reads version "
                f"{cls.version}; save it again with the code that wrote it, or install a matching version"
            )
        try:
            return cls.from_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: the saved state is damaged ({type(error).__name__}: {error})"
            ) from error
