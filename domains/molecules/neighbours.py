"""How near molecules are to those of training: the domain that a model can be trusted in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from mambakit.core.errors import DataError

FILE = "training_molecules.safetensors"
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Fingerprints of the training molecules, a bit for each fragment, eight to a byte.

    Attributes:
        bits: ``(n, n_bits / 8)`` uint8.
    """

    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, counts: NDArray[np.generic]) -> Self:
        """Which fragments each molecule has, from their counts ``(n, n_bits)``."""
        return cls(np.packbits(np.asarray(counts) > 0, axis=1))

    def similarity(self, counts: NDArray[np.generic]) -> NDArray[np.float64]:
        """Tanimoto similarity to the nearest training molecule, ``(m,)`` from 0 to 1.

        Of two molecules with fragments A and B it is ``|A & B| / |A | B|`` (Rogers & Tanimoto 1960); 0 where
        neither has any.

        Args:
            counts: Of fragments, ``(m, n_bits)``, as those of training.
        """
        asked = (np.asarray(counts) > 0).astype(np.float32)
        sizes = asked.sum(1)
        best = np.zeros(len(asked))
        for begin in range(0, len(self.bits), _AT_ONCE):
            known = np.unpackbits(self.bits[begin : begin + _AT_ONCE], axis=1)[:, : asked.shape[1]]
            common = asked @ known.T.astype(np.float32)
            either = sizes[:, None] + known.sum(1, dtype=np.float32) - common
            best = np.maximum(best, (common / np.maximum(either, 1)).max(1, initial=0))
        return best

    def save(self, folder: Path) -> None:
        """Writes them into a folder."""
        safetensors.numpy.save_file({"bits": np.ascontiguousarray(self.bits)}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of ``save``.

        Raises:
            DataError: If the file is missing or damaged.
        """
        try:
            return cls(safetensors.numpy.load_file(folder / FILE)["bits"])
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise DataError(
                f"{folder / FILE} is missing or damaged ({error}); save the model again"
            ) from None
