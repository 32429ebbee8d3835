"""Training and measuring recognisers: `mambakit speech train --task recognize` and `evaluate`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.shared import tell, tell_left_out, train_config
from mambakit.apps.speech_transcribe import load_recognizer
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.recognize.config import (
    PRESET_AUGMENT,
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_TRAIN,
    RecognizeAugmentConfig,
    RecognizeLossConfig,
    RecognizeModelConfig,
)
from mambakit.domains.speech.recognize.decoding import PRESET_DECODE, DecodeConfig
from mambakit.domains.speech.utterances import Protocol

if TYPE_CHECKING:
    pass

Baseline = Literal["bigru"]
PartKind = Literal["test", "validation"]
_N_EXAMPLES = 8


def train_recognize(
    *,
    data: str = "spoken-digits",
    task: Literal["recognize"] = "recognize",
    output: Path = Path("runs/asr"),
    split: Protocol | None = None,
    test_speaker: str | None = None,
    validation_speaker: str | None = None,
    noise: str | None = None,
    baselines: list[Baseline] | None = None,
    snr_db: list[float] | None = None,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: RecognizeModelConfig = PRESET_MODEL,
    loss: RecognizeLossConfig = PRESET_LOSS,
    augment: RecognizeAugmentConfig = PRESET_AUGMENT,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a recogniser of speech, and measures it on the test part.

    By default it writes by CTC and streams; so does --model.head rnnt. With --model.head attention, or
    --model.encoder.bidirectional true, which hears what follows too, it can't stream. The output folder holds
    the run and the model.

    Args:
        data: A card's name (`mambakit data list`), or a manifest (CSV or JSON lines: path, text, speaker,
            start, end, word_times). Of several between commas the first is split and measured; the others
            teach too.
        task: What to learn.
        output: Folder for the run and the model; a killed run continues in it.
        split: official, the parts that the data name; random; or speaker, one of whom is held out for test.
        test_speaker: With speaker, who is held out; by default the last by name.
        validation_speaker: With speaker, one who chooses the weights; by default a tenth of the others'
            recordings do.
        noise: A card or folder of noise to mix in, beside noise made by a formula.
        baselines: bigru: GRU layers both ways of about as many parameters, trained the same way.
        snr_db: Further conditions to measure in: so much noise, such as 20 10 0.
        seed: Of the split, of weights, shuffling and augmentation.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first.
        model: The network.
        loss: What is hidden of frames while training.
        augment: What is done to the recordings.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit speech train --data connected-digits --task recognize --output runs/asr
        mambakit speech train --data my.jsonl --task recognize --model.units bpe --output runs/mine
        mambakit speech train --data connected-digits --task recognize --model.head rnnt --output runs/rnnt
        mambakit speech train --data connected-digits --task recognize --test-speaker theo --baselines bigru
    """
    from mambakit.apps.speech_runs import trained
    from mambakit.core.training import resolve_device
    from mambakit.domains.speech.cards import noise_recordings
    from mambakit.domains.speech.recognize import evaluation, report, training
    from mambakit.domains.speech.saved import DataSpec

    config = train_config(train, seed, device, max_time)
    spec = DataSpec(task, data, split, config.seed, test_speaker, validation_speaker)
    utterances, chosen = spec.load()
    parts = training.read_parts(utterances, chosen, model)
    tell(parts.notes)
    tell_left_out(parts.left_out)
    noises = noise_recordings(noise, model.front_end.rate_hz)
    settings = {**dataclasses.asdict(spec.resolved()), "split": chosen.name, "noise": noise}

    train_one = partial(
        trained,
        partial(training.train_recognizer, parts, name=utterances.name, noises=noises),
        settings=settings,
        loss=loss,
        augment=augment,
        train=config,
        spec=spec,
        overwrite=overwrite,
    )
    recognizer, result, run = train_one(model, output)
    models = {evaluation.OURS: recognizer}
    for name in baselines or []:
        models[name], _, _ = train_one(dataclasses.replace(model, network=name), output / name)
    place = resolve_device(device)
    rows, examples, times = [], [], None
    if len(parts.test):
        models = {name: one.to(place) for name, one in models.items()}
        rows = evaluation.measured(models, parts.test, utterances, snr_db=snr_db or [], noises=noises)
        run.measured(recognizer, rows, data=utterances.name, ours={"model": evaluation.OURS})
        few = parts.test.take(range(min(_N_EXAMPLES, len(parts.test))))
        written = evaluation.transcripts(recognizer, few.samples)
        examples = [(said, one.text) for said, one in zip(few.texts, written, strict=True)]
        times = evaluation.word_time_errors(recognizer, parts.test, utterances)
    report.write(run, recognizer, parts, chosen.name, result, rows, examples, times)
    if json:
        print_json(
            {**settings, "validation_loss": result.best_score, "results": rows, "word_times": times}
            | {"left_out": parts.left_out, "notes": parts.notes, "model": run.path}
        )
        return
    if rows:
        _show(f"{utterances.name}, {chosen.name} split: {len(parts.test)} test recordings", rows, times)
    else:
        print("there is no test part: nothing was measured")
    print(f"model: {run.path}\nreport: {run.report_path}")


