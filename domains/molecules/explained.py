"""A molecule as one row of numbers that a model reads, and its prediction as a function of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.adapters.vocabulary import UNK_ID
from mambakit.core.attribution import coefficients_held
from mambakit.core.attribution.embedded import output_of
from mambakit.domains.molecules.atoms import fragment_shares, without_atoms
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import Batch, Network, Output, PropertyModel, combined
from mambakit.domains.molecules.prediction import TEMPERATURE

_TOKENS_AT_ONCE = 1 << 13


class Explained:
    """One molecule as a model reads it.

    A row holds the embeddings of each member's tokens in every way of writing, ``(members, ways, length,
    d_model)``, the scaled descriptors, and the logarithms ``log(1 + count)`` of the fragments, flat behind
    each other. All that is not there (padding too) adds nothing: the row and its baseline agree there.

    Args:
        model: Trained, in evaluation mode.
        inputs: One molecule, in as many ways as its prediction is the mean of.

    Attributes:
        row: The molecule, ``(1, n)``.
        baseline: Nothing known of it, ``(1, n)``: unknown tokens between START and END, descriptors at the
            mean of training, no fragments.
        rows_per_call: How many rows fit into memory at once.
    """

    def __init__(self, model: PropertyModel, inputs: MoleculeInputs) -> None:
        self.model, self.inputs = model, inputs
        self.n_ways = inputs.ways
        device = next(model.parameters()).device
        self.batch = inputs.batch([0] * self.n_ways, list(range(self.n_ways))).to(device)
        self._atoms = inputs.mols[0].GetNumAtoms()
        self._owners = [inputs.token_atoms(0, way) for way in range(self.n_ways)] if self._sequence else []
        with torch.no_grad():
            self.row = self._row(self.batch.ids, inputs.fragments[:1])
            self.baseline = self._row(self._unknown(None), np.zeros_like(inputs.fragments[:1]))
            if model.config.n_descriptors:
                self._descriptors(self.baseline).zero_()
        self.rows_per_call = max(1, _TOKENS_AT_ONCE // self.batch.ids.numel())

    @property
    def _sequence(self) -> bool:
        return self.model.config.model.sequence

    @property
    def _n_tokens(self) -> int:
        """Numbers of a row that are tokens'."""
        config = self.model.config
        return (
            config.model.members * self.batch.ids.numel() * config.backbone.d_model if self._sequence else 0
        )

    def predicted(self, rows: Tensor, task: int, *, one_by_one: bool = False) -> Tensor:
        """The prediction of a property, ``(n_rows,)``: in its unit, or the calibrated logit.

        Args:
            rows: ``(n_rows, n)``.
            task: Its place.
            one_by_one: Read each way on its own, without padding.
        """
        config = self.model.config
        values = torch.stack(
            [self._value(m, rows, one_by_one)[..., [task]] for m in range(config.model.members)]
        )
        is_class = config.tasks[task].kind == "classification"
        (one,) = combined(Output(values, None), torch.tensor([is_class], device=rows.device)).unbind(-1)
        if not is_class:
            return one * config.deviation[task] + config.mean[task]
        fitted = self.model.calibrators.get(TEMPERATURE.format(task))
        return one if fitted is None else one / fitted.temperature

    def by_atom(self, scores: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of a row's numbers, ``(1, n)``, as those of the atoms and of the descriptors.

        What START and END have, and other parts of the row that are no atom's, is in neither: they are the
        same in the baseline, so methods that score the way from there give them nothing.
        """
        tokens, descriptors, fragments = self._split(scores.detach().double().cpu())
        atoms = np.zeros(self._atoms)
        if self._sequence:
            of_tokens = tokens[0].sum((0, 3)).numpy()  # [ways, length]
            for own, shares in zip(of_tokens, self._owners, strict=True):
                atoms += own[: len(shares)] @ shares
        if fragments.shape[1]:
            mol = self.inputs.mols[0]
            atoms += fragments[0].numpy() @ fragment_shares(mol, size=fragments.shape[1])
        return atoms, descriptors[0].numpy()

    def left_out(self) -> Iterator[Tensor]:
        """The row without each atom, then without the descriptors, as many at a time as fit: ``(k, n)``."""
        without = without_atoms(self.inputs.mols[0], size=self.inputs.fragments.shape[1])
        for begin in range(0, self._atoms, self.rows_per_call):
            atoms = range(begin, min(begin + self.rows_per_call, self._atoms))
            yield torch.cat([self._row(self._unknown(a), without[[a]]) for a in atoms])
        last = self.row.clone()
        self._descriptors(last).zero_()
        yield last

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, gradients are those of the networks with every coefficient held.

        Raises:
            ValueError: If a block has no linear form.
        """
        with ExitStack() as stack:
            for member in self.model.members:
                stack.enter_context(coefficients_held(member.backbone))
            yield

    def _value(self, m: int, rows: Tensor, one_by_one: bool) -> Tensor:
        """What a member says, averaged over ways, ``(n_rows, n_tasks)``."""
        member, n_rows = self.model.members[m], len(rows)
        tokens, descriptors, fragments = self._split(rows)
        if not one_by_one:
            batch = _repeated(self.batch, slice(None), n_rows)
            x = tokens[:, m].flatten(0, 1) if self._sequence else None
            beside = (part.repeat_interleave(self.n_ways, 0) for part in (descriptors, fragments))
            return _said(member, batch, x, *beside).unflatten(0, (n_rows, self.n_ways)).mean(1)
        total: Tensor | float = 0.0
        for way, length in enumerate(self.batch.lengths.tolist()):
            one = _repeated(self.batch, slice(way, way + 1), n_rows)
            x = tokens[:, m, way, :length]
            one = one._replace(ids=one.ids[:, :length])
            total = total + _said(member, one, x, descriptors, fragments) / self.n_ways
        assert isinstance(total, Tensor)
        return total

    def _row(self, ids: Tensor, fragments: NDArray[np.float32]) -> Tensor:
        parts = []
        if self._sequence:
            # through the module, as whatever it does with ids is the model's own affair
            parts.append(torch.stack([member.embedding(ids) for member in self.model.members]).flatten())
        parts.append(self.model.scaler(self.batch.descriptors[:1]).flatten().to(self.batch.ids.device))
        if self.model.config.n_ecfp:
            parts.append(torch.from_numpy(np.log1p(fragments)).to(ids.device).flatten())
        return torch.cat(parts)[None].detach()

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``(n_rows, members, ways, length, d_model)``, descriptors and logarithms of fragments."""
        config = self.model.config
        sizes = [self._n_tokens, config.n_descriptors, config.n_ecfp]
        tokens, descriptors, fragments = rows.split(sizes, 1)
        if self._sequence:
            shape = (config.model.members, *self.batch.ids.shape, config.backbone.d_model)
            tokens = tokens.unflatten(1, shape)
        return tokens, descriptors, fragments

    def _descriptors(self, rows: Tensor) -> Tensor:
        return self._split(rows)[1]

    def _unknown(self, atom: int | None) -> Tensor:
        """The ids with the tokens of an atom unknown, or all between START and END."""
        ids = self.batch.ids.clone()
        for way, shares in enumerate(self._owners):
            mine = (shares if atom is None else shares[:, [atom]]).max(1) > 0
            ids[way, : len(mine)][torch.from_numpy(mine).to(ids.device)] = UNK_ID
        return ids


def _repeated(batch: Batch, ways: slice, n: int) -> Batch:
    """Some ways of writing a molecule, one after the other, ``n`` times."""

    def repeated(part: Tensor) -> Tensor:
        return part[ways].repeat(n, *[1] * (part.dim() - 1))

    return Batch(
        repeated(batch.ids), repeated(batch.lengths), repeated(batch.descriptors), repeated(batch.ecfp)
    )


def _said(member: Network, batch: Batch, x: Tensor | None, descriptors: Tensor, fragments: Tensor) -> Tensor:
    """Values ``(n, n_tasks)`` of tokens that are embedded already."""
    batch = batch._replace(ecfp=fragments.expm1())  # the network takes the logarithm itself
    if x is None:
        return member.value(member.read(batch, descriptors))
    with output_of(member.embedding, x):
        return member.value(member.read(batch, descriptors))
