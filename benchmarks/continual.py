"""Spoken digits of one speaker after the other: what a classifier forgets, and what replay and EWC keep.

    python benchmarks/continual.py --seeds 0 1 2 --jobs 2
    python benchmarks/continual.py --methods ewc --seeds 0 --validation-only --set continual.strength=1e4

Each of the six speakers of fsdd is a task: takes 10 to 49 train, 5 to 9 choose the weights, 0 to 4 are
tested. The network is a small form of the classifier's preset, trained by the app's own code with
``--train.continual.*``; each task goes on from the run before it. ``fine-tuning`` does nothing about
forgetting; ``replay`` mixes kept batches in, ``ewc`` holds weights, ``both`` does both; ``lora`` trains a
low-rank change and the head for each speaker on the first one's network, and must be told who speaks.
``joint`` learns all speakers at once: no stream does better. After every task all speakers' test takes are
measured, so that rows ``core/continual/fsdd-speakers/...`` can say the average accuracy at the end, backward
transfer (Lopez-Paz & Ranzato 2017) and forgetting (Chaudhry et al. 2018), means over seeds and their standard
deviation. The strength of ewc was chosen on validation takes (--validation-only).
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
METHODS = ("fine-tuning", "replay", "ewc", "both", "lora", "joint")
KINDS = {"fine-tuning": "finetune", "replay": "replay", "ewc": "ewc", "both": "both"}
EPOCHS = 4
# A small network: the whole stream takes a core under a minute.
SMALL = {"d_model": 32, "channels": 8, "n_layers": 1}
# The least of 30, 100, 3000: held more firmly, later speakers are not learned (of validation takes 80 % with
# six epochs a speaker, 73 % and 42 % with four; one seed).
STRENGTH = 30.0
KEEP = 8  # batches of 32: under an eighth of what five speakers' training takes are


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """One method over the whole stream with one seed: R in ``scores``, or of joint its last row."""
    from mambakit.core.adaptation import AdaptConfig
    from mambakit.core.continual import ContinualConfig
    from mambakit.domains.speech.classify import config as presets

    device, began = device_here(), time.monotonic()
    encoder = dataclasses.replace(presets.PRESET_MODEL.encoder, **SMALL)
    train = dataclasses.replace(
        presets.PRESET_TRAIN, max_epochs=EPOCHS, ema_decay=0.95, seed=job["seed"], device=device
    )
    configs = changed(
        {
            "model": dataclasses.replace(presets.PRESET_MODEL, encoder=encoder),
            "loss": presets.PRESET_LOSS,
            "augment": presets.PRESET_AUGMENT,
            "train": train,
            "continual": ContinualConfig(keep=KEEP, strength=STRENGTH),
            "adapt": AdaptConfig("lora", "?", rank=8, also=["head"]),
        },
        job["changes"],
    )
    parts = speakers_parts(configs["model"], job["limit"])
    measured_on = [getattr(one, "test" if job["test"] else "validation") for one in parts]
    scores: list[list[float]] = []
    with run_at(job["keep"], "continual", job["method"], job["seed"]) as folder:
        if job["method"] == "joint":
            model = train_on(together(parts), folder / "all", configs, {})
            scores.append(accuracies(model, measured_on))
        for task, part in enumerate(parts if job["method"] != "joint" else []):
            base = str(folder / str(0 if job["method"] == "lora" else task - 1))
            options = {}
            if job["method"] == "lora":
                if task:
                    options["adapt"] = dataclasses.replace(configs["adapt"], base=base)
            elif task:
                options["continual"] = dataclasses.replace(
                    configs["continual"], kind=KINDS[job["method"]], base=base
                )
            else:
                options["continual"] = configs["continual"]
            model = train_on(part, folder / str(task), configs, options)
            scores.append(accuracies(model, measured_on))
            if job["method"] == "lora":  # of earlier speakers, by their own changes
                scores[-1] = [scores[j][j] if j < task else one for j, one in enumerate(scores[-1])]
    return {**job, "scores": scores, "seconds": round(time.monotonic() - began, 1)}


def speakers_parts(model: Any, limit: int | None) -> list[Any]:
    """The recordings of each speaker, read and split by take."""
    import numpy as np

    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.classify.training import read_parts
    from mambakit.domains.speech.utterances import split_utterances

    found = load_utterances("fsdd", "classify")
    made = []
    for speaker in SPEAKERS:
        keep = (found.table["speaker"] == speaker).to_numpy()
        if limit:
            alike = [found.table["speaker"], found.table["label"], found.parts]
            keep &= (found.table.groupby(alike).cumcount() < limit).to_numpy()
        rows = np.flatnonzero(keep)
        own = dataclasses.replace(
            found, table=found.table.iloc[rows].reset_index(drop=True), parts=found.parts[rows]
        )
        made.append(read_parts(own, split_utterances(own, "official"), model))
    return made


def together(parts: list[Any]) -> Any:
    """All speakers' recordings as one task."""
    import torch

    def joined(name: str) -> Any:
        clips = [getattr(one, name) for one in parts]
        samples = [sample for one in clips for sample in one.samples]
        return dataclasses.replace(clips[0], samples=samples, labels=torch.cat([one.labels for one in clips]))

    return dataclasses.replace(
        parts[0], train=joined("train"), validation=joined("validation"), test=joined("test")
    )


