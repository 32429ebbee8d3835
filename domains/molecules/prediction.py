"""What a trained model says of molecules: averaged over members and over ways of writing them, calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.calibration import ConformalSets, SplitConformal, TemperatureScaling
from mambakit.core.errors import DataError
from mambakit.domains.molecules.components import form_of, in_words
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import Output, PropertyModel, combined
from mambakit.domains.molecules.structures import canonical, kept_component, shown
from mambakit.domains.molecules.tokenizer import SmilesTokenizer

INTERVAL, TEMPERATURE, SETS = "interval", "temperature-{}", "sets-{}"
ALPHA = 0.1
_TOKENS_AT_ONCE = 16_384
# No molecule's interval is narrower than this share of the labels' deviation times the calibrated factor: one
# molecule with next to no width that is wrong would else widen all the others'.
_LEAST_SCALE = 0.01


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of ``n`` molecules and ``t`` tasks, in the labels' own units; NaN where a task has no such thing.

    Attributes:
        value: Values, or probabilities of 1, ``(n, t)``.
        spread: How far the members differ, their standard deviation, ``(n, t)``: not having seen enough.
        low, high: Interval around a value that holds ``1 - alpha`` of the labels, ``(n, t)``; infinite where
            validation had too few labels.
        sets: Whether the labels 0 and 1 can't be ruled out, ``(n, t, 2)`` bool; of classifications.
        similarity: Tanimoto similarity to the nearest training molecule, ``(n,)``.
        embeddings: The vectors that the outputs are read from, ``(n, d)``, where they were asked for.
        cut: Places of molecules longer than the sequence model reads.
    """

    value: NDArray[np.float64]
    spread: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    sets: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    embeddings: NDArray[np.float64] | None
    cut: tuple[int, ...]


def inputs_of(model: PropertyModel, smiles: list[str], *, seed: int = 0, n_jobs: int = 1) -> MoleculeInputs:
    """Molecules as a trained model reads them; ``n_jobs`` processes compute their descriptors.

    Raises:
        DataError: If one can't be read, or not by this model.
    """
    if model.config.largest_component:
        smiles = [kept_component(one) for one in smiles]
    for place, one in enumerate(smiles):
        if reason := refusal(model, one):
            raise DataError(f"molecule {place + 1}, {shown(one)}: {reason}")
    config = model.config.model
    ways = config.test_smiles if config.sequence else 1
    inputs = MoleculeInputs(smiles, config, ways=ways, seed=seed, form=model.config.form, n_jobs=n_jobs)
    inputs.tokenizer = model.tokenizer
    return inputs


def refusal(model: PropertyModel, smiles: str) -> str:
    """Why a model can't read what RDKit can, in a sentence; ``""`` if it can."""
    config = model.config
    if (form := form_of(smiles)) != config.form:
        return f"it is {in_words(form)}, where the model reads {in_words(config.form, config.components)}"
    return model.tokenizer.refusal(smiles) if config.model.sequence else ""


def unseen_tokens(model: PropertyModel, smiles: list[str], rows: list[int]) -> dict[str, list[int]]:
    """Tokens of canonical SMILES that the model doesn't know, and the rows of each; none if it reads none."""
    if not model.config.model.sequence or not isinstance(model.tokenizer, SmilesTokenizer):
        return {}
    if model.config.largest_component:
        smiles = [kept_component(one) for one in smiles]
    return model.tokenizer.unseen([canonical(one) for one in smiles], rows)


def predict(
    model: PropertyModel, inputs: MoleculeInputs, *, alpha: float = ALPHA, embed: bool = False
) -> Predictions:
    """Predicts every property of molecules.

    Args:
        model: Trained.
        inputs: The molecules, with the model's tokenizer.
        alpha: The share of labels that may lie outside the intervals and sets.
        embed: With the embeddings.
    """
    output, embeddings = outputs_of(model, inputs, embed=embed)
    value, spread = in_units(model, output)
    n, n_tasks = value.shape
    low, high = np.full((n, n_tasks), np.nan), np.full((n, n_tasks), np.nan)
    numbers, classes = tasks_by_kind(model)
    conformal: SplitConformal | None = model.calibrators.get(INTERVAL)
    if numbers and conformal is not None and n:
        middle = torch.from_numpy(value[:, numbers])
        below, above = conformal.interval(middle, alpha, scale=scale_of(model, output, numbers))
        low[:, numbers], high[:, numbers] = below.numpy(), above.numpy()
    sets = np.ones((n, n_tasks, 2), dtype=bool)
    for task in classes:
        made: ConformalSets | None = model.calibrators.get(SETS.format(task))
        p = torch.from_numpy(value[:, task])
        if made is not None and n:
            both = torch.stack([1 - p, p], -1)
            # the likelier label is always in: a model that is right more often would else say nothing at all
            inside = made.sets(both, alpha) | (both == both.amax(-1, keepdim=True))
            sets[:, task] = inside.numpy()
    return Predictions(
        value=value,
        spread=spread,
        low=low,
        high=high,
        sets=sets,
        similarity=model.trained.similarity(inputs.fragments),
        embeddings=embeddings,
        cut=tuple(sorted(inputs.cut)),
    )


