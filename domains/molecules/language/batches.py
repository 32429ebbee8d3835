"""Training batches: molecules written anew each epoch, several packed into a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mambakit.core.adapters import SampleError, TokenBatch, Tokens, pack_batch
from mambakit.domains.molecules.language.corpus import rewritten
from mambakit.domains.molecules.tokenizer import SmilesTokenizer

_SEEDS = 2**31 - 1
_MANY_ROWS, _ROW_MULTIPLE = 64, 8


class PackedMolecules(Dataset[TokenBatch]):
    """Molecules by number, as packed rows; an item is ``(number, seed)``, seed 0 for the SMILES as it stands.

    Args:
        smiles: The molecules.
        tokenizer: Fitted.
        randomize: Share of them written anew: each epoch otherwise when ``loader`` shuffles, else always
            the same way.
        row_length: Positions of a row; longer molecules make a batch's rows longer.
    """

    def __init__(
        self,
        smiles: Sequence[str],
        tokenizer: SmilesTokenizer,
        *,
        randomize: float = 0.0,
        row_length: int = 512,
    ) -> None:
        self.smiles, self.tokenizer = list(smiles), tokenizer
        self.randomize, self.row_length = randomize, row_length

    def __len__(self) -> int:
        return len(self.smiles)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> TokenBatch:
        tokens = [self._tokens(number, seed) for number, seed in items]
        lengths = [len(one) for one in tokens]
        # large batches are of a few shapes, so that a GPU's work on them can be recorded
        multiple = _ROW_MULTIPLE if sum(lengths) > _MANY_ROWS * self.row_length else 1
        return pack_batch(tokens, max(self.row_length, *lengths), row_multiple=multiple)

    def loader(self, batch_size: int, *, shuffle: bool, num_workers: int = 0) -> DataLoader[TokenBatch]:
        """Batches of so many molecules; shuffled ones are drawn and written anew each epoch, others kept.

        Order and seeds come from torch's random numbers in this process: they are the same for any number
        of workers.
        """
        loader = DataLoader(
            self,
            batch_sampler=_Draw(self, batch_size, shuffle),
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # a batch comes whole from __getitems__
            num_workers=num_workers,
            persistent_workers=num_workers > 0 and shuffle,
            generator=None if shuffle else torch.Generator(),  # training's numbers are not drawn from
        )
        if shuffle:
            return loader
        return DataLoader(_Ready(loader), batch_size=None)

    def _tokens(self, number: int, seed: int) -> Tokens:
        smiles = self.smiles[number]
        if seed:
            try:
                return self.tokenizer.encode_any(rewritten(smiles, seed))
            except SampleError:
                pass  # a ring number or SELFIES symbol that the vocabulary lacks: as it stands, it has all
        return self.tokenizer.encode(smiles)


class _Ready(Dataset[TokenBatch]):
    """Batches that are the same in every epoch, made in the first."""

    def __init__(self, loader: DataLoader[TokenBatch]) -> None:
        self.loader = loader
        self.batches: list[TokenBatch] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __getitem__(self, number: int) -> TokenBatch:
        self.batches = self.batches or list(self.loader)
        return self.batches[number]


class _Draw(Sampler[list[tuple[int, int]]]):
    def __init__(self, data: PackedMolecules, batch_size: int, shuffle: bool) -> None:
        self.data, self.batch_size, self.shuffle = data, batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        n = len(self.data)
        order, seeds = np.arange(n), np.zeros(n, dtype=np.int64)
        draws = None if self.shuffle else torch.Generator().manual_seed(0)
        if self.shuffle:
            order = torch.randperm(n).numpy()
        if self.data.randomize:
            anew = torch.rand(n, generator=draws).numpy() < self.data.randomize
            seeds = np.where(anew, torch.randint(1, _SEEDS, (n,), generator=draws).numpy(), 0)
        for part in np.array_split(np.arange(n), len(self)):
            yield list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))


def _as_it_is(batch: TokenBatch) -> TokenBatch:
    return batch
