"""Classification of recordings: what `mambakit speech classify` and `train --task classify` do."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.shared import check_suffix, tell, tell_left_out, train_config, write_table
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.augment import AugmentConfig
from mambakit.domains.speech.classify.config import (
    PRESET_AUGMENT,
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_TRAIN,
    ClassifyLossConfig,
    ClassifyModelConfig,
)
from mambakit.domains.speech.utterances import Protocol

if TYPE_CHECKING:
    from mambakit.domains.speech.classify.metrics import Trade

Baseline = Literal["nearest-mean", "cnn"]
PartKind = Literal["test", "validation"]
_COLUMNS = ("classifier", "accuracy", "macro_f1", "wrong", "n", "parameters")


def train_classify(
    *,
    data: str = "spoken-digits",
    task: Literal["classify"] = "classify",
    output: Path = Path("runs/speech"),
    split: Protocol | None = None,
    test_speaker: str | None = None,
    validation_speaker: str | None = None,
    noise: str | None = None,
    baselines: list[Baseline] = ["nearest-mean"],  # noqa: B006  (not changed)
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: ClassifyModelConfig = PRESET_MODEL,
    loss: ClassifyLossConfig = PRESET_LOSS,
    augment: AugmentConfig = PRESET_AUGMENT,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a model of the task that --task names; each task has flags of its own (--task T --help).

    With classify: a classifier of short recordings, such as keywords, measured beside the nearest mean. The
    output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model.

    Args:
        data: A card's name (`mambakit data list`), a manifest (CSV or JSON lines: path, label, speaker,
            start, end), or a folder with a folder of recordings for each label. Of several between commas
            the first is split and measured; the others teach too.
        task: What to learn.
        output: Folder for the run and the model; a killed run continues in it.
        split: official, the parts that the data name; random; or speaker, one of whom is held out for test.
            By default official where there are parts, else random.
        test_speaker: With speaker, who is held out; by default the last by name.
        validation_speaker: With speaker, one who chooses the weights; by default a tenth of the others'
            recordings do.
        noise: A card or folder of noise to mix in; by default the card noise with fsdd, and else only noise
            made by a formula.
        baselines: nearest-mean, and cnn: convolutions of as many parameters, trained the same way.
        seed: Of the split, of weights, shuffling and augmentation.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        loss: What training minimises, and what is hidden of frames.
        augment: What is done to the recordings.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit speech train --data fsdd --task classify --output runs/digits
        mambakit speech train --data fsdd --test-speaker theo --baselines cnn nearest-mean --output runs/theo
        mambakit speech train --data recordings/ --model.front_end.rate_hz 16000 --output runs/mine
    """
    from mambakit.apps.speech_runs import trained
    from mambakit.core.training import resolve_device
    from mambakit.domains.speech.cards import noise_recordings
    from mambakit.domains.speech.classify import report, training
    from mambakit.domains.speech.classify.evaluation import OURS, evaluate
    from mambakit.domains.speech.saved import DataSpec

    config = train_config(train, seed, device, max_time)
    spec = DataSpec(task, data, split, config.seed, test_speaker, validation_speaker)
    utterances, chosen = spec.load()
    parts = training.read_parts(utterances, chosen, model)
    tell(utterances.notes)
    tell_left_out(parts.left_out)
    noise = noise or training.noise_of(data)
    settings = {**dataclasses.asdict(spec.resolved()), "split": chosen.name, "noise": noise}
    noises = noise_recordings(noise, model.front_end.rate_hz)
    train_one = partial(
        trained,
        partial(training.train_classifier, parts, name=utterances.name, noises=noises),
        settings=settings,
        loss=loss,
        augment=augment,
        train=config,
        spec=spec,
        overwrite=overwrite,
    )
    classifier, result, run = train_one(model, output)
    cnn = None
    if "cnn" in baselines:
        cnn, _, _ = train_one(dataclasses.replace(model, network="cnn"), output / "cnn")
    evaluation = None
    if len(parts.test):
        place = resolve_device(device)
        evaluation = evaluate(
            classifier.to(place),
            parts.test,
            train=parts.train if "nearest-mean" in baselines else None,
            cnn=None if cnn is None else cnn.to(place),
        )
        run.measured(classifier, evaluation.rows, data=utterances.name, ours={"classifier": OURS})
    report.write(run, classifier, parts, chosen.name, result, evaluation, utterances.notes)
    if json:
        rows = [] if evaluation is None else evaluation.rows
        print_json(
            {**settings, "validation_loss": result.best_score, "results": rows, "left_out": parts.left_out}
            | {"model": run.path}
        )
        return
    if evaluation is None:
        print("there is no test part: nothing was measured")
    else:
        print(f"{utterances.name}, {chosen.name} split: {len(parts.test)} test recordings")
        _show(evaluation.rows)
    print(f"model: {run.path}\nreport: {run.report_path}")


