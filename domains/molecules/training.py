"""From molecules and a split to a trained and calibrated property model."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.molecules.calibrating import calibrate
from mambakit.domains.molecules.components import commonest_form
from mambakit.domains.molecules.config import LossConfig, ModelConfig, Notation, PropertyConfig
from mambakit.domains.molecules.inputs import WAYS, MoleculeInputs
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Split
from mambakit.domains.molecules.neighbours import TrainingSet
from mambakit.domains.molecules.notations import (
    PropertyTokenizer,
    fit_notation,
    notation_of,
    vocabulary,
)
from mambakit.domains.molecules.prediction import inputs_of
from mambakit.domains.molecules.pretrained import begin, both_ways, load_language_model
from mambakit.domains.molecules.tokenizer import SmilesTokenizer
from mambakit.domains.molecules.trees import Trees

_VALIDATION_BATCH = 128


def train_properties(
    molecules: Molecules,
    split: Split,
    run: RunFolder,
    *,
    model_config: ModelConfig,
    loss_config: LossConfig,
    train_config: TrainConfig,
    pretrained: Path | None = None,
    tokenizer: Notation | None = None,
) -> tuple[PropertyModel, FitResult]:
    """Trains on the training molecules; validation chooses the weights and calibrates.

    Args:
        molecules: All of them; ``usable`` has left out tasks that can't be learned.
        split: Which are learned from, and which choose.
        run: Where the run is kept; one that was killed goes on.
        model_config, loss_config, train_config: What to train and how.
        pretrained: Folder of a language model that the sequence part begins with.
        tokenizer: How structures are read; None for SMILES, or as the language model does.

    Returns:
        The model in evaluation mode on the CPU, with its calibration, and how the training went.

    Raises:
        DataError: If there is nothing to learn from or to choose by.
        UsageError: If the language model reads structures otherwise.
        UserError: If training fails, or the run folder holds another run.
    """
    from mambakit.domains.molecules.task import MemberBatches, PropertyTask

    check_parts(molecules, split)
    language = load_language_model(pretrained) if pretrained is not None else None
    notation = notation_of(tokenizer, language)
    places = np.concatenate([split.train, split.validation])
    n_train = len(split.train)
    form = commonest_form(molecules.smiles[places].tolist())
    inputs = MoleculeInputs(
        molecules.smiles[places].tolist(),
        model_config,
        ways=WAYS if model_config.sequence else 1,
        seed=train_config.seed,
        form=form,
        n_jobs=train_config.num_workers or 1,
    )
    inputs.tokenizer = _tokenizer(notation, inputs, n_train, language)
    labels = molecules.labels[places]
    mean, deviation = label_scales(molecules, labels[:n_train])
    config = PropertyConfig(
        tasks=list(molecules.tasks),
        mean=mean.tolist(),
        deviation=deviation.tolist(),
        n_ids=inputs.tokenizer.n_ids,
        backbone=both_ways(language, model_config.dropout) if language else model_config.backbone(),
        n_descriptors=inputs.descriptors.shape[1],
        n_ecfp=inputs.ecfp.shape[1],
        trained_on=molecules.name,
        n_trained=n_train,
        largest_component=molecules.largest,
        model=model_config,
        tokenizer=notation,
        form=form,
        components=list(molecules.components),
    )
    seed_everything(train_config.seed)
    model = PropertyModel(config)
    model.tokenizer = inputs.tokenizer
    model.trained = TrainingSet.of(inputs.fragments[:n_train])
    if config.n_descriptors:
        model.scaler.fit(torch.from_numpy(inputs.descriptors[:n_train]))
    if language is not None and model_config.sequence:
        for member in model.members:
            begin(member, language, cast(SmilesTokenizer, inputs.tokenizer))
    scaled = torch.from_numpy((labels - mean) / deviation)
    lengths = [len(inputs.ids(place)) if model_config.sequence else 1 for place in range(n_train)]
    validation = torch.arange(n_train, len(places))
    result = fit(
        PropertyTask(
            model,
            inputs,
            scaled,
            train_config,
            loss_config,
            pretrained=language is not None and model_config.sequence,
        ),
        MemberBatches(lengths, model_config.members, train_config.batch_size).loader(),
        DataLoader(validation, _VALIDATION_BATCH),  # type: ignore[arg-type]
        train_config,
        run,
    )
    model = model.cpu().eval()
    if config.has_forest:
        model.forest = Trees.grow(
            inputs.table[:n_train],
            labels[:n_train],
            molecules.tasks,
            n_trees=model_config.trees,
            seed=train_config.seed,
        )
    if inputs.cut:
        rows = sorted(int(molecules.rows[places[place]]) for place in inputs.cut)
        print(
            f"note: {len(rows)} molecules have more than {model_config.max_tokens} tokens, and the sequence "
            f"model reads their first ones: rows {', '.join(map(str, rows[:5]))}"
            f"{', ...' if len(rows) > 5 else ''}",
            file=sys.stderr,
        )
    held = inputs_of(model, molecules.smiles[split.validation].tolist(), n_jobs=train_config.num_workers or 1)
    calibrate(model, held, labels[n_train:])
    return model, result


def usable(molecules: Molecules, split: Split) -> tuple[Molecules, list[str]]:
    """The molecules with the tasks that can be learned, and in words why others were left out.

    Raises:
        DataError: If none can.
    """
    said, kept = [], []
    for i, task in enumerate(molecules.tasks):
        labels = molecules.labels[split.train, i]
        known = labels[~np.isnan(labels)]
        if not len(known):
            said.append(f"{task.name} has no label in the training part")
        elif len(np.unique(known)) == 1:
            what = "only one class" if task.kind == "classification" else "the same label everywhere"
            said.append(f"{task.name} has {what} ({known[0]:g}) in the training part")
        else:
            kept.append(i)
    if not kept:
        nothing = "; ".join(said) or "no column of labels was found" + _why_none(molecules)
        raise DataError(f"{molecules.name}: there is nothing to learn: {nothing}")
    if len(kept) == len(molecules.tasks):
        return molecules, said
    tasks = tuple(molecules.tasks[i] for i in kept)
    return dataclasses.replace(molecules, tasks=tasks, labels=molecules.labels[:, kept]), said


def _why_none(molecules: Molecules) -> str:
    """What was seen in columns that were not taken for labels, where no column was."""
    seen = [note.removeprefix(f"{molecules.name}: ") for note in molecules.notes]
    return f" ({'; '.join(seen)})" if seen else ""


def check_parts(molecules: Molecules, split: Split) -> None:
    """Raise a DataError unless there are labels to learn from and to choose by."""
    for name, part in (("training", split.train), ("validation", split.validation)):
        if not len(part) or np.isnan(molecules.labels[part]).all():
            raise DataError(
                f"{molecules.name}: there is no label in the {name} part of the {split.name} split; "
                "use more molecules or another split"
            )


def label_scales(
    molecules: Molecules, labels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each task's training labels, ``(n_tasks,)``; 0 and 1 of classes."""
    number = np.array([task.kind == "regression" for task in molecules.tasks])
    mean, deviation = np.nanmean(labels, axis=0), np.nanstd(labels, axis=0)
    return np.where(number, mean, 0.0), np.where(number & (deviation > 0), deviation, 1.0)


def _tokenizer(
    notation: Notation, inputs: MoleculeInputs, n_train: int, language: MoleculeModel | None
) -> PropertyTokenizer:
    if language is None:
        return fit_notation(notation, inputs, n_train)
    extended = copy.deepcopy(language.tokenizer)  # the language model's own stays as long as its table
    if new := extended.extend(vocabulary(inputs, n_train, extended)):
        shown = ", ".join(map(str, new[:8])) + (", ..." if len(new) > 8 else "")
        print(f"note: {len(new)} tokens are new to the language model: {shown}", file=sys.stderr)
    return extended
