"""Why this value: what each atom of a molecule adds to the prediction of a property.

    prediction = base + sum of the atoms + descriptors + residual

The prediction is just what ``predict`` gives, the mean over members and ways of writing, in the property's
unit; of a classification it is the calibrated logit, whose sigmoid is the probability. The base is the
prediction for a molecule of as many tokens, all unknown, without any fragment, whose descriptors are the
training molecules' means.

An atom's part is that of its tokens and of the circular fragments that it is in (``atoms`` says which those
are). RDKit's descriptors are of the whole molecule and no atom's: their part is a number of its own. The
methods differ in how parts are found, and in what is left:

- gradients: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the straight path from
  the base to the molecule; tokens, fragments and descriptors move together. The residual is the quadrature's
  error: the parts are complete.
- hidden-attention: the networks as the linear maps that they are with every coefficient held
  (``core.attribution.coefficients_held``): the scan's hidden attention, through all layers, to the output.
  The residual is what holding them leaves out: that the base has other coefficients.
- leave-one-out: by how much the prediction falls if an atom's tokens are unknown and its fragments not there;
  of the descriptors, if they are the means. The residual is what atoms do only together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor

from mambakit.core.attribution import complete_integrated_gradients
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.explained import Explained
from mambakit.domains.molecules.features import descriptor_names
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Task
from mambakit.domains.molecules.structures import is_reaction, shown, structure
from mambakit.domains.molecules.tokenizer import SmilesTokenizer

Method = Literal["gradients", "hidden-attention", "leave-one-out"]
METHODS: tuple[Method, ...] = ("gradients", "hidden-attention", "leave-one-out")

_STEPS, _MOST_STEPS = 16, 256
_ENOUGH = 0.005  # a gap so small, in standard deviations of the labels or in nats, is none


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a property of a molecule is predicted as it is.

    Attributes:
        smiles: The molecule as it was given.
        mol: The same, its atoms in that order.
        task: The property.
        unit: Of all numbers here; ``logit`` of a classification.
        method: How the parts were found.
        value: What the networks say.
        base: What they say where nothing of the molecule is known.
        atoms: Part of each atom, ``(n_atoms,)``.
        descriptors: Part of the descriptors together.
        by_descriptor: Part of each by its name; empty where the method has no such parts.
        n_written: Ways of writing the molecule that it is the mean of.
        cut: Whether the sequence model reads only the beginning of the molecule.
        trust: Share of the networks in the prediction; the rest is the forest's, and not explained.
        forest: What the forest says, a probability of a classification; None without.
    """

    smiles: str
    mol: Chem.Mol
    task: Task
    unit: str
    method: Method
    value: float
    base: float
    atoms: NDArray[np.float64]
    descriptors: float
    by_descriptor: dict[str, float]
    n_written: int
    cut: bool
    trust: float = 1.0
    forest: float | None = None

    @property
    def residual(self) -> float:
        """What the parts leave of the prediction; see the module for what it is of each method."""
        return self.value - self.base - float(self.atoms.sum()) - self.descriptors

    @property
    def predicted(self) -> float:
        """As ``predict`` gives it, the forest counted in: a value, or the probability of a class."""
        is_class = self.task.kind == "classification"
        said = 1 / (1 + float(np.exp(-self.value))) if is_class else self.value
        return said if self.forest is None else self.trust * said + (1 - self.trust) * self.forest


