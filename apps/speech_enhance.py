"""Enhancement: what `mambakit speech enhance`, and `train` and `evaluate` of an enhancement model, do."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mambakit.apps.shared import check_suffix, some, tell, train_config
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.enhance.config import (
    PRESET_ENHANCE,
    PRESET_ENHANCE_LOSS,
    PRESET_ENHANCE_TRAIN,
    PRESET_MIX,
    EnhanceConfig,
    EnhanceLoss,
    MixConfig,
)

if TYPE_CHECKING:
    from mambakit.domains.speech.enhance.evaluation import Evaluation
    from mambakit.domains.speech.enhance.model import Enhancer
    from mambakit.domains.speech.files import Bulk


def train_enhance(
    *,
    data: str = "spoken-sentences",
    task: Literal["enhance"] = "enhance",
    noise: str = "noise",
    output: Path = Path("runs/enhance"),
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: EnhanceConfig = PRESET_ENHANCE,
    mix: MixConfig = PRESET_MIX,
    loss: EnhanceLoss = PRESET_ENHANCE_LOSS,
    train: TrainConfig = PRESET_ENHANCE_TRAIN,
    json: bool = False,
) -> None:
    """Trains a model that removes noise, on mixtures made on the fly, and measures it beside log-MMSE.

    Args:
        data: Clean speech: spoken-sentences (made by espeak-ng), cards, manifests or folders, several between
            commas; or the folder of VoiceBank-DEMAND, with its clean_* and noisy_* folders.
        task: What to learn.
        noise: Recordings of noise: a card, a folder or a file, several between commas; "" for none. Noise
            made by chance comes beside them.
        output: Folder for the run and the model; a killed run continues in it.
        seed: Of weights and mixtures.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        mix: How mixtures are made.
        loss: What training minimises.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit speech train --task enhance --output runs/enhance
        mambakit speech train --task enhance --data my-manifest.jsonl --noise my-noises/ --output runs/enhance
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance import report
    from mambakit.domains.speech.enhance.data import load_noises, load_pools, save_source
    from mambakit.domains.speech.enhance.evaluation import OURS, evaluate
    from mambakit.domains.speech.enhance.training import test_mixtures, train_enhancer

    config = train_config(train, seed, device, max_time)
    pools = load_pools(data, model.rate_hz, seed=config.seed)
    noises = load_noises(noise, model.rate_hz)
    said = (
        f"{data}: {len(pools.train)} utterances to learn from, {len(pools.validation)} that choose, "
        f"{len(pools.test)} for the test; {len(noises)} recordings of noise"
    )
    print(said, file=sys.stderr)
    run = RunFolder(output, overwrite=overwrite)
    run.start(
        {"task": task, "data": data, "noise": noise, "model": model, "mix": mix, "loss": loss}
        | {"train": config},
        seed=config.seed,
    )
    trained, result = train_enhancer(
        pools.train, pools.validation, noises, run,
        model_config=model, mix_config=mix, loss_config=loss, train_config=config, name=data,
    )  # fmt: skip
    run.save(trained)
    save_source(run.path, "enhance", data, config.seed)
    mixtures = test_mixtures(pools.test, noises, mix, mix.test_mixtures)
    named = [(f"mixture-{i + 1}", noisy, clean) for i, (noisy, clean) in enumerate(mixtures)]
    evaluation = evaluate(trained, named)
    run.measured(trained, evaluation.means(), data=data, ours={"model": OURS})
    notes = pools.notes
    if noises:
        notes.append("the recordings of noise are the same in training and test, their cuts are not")
    report.write(run, trained, result, evaluation, named[0], [said, *notes])
    if json:
        print_json(
            {"data": data, "validation_loss": result.best_score, "model": run.path}
            | {"results": evaluation.means(), "notes": [*notes, *evaluation.notes]}
        )
        return
    show(evaluation, f"{data}: {len(named)} test mixtures")
    tell(notes)
    print(f"model: {run.path}\nreport: {run.report_path}")


