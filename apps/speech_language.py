"""Language models of what is said: `mambakit speech train --task language` and `evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from mambakit.apps.shared import train_config
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.language.config import PRESET_TEXT_MODEL, PRESET_TEXT_TRAIN, TextModelConfig


def train_language(
    *,
    data: str = "spoken-digits",
    task: Literal["language"] = "language",
    output: Path = Path("runs/language"),
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: TextModelConfig = PRESET_TEXT_MODEL,
    train: TrainConfig = PRESET_TEXT_TRAIN,
    json: bool = False,
) -> None:
    """Trains a language model of characters, which a recogniser's beam can weigh beside the sound.

    Args:
        data: A .txt file with a sentence a line; or a card's name or a manifest, whose transcripts are taken.
        task: What to learn.
        output: Folder for the run and the model; a killed run continues in it.
        seed: Of the split, of weights and shuffling.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit speech train --task language --data sentences.txt --output runs/language
        mambakit speech transcribe --model runs/asr --input x.wav --decode.beam 16 --decode.lm runs/language
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.language import training
    from mambakit.domains.speech.language.data import read_texts
    from mambakit.domains.speech.saved import DataSpec, save_spec

    config = train_config(train, seed, device, max_time)
    spec = DataSpec(task, data, seed=config.seed)
    texts = read_texts(spec)
    run = RunFolder(output, overwrite=overwrite)
    settings = dataclasses.asdict(spec.resolved())
    run.start({**settings, "model": model, "train": config}, seed=config.seed)
    made, result = training.train_text_model(texts, run, model_config=model, train_config=config)
    run.save(made)
    save_spec(run.path, spec)
    rows = training.perplexities(made, texts.train, texts.test) if texts.test else []
    if rows:
        run.measured(made, rows, data=data, ours={"model": "mambakit"})
    training.write_report(run, texts.name, result, rows)
    if json:
        print_json({**settings, "validation_loss": result.best_score, "results": rows, "model": run.path})
        return
    if rows:
        print(f"{texts.name}, {texts.split} split: perplexity of a character")
        print(format_table(rows, training.COLUMNS))
    print(f"model: {run.path}\nreport: {run.report_path}")


def evaluate_language(*, model: Path, data: Path | None = None, json: bool = False) -> None:
    """Measures a saved language model: perplexity of a character, beside n-grams of the training texts.

    Args:
        model: Folder of the saved model.
        data: A .txt file, all of which is measured; by default the test part of the training's data.
        json: Print JSON for machines.

    Examples:
        mambakit speech evaluate --model runs/language --data other.txt
    """
    from mambakit.domains.speech.language import training
    from mambakit.domains.speech.language.data import read_lines, read_texts
    from mambakit.domains.speech.language.model import TextModel
    from mambakit.domains.speech.saved import load_spec

    made = TextModel.from_pretrained(model).eval()
    texts = read_texts(load_spec(model))
    test = texts.test if data is None else read_lines(data)
    if not test:
        raise DataError(f"{data or texts.name}: there is no text to measure")
    rows = training.perplexities(made, texts.train, test)
    if json:
        print_json({"data": data or texts.name, "results": rows})
    else:
        print(f"{data or texts.name}: perplexity of a character")
        print(format_table(rows, training.COLUMNS))