def explain(
    model: PropertyModel,
    smiles: str,
    *,
    tasks: Sequence[str] | None = None,
    method: Method = "gradients",
    randomised: int | None = None,
    seed: int = 0,
) -> list[Explanation]:
    """What each atom adds to the predictions of a molecule, for each of its properties.

    Args:
        model: Trained.
        smiles: The molecule; its atoms keep their order.
        tasks: Names of the properties; all by default.
        method: See the module.
        randomised: Ways of writing the molecule to average over, the canonical one first; by default those
            that predictions are averaged over. The more, the less two atoms that are alike differ.
        seed: Of the other ways.

    Raises:
        UsageError: On an unknown method or property, fewer ways than one, a model that reads other tokens
            than those of SMILES, or networks without hidden attention.
        DataError: If RDKit can't read the molecule, with its reason, or it is a reaction.
    """
    chosen = chosen_tasks(model, tasks)
    check_method(model, method, randomised)
    mol, reason = structure(smiles)
    if mol is None:
        raise DataError(f"{shown(smiles)}: {reason}")
    if is_reaction(smiles):
        raise DataError(f"{shown(smiles)}: it is a reaction; explain its molecules one by one")
    config = model.config.model
    ways = (randomised or config.test_smiles) if config.sequence else 1
    inputs = MoleculeInputs([smiles], config, ways=ways, seed=seed)
    inputs.tokenizer = model.tokenizer
    given = Explained(model.eval(), inputs)
    names = descriptor_names() if config.reads_descriptors else []
    forest = None if model.forest is None else model.forest.predict(inputs.table)[0]
    found = []
    for i in chosen:
        task = model.config.tasks[i]
        value, base, atoms, descriptors = _parts(given, i, method)
        each = dict(zip(names, descriptors.tolist(), strict=True)) if len(descriptors) == len(names) else {}
        found.append(
            Explanation(
                smiles=smiles,
                mol=mol,
                task=task,
                unit="logit" if task.kind == "classification" else task.unit,
                method=method,
                value=value,
                base=base,
                atoms=atoms,
                descriptors=float(descriptors.sum()),
                by_descriptor=each,
                n_written=ways,
                cut=bool(inputs.cut),
                trust=1.0 if model.forest is None else float(model.forest.trust[i]),
                forest=None if forest is None else float(forest[i]),
            )
        )
    return found


def chosen_tasks(model: PropertyModel, tasks: Sequence[str] | None) -> list[int]:
    """Places of properties by their names; of all by default.

    Raises:
        UsageError: If the model has no such property, or the same is asked for twice.
    """
    names = [task.name for task in model.config.tasks]
    if tasks is None:
        return list(range(len(names)))
    for name in tasks:
        if name not in names:
            raise UsageError(f"task: the model does not predict {name!r}; it predicts {', '.join(names)}")
    if len(set(tasks)) < len(tasks):
        raise UsageError(f"task: expected each at most once, got {', '.join(tasks)}")
    return [names.index(name) for name in tasks]


def check_method(model: PropertyModel, method: str, randomised: int | None) -> None:
    """Refuse what can't explain this model.

    Raises:
        UsageError: As ``explain``.
    """
    sequence = model.config.model.sequence
    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if randomised is not None and randomised < 1:
        raise UsageError(f"randomised: expected at least 1, got {randomised}")
    if method == "hidden-attention" and not sequence:
        raise UsageError(
            "method: this model reads no SMILES and has no hidden attention; gradients and leave-one-out "
            "explain any"
        )
    if sequence and type(model.tokenizer) is not SmilesTokenizer:
        raise UsageError(
            f"model: it reads {model.tokenizer.kind} tokens, whose atoms are not known; explained are models "
            "of SMILES"
        )


def _parts(
    given: Explained, task: int, method: Method
) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
    """Prediction, base, parts of the atoms, and of each descriptor (leave-one-out: of all together)."""

    def predicted(rows: Tensor) -> Tensor:
        return given.predicted(rows, task)

    with torch.no_grad():
        value, base = (float(predicted(one)) for one in (given.row, given.baseline))
    if method == "leave-one-out":
        with torch.no_grad():
            falls = value - torch.cat([predicted(rows).double() for rows in given.left_out()]).cpu().numpy()
        return value, base, falls[:-1], falls[-1:]
    if method == "gradients":
        scores = complete_integrated_gradients(
            predicted,
            given.row,
            given.baseline,
            steps=_STEPS,
            most_steps=_MOST_STEPS,
            enough=_ENOUGH * given.model.config.deviation[task],
            rows_per_call=given.rows_per_call,
        ).scores
    else:
        row = given.row.clone().requires_grad_()
        try:
            with given.held():
                (gradient,) = torch.autograd.grad(given.predicted(row, task, one_by_one=True).sum(), row)
        except ValueError as error:
            raise UsageError(
                f"method: hidden-attention cannot take this network apart ({error}); gradients and "
                "leave-one-out explain any"
            ) from None
        scores = gradient * (given.row - given.baseline)
    return value, base, *given.by_atom(scores)