def classify(
    *,
    model: Path,
    input: Path,
    output: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Names what recordings are: a row a file, in order of name, bad files with the reason.

    Args:
        model: Folder of a saved classifier.
        input: An audio file (wav, flac, ogg, mp3; any rate and number of channels), or a folder of them.
        output: CSV or Parquet with path, label, probability, p_CLASS each, and error; standard output by
            default.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech classify --model runs/digits --input recordings/ --output labels.csv
        mambakit speech classify --model runs/digits --input seven.wav --json
    """
    from mambakit.domains.speech.classify.model import Classifier
    from mambakit.domains.speech.classify.prediction import classify_files
    from mambakit.domains.speech.saved import load_model
    from mambakit.domains.speech.utterances import audio_files

    check_suffix("output", output, (".csv", ".parquet"))
    classifier = load_model(Classifier, "classify", model, device)
    table = classify_files(classifier, audio_files(input))
    bad = table[table["error"] != ""]
    said = f"{len(table) - len(bad)} of {len(table)} files classified"
    if len(bad):
        said += f", {len(bad)} have an error (the first, {bad['path'].iloc[0]}: {bad['error'].iloc[0]})"
    if output is not None:
        write_table(table, output)
    if len(bad) == len(table):
        raise DataError(f"{input}: {said}")
    print(said + (f": {output}" if output else ""), file=sys.stderr)
    if json:
        print_json({"files": len(table), "errors": len(bad), "labels": table.to_dict(orient="records")})
    elif output is None:
        print(table.to_csv(index=False), end="")


def evaluate_classify(
    *,
    model: Path,
    data: str | None = None,
    part: PartKind = "test",
    plot: Path | None = None,
    keyword: str | None = None,
    recording: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved model on the test part of its data, or on other labelled recordings.

    Args:
        model: Folder of the saved model.
        data: A card's name, a manifest or a folder, all of which is measured; by default the data and the
            split of the training.
        part: Of the training's data, test or validation.
        plot: PNG, PDF or SVG with what was taken for what; with a keyword, its misses over false alarms.
        keyword: One of the labels, to be spotted among the others.
        recording: A long recording in which the keyword is not said: false alarms an hour are counted in it.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech evaluate --model runs/digits --plot confusion.png
        mambakit speech evaluate --model runs/digits --keyword 7 --recording meeting.wav --json
    """
    from mambakit.domains.speech.audio import read_audio
    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.classify import plots
    from mambakit.domains.speech.classify.data import read_clips
    from mambakit.domains.speech.classify.evaluation import evaluate, evaluate_keyword
    from mambakit.domains.speech.classify.model import Classifier
    from mambakit.domains.speech.classify.training import read_parts
    from mambakit.domains.speech.saved import load_model, load_spec

    check_suffix("plot", plot, (".png", ".pdf", ".svg"))
    if recording is not None and keyword is None:
        raise UsageError("recording: false alarms are a keyword's; name it with --keyword")
    classifier = load_model(Classifier, "classify", model, device)
    front_end, classes = classifier.config.model.front_end, classifier.config.classes
    if data is None:
        spec = load_spec(model)
        utterances, chosen = spec.load()
        parts = read_parts(utterances, chosen, classifier.config.model)
        clips, train, left_out = getattr(parts, part), parts.train, parts.left_out
        if not len(clips):
            raise DataError(f"{utterances.name}: the {chosen.name} split has no part {part}")
        title = f"{utterances.name}, {chosen.name} split, {part}: {len(clips)} recordings"
    else:
        utterances, train = load_utterances(data, "classify"), None
        unknown = sorted(set(utterances.table["label"]) - set(classes))
        if unknown:
            raise DataError(f"{data}: the label {unknown[0]!r} is none of the model's: {', '.join(classes)}")
        clips, _, left_out = read_clips(utterances, classes, front_end.rate_hz, classifier.least_samples)
        title = f"{utterances.name}: {len(clips)} recordings"
    tell_left_out(left_out)
    measured = evaluate(classifier, clips, train=train)
    spotted = None
    if keyword is not None:
        heard = None if recording is None else read_audio(recording, rate_hz=front_end.rate_hz)
        spotted = evaluate_keyword(measured, keyword, classifier, heard)
    if plot is not None:
        figure = plots.confusion_figure(measured) if spotted is None else plots.keyword_figure(spotted)
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot, dpi=130)
        print(f"picture: {plot}", file=sys.stderr)
    if json:
        said = {"data": utterances.name, "results": measured.rows, "confusion": measured.confusion.tolist()}
        if spotted is not None:
            said |= {"keyword": keyword, "equal_error": spotted.equal_error, "area": spotted.area}
            said |= {"roc": _curve(spotted.trade, "false_alarms"), "long": spotted.per_hour}
            if spotted.hourly is not None:
                said["hourly"] = _curve(spotted.hourly, "false_alarms_per_hour")
        print_json({**said, "left_out": left_out})
        return
    print(title)
    _show(measured.rows)
    if spotted is not None:
        print(
            f"{keyword} among the others: equal error {spotted.equal_error:.2%}, "
            f"area under the curve {spotted.area:.4f}"
        )
    if spotted is not None and spotted.per_hour:
        print(f"false alarms in {spotted.hours:.3f} h of {recording}")
        print(format_table(spotted.per_hour, ["misses", "threshold", "false_alarms_per_hour"]))


def _curve(trade: Trade, name: str) -> dict[str, list[float]]:
    return {
        "thresholds": trade.thresholds.tolist(),
        name: trade.false_alarms.tolist(),
        "misses": trade.misses.tolist(),
    }


def _show(rows: list[dict[str, object]]) -> None:
    print(format_table([{name: row.get(name) for name in _COLUMNS} for row in rows], list(_COLUMNS)))
