"""Separation: what `mambakit speech separate`, and `train` of a separation model, do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from mambakit.apps.shared import some, tell, train_config
from mambakit.apps.speech_enhance import finish_bulk
from mambakit.core.cli import format_table, print_json
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.separate.config import (
    PRESET_PAIRS,
    PRESET_SEPARATE,
    PRESET_SEPARATE_TRAIN,
    PairConfig,
    SeparateConfig,
)


def train_separate(
    *,
    data: str = "spoken-sentences",
    task: Literal["separate"] = "separate",
    output: Path = Path("runs/separate"),
    baseline: bool = False,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    model: SeparateConfig = PRESET_SEPARATE,
    pairs: PairConfig = PRESET_PAIRS,
    train: TrainConfig = PRESET_SEPARATE_TRAIN,
    json: bool = False,
) -> None:
    """Trains a model that takes two speakers apart, on mixtures made on the fly.

    Args:
        data: Speech with named speakers: spoken-sentences, cards, manifests or folders, between commas; or
            the folder of WSJ0-2mix or Libri2Mix, whose sources are mixed anew to learn from.
        task: What to learn.
        output: Folder for the run and the model; a killed run continues in it.
        baseline: Train a Conv-TasNet of the same size in the same way too, and measure it beside.
        seed: Of weights and mixtures.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m; the baseline has as long again.
        overwrite: Remove another run in the output folder first.
        model: The network.
        pairs: How mixtures are made.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit speech train --task separate --data fsdd --pairs.unseen theo lucas --output runs/separate
    """
    import numpy as np

    from mambakit.core.training import RunFolder
    from mambakit.domains.speech.enhance.data import load_pools, save_source
    from mambakit.domains.speech.separate.training import (
        gains,
        test_mixtures,
        train_baseline,
        train_separator,
        with_unseen,
    )

    config = train_config(train, seed, device, max_time)
    pools = with_unseen(load_pools(data, model.rate_hz, seed=config.seed, task="separate"), pairs.unseen)
    speakers = [len(pool.speakers) for pool in (pools.train, pools.validation, pools.test)]
    print(
        f"{data}: {speakers[0]} speakers to learn from, {speakers[1]} that choose, "
        f"{speakers[2]} for the test",
        file=sys.stderr,
    )
    run = RunFolder(output, overwrite=overwrite)
    run.start({"task": task, "data": data, "model": model, "pairs": pairs, "train": config}, seed=config.seed)
    mixtures = test_mixtures(pools, pairs, pairs.test_mixtures)
    trained, result = train_separator(pools, run, model_config=model, pair_config=pairs, train_config=config)
    run.save(trained)
    save_source(run.path, "separate", data, config.seed, pairs.unseen)
    nets = {"this model": trained}
    if baseline:
        beside, _ = train_baseline(
            pools,
            RunFolder(run.path / "conv-tasnet"),
            model_config=model,
            pair_config=pairs,
            train_config=config,
        )
        nets["Conv-TasNet"] = beside  # type: ignore[assignment]
    rows: list[dict[str, object]] = [
        {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "si_snr_gain_db": float(np.mean(gains(net, mixtures))),
            "n": len(mixtures),
        }
        for name, net in nets.items()
    ]
    run.measured(trained, rows, data=data, ours={"model": "this model"})
    if json:
        print_json(
            {"data": data, "validation_loss": result.best_score, "model": run.path, "results": rows}
            | {"notes": pools.notes}
        )
        return
    print(f"{data}: {len(mixtures)} test mixtures of {', '.join(pairs.unseen) or 'test speakers'}")
    print(format_table(rows))
    tell(pools.notes)
    print(f"model: {run.path}")


def evaluate_separate(
    *,
    model: Path,
    data: str | None = None,
    unseen: list[str] | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures a separation model on mixtures of two test speakers.

    Args:
        model: Folder of the saved model.
        data: Speech with named speakers; the training's by default.
        unseen: The two speakers that are mixed; by default those that the training left out, if it did and
            data is its own, else all of the test part.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.
    """
    import numpy as np

    from mambakit.domains.speech.enhance.data import load_pools
    from mambakit.domains.speech.saved import load_model, load_spec
    from mambakit.domains.speech.separate.model import Separator
    from mambakit.domains.speech.separate.training import gains, test_mixtures, with_unseen

    trained = load_model(Separator, "separate", model, device)
    spec = load_spec(model)
    names = data or spec.data
    pairs = PairConfig(unseen=unseen or ([] if data else spec.unseen))
    loaded = load_pools(names, trained.config.rate_hz, seed=spec.seed, task="separate")
    of_their_own = (loaded.given or {}).get("test", [])  # all of which are measured
    count = len(of_their_own) or pairs.test_mixtures
    pools = with_unseen(loaded, pairs.unseen)
    mixtures = test_mixtures(pools, pairs, count)
    row = {
        "model": str(model),
        "si_snr_gain_db": float(np.mean(gains(trained, mixtures))),
        "n": len(mixtures),
    }
    notes = [] if data else pools.notes  # of other data, who was heard in training is not known
    if json:
        print_json({"data": names, "speakers": pools.test.speakers, "results": [row], "notes": notes})
        return
    print(f"{names}: mixtures of {some(pools.test.speakers)}")
    print(format_table([row]))
    tell(notes)


def separate(*, model: Path, input: Path, output: Path, device: str = "auto", json: bool = False) -> None:
    """Takes the speakers of a recording, or of all those in a folder, apart.

    Any rate and number of channels is read; what is written is one wav file a speaker, NAME-1.wav,
    NAME-2.wav, at the model's rate and at the levels at which they add up to the recording best. Files that
    can't be read are listed, and the others are done.

    Args:
        model: Folder of the saved model.
        input: wav, flac, ogg or mp3 file, or a folder of them.
        output: Folder for the speakers.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech separate --model runs/separate --input mix.wav --output apart/
    """
    import torch

    from mambakit.core.errors import UsageError
    from mambakit.domains.speech.audio import Audio
    from mambakit.domains.speech.files import Bulk, jobs
    from mambakit.domains.speech.saved import load_model
    from mambakit.domains.speech.separate.model import Separator, at_level_of

    if output.is_file() or output.suffix:
        raise UsageError(f"output: each speaker gets a file, so a folder is expected, got {output}")
    todo = jobs(input, output)
    trained = load_model(Separator, "separate", model, device)
    rate, bulk = trained.config.rate_hz, Bulk()
    for job, audio in bulk.readable(todo, rate):
        mixture = audio.samples[None]
        with torch.no_grad():
            said = at_level_of(mixture, trained(mixture.to(next(trained.parameters()).device)).cpu())[0]
        targets = [job.target.with_name(f"{job.target.stem}-{i + 1}.wav") for i in range(len(said))]
        for target, samples in zip(targets, said, strict=True):
            bulk.write(target, Audio(samples, rate))
        bulk.done.append({"input": job.source, "output": ", ".join(map(str, targets))})
    finish_bulk(input, bulk, "separated", json)
