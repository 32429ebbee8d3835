"""A memory of earlier training batches: an even draw from a stream of any length.

Algorithm R (Vitter 1985, "Random Sampling with a Reservoir", ACM TOMS 11): the first ``capacity`` batches
are kept; the n-th after them takes the place of a random one with probability capacity / n. So each batch of
the stream is in the memory with the same probability, whichever run it came from.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from mambakit.core.errors import DataError


class Memory:
    """Up to ``capacity`` batches, drawn evenly from all that were offered.

    Args:
        capacity: How many are kept.
        seed: Of the draws.

    Attributes:
        batches: Those kept, on the CPU: tensors, and tuples, dicts and batch classes of them.
        seen: How many were offered.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity = capacity
        self.batches: list[Any] = []
        self.seen = 0
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def offer(self, batch: Any) -> None:
        """One more batch of the stream."""
        self.seen += 1
        if len(self.batches) < self.capacity:
            self.batches.append(batch)
            return
        place = int(torch.randint(self.seen, (), generator=self._generator))
        if place < self.capacity:
            self.batches[place] = batch

    def go_on(self, earlier: Memory) -> None:
        """Begin with what an earlier stream left; the memory must be empty.

        Of an earlier one that kept more, an even draw stays. One that kept fewer than now fit is filled up by
        the batches that come next, which are then drawn more often than those before.
        """
        order = torch.randperm(len(earlier), generator=self._generator)[: self.capacity]
        self.batches = [earlier.batches[place] for place in order.tolist()]
        self.seen = earlier.seen

    def at_step(self, step: int) -> Any:
        """The batch to replay at an optimizer step: drawn by seed and step, so a resumed run draws alike."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        return self.batches[int(torch.randint(len(self.batches), (), generator=generator))]

    def save(self, path: Path) -> None:
        """Write all of it, for ``load``."""
        torch.save({"batches": self.batches, "seen": self.seen}, path)

    @classmethod
    def load(cls, path: Path, *, seed: int = 0, package: str = "mambakit") -> Memory:
        """Read what ``save`` wrote; nothing but tensors and batch classes is unpickled.

        Args:
            path: The file.
            seed: Of the draws to come.
            package: Whose classes of batches are let in, beside this project's own.

        Raises:
            DataError: If it is missing, damaged, or holds anything else.
        """
        if not path.is_file():
            raise DataError(f"{path} is missing: the run kept no batches")
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            with torch.serialization.safe_globals([_batch_class(one, package, path) for one in names]):
                content = torch.load(path, map_location="cpu", weights_only=True)
            made = cls(len(content["batches"]), seed)
            made.batches, made.seen = content["batches"], content["seen"]
        except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError, ValueError) as error:
            raise DataError(f"{path} is damaged or no memory of a run ({error})") from error
        return made


def _batch_class(name: str, package: str, path: Path) -> type:
    """A class by its full name, if it stands for a batch of a package that is imported already."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    if module.partition(".")[0] not in ("mambakit", package) or not isinstance(found, type):
        raise DataError(f"{path} holds {name}, which is no batch of {package}; it is not read")
    return found
