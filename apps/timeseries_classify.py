"""Classification of labelled series: what `mambakit timeseries classify` and `train --task classify` do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mambakit.apps.shared import check_suffix, train_config, write_table
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.timeseries.classification.config import (
    PRESET_AUGMENT,
    PRESET_CLASSIFIER,
    PRESET_CLASSIFIER_TRAIN,
    PRESET_SELECTION,
    AugmentConfig,
    ClassifierModelConfig,
    SelectionConfig,
)

_COLUMNS = (
    *("classifier", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error"),
    *("coverage", "set_size"),
)


def classify(
    *,
    model: Path,
    input: str,
    output: Path | None = None,
    alpha: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Names the class of each series in a file, with probabilities and the classes that can't be ruled out.

    Args:
        model: Folder of a saved classifier; nothing else is needed.
        input: A .ts file, or CSV or Parquet (a long table unique_id, ds, and a column for each channel), or a
            card's name for its test series. Labels in it are not read.
        output: CSV or Parquet with unique_id, label, probability, a column p_CLASS for each class, and set;
            standard output by default.
        alpha: The sets may miss the right class so often.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries classify --model runs/vowels --input JapaneseVowels_TEST.ts --output classes.csv
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.classification import network as classification
    from mambakit.domains.timeseries.tables.labelled import load_labelled

    _check_alpha(alpha)
    check_suffix("output", output, (".csv", ".parquet"))
    classifier = classification.SeriesClassifier.from_pretrained(model, map_location=resolve_device(device))
    data = load_labelled(input, "test")
    frame = classification.classify(classifier, data.series, alpha=alpha, channels=data.channels)
    if json:
        print_json(frame.to_dict(orient="records"))
    if output is not None:
        write_table(frame, output)
        print(f"{len(frame)} series: {output}", file=sys.stderr)
    elif not json:
        print(frame.to_csv(index=False), end="")


def train_classify(
    *,
    data: str = "JapaneseVowels",
    test: str | None = None,
    output: Path = Path("runs/classifier"),
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: ClassifierModelConfig = PRESET_CLASSIFIER,
    augment: AugmentConfig = PRESET_AUGMENT,
    selection: SelectionConfig = PRESET_SELECTION,
    train: TrainConfig = PRESET_CLASSIFIER_TRAIN,
    json: bool = False,
) -> None:
    """Trains a classifier of series and measures it beside the nearest neighbour and the commonest class.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model.

    Args:
        data: A card's name for its training series; or a .ts file, or CSV or Parquet (a long table unique_id,
            ds, a column for each channel, label).
        test: A file of series to measure on, once; a card has its own. Without one, what is reported is
            measured on training series that were held out.
        output: Folder for the run and the model; a killed run continues in it.
        seed: Seed of folds, weights, shuffling and augmentation.
        device: auto, cpu, cuda or mps.
        max_time: Stop each of the two trainings after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        augment: What is done to the training series.
        selection: How epochs are chosen.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries train --task classify --data JapaneseVowels --output runs/vowels
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries.classification import report as classification_report
    from mambakit.domains.timeseries.classification.evaluation import (
        OURS,
        check_same_channels,
        evaluate_classifier,
    )
    from mambakit.domains.timeseries.classification.training import train_classifier
    from mambakit.domains.timeseries.tables.labelled import load_labelled, require_labels

    config = train_config(train, seed, device, max_time)
    known = load_labelled(data, "train")
    is_card = not Path(data).exists() and not Path(data).suffix
    asked = load_labelled(test or data, "test") if test or is_card else None
    if asked is not None:
        check_same_channels(known, asked)
        require_labels(asked, known.classes)  # before minutes of training, not after them
    run = RunFolder(output, overwrite=overwrite)
    settings: dict[str, Any] = {"task": "classify", "data": data, "test": test}
    options = {"model": model, "augment": augment, "selection": selection, "train": config}
    run.start({**settings, **options}, seed=config.seed)
    classifier, result = train_classifier(
        known,
        run,
        **{f"{name}_config": value for name, value in options.items()},  # type: ignore[arg-type]
    )
    run.save(classifier, of_result=not selection.refit)
    evaluation = None
    if asked is not None:
        evaluation = evaluate_classifier(classifier, asked, train=known, alpha=selection.alpha)
        run.measured(classifier, evaluation.rows, data=asked.name, ours={"classifier": OURS})
    classification_report.write(run, classifier, known, result, evaluation)
    if json:
        rows = evaluation.rows if evaluation is not None else []
        print_json({**settings, "results": rows, "held_out": result, "model": output})
        return
    print(
        f"{known.name}: {result.validation_accuracy:.4f} of {result.n_held_out} held-out series right "
        f"(members apart), {result.epochs} epochs chosen"
    )
    if evaluation is not None and asked is not None:
        print(f"{asked.name}: {evaluation.n_series} series")
        print(format_table(evaluation.rows, [name for name in _COLUMNS if name in evaluation.rows[0]]))
    print(f"model: {output}\nreport: {run.report_path}")


def evaluate_classify(
    *,
    model: Path,
    data: str,
    train: str | None = None,
    alpha: float = 0.1,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved classifier on labelled series, beside the baselines if the training series are known.

    Args:
        model: Folder of the saved classifier.
        data: A card's name for its test series, or a file of labelled series.
        train: The file that it was trained on, for the baselines; a card has its own.
        alpha: The sets miss the right class so often.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit timeseries evaluate --model runs/vowels --data JapaneseVowels
    """
    from mambakit.core.training import resolve_device
    from mambakit.domains.timeseries.classification.evaluation import check_same_channels, evaluate_classifier
    from mambakit.domains.timeseries.classification.network import SeriesClassifier
    from mambakit.domains.timeseries.tables.labelled import load_labelled

    _check_alpha(alpha)
    classifier = SeriesClassifier.from_pretrained(model, map_location=resolve_device(device))
    asked = load_labelled(data, "test")
    is_card = not Path(data).exists() and not Path(data).suffix
    known = load_labelled(train or data, "train") if train or is_card else None
    if known is not None:
        check_same_channels(known, asked)
    evaluation = evaluate_classifier(classifier, asked, train=known, alpha=alpha)
    if json:
        print_json({"data": data, "n_series": evaluation.n_series, "results": evaluation.rows})
    else:
        print(f"{asked.name}: {evaluation.n_series} series")
        print(format_table(evaluation.rows, [name for name in _COLUMNS if name in evaluation.rows[0]]))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise UsageError(f"alpha: expected a share inside (0, 1), got {alpha}")
