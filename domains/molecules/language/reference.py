"""What a model was trained on, small enough to travel with it: hashes of all, and some molecules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mambakit.core.errors import DataError

_HASHES, _MOLECULES = "training.safetensors", "reference.csv"


@dataclass(frozen=True, eq=False)
class Reference:
    """Training molecules, and what samples are compared with.

    Attributes:
        name: Of the data.
        hashes: Of every training molecule's canonical SMILES, sorted, ``(n,)`` int64.
        train: Some training molecules.
        held_out: Molecules of the same data that the model never saw.
        baseline: Samples of an n-gram model of the same training molecules.
    """

    name: str
    hashes: NDArray[np.int64]
    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    baseline: list[str] = field(default_factory=list)

    def seen(self, canonical: Sequence[str]) -> NDArray[np.bool_]:
        """Which of these canonical SMILES were trained on, ``(n,)``.

        By 64-bit hashes: among a million training molecules one in 2e13 new ones is taken for a seen one.
        """
        return np.isin(hashes(canonical), self.hashes)

    def save(self, folder: Path) -> None:
        """Writes both files."""
        save_file({"hashes": self.hashes}, folder / _HASHES, {"name": self.name})
        groups = [("train", self.train), ("held-out", self.held_out), ("baseline", self.baseline)]
        rows = [(part, smiles) for part, members in groups for smiles in members]
        pd.DataFrame(rows, columns=["part", "smiles"]).assign(data=self.name).to_csv(
            folder / _MOLECULES, index=False
        )

    @classmethod
    def load(cls, folder: Path) -> Reference | None:
        """What ``save`` wrote; None where there is nothing.

        Raises:
            DataError: If a file is damaged.
        """
        if not (folder / _HASHES).exists() or not (folder / _MOLECULES).exists():
            return None
        try:
            known = load_file(folder / _HASHES)["hashes"]
            # an empty SMILES is a sample too, of the baseline
            frame = pd.read_csv(folder / _MOLECULES, dtype=str, keep_default_na=False)
            parts = {
                part: frame.smiles[frame.part == part].tolist() for part in ("train", "held-out", "baseline")
            }
            name = str(frame.data.iloc[0]) if len(frame) else ""
        except (SafetensorError, KeyError, AttributeError, ValueError) as error:
            raise DataError(f"{folder}: what the model was trained on is damaged ({error})") from error
        return cls(name, known, parts["train"], parts["held-out"], parts["baseline"])


def hashes(canonical: Sequence[str]) -> NDArray[np.int64]:
    """64 bits of each string, ``(n,)``; the same in every process."""
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in canonical)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)
