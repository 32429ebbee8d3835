"""Enhancement beside log-MMSE: trained on synthetic and recorded voices in noise, measured on 20 real pairs.

    python benchmarks/speech_enhancement.py --seeds 0 1 2 --gpus 0 1 2 --jobs 3 --long 40
    python benchmarks/speech_enhancement.py --seeds 0 1 --jobs 2 --networks "mambakit, streaming"
    python benchmarks/speech_enhancement.py --limit 4 --set train.max_epochs=1 mix.steps_per_epoch=2

The pairs are 20 of VoiceBank-DEMAND's test part, of which nothing is trained on; the weights are those of
the lowest loss on mixtures of utterances in no other part. Rows go into results/speech.json as
``speech/voicebank-20/pesq``, ``.../stoi`` and ``.../si-sdr``, those of the form that streams as
``.../pesq-streaming`` and so on: the mean over seeds, and their deviation. A peer is the same network with
its contrast stretched, or without where the recipe stretches it. ``--set`` changes the presets for a trial:
such runs, and those with ``--validation-only``, measure mixtures of those utterances and write no rows; nor
do those with ``--limit``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from typing import Any

from speech_mixtures import add_long_flag, lengthened
from trials import add_trial_flags, changed, device_here, measured, read_changes, run_at

UNITS = {"pesq": "MOS-LQO", "stoi": "of 1", "si_sdr": "dB"}
BASELINES = ("noisy", "log-MMSE")
WHOLE, STREAMING = "mambakit", "mambakit, streaming"
NETWORKS = {WHOLE: "", STREAMING: "-streaming"}  # and what their rows' names end with
PLAIN, STRETCHED = "mambakit, not stretched", "mambakit, stretched"
CONTRAST = 0.2  # chosen on mixtures of validation


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one model; the means of every score for noisy, log-MMSE and ours."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance import config as presets
    from mambakit.domains.speech.enhance.data import load_noises, load_pairs, load_pools
    from mambakit.domains.speech.enhance.evaluation import OURS, evaluate
    from mambakit.domains.speech.enhance.training import test_mixtures, train_enhancer

    device, began = device_here(), time.monotonic()
    presets_here = {
        "model": presets.PRESET_ENHANCE,
        "mix": presets.PRESET_MIX,
        "loss": presets.PRESET_ENHANCE_LOSS,
        "train": presets.PRESET_ENHANCE_TRAIN,
    }
    changes = {"model.causal": job["who"] == STREAMING, **job["changes"]}
    configs = changed(lengthened(presets_here, job["long"], "enhance"), changes)
    rate_hz = configs["model"].rate_hz
    pools, noises = load_pools(job["data"], rate_hz), load_noises("noise", rate_hz)
    with run_at(job["keep"], "enhancement", job["who"], job["seed"]) as folder:
        model, result = train_enhancer(
            pools.train,
            pools.validation,
            noises,
            RunFolder(folder),
            model_config=configs["model"],
            mix_config=configs["mix"],
            loss_config=configs["loss"],
            train_config=dataclasses.replace(configs["train"], seed=job["seed"], device=device),
            name=job["data"],
        )
        model.save_pretrained(folder)
    trained = time.monotonic()
    if job["test"]:
        pairs = load_pairs("voicebank-demand-20", rate_hz)
    else:
        mixtures = test_mixtures(pools.validation, noises, configs["mix"], 20)
        pairs = iter([(str(i), *pair) for i, pair in enumerate(mixtures)])
    heard = list(itertools.islice(pairs, job["limit"]))
    means = evaluate(model.to(device), heard).means()
    scores = {job["who"] if one["model"] == OURS else one["model"]: one for one in means}
    beside, contrast = (PLAIN, 0.0) if model.config.contrast else (STRETCHED, CONTRAST)
    model.config = dataclasses.replace(model.config, contrast=contrast)
    scores[beside] = evaluate(model, heard).means()[-1]
    return {
        **job,
        "scores": scores,
        "parameters": sum(one.numel() for one in model.parameters()),
        "validation_loss": round(result.best_score, 4),
        "epochs": result.epochs,
        "training_seconds": round(result.seconds, 1),
        "measuring_seconds": round(time.monotonic() - trained, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def rows_of(done: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """A row for each score of each network."""
    from rows import row

    rows = []
    for who, ending in NETWORKS.items():
        of_seed = {one["seed"]: one["scores"] for one in done if one["who"] == who}
        for score, unit in UNITS.items():
            values = [found[who][score] for found in of_seed.values() if score in found[who]]
            if not values:
                continue
            some = next(iter(of_seed.values()))
            peers = {name: round(some[name][score], 4) for name in BASELINES}
            for beside in {PLAIN, STRETCHED} & set(some):
                peers[beside] = round(statistics.mean(found[beside][score] for found in of_seed.values()), 4)
            rows.append(
                row(
                    f"speech/voicebank-20/{score.replace('_', '-')}{ending}",
                    round(statistics.mean(values), 4),
                    unit,
                    peers=peers,
                    spread=round(statistics.stdev(values), 4) if len(values) > 1 else None,
                    seeds=sorted(of_seed),
                    command=command,
                )
            )
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="spoken-sentences,fsdd")
    parser.add_argument("--networks", nargs="+", default=[WHOLE], choices=list(NETWORKS))
    parser.add_argument("--validation-only", action="store_true", help="measure held-out mixtures instead")
    add_long_flag(parser)
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)

    from mambakit.domains.speech.enhance.data import load_noises, load_pairs, load_pools

    load_pools(arguments.data, 16_000)  # made once, before the processes ask for them together
    load_noises("noise", 16_000)
    next(load_pairs("voicebank-demand-20", 16_000))
    jobs = [
        {
            "who": who,
            "seed": seed,
            "data": arguments.data,
            "changes": changes,
            "limit": arguments.limit,
            "test": not (arguments.validation_only or changes),
            "long": arguments.long,
            "keep": arguments.keep and str(arguments.keep),
        }
        for seed in arguments.seeds
        for who in arguments.networks
    ]
    return measured(run_job, jobs, arguments, rows_of, "speech")


if __name__ == "__main__":
    sys.exit(main())
