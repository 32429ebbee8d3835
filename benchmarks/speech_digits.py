"""Spoken digits: the official split and one speaker held out after the other, beside a CNN, in one run.

    python benchmarks/speech_digits.py --seeds 0 1 2 --jobs 4
    python benchmarks/speech_digits.py --protocols speaker --seeds 0 1 2 3 4 --gpus 0 1 --jobs 8
    python benchmarks/speech_digits.py --protocols speaker --speakers nicolas --validation-only \\
        --set loss.tilt_db=0

Trains the preset with the app's own code for every protocol, held-out speaker and seed, and the convolutional
network of as many parameters on the same recordings with the same options. Weights are chosen by validation:
takes 5 to 9 in the official split, a tenth of the other speakers' recordings where one is held out; test
recordings are measured once, also in white noise at 20, 10 and 0 dB. Rows go into results/speech.json as
``speech/fsdd/accuracy/official``, ``.../leave-one-speaker-out`` and ``.../leave-one-speaker-out-snr10``: the
mean over seeds (of the mean over speakers), and their standard deviation. ``--set`` changes the preset for a
trial; such runs, and those with ``--validation-only``, touch no test take and write no rows: with speaker,
one who is held out of training validates, by takes 5 to 49 alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
PROTOCOLS = ("official", "speaker")
SNRS = (20, 10, 0)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains ours and the CNN on one split and seed; measures on test, or without ``test`` on validation."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.cards import noise_recordings
    from mambakit.domains.speech.classify.baselines import nearest_mean
    from mambakit.domains.speech.classify.config import (
        PRESET_AUGMENT,
        PRESET_LOSS,
        PRESET_MODEL,
        PRESET_TRAIN,
    )
    from mambakit.domains.speech.classify.evaluation import size_of
    from mambakit.domains.speech.classify.training import read_parts, train_classifier

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.monotonic()
    configs: dict[str, Any] = {
        "model": PRESET_MODEL, "loss": PRESET_LOSS, "augment": PRESET_AUGMENT, "train": PRESET_TRAIN,
    }  # fmt: skip
    for name, value in job["changes"].items():
        configs = changed(configs, name.split("."), value)
    parts = read_parts(*split_of(job), configs["model"])
    clips = parts.test if job["test"] else parts.validation
    figures, sizes = {}, {}
    for who, network in (("mambakit", "mamba"), ("CNN", "cnn")):
        with tempfile.TemporaryDirectory() as folder:
            model, result = train_classifier(
                parts,
                RunFolder(Path(folder) / "run"),
                name="fsdd",
                model_config=dataclasses.replace(configs["model"], network=network),
                loss_config=configs["loss"],
                augment_config=configs["augment"],
                train_config=dataclasses.replace(configs["train"], seed=job["seed"], device=device),
                noises=noise_recordings("noise", configs["model"].front_end.rate_hz),
            )
        model = model.to(device)
        figures[who] = {name: accuracy(model, clips, snr) for name, snr in conditions().items()}
        sizes[who] = size_of(model)
        if who == "mambakit":
            loss = result.best_score
    guess = nearest_mean(parts.train, clips, model.front_end.cpu(), len(parts.classes))
    figures["nearest mean"] = {"clean": float((guess == clips.labels).double().mean())}
    return {
        **job,
        "validation_loss": loss,
        "figures": figures,
        "parameters": sizes,
        "n": len(clips),
        "seconds": round(time.monotonic() - began, 1),
    }


def changed(configs: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The configs with one field, at any depth, set."""

    def within(config: Any, rest: list[str]) -> Any:
        inner = within(getattr(config, rest[0]), rest[1:]) if len(rest) > 1 else value
        return dataclasses.replace(config, **{rest[0]: inner})

    return {**configs, path[0]: within(configs[path[0]], path[1:])}


def conditions() -> dict[str, int | None]:
    """Clean, and each ratio of speech to noise."""
    return {"clean": None, **{f"snr{snr}": snr for snr in SNRS}}


def split_of(job: dict[str, Any]) -> tuple[Any, Any]:
    """Recordings and split of a job; without ``test`` the test takes are not in them at all."""
    import numpy as np

    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.utterances import Split, split_utterances

    found = load_utterances("fsdd", "classify")
    if job["test"]:
        options = {} if job["protocol"] == "official" else {"test_speaker": job["speaker"]}
        return found, split_utterances(found, job["protocol"], **options)
    keep = found.parts != "test"
    found = dataclasses.replace(
        found, table=found.table[keep].reset_index(drop=True), parts=found.parts[keep]
    )
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
        f"{seconds:6.1f} s  {one['protocol']:<9} {name:<9} seed {one['seed']} {one['changes'] or ''} {said}",
        file=sys.stderr,
        flush=True,
    )


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows, of protocols that every speaker's run is there for; accuracies in per cent."""
    from rows import row

    made = []
    for protocol, wanted in (("official", (None,)), ("speaker", SPEAKERS)):
        runs = [one for one in found if one["protocol"] == protocol]
        seeds = sorted({one["seed"] for one in runs})
        whole = [
            seed for seed in seeds if {one["speaker"] for one in runs if one["seed"] == seed} == set(wanted)
        ]
        for condition in conditions() if whole else ():
            means = {
                who: [
                    100
                    * statistics.mean(one["figures"][who][condition] for one in runs if one["seed"] == seed)
                    for seed in whole
                ]
                for who in ("mambakit", "CNN", "nearest mean")
                if condition in runs[0]["figures"][who]
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
                    spread=round(statistics.pstdev(means["mambakit"]), 2),
                    seeds=whole,
                    command=command,
                )
            )
    return made


def main() -> int:
    """The command line."""
    from processes import add_flags, run_all

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--speakers", nargs="+", default=list(SPEAKERS), choices=SPEAKERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_flags(parser)
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument(
        "--validation-only", action="store_true", help="measure validation recordings instead"
    )
    parser.add_argument("--raw", type=Path, help="also write every run's result here")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (c.partition("=") for c in arguments.changes)}
    test = not (arguments.validation_only or changes)

    from mambakit.domains.speech.cards import load_utterances

    load_utterances("fsdd")  # once, before the processes ask for it together
    load_utterances("noise")
    jobs = [
        {"protocol": protocol, "speaker": speaker, "seed": seed, "changes": changes, "test": test}
        for seed in arguments.seeds
        for protocol in arguments.protocols
        for speaker in ([None] if protocol == "official" else arguments.speakers)
    ]
    limits = {"seconds": arguments.seconds, "stop_after": arguments.stop_after}
    found = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus, **limits)
    failed = [one for one in found if "error" in one]
    done = [one for one in found if "error" not in one]
    if arguments.raw:
        arguments.raw.write_text(json.dumps(done, indent=1))
    if test and done:
        from rows import write_rows

        made = rows_of(done, "python " + " ".join(sys.argv))
        if made:
            print(f"{len(made)} rows written to {write_rows('speech', made)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    if len(found) < len(jobs):
        print(f"out of time: {len(jobs) - len(found)} runs are not done", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
