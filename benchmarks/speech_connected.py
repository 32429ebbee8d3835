"""Connected digits of an unseen speaker: word error rates, ours beside a biGRU trained the same way.

    python benchmarks/speech_connected.py --speakers theo --seeds 0 1 --device cuda

Trains on four speakers, lets one choose the weights and measures another: as recorded, and with noise at 20,
10 and 0 dB. Rows go into results/speech-connected.json. With ``--validation-only`` the speaker who chooses is
measured, and no rows are written: that is what options are tried with.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mambakit.core.training import RunFolder, resolve_device
from mambakit.domains.speech.cards import load_utterances, noise_recordings
from mambakit.domains.speech.recognize import config as presets
from mambakit.domains.speech.recognize.evaluation import measured
from mambakit.domains.speech.recognize.training import read_parts, train_recognizer
from mambakit.domains.speech.utterances import split_utterances
from rows import row, write_rows

SNR_DB = (20.0, 10.0, 0.0)
_STREAMS = presets.PRESET_MODEL
NETWORKS = {
    "streams": _STREAMS,
    "both ways": dataclasses.replace(
        _STREAMS, encoder=dataclasses.replace(_STREAMS.encoder, bidirectional=True)
    ),
    "bigru": dataclasses.replace(_STREAMS, network="bigru"),
}


def run_one(speaker: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains every network on the others and measures them on one speaker."""
    utterances = load_utterances("connected-digits", "recognize")
    speakers = sorted(set(utterances.table["speaker"]))
    chooser = speakers[speakers.index(speaker) - 1]
    split = split_utterances(utterances, "speaker", test_speaker=speaker, validation_speaker=chooser)
    if options.validation_only:  # its recordings are not even read
        split = dataclasses.replace(split, test=np.zeros(0, dtype=np.int64))
    train = dataclasses.replace(
        presets.PRESET_TRAIN, seed=seed, device=options.device, max_epochs=options.max_epochs
    )
    models, parts = {}, read_parts(utterances, split, _STREAMS)
    for name, shape in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            model, result = train_recognizer(
                parts,
                RunFolder(Path(folder) / "run"),
                name="connected-digits",
                model_config=shape,
                loss_config=presets.PRESET_LOSS,
                augment_config=presets.PRESET_AUGMENT,
                train_config=train,
            )
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{speaker} seed {seed} {name}: {size:,} parameters, {result}", flush=True)
        models[name] = model.to(resolve_device(options.device))
    part = parts.validation if options.validation_only else parts.test
    noises = noise_recordings("noise", _STREAMS.front_end.rate_hz)
    return measured(models, part, utterances, snr_db=SNR_DB, noises=noises)


def main() -> None:
    """Runs what the flags ask for, prints every row and writes the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--speakers", nargs="+", default=["theo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-epochs", type=int, default=presets.PRESET_TRAIN.max_epochs)
    parser.add_argument("--validation-only", action="store_true")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    for speaker in options.speakers:
        for seed in options.seeds:
            for one in run_one(speaker, seed, options):
                print(speaker, seed, one, flush=True)
                found.setdefault((one["condition"], one["model"]), []).append(100 * one["wer"])
    rows = []
    for condition in dict.fromkeys(condition for condition, _ in found):
        means = {name: statistics.fmean(found[condition, name]) for name in NETWORKS}
        ours = found[condition, "both ways"]
        rows.append(
            row(
                f"speech/connected-digits/wer/{'-'.join(options.speakers)}/{condition.replace(' ', '-')}",
                means["both ways"],
                "%",
                peers={name: value for name, value in means.items() if name != "both ways"},
                spread=statistics.stdev(ours) if len(ours) > 1 else None,
                seeds=options.seeds,
            )
        )
    if not options.validation_only:
        print(write_rows("speech-connected", rows))


if __name__ == "__main__":
    main()
