"""Probing a model of speech, of any task that reads recordings: what `mambakit speech probe` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.apps.probing import check_outputs, show_probe
from mambakit.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from mambakit.core.trust.probe import Subject


def probe(
    *,
    model: Path,
    data: str | None = None,
    only: list[str] = [],  # noqa: B006  (only read)
    output: Path | None = None,
    plot: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures how a model of speech falls off in noise, with lost packets, or with packets reordered.

    Classifiers by accuracy, recognisers by word error rate, enhancers and separators by SI-SNR; labels and
    clean speech stay as they were. dt times 1/8 to 8 makes every
    state-space block step as if all happened slower or faster than in training.

    Args:
        model: Folder of the saved model.
        data: A card's name or a manifest, all of which is measured; by default the test part of the
            training's data. Of an enhancer, pairs of noisy and clean speech.
        only: Some of the perturbations: noise, drop, shuffle, dt; all by default.
        output: CSV or Parquet with a row a level.
        plot: PNG, PDF or SVG with a panel a perturbation.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit speech probe --model runs/digits --plot probe.png
        mambakit speech probe --model runs/asr --data other.jsonl --only noise --output probe.csv --json
    """
    from mambakit.domains.speech.saved import load_spec

    check_outputs(output, plot)
    task = load_spec(model).task
    if task not in _SUBJECTS:
        raise UsageError(f"model: {model} holds a model of the task {task}, which reads no recordings")
    probed = _SUBJECTS[task](model, data, device)
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)


def _of_classifier(model: Path, data: str | None, device: str) -> Subject:
    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.classify.data import read_clips
    from mambakit.domains.speech.classify.evaluation import evaluate
    from mambakit.domains.speech.classify.model import Classifier
    from mambakit.domains.speech.classify.training import read_parts
    from mambakit.domains.speech.probing import subject
    from mambakit.domains.speech.saved import load_model, load_spec

    classifier = load_model(Classifier, "classify", model, device)
    rate_hz = classifier.config.model.front_end.rate_hz
    if data is None:
        utterances, chosen = load_spec(model).load()
        clips = read_parts(utterances, chosen, classifier.config.model).test
    else:
        utterances = load_utterances(data, "classify")
        clips, _, _ = read_clips(utterances, classifier.config.classes, rate_hz, classifier.least_samples)
    if not len(clips):
        raise DataError(f"{utterances.name}: no recording can be measured")

    def measure(heard: list[Tensor]) -> dict[str, float]:
        row = evaluate(classifier, dataclasses.replace(clips, samples=heard)).rows[0]
        return {name: row[name] for name in ("accuracy", "macro_f1")}  # type: ignore[misc]

    about = f"{utterances.name}, {len(clips)} recordings"
    return subject(classifier, list(clips.samples), rate_hz, measure, "accuracy", "max", about)


def _of_recognizer(model: Path, data: str | None, device: str) -> Subject:
    import numpy as np

    from mambakit.apps.speech_transcribe import load_recognizer
    from mambakit.domains.speech.cards import load_utterances
    from mambakit.domains.speech.probing import subject
    from mambakit.domains.speech.recognize.evaluation import OURS, measured
    from mambakit.domains.speech.recognize.recordings import read_recordings
    from mambakit.domains.speech.saved import load_spec

    recognizer = load_recognizer(model, device)
    if data is None:
        utterances, chosen = load_spec(model).load()
        places = chosen.test
    else:
        utterances = load_utterances(data, "recognize")
        places = np.arange(len(utterances))
    recordings, _ = read_recordings(utterances, places, recognizer.rate_hz)
    if not len(recordings):
        raise DataError(f"{utterances.name}: no recording can be measured")

    def measure(heard: list[Tensor]) -> dict[str, float]:
        row = measured({OURS: recognizer}, dataclasses.replace(recordings, samples=heard), utterances)[0]
        return {name: row[name] for name in ("wer", "cer")}

    about = f"{utterances.name}, {len(recordings)} recordings"
    samples = [one.clone() for one in recordings.samples]
    return subject(recognizer, samples, recognizer.rate_hz, measure, "wer", "min", about)


def _of_enhancer(model: Path, data: str | None, device: str) -> Subject:
    from mambakit.domains.speech.enhance.config import PRESET_MIX
    from mambakit.domains.speech.enhance.data import load_pairs, load_pools
    from mambakit.domains.speech.enhance.evaluation import OURS, evaluate
    from mambakit.domains.speech.enhance.model import Enhancer
    from mambakit.domains.speech.enhance.training import test_mixtures
    from mambakit.domains.speech.probing import subject
    from mambakit.domains.speech.saved import load_model, load_spec

    enhancer = load_model(Enhancer, "enhance", model, device)
    rate_hz, spec = enhancer.config.rate_hz, load_spec(model)
    if data is None:
        pools = load_pools(spec.data, rate_hz, seed=spec.seed)
        made = test_mixtures(pools.test, [], PRESET_MIX, PRESET_MIX.test_mixtures)
        pairs = [(f"mixture-{i + 1}", noisy, clean) for i, (noisy, clean) in enumerate(made)]
    else:
        pairs = list(load_pairs(data, rate_hz))

    def measure(heard: list[Tensor]) -> dict[str, float]:
        named = [(one[0], noisy.numpy(), one[2]) for one, noisy in zip(pairs, heard, strict=True)]
        row = next(row for row in evaluate(enhancer, named).means() if row["model"] == OURS)
        return {name: v for name, v in row.items() if isinstance(v, float)}

    import torch

    recordings = [torch.as_tensor(noisy) for _, noisy, _ in pairs]
    about = f"{data or spec.data}, {len(pairs)} pairs"
    return subject(enhancer, recordings, rate_hz, measure, "si_sdr", "max", about)


def _of_separator(model: Path, data: str | None, device: str) -> Subject:
    import numpy as np
    import torch

    from mambakit.domains.speech.enhance.data import load_pools
    from mambakit.domains.speech.probing import subject
    from mambakit.domains.speech.saved import load_model, load_spec
    from mambakit.domains.speech.separate.config import PRESET_PAIRS
    from mambakit.domains.speech.separate.metrics import si_snr
    from mambakit.domains.speech.separate.model import Separator
    from mambakit.domains.speech.separate.training import gains, test_mixtures, with_unseen

    separator = load_model(Separator, "separate", model, device)
    spec, rate_hz = load_spec(model), separator.config.rate_hz
    pools = load_pools(data or spec.data, rate_hz, seed=spec.seed, task="separate")
    pairs = dataclasses.replace(PRESET_PAIRS, unseen=[] if data else spec.unseen)
    mixtures = test_mixtures(with_unseen(pools, pairs.unseen), pairs, pairs.test_mixtures)

    def measure(heard: list[Tensor]) -> dict[str, float]:
        spoilt = [(noisy, said) for noisy, (_, said) in zip(heard, mixtures, strict=True)]
        # a gain over what is heard would grow as that gets worse
        before = [float(si_snr(noisy.expand_as(said), said).mean()) for noisy, said in spoilt]
        return {"si_snr_db": float(np.mean(before) + np.mean(gains(separator, spoilt)))}

    recordings = [torch.as_tensor(mixture) for mixture, _ in mixtures]
    about = f"{data or spec.data}, {len(mixtures)} mixtures"
    return subject(separator, recordings, rate_hz, measure, "si_snr_db", "max", about)


_SUBJECTS = {
    "classify": _of_classifier,
    "recognize": _of_recognizer,
    "enhance": _of_enhancer,
    "separate": _of_separator,
}