def evaluate_recognize(
    *,
    model: Path,
    data: str | None = None,
    part: PartKind = "test",
    snr_db: list[float] | None = None,
    noise: str | None = None,
    decode: DecodeConfig = PRESET_DECODE,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a saved recogniser: word and character error rates, in noise, and how far word times are off.

    Args:
        model: Folder of the saved model.
        data: A card's name or a manifest, all of which is measured; by default the data and the split of
            the training.
        part: Of the training's data, test or validation.
        snr_db: Further conditions: so much noise is added, such as 20 10 0.
        noise: A card or folder of noise for them; white noise by default.
        decode: How texts are chosen.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech evaluate --model runs/asr --snr-db 20 10 0 --noise noise
        mambakit speech evaluate --model runs/asr --data other.jsonl --decode.beam 16 --json
    """
    from mambakit.domains.speech.cards import load_utterances, noise_recordings
    from mambakit.domains.speech.recognize import evaluation
    from mambakit.domains.speech.recognize.decoding import Decoder
    from mambakit.domains.speech.recognize.recordings import read_recordings
    from mambakit.domains.speech.saved import load_spec

    if noise is not None and not snr_db:
        raise UsageError("noise: has no effect without conditions to measure in; add --snr-db 20 10 0")
    recognizer = load_recognizer(model, device)
    if data is None:
        utterances, chosen = load_spec(model).load()
        places, title = getattr(chosen, part), f"{chosen.name} split, {part}"
    else:
        import numpy as np

        utterances = load_utterances(data, "recognize")
        places, title = np.arange(len(utterances)), "all"
    recordings, left_out = read_recordings(utterances, places, recognizer.rate_hz)
    if not len(recordings):
        why = f"; the first, {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DataError(f"{utterances.name}: no recording of {title} can be measured{why}")
    tell_left_out(left_out)
    decoder = Decoder(recognizer, decode)
    rows = evaluation.measured(
        {evaluation.OURS: recognizer},
        recordings,
        utterances,
        snr_db=snr_db or [],
        noises=noise_recordings(noise, recognizer.rate_hz),
        decoders={evaluation.OURS: decoder},
    )
    times = evaluation.word_time_errors(recognizer, recordings, utterances, decoder)
    if json:
        print_json({"data": utterances.name, "part": title, "results": rows, "word_times": times})
    else:
        _show(f"{utterances.name}, {title}: {len(recordings)} recordings", rows, times)


def _show(title: str, rows: list[dict[str, Any]], times: dict[str, float] | None) -> None:
    from mambakit.domains.speech.recognize.evaluation import COLUMNS

    print(title)
    print(format_table(rows, COLUMNS))
    if times is not None:
        print(
            f"word starts: {times['median_start_error_s'] * 1000:.0f} ms off in the median "
            f"({times['words']} words of recordings without a mistake)"
        )
