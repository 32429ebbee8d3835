"""Connected digits of an unseen speaker: word error rates of Mamba, a biGRU and a transformer, in one run.

    python benchmarks/speech_connected.py --seeds 0 1 2 --gpus 0 1 2 3 --jobs 16
    python benchmarks/speech_connected.py --speakers theo --seeds 0 --limit 40 --set train.max_epochs=1

Every speaker in turn is the unseen one: the one before by name chooses the weights, the other four teach.
The test speaker's strings are measured once, as recorded and with noise at 20, 10 and 0 dB (other cuts of the
two recordings that all strings have behind them at 15 to 30 dB: a noise that training knew), and by the
network that streams, which is the preset, also in chunks of 320 ms. Rows go into results/speech.json as
``speech/connected-digits/wer/unseen`` and ``.../unseen-snr10``: the mean over seeds (of the mean over
speakers) and their deviation; ``.../streaming`` says what chunks cost. ``--set`` changes the presets for a
trial, and ``--data connected-digits,spoken-digits`` lets more voices teach: such runs, and those with
``--validation-only``, measure the speaker who chooses and write no rows; nor do those with ``--limit``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

from trials import add_trial_flags, changed, device_here, measured, read_changes, run_at

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SNR_DB = (20.0, 10.0, 0.0)
CHUNK_S = 0.32
DATA = "connected-digits"
NETWORKS = ("mamba", "mamba-streaming", "bigru", "transformer")
# by validation, of networks that read both ways (domains/speech/recognize/config.py); the causal one has the
# preset's
RATES = {"mamba": 1e-3, "bigru": 1e-3, "transformer": 1e-3}
NAMES = {
    "mamba": "mambakit",
    "mamba-streaming": "mambakit, streaming",
    "bigru": "biGRU",
    "transformer": "transformer",
}


def network_of(name: str, model: Any) -> Any:
    """The preset's shape with one of the networks; all but the one that streams read both ways."""
    from mambakit.domains.speech.encoder import transformer_like

    both = dataclasses.replace(model.encoder, bidirectional=name != "mamba-streaming")
    if name == "transformer":
        return dataclasses.replace(model, encoder=transformer_like(both))
    return dataclasses.replace(model, encoder=both, network="bigru" if name == "bigru" else "mamba")


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one network on four speakers and measures it on one."""
    import numpy as np

    from mambakit.core.training import RunFolder, resolve_device
    from mambakit.domains.speech.cards import load_utterances, noise_recordings
    from mambakit.domains.speech.recognize import config as presets
    from mambakit.domains.speech.recognize.evaluation import measured, streamed_texts
    from mambakit.domains.speech.recognize.metrics import error_rates
    from mambakit.domains.speech.recognize.training import read_parts, train_recognizer
    from mambakit.domains.speech.utterances import split_utterances

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
    shape = network_of(job["network"], configs["model"])
    rate = {} if "train.lr" in job["changes"] else {"lr": RATES.get(job["network"], configs["train"].lr)}
    utterances = load_utterances(job["data"], "recognize")
    chooser = SPEAKERS[SPEAKERS.index(job["speaker"]) - 1]
    split = split_utterances(utterances, "speaker", test_speaker=job["speaker"], validation_speaker=chooser)
    if not job["test"]:  # its recordings are not even read
        split = dataclasses.replace(split, test=np.zeros(0, dtype=np.int64))
    if job["limit"]:
        parts = {name: getattr(split, name)[:: max(1, len(getattr(split, name)) // job["limit"])]
                 for name in ("train", "validation", "test")}  # fmt: skip
        split = dataclasses.replace(split, **{name: part[: job["limit"]] for name, part in parts.items()})
    recordings = read_parts(utterances, split, shape)
    with run_at(job["keep"], "connected", job["speaker"], job["network"], job["seed"]) as folder:
        model, result = train_recognizer(
            recordings,
            RunFolder(folder),
            name="connected-digits",
            model_config=shape,
            loss_config=configs["loss"],
            augment_config=configs["augment"],
            train_config=dataclasses.replace(configs["train"], seed=job["seed"], device=device, **rate),
        )
        model.save_pretrained(folder)
    trained = time.monotonic()
    model = model.to(resolve_device(device))
    part = recordings.test if job["test"] else recordings.validation
    noises = noise_recordings("noise", shape.front_end.rate_hz)
    rows = measured({job["network"]: model}, part, utterances, snr_db=SNR_DB, noises=noises)
    wer = {row["condition"]: row["wer"] for row in rows}
    if model.causal:
        wer["in chunks"] = error_rates(part.texts, streamed_texts(model, part.samples, CHUNK_S)).wer
    return {
        **job,
        "wer": {name: round(value, 5) for name, value in wer.items()},
        "parameters": sum(one.numel() for one in model.parameters()),
        "validation_loss": round(result.best_score, 4),
        "epochs": result.epochs,
        "training_seconds": round(result.seconds, 1),
        "measuring_seconds": round(time.monotonic() - trained, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def rows_of(done: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows of the seeds for which no speaker and no network is missing; rates in per cent."""
    from rows import row

    wanted = {(speaker, network) for speaker in SPEAKERS for network in NETWORKS}
    of_seed: dict[int, dict[tuple[str, str], dict[str, float]]] = {}
    for one in done:
        of_seed.setdefault(one["seed"], {})[one["speaker"], one["network"]] = one["wer"]
    seeds = sorted(seed for seed, found in of_seed.items() if set(found) == wanted)
    if not seeds:
        return []

    def rates(network: str, condition: str) -> list[float]:
        return [
            100 * statistics.mean(of_seed[seed][speaker, network][condition] for speaker in SPEAKERS)
            for seed in seeds
        ]

    def made(what: str, network: str, condition: str, peers: dict[str, list[float]]) -> dict[str, Any]:
        ours = rates(network, condition)
        return row(
            f"speech/connected-digits/wer/{what}",
            round(statistics.mean(ours), 3),
            "%",
            peers={name: round(statistics.mean(values), 3) for name, values in peers.items()},
            spread=round(statistics.stdev(ours), 3) if len(ours) > 1 else None,
            seeds=seeds,
            command=command,
        )

    rows = []
    for condition in ("as recorded", *(f"{snr:g} dB" for snr in SNR_DB)):
        name = "unseen" if condition == "as recorded" else f"unseen-snr{condition.split()[0]}"
        peers = {NAMES[one]: rates(one, condition) for one in NETWORKS[1:]}
        rows.append(made(name, "mamba", condition, peers))
    whole = {"the whole recording at once": rates("mamba-streaming", "as recorded")}
    rows.append(made("streaming", "mamba-streaming", "in chunks", whole))
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--speakers", nargs="+", default=list(SPEAKERS), choices=SPEAKERS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--data", default=DATA, help="what teaches, connected-digits first")
    parser.add_argument(
        "--validation-only", action="store_true", help="measure the speaker who chooses instead"
    )
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)
    arguments.validation_only |= arguments.data != DATA

    from mambakit.domains.speech.cards import load_utterances

    load_utterances(arguments.data, "recognize")  # made once, before the processes ask for it together
    jobs = [
        {
            "speaker": speaker,
            "seed": seed,
            "network": network,
            "data": arguments.data,
            "changes": changes,
            "limit": arguments.limit,
            "test": not (arguments.validation_only or changes),
            "keep": arguments.keep and str(arguments.keep),
        }
        for seed in arguments.seeds
        for network in arguments.networks
        for speaker in arguments.speakers
    ]
    return measured(run_job, jobs, arguments, rows_of, "speech")


if __name__ == "__main__":
    sys.exit(main())