def evaluate_enhance(
    *,
    model: Path,
    data: str = "voicebank-demand-20",
    contrast: float | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures an enhancement model on pairs of noisy and clean speech, beside log-MMSE.

    Args:
        model: Folder of the saved model.
        data: A card or a manifest with a column clean_path, or a folder of pairs (clean_* and noisy_*).
        contrast: Strength of perceptual contrast stretching; by default what the model was trained with.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.
    """
    from mambakit.domains.speech.enhance.data import load_pairs
    from mambakit.domains.speech.enhance.evaluation import evaluate

    trained = _loaded(model, device, contrast)
    evaluation = evaluate(trained, load_pairs(data, trained.config.rate_hz))
    if json:
        signals = evaluation.table.to_dict(orient="records")
        print_json(
            {"data": data, "results": evaluation.means(), "signals": signals, "notes": evaluation.notes}
        )
    else:
        show(evaluation, f"{data}: {evaluation.table['name'].nunique()} pairs")


def enhance(
    *,
    model: Path,
    input: Path,
    output: Path,
    plot: Path | None = None,
    contrast: float | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Removes noise from a recording, or from all those in a folder.

    Any rate and number of channels is read; what is written is one channel at the model's rate. In a folder,
    files that can't be read are listed, and the others are done.

    Args:
        model: Folder of the saved model.
        input: wav, flac, ogg or mp3 file, or a folder of them.
        output: File, or folder for wav files of the same names.
        plot: PNG with the spectrograms of the first recording before and after.
        contrast: Strength of perceptual contrast stretching, such as 0.2: heard as better, but less like the
            clean samples; by default what the model was trained with.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech enhance --model runs/enhance --input noisy.wav --output clean.wav
        mambakit speech enhance --model runs/enhance --input calls/ --output clean/ --plot before-after.png
    """
    import torch

    from mambakit.domains.speech.audio import Audio
    from mambakit.domains.speech.enhance.plots import before_after_figure
    from mambakit.domains.speech.files import Bulk, jobs

    check_suffix("plot", plot, (".png",))
    todo = jobs(input, output)
    trained = _loaded(model, device, contrast)
    rate, bulk = trained.config.rate_hz, Bulk()
    for job, audio in bulk.readable(todo, rate):
        with torch.no_grad():
            clean = trained(audio.samples[None].to(trained.place.device))[0].cpu()
        bulk.write(job.target, Audio(clean, rate))
        if plot is not None and not bulk.done:
            figure = before_after_figure({"before": audio.samples, "after": clean}, rate)
            plot.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(plot, dpi=130)
        bulk.done.append({"input": job.source, "output": job.target, "seconds": round(audio.seconds, 3)})
    finish_bulk(input, bulk, "enhanced", json)


def _loaded(folder: Path, device: str, contrast: float | None) -> Enhancer:
    from mambakit.domains.speech.enhance.model import Enhancer
    from mambakit.domains.speech.saved import load_model

    model = load_model(Enhancer, "enhance", folder, device)
    if contrast is not None:
        model.config = dataclasses.replace(model.config, contrast=contrast)
    return model


def finish_bulk(source: Path, bulk: Bulk, verb: str, json: bool) -> None:
    """What was done and what could not be, on stdout and stderr; an error if nothing was done."""
    done, failed, notes = bulk.done, bulk.failed, bulk.notes
    if not done and source.is_file():
        raise DataError(failed[0][1])
    for path, why in failed:
        print(f"left out: {why if str(path) in why else f'{path}: {why}'}", file=sys.stderr)
    if not done:
        raise DataError(f"{source}: none of {len(failed)} files could be {verb}")
    tell(notes[:5] + ([f"{len(notes) - 5} more notes of this kind"] if len(notes) > 5 else []))
    if json:
        errors = [{"input": path, "error": why} for path, why in failed]
        print_json({"done": done, "errors": errors, "notes": notes})
        return
    print(f"{verb}: {len(done)} of {len(done) + len(failed)} files")
    print(some([str(row["output"]) for row in done]))


def show(evaluation: Evaluation, title: str) -> None:
    """The table on stdout, and what is worth knowing about it."""
    from mambakit.domains.speech.enhance.report import COLUMNS

    print(title)
    rows = evaluation.means()
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    print(format_table(rows, columns))
    tell(evaluation.notes)
