"""Spoken digits: the official split and one speaker held out after the other, beside a CNN and a transformer.

    python benchmarks/speech_digits.py --seeds 0 1 2 --gpus 0 1 2 3 --jobs 16
    python benchmarks/speech_digits.py --protocols official --seeds 0 --limit 4
    python benchmarks/speech_digits.py --protocols speaker --speakers nicolas --validation-only \\
        --set loss.tilt_db=0

Trains the preset with the app's own code for every protocol, held-out speaker and seed, and a convolutional
network and a transformer of about as many parameters on the same recordings with the same options. Weights
are chosen by validation: takes 5 to 9 in the official split, a tenth of the other speakers' recordings where
one is held out; test recordings are measured once, also in white noise at 20, 10 and 0 dB. Rows, of the seeds
for which no speaker and no network is missing, go into results/speech.json as
``speech/fsdd/accuracy/official``, ``.../leave-one-speaker-out`` and ``.../leave-one-speaker-out-snr10``: the
mean over seeds (of the mean over speakers), and their standard deviation. ``--set`` changes the preset for a
trial, and ``--data fsdd,spoken-digits`` lets more voices teach; such runs, and those with
``--validation-only``, touch no test take and write no rows: with speaker, one who is held out of training
validates, by takes 5 to 49 alone. Runs with ``--limit`` write none either.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from trials import add_trial_flags, changed, device_here, measured, read_changes, run_at

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
PROTOCOLS = ("official", "speaker")
SNRS = (20, 10, 0)
DATA = "fsdd"
NETWORKS = ("mambakit", "CNN", "transformer")


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one network on one split and seed; measures on test, or without ``test`` on validation."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.cards import noise_recordings
    from mambakit.domains.speech.classify import config as presets
    from mambakit.domains.speech.classify.baselines import nearest_mean
    from mambakit.domains.speech.classify.evaluation import size_of
    from mambakit.domains.speech.classify.training import read_parts, train_classifier
    from mambakit.domains.speech.encoder import transformer_like

    device, began = device_here(), time.monotonic()
    configs = changed(
        {
            "model": presets.PRESET_MODEL,
            "loss": presets.PRESET_LOSS,
            "augment": presets.PRESET_AUGMENT,
            "train": presets.PRESET_TRAIN,
        },
        job["changes"],
    )
    shape = dataclasses.replace(configs["model"], network="cnn" if job["network"] == "CNN" else "mamba")
    if job["network"] == "transformer":
        shape = dataclasses.replace(shape, encoder=transformer_like(shape.encoder))
    parts = read_parts(*split_of(job), shape)
    clips = parts.test if job["test"] else parts.validation
    with run_at(job["keep"], "digits", job["speaker"] or "official", job["network"], job["seed"]) as folder:
        model, result = train_classifier(
            parts,
            RunFolder(folder),
            name="fsdd",
            model_config=shape,
            loss_config=configs["loss"],
            augment_config=configs["augment"],
            train_config=dataclasses.replace(configs["train"], seed=job["seed"], device=device),
            noises=noise_recordings("noise", shape.front_end.rate_hz),
        )
    model = model.to(device)
    figures = {job["network"]: {name: accuracy(model, clips, snr) for name, snr in conditions().items()}}
    if job["network"] == "mambakit":
        guess = nearest_mean(parts.train, clips, model.front_end.cpu(), len(parts.classes))
        figures["nearest mean"] = {"clean": float((guess == clips.labels).double().mean())}
    return {
        **job,
        "validation_loss": round(result.best_score, 4),
        "figures": figures,
        "parameters": size_of(model),
        "n": len(clips),
        "training_seconds": round(result.seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def conditions() -> dict[str, int | None]:
    """Clean, and each ratio of speech to noise."""
    return {"clean": None, **{f"snr{snr}": snr for snr in SNRS}}


def split_of(job: dict[str, Any]) -> tuple[Any, Any]:
    """Recordings and split of a job; without ``test`` the test takes are not in them at all."""
    import numpy as np

    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.utterances import Split, split_utterances

    found = load_utterances(job["data"], "classify")
    if job.get("limit"):  # every speaker and digit stays, and some takes of each part
        alike = [found.table["speaker"], found.table["label"], found.parts]
        found = found.rows((found.table.groupby(alike).cumcount() < job["limit"]).to_numpy())
    if job["test"]:
        options = {} if job["protocol"] == "official" else {"test_speaker": job["speaker"]}
        return found, split_utterances(found, job["protocol"], **options)
    found = found.rows(found.parts != "test")
    if job["protocol"] == "official":
        return found, split_utterances(found, "official")
    places, is_speaker = np.arange(len(found)), found.table["speaker"].to_numpy() == job["speaker"]
    return found, Split("speaker", places[~is_speaker], places[is_speaker], places[:0])


def accuracy(model: Any, clips: Any, snr_db: int | None) -> float:
    """The share that is named rightly, in white noise of a fixed seed or without."""
    import torch

    from mambakit.domains.speech.augment import mix
    from mambakit.domains.speech.classify.prediction import probabilities

    generator = torch.Generator().manual_seed(0)
    samples = clips.samples
    if snr_db is not None:
        samples = [mix(one, torch.randn(len(one), generator=generator), float(snr_db)) for one in samples]
    return float((probabilities(model, samples).argmax(1) == clips.labels).double().mean())


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line on stderr of a run that ended."""
    figures = {
        who: {k: round(100 * v, 1) for k, v in of.items()} for who, of in one.get("figures", {}).items()
    }
    said = one.get("error") or f"{'test' if one['test'] else 'validation'} {figures} {one['seconds']} s"
    name = one["speaker"] or ""
    print(
        f"{seconds:6.1f} s  {one['protocol']:<9} {name:<9} seed {one['seed']} {one['network']} "
        f"{one['changes'] or ''} {said}",
        file=sys.stderr,
        flush=True,
    )


def together(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one split and seed as one, with the figures of every network; those without ours go."""
    made: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in found:
        of = made.setdefault((one["protocol"], one["speaker"], one["seed"]), {**one, "figures": {}})
        of["figures"].update(one["figures"])
    return [one for one in made.values() if "mambakit" in one["figures"]]


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows, of protocols that every speaker's run is there for; accuracies in per cent."""
    from rows import row

    found = together(found)
    made = []
    for protocol, wanted in (("official", (None,)), ("speaker", SPEAKERS)):
        runs = [one for one in found if one["protocol"] == protocol]
        networks = {who for one in runs for who in one["figures"]}
        seeds = sorted({one["seed"] for one in runs})
        whole = [
            seed
            for seed in seeds
            if {one["speaker"] for one in runs if one["seed"] == seed and set(one["figures"]) == networks}
            == set(wanted)
        ]
        runs = [one for one in runs if one["seed"] in whole]
        for condition in conditions() if whole else ():
            means = {
                who: [
                    100
                    * statistics.mean(one["figures"][who][condition] for one in runs if one["seed"] == seed)
                    for seed in whole
                ]
                for who in (*NETWORKS, "nearest mean")
                if all(condition in one["figures"].get(who, {}) for one in runs)
            }
            name = "official" if protocol == "official" else "leave-one-speaker-out"
            made.append(
                row(
                    f"speech/fsdd/accuracy/{name}{'' if condition == 'clean' else f'-{condition}'}",
                    round(statistics.mean(means["mambakit"]), 2),
                    "%",
                    peers={
                        who: round(statistics.mean(values), 2)
                        for who, values in means.items()
                        if who != "mambakit"
                    },
                    spread=round(statistics.stdev(means["mambakit"]), 2) if len(whole) > 1 else None,
                    seeds=whole,
                    command=command,
                )
            )
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--speakers", nargs="+", default=list(SPEAKERS), choices=SPEAKERS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--data", default=DATA, help="what teaches, fsdd first")
    parser.add_argument(
        "--validation-only", action="store_true", help="measure validation recordings instead"
    )
    parser.add_argument("--raw", type=Path, help="also write every run's result here")
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)
    arguments.validation_only |= arguments.data != DATA
    test = not (arguments.validation_only or changes)

    from mambakit.domains.speech.cards import load_utterances

    load_utterances(arguments.data)  # once, before the processes ask for it together
    load_utterances("noise")
    jobs = [
        {
            "protocol": protocol,
            "speaker": speaker,
            "seed": seed,
            "network": network,
            "data": arguments.data,
            "changes": changes,
            "limit": arguments.limit,
            "test": test,
            "keep": arguments.keep and str(arguments.keep),
        }
        for seed in arguments.seeds
        for network in arguments.networks
        for protocol in arguments.protocols
        for speaker in ([None] if protocol == "official" else arguments.speakers)
    ]
    return measured(run_job, jobs, arguments, rows_of, "speech", tell=tell, raw=arguments.raw)


if __name__ == "__main__":
    sys.exit(main())