def train_on(parts: Any, folder: Path, configs: dict[str, Any], options: dict[str, Any]) -> Any:
    """A run as the app's verb makes it; the trained model, which is saved."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.classify.training import train_classifier

    model, _ = train_classifier(
        parts,
        RunFolder(folder),
        name="fsdd",
        model_config=configs["model"],
        loss_config=configs["loss"],
        augment_config=configs["augment"],
        train_config=dataclasses.replace(configs["train"], **options),
    )
    model.save_pretrained(folder)
    return model


def accuracies(model: Any, clips: list[Any]) -> list[float]:
    """The share of each speaker's recordings that is named rightly."""
    from mambakit.domains.speech.classify.prediction import probabilities

    return [
        float((probabilities(model, one.samples).argmax(1) == one.labels).double().mean()) for one in clips
    ]


def measures(one: dict[str, Any]) -> dict[str, float]:
    """The figures of a run, in per cent."""
    from mambakit.core.continual import Stream

    if one["method"] == "joint":
        return {"accuracy": 100 * statistics.mean(one["scores"][0])}
    found = Stream.of(one["scores"])
    return {
        "accuracy": 100 * found.average,
        "backward-transfer": 100 * found.backward_transfer,
        "forgetting": 100 * found.forgetting,
    }


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows, of the seeds that every method was run with."""
    from rows import row

    methods = {one["method"] for one in found}
    seeds = sorted(
        seed
        for seed in {one["seed"] for one in found}
        if {one["method"] for one in found if one["seed"] == seed} == methods
    )
    values: dict[str, dict[str, list[float]]] = {}
    for one in (one for seed in seeds for one in found if one["seed"] == seed):
        for name, value in measures(one).items():
            values.setdefault(name, {}).setdefault(one["method"], []).append(value)
    made = []
    for name, by_method in values.items():
        for method in ("replay", "ewc", "both", "lora"):
            if method not in by_method:
                continue
            peers = {who: by_method[who] for who in ("fine-tuning", "joint") if who in by_method}
            made.append(
                row(
                    f"core/continual/fsdd-speakers/{name}/{method}",
                    round(statistics.mean(by_method[method]), 2),
                    "%" if name == "accuracy" else "points",
                    peers={who: round(statistics.mean(of), 2) for who, of in peers.items()},
                    spread=round(statistics.stdev(by_method[method]), 2) if len(seeds) > 1 else None,
                    seeds=seeds,
                    command=command,
                )
            )
    return made


def tell(one: dict[str, Any], seconds: float) -> None:
    """A line on stderr of a run that ended."""
    said = one.get("error") or {name: round(value, 1) for name, value in measures(one).items()}
    print(
        f"{seconds:6.1f} s  {one['method']} seed {one['seed']} {one['changes'] or ''} {said}", file=sys.stderr
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--validation-only", action="store_true", help="measure validation takes instead")
    parser.add_argument("--raw", type=Path, help="also write every run's result here")
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)
    jobs = [
        {
            "method": method,
            "seed": seed,
            "changes": changes,
            "limit": arguments.limit,
            "test": not (arguments.validation_only or changes),
            "keep": arguments.keep and str(arguments.keep),
        }
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    return measured(run_job, jobs, arguments, rows_of, "continual", tell=tell, raw=arguments.raw)


if __name__ == "__main__":
    sys.exit(main())