@torch.no_grad()
def outputs_of(
    model: PropertyModel, inputs: MoleculeInputs, *, embed: bool = False
) -> tuple[Output, NDArray[np.float64] | None]:
    """The members' outputs, averaged over ways of writing, ``(members, n, ...)`` float64 on the CPU.

    Logits are averaged, not probabilities: a way of writing that the model can't read says little then.
    """
    model.eval()
    device = next(model.parameters()).device
    n, n_tasks, members = len(inputs), len(model.config.tasks), len(model.members)
    value = torch.zeros(members, n, n_tasks, dtype=torch.float64)
    quantiles: Tensor | None = None
    embeddings: Tensor | None = None
    for way in range(inputs.ways):
        for places in inputs.batches(way, _TOKENS_AT_ONCE):
            batch = inputs.batch(places.tolist(), [way] * len(places)).to(device)
            read = model.read(batch)
            said = model.outputs(read)
            value[:, places] += said.value.cpu().double() / inputs.ways
            if said.quantiles is not None:
                if quantiles is None:
                    quantiles = torch.zeros(members, n, *said.quantiles.shape[2:], dtype=torch.float64)
                quantiles[:, places] += said.quantiles.cpu().double() / inputs.ways
            if embed:
                vectors = torch.cat(read, -1).cpu().double() / inputs.ways
                if embeddings is None:
                    embeddings = torch.zeros(n, vectors.shape[1], dtype=torch.float64)
                embeddings[places] += vectors
    forest = None if model.forest is None else model.forest.predict(inputs.table)
    return Output(value, quantiles, forest), None if embeddings is None else embeddings.numpy()


def in_units(model: PropertyModel, output: Output) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and calibrated probabilities ``(n, n_tasks)``, the forest's counted in, and members' spread."""
    config = model.config
    is_class = torch.tensor([task.kind == "classification" for task in config.tasks])
    mean, deviation = (torch.tensor(one, dtype=torch.float64) for one in (config.mean, config.deviation))
    temperature = torch.ones(len(config.tasks), dtype=torch.float64)
    for task in range(len(config.tasks)):
        fitted: TemperatureScaling | None = model.calibrators.get(TEMPERATURE.format(task))
        if fitted is not None:
            temperature[task] = fitted.temperature
    one = combined(output, is_class)
    value = torch.where(is_class, (one / temperature).sigmoid(), one * deviation + mean)
    each = torch.where(is_class, (output.value / temperature).sigmoid(), output.value * deviation)
    both = value.numpy()
    if model.forest is not None and output.forest is not None:
        both = model.forest.mixed(both, output.forest)
    return both, each.std(0, correction=0).numpy()


def scale_of(model: PropertyModel, output: Output, numbers: list[int]) -> Tensor | None:
    """What the intervals around values are proportional to, ``(n, len(numbers))``, in units.

    Half the way between the outer quantiles (as the "locally weighted" intervals of Lei et al. 2018,
    arXiv:1604.04173, section 5.2); None where the network has none, and all intervals are equally wide.
    """
    if output.quantiles is None:
        return None
    deviation = torch.tensor(model.config.deviation, dtype=torch.float64)[numbers]
    spread = output.quantiles.mean(0)[:, numbers]
    half = (spread[..., -1] - spread[..., 0]) / 2
    return half.clamp(min=_LEAST_SCALE) * deviation


def tasks_by_kind(model: PropertyModel) -> tuple[list[int], list[int]]:
    """Places of the regressions, and of the classifications."""
    kinds = [task.kind for task in model.config.tasks]
    return (
        [i for i, kind in enumerate(kinds) if kind == "regression"],
        [i for i, kind in enumerate(kinds) if kind == "classification"],
    )
