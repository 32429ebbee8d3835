"""Separation of two FSDD speakers that training never heard, beside a Conv-TasNet of equal size, in one run.

    python benchmarks/speech_separation.py --seeds 0 1 2 --gpus 0 --jobs 9 --long 22
    python benchmarks/speech_separation.py --limit 4 --set train.max_epochs=1 pairs.steps_per_epoch=2

Both learn from the same mixtures for as many steps; the weights are those of the best SI-SNRi on mixtures of
utterances of the training speakers that are in no other part. ``--data fsdd,spoken-sentences`` adds synthetic
voices, ``--set pairs.speeds=[0.8,1.25]`` the speakers at other speeds. 200 mixtures of the unseen pair are
measured once. Rows go into results/speech.json as ``speech/fsdd-2mix/si-snri/unseen-pair``: the mean over
pairs and seeds, and the deviation over seeds. ``--set`` changes the presets for a trial: such runs, and those
with ``--validation-only``, measure validation mixtures and write no rows; nor do those with ``--limit``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

from speech_mixtures import add_long_flag, lengthened
from trials import add_trial_flags, changed, device_here, measured, read_changes, run_at

PAIRS = ("theo,lucas", "george,yweweler", "jackson,nicolas")
OURS, CONV, CAUSAL = "mambakit", "Conv-TasNet", "mambakit, streaming"
NETWORKS = (OURS, CONV, CAUSAL)
MIXTURES = 200


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one network on four speakers, and measures it on mixtures of the other two."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance.data import load_pools
    from mambakit.domains.speech.separate import config as presets
    from mambakit.domains.speech.separate.training import (
        gains,
        test_mixtures,
        train_baseline,
        train_separator,
        with_unseen,
    )

    device, began = device_here(), time.monotonic()
    unseen = job["pair"].split(",")
    presets_here = {
        "model": presets.PRESET_SEPARATE,
        "pairs": dataclasses.replace(presets.PRESET_PAIRS, unseen=unseen),
        "train": presets.PRESET_SEPARATE_TRAIN,
    }
    configs = changed(lengthened(presets_here, job["long"], "separate"), job["changes"])
    train = dataclasses.replace(configs["train"], seed=job["seed"], device=device)
    if job["who"] == CONV:  # the baseline keeps its precision; this rate was the best of two for it, too
        train = dataclasses.replace(train, precision=presets.PRESET_SEPARATE_TRAIN.precision)
    pools = with_unseen(load_pools(job["data"], configs["model"].rate_hz, task="separate"), unseen)
    with run_at(job["keep"], "separation", job["pair"], job["who"], job["seed"]) as folder:
        teach = train_baseline if job["who"] == CONV else train_separator
        model, result = teach(
            pools,
            RunFolder(folder),
            model_config=dataclasses.replace(configs["model"], causal=job["who"] == CAUSAL),
            pair_config=configs["pairs"],
            train_config=train,
        )
    trained = time.monotonic()
    measured = pools if job["test"] else pools._replace(test=pools.validation)
    mixtures = test_mixtures(measured, configs["pairs"], job["limit"] or MIXTURES)
    return {
        **job,
        "si_snri": round(statistics.mean(gains(model.to(device), mixtures)), 4),
        "parameters": sum(one.numel() for one in model.parameters()),
        "validation_loss": round(result.best_score, 4),
        "epochs": result.epochs,
        "training_seconds": round(result.seconds, 1),
        "measuring_seconds": round(time.monotonic() - trained, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def rows_of(done: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """The row of the seeds for which no pair and no network is missing."""
    from rows import row

    networks = [name for name in NETWORKS if any(one["who"] == name for one in done)]
    wanted = {(pair, name) for pair in PAIRS for name in networks}
    of_seed: dict[int, dict[tuple[str, str], float]] = {}
    for one in done:
        of_seed.setdefault(one["seed"], {})[one["pair"], one["who"]] = one["si_snri"]
    seeds = sorted(seed for seed, found in of_seed.items() if set(found) == wanted)
    if not seeds or OURS not in networks:
        return []
    means = {
        name: [statistics.mean(of_seed[seed][pair, name] for pair in PAIRS) for seed in seeds]
        for name in networks
    }
    return [
        row(
            "speech/fsdd-2mix/si-snri/unseen-pair",
            round(statistics.mean(means[OURS]), 3),
            "dB",
            peers={name: round(statistics.mean(means[name]), 3) for name in networks if name != OURS},
            spread=round(statistics.stdev(means[OURS]), 3) if len(seeds) > 1 else None,
            seeds=seeds,
            command=command,
        )
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--data", default="fsdd", help="what both learn from; fsdd among it")
    parser.add_argument("--validation-only", action="store_true", help="measure validation mixtures instead")
    add_long_flag(parser)
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)

    from mambakit.domains.speech.enhance.data import load_pools
    from mambakit.domains.speech.separate.config import PRESET_SEPARATE

    # once, before the processes ask for it together
    load_pools(arguments.data, PRESET_SEPARATE.rate_hz, task="separate")
    jobs = [
        {
            "pair": pair,
            "data": arguments.data,
            "who": who,
            "seed": seed,
            "changes": changes,
            "limit": arguments.limit,
            "test": not (arguments.validation_only or changes),
            "long": arguments.long,
            "keep": arguments.keep and str(arguments.keep),
        }
        for seed in arguments.seeds
        for who in arguments.networks
        for pair in arguments.pairs
    ]
    return measured(run_job, jobs, arguments, rows_of, "speech")


if __name__ == "__main__":
    sys.exit(main())
