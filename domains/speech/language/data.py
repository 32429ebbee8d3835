"""Texts to learn a language model from: transcripts, or a file with a sentence a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mambakit.core.errors import DataError
from mambakit.domains.speech.recognize.recordings import LengthBatches
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer, normalised
from mambakit.domains.speech.saved import DataSpec

LONGEST = 512
"""Characters; a longer line is cut."""
_HELD_OUT = 0.05  # of a file, to choose by and to measure on, each


@dataclass(frozen=True)
class Texts:
    """Sentences in parts."""

    name: str
    split: str
    train: list[str]
    validation: list[str]
    test: list[str]


def read_texts(spec: DataSpec) -> Texts:
    """The sentences of a ``.txt`` file, or the transcripts of a card or manifest, as it is split.

    Raises:
        DataError: If the file can't be read, or a part to learn from or to choose by is empty.
    """
    if Path(spec.data).suffix.lower() == ".txt":
        found = _of_file(Path(spec.data), spec.seed)
    else:
        utterances, split = spec.load()
        said = [normalised(text or "") for text in utterances.table["text"]]
        train, validation, test = (
            [said[i] for i in part.tolist() if said[i]]
            for part in (split.train, split.validation, split.test)
        )
        found = Texts(utterances.name, split.name, train, validation, test)
    for part in ("train", "validation"):
        if not getattr(found, part):
            raise DataError(f"{found.name}: there is no text for {part}; give at least three sentences")
    return found


def read_lines(path: Path) -> list[str]:
    """The sentences of a file, one a line; empty lines are none.

    Raises:
        DataError: If it can't be read as text.
    """
    try:
        lines = [normalised(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text ({error})") from error
    return [line for line in lines if line]


def _of_file(path: Path, seed: int) -> Texts:
    lines = read_lines(path)
    order = np.random.default_rng(seed).permutation(len(lines)).tolist()
    n = max(1, round(_HELD_OUT * len(lines)))
    shuffled = [lines[i] for i in order]
    return Texts(path.stem, "random", shuffled[2 * n :], shuffled[:n], shuffled[n : 2 * n])


def text_loader(
    texts: Sequence[str], tokenizer: CharacterTokenizer, batch_size: int, *, shuffle: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of ids ``(batch, length)``, zero at padding, and lengths; what can't be written is left out."""
    ids = [
        tokenizer.encode(text[at : at + LONGEST]).values
        for text in texts
        if not tokenizer.unknown(text)
        for at in range(0, len(text), LONGEST)
    ]
    if shuffle:
        batches = LengthBatches([len(one) for one in ids], batch_size)
        return DataLoader(ids, batch_sampler=batches, collate_fn=_collated)  # type: ignore[arg-type]
    return DataLoader(ids, batch_size, collate_fn=_collated)  # type: ignore[arg-type]


def _collated(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths
