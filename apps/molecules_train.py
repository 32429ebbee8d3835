"""Property models: what `mambakit molecules train`, `predict` and `evaluate` do."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.shared import check_suffix, tell, train_config, write_table
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.molecules.config import (
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_TRAIN,
    LossConfig,
    ModelConfig,
    Notation,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mambakit.domains.molecules.evaluation import Evaluation
    from mambakit.domains.molecules.model import PropertyModel
    from mambakit.domains.molecules.molecules import Molecules

SplitKind = Literal["random", "scaffold", "deepchem-scaffold", "column", "ibm-split"]
PartKind = Literal["test", "validation", "train", "all"]


def train(
    *,
    data: str = "nci",
    output: Path = Path("runs/molecules"),
    split: SplitKind | None = None,
    split_column: str | None = None,
    smiles_column: list[str] | None = None,
    tasks: list[str] | None = None,
    units: list[str] | None = None,
    kinds: list[str] | None = None,
    largest_component: bool = False,
    tokenizer: Notation | None = None,
    pretrained: Path | None = None,
    alpha: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: ModelConfig = PRESET_MODEL,
    loss: LossConfig = PRESET_LOSS,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a model of properties and measures it beside a random forest.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model. The
    training molecules and their labels lie in it too: whoever gets the folder gets them.

    Args:
        data: A card's name (`mambakit data list`), or a CSV, Parquet, SMILES or SD file with labels.
        output: Folder for the run and the model; a killed run continues in it.
        split: random, scaffold, deepchem-scaffold, column, or ibm-split, which some cards have; scaffold by
            default, or column where a split column is named.
        split_column: With column, the one that says train, validation or test.
        smiles_column: The column of structures; found by its usual names where not given. Several, such as a
            solute's and its solvent's, are read one after the other.
        tasks: Columns of labels; by default a card's main one, of files all that hold numbers.
        units: Of tasks of a file, for printing: TASK=UNIT each.
        kinds: Of tasks of a file: TASK=regression or TASK=classification each; by default, labels of 0 and 1
            alone are classes, any others numbers.
        largest_component: Keep only the largest component of salts and mixtures.
        tokenizer: How structures are read: smiles, selfies, or graph, which is one token an atom. By default
            as the pretrained language model does, or smiles.
        pretrained: Folder of a language model (mambakit molecules pretrain) to begin with.
        alpha: Intervals and sets may miss so many labels.
        seed: Of the split, of weights, shuffling and dropout.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        loss: What training minimises, and what is done to the molecules.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit molecules train --data esol --output runs/esol
        mambakit molecules train --data my.csv --tasks logS logD --units "logS=log mol/L" --output runs/mine
        mambakit molecules train --data bbbp --split ibm-split --model.members 5 --model.features descriptors
        mambakit molecules train --data esol --pretrained runs/lm --output runs/esol-lm
        mambakit molecules train --data esol --tokenizer graph --model.order canonical --output runs/graph
        mambakit molecules train --data my.csv --smiles-column solute solvent --output runs/solubility
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.molecules import data as sources
    from mambakit.domains.molecules import report
    from mambakit.domains.molecules.evaluation import OURS
    from mambakit.domains.molecules.notations import notation_of
    from mambakit.domains.molecules.pretrained import load_language_model
    from mambakit.domains.molecules.training import train_properties, usable

    check_alpha(alpha)
    if pretrained is not None:
        check_pretrained(model)
    language = None if pretrained is None else load_language_model(pretrained)
    notation = notation_of(tokenizer, language)
    spec = sources.DataSpec(
        data, split, split_column, smiles_column, tasks, units, kinds, largest_component, seed,
        tokenizer=notation if model.sequence else None,
    )  # fmt: skip
    molecules, parts = sources.load(spec)
    say([*sources.counted(molecules), *molecules.notes])
    molecules, without = usable(molecules, parts)
    left_out = [f"{molecules.name}: left out as a property: {one}" for one in without]
    leak = sources.leak_sentence(molecules, parts)
    say([*left_out, leak])
    config = train_config(train, seed, device, max_time)
    run = RunFolder(output, overwrite=overwrite)
    run.start(
        {**dataclasses.asdict(spec), "data": sources.resolved(data), "split": parts.name}
        | {"content": sources.content(molecules, parts), "pretrained": pretrained}
        | {"model": model, "loss": loss, "train": config},
        seed=config.seed,
    )
    trained, result = train_properties(
        molecules,
        parts,
        run,
        model_config=model,
        loss_config=loss,
        train_config=config,
        pretrained=pretrained,
        tokenizer=notation,
    )
    run.save(trained)
    sources.save(run.path, spec, molecules, parts)
    asked = sorted([*parts.validation.tolist(), *parts.test.tolist()])
    notes = [*molecules.notes, *left_out, *say_unseen(trained, molecules, asked)]
    evaluation = None
    if len(parts.test):
        evaluation = measure(trained, run.path, molecules, parts.test, device, alpha)
        run.measured(trained, evaluation.rows, data=molecules.name, ours={"model": OURS})
        notes += evaluation.notes
    report.write(run, trained, molecules, parts, result, evaluation, leak, notes)
    if json:
        print_json(
            {"data": data, "split": parts.name, "validation_loss": result.best_score, "model": run.path}
            | ({} if evaluation is None else {"results": evaluation.rows, "leaks": leak})
            | {"notes": notes}
        )
        return
    if evaluation is None:
        print("there is no test part: nothing was measured")
    else:
        show(evaluation, f"{molecules.name}, {parts.name} split: {len(parts.test)} test molecules")
    print(f"model: {run.path}\nreport: {run.report_path}")


def predict(
    *,
    model: Path,
    input: Path,
    output: Path | None = None,
    smiles_column: list[str] | None = None,
    alpha: float = 0.1,
    embeddings: Path | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Predicts the properties of molecules; every row of the input comes back, in its order.

    Rows that RDKit can't read have its reason in the column error. An interval (or set of classes) holds the
    label with the probability asked for, for molecules like those of validation, which also chose when
    training stopped: a little less often, therefore. Where nearest_train_similarity is low, there is no such
    promise.

    Args:
        model: Folder of the saved model.
        input: CSV, Parquet, SMILES or SD file.
        output: CSV or Parquet; standard output by default.
        smiles_column: The column of structures; found by its usual names where not given. Where the model
            reads several, these by default.
        alpha: Intervals and sets may miss so many labels.
        embeddings: Parquet or CSV file for the vectors that the predictions are read from, with their rows.
        num_workers: Processes that compute descriptors; by default one, or one a core from a thousand
            molecules on.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit molecules predict --model runs/esol --input my.csv --output predicted.csv
        mambakit molecules predict --model runs/esol --input my.sdf --embeddings vectors.parquet --json
    """
    from mambakit.domains.molecules.files import read_source
    from mambakit.domains.molecules.tables import ERROR, predicted_table
    from mambakit.domains.molecules.unseen import unseen_sentence

    check_alpha(alpha)
    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("embeddings", embeddings, (".csv", ".parquet"))
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"num_workers: expected at least 0, got {num_workers}")
    trained = load_model(model, device)
    source = read_source(input, smiles_column or trained.config.components)
    made = predicted_table(
        trained,
        source,
        alpha=alpha,
        embed=embeddings is not None,
        n_jobs=None if num_workers is None else max(1, num_workers),
    )
    if output is not None:
        write_table(made.table, output)
    if embeddings is not None:
        write_table(made.embeddings, embeddings)
    n = len(made.table)
    said = f"{n - made.bad} of {n} rows predicted"
    if made.bad:
        first = int((made.table[ERROR] != "").to_numpy().argmax())
        reason = made.table[ERROR].iloc[first]
        said += f", {made.bad} have an error (the first, row {source.rows[first]}: {reason})"
        if made.bad == n:
            raise DataError(f"{input}: {said}")
    print(said + (f": {output}" if output else ""), file=sys.stderr)
    if made.cut:
        rows = ", ".join(map(str, made.cut[:5])) + (", ..." if len(made.cut) > 5 else "")
        print(
            f"note: {len(made.cut)} molecules are longer than the model reads: rows {rows}", file=sys.stderr
        )
    if made.unseen:
        tell([unseen_sentence(made.unseen)])
    if made.replaced:
        print(f"note: columns of the input that were replaced: {', '.join(made.replaced)}", file=sys.stderr)
    if json:
        print_json({"rows": n, "errors": made.bad, "predictions": made.table.to_dict(orient="records")})
    elif output is None:
        print(made.table.to_csv(index=False), end="")


def evaluate(
    *,
    model: Path,
    data: str | None = None,
    part: PartKind | None = None,
    smiles_column: list[str] | None = None,
    alpha: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved model on labelled molecules, beside a random forest and the training mean.

    On the data of the training the test part of then is measured, which the model's folder names. The
    forest is fitted anew on the training molecules that lie in the model's folder.

    Args:
        model: Folder of the saved model.
        data: A card's name or a file with the same columns of labels; the training's by default.
        part: test, validation, train or all; of other data than the training's, all.
        smiles_column: The column of structures (or several), of other data.
        alpha: Intervals and sets may miss so many labels.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit molecules evaluate --model runs/esol --json
        mambakit molecules evaluate --model runs/esol --data later.csv
    """
    from mambakit.domains.molecules import data as sources

    check_alpha(alpha)
    trained = load_model(model, device)
    molecules, places, which = sources.to_evaluate(model, trained.config.tasks, data, part, smiles_column)
    say([*sources.counted(molecules), *molecules.notes])
    unseen = say_unseen(trained, molecules, places.tolist())
    evaluation = measure(trained, model, molecules, places, device, alpha)
    if json:
        print_json(
            {"data": data or molecules.name, "part": which, "n": len(places), "results": evaluation.rows}
            | {"known_from_training": evaluation.n_known}
            | {"notes": [*molecules.notes, *unseen, *evaluation.notes]}
        )
    else:
        show(evaluation, f"{molecules.name}, {which}: {len(places)} molecules")


def check_alpha(alpha: float) -> None:
    """Raise a UsageError unless it is a share."""
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: expected a share inside (0, 1), got {alpha}")


def check_pretrained(model: ModelConfig) -> None:
    """Raise a UsageError on options that a language model leaves without effect."""
    if not model.sequence:
        raise UsageError("pretrained: with --model.sequence false no SMILES is read, so it has no effect")
    fixed = ("d_model", "blocks", "n_layers", "d_state", "head_dim")
    given = [f"--model.{name}" for name in fixed if getattr(model, name) != getattr(PRESET_MODEL, name)]
    if given:
        raise UsageError(f"{', '.join(given)}: the stack is the language model's with --pretrained")


def say(lines: Iterable[str]) -> None:
    """Lines on stderr, without empty ones."""
    for line in lines:
        if line:
            print(line, file=sys.stderr)


def say_unseen(model: PropertyModel, molecules: Molecules, places: Sequence[int]) -> list[str]:
    """A note of tokens that the model doesn't know, if there are any: told, and returned."""
    from mambakit.domains.molecules.prediction import unseen_tokens
    from mambakit.domains.molecules.unseen import unseen_sentence

    asked = list(places)
    rows: list[int] = molecules.rows[asked].tolist()
    unseen = unseen_tokens(model, molecules.smiles[asked].tolist(), rows)
    notes = [f"{molecules.name}: {unseen_sentence(unseen)}"] if unseen else []
    say(notes)
    return notes


def load_model(folder: Path, device: str) -> PropertyModel:
    """A saved model on a device."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.molecules.model import PropertyModel

    return PropertyModel.from_pretrained(folder).to(resolve_device(device)).eval()


def measure(
    model: PropertyModel,
    folder: Path,
    molecules: Molecules,
    places: NDArray[np.int64],
    device: str,
    alpha: float,
) -> Evaluation:
    """A model beside the baselines of its training molecules, which lie in its folder."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.molecules.beside import baselines
    from mambakit.domains.molecules.data import training_molecules
    from mambakit.domains.molecules.evaluation import evaluate as measured

    smiles, labels = training_molecules(folder, molecules.tasks)
    beside = baselines(smiles, labels, molecules.tasks, molecules.smiles[places].tolist())
    return measured(model.to(resolve_device(device)), molecules, places, beside, alpha=alpha)


def show(evaluation: Evaluation, title: str) -> None:
    """The tables on stdout, and what is worth knowing about them."""
    from mambakit.domains.molecules.report import COLUMNS

    print(title)
    for kind, columns in COLUMNS.items():
        rows = evaluation.table(kind)
        if rows:
            print(format_table([{name: row.get(name) for name in columns} for row in rows], columns))
    tell(evaluation.notes)
    if evaluation.n_known:
        print(
            f"note: {evaluation.n_known} of these molecules have just the fragments of a training molecule",
            file=sys.stderr,
        )
