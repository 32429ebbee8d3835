"""From recordings with transcripts and a split to a trained recogniser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, resolve_device, seed_everything
from mambakit.core.training.devices import loading_processes
from mambakit.domains.speech.augment import Augmenter
from mambakit.domains.speech.recognize.config import (
    RecognizeAugmentConfig,
    RecognizeLossConfig,
    RecognizeModelConfig,
    RecognizerConfig,
)
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.recordings import (
    Recordings,
    fitting,
    measuring_loader,
    read_recordings,
    training_loader,
)
from mambakit.domains.speech.recognize.splicing import Piece, Spliced, pieces_of_speakers
from mambakit.domains.speech.recognize.tokenizer import TextTokenizer
from mambakit.domains.speech.recognize.units import fit_tokenizer
from mambakit.domains.speech.utterances import Split, Utterances

_MOST_FITTED = 5000  # recordings that means and deviations of the front end are taken over


@dataclass(frozen=True)
class RecordingParts:
    """The recordings of a split, read; those to learn from and choose by can be written in their frames."""

    tokenizer: TextTokenizer
    train: Recordings
    validation: Recordings
    test: Recordings
    pieces: list[list[Piece]]
    """For each recording to learn from, the words that its speaker says and where, if the data tell."""
    left_out: list[tuple[str, str]]
    """Files that can't be used, and why."""
    notes: list[str]
    """What a person should know, a sentence each."""


def read_parts(utterances: Utterances, split: Split, model: RecognizeModelConfig) -> RecordingParts:
    """Reads all recordings at the model's rate; bad ones are left out and listed.

    Test recordings stay whatever their transcripts: what a model can't write counts as its errors.

    Raises:
        DataError: If a part to learn from or to choose by has none left.
    """
    rate_hz = model.front_end.rate_hz
    read, left_out, notes = {}, list(utterances.left_out), list(utterances.notes)
    for name in ("train", "validation", "test"):
        read[name], bad = read_recordings(utterances, getattr(split, name), rate_hz)
        left_out += bad
    if not len(read["train"]):
        first = left_out[0] if left_out else ("it", "no row has a transcript")
        raise DataError(
            f"{utterances.name}: no training recording can be used; the first, {first[0]}: {first[1]}"
        )
    texts = read["train"].texts
    tokenizer = fit_tokenizer(
        model.units, texts, n_pieces=model.n_pieces, lexicon=model.lexicon, voice=model.voice
    )
    frame_samples = model.front_end.hop * model.encoder.subsampling
    for name in ("train", "validation"):
        read[name], bad, said = fitting(read[name], tokenizer, frame_samples, utterances)
        left_out += bad
        notes += [note for note in said if note not in notes]
        if not len(read[name]):
            raise DataError(
                f"{utterances.name}: no recording of {name} can be used; the first of "
                f"{len(left_out)}, {left_out[0][0]}: {left_out[0][1]}"
            )
    if _guesses_words(model, read["train"].texts):
        notes.append(
            f"{utterances.name}: nearly every recording is one word, which a causal CTC of letters guesses at"
            " its onset; --model.units bpe, --model.head rnnt or --model.encoder.bidirectional true do better"
        )
    pieces = pieces_of_speakers(read["train"], utterances, rate_hz)
    return RecordingParts(tokenizer, read["train"], read["validation"], read["test"], pieces, left_out, notes)


def _guesses_words(model: RecognizeModelConfig, texts: list[str]) -> bool:
    """Whether letters would be written before they can be known.

    Nothing ties CTC's symbols to their sound. In a clip of one word the first frames are the easiest to tell
    from all others, so that a network that can't look ahead learns to write there, and stays in that optimum:
    no silence before or behind the clip leads it out. With further words to come, or a word a symbol, it
    waits until it knows.
    """
    of_one = sum(" " not in text for text in texts) >= 0.9 * len(texts)
    causal = model.network == "mamba" and not model.encoder.bidirectional
    return of_one and causal and model.head == "ctc" and model.units != "bpe"


def train_recognizer(
    parts: RecordingParts,
    run: RunFolder,
    *,
    name: str,
    model_config: RecognizeModelConfig,
    loss_config: RecognizeLossConfig,
    augment_config: RecognizeAugmentConfig,
    train_config: TrainConfig,
    noises: list[Tensor] | None = None,
) -> tuple[Recognizer, FitResult]:
    """Trains; the weights of the least validation loss are kept.

    Args:
        parts: The recordings.
        run: Where the run is kept; one that was killed goes on.
        name: Of the data.
        model_config, loss_config, augment_config, train_config: What to train and how.
        noises: Recordings of noise at the model's rate to mix in, beside coloured noise.

    Returns:
        The model in evaluation mode on the CPU, and how training went.
    """
    from mambakit.domains.speech.recognize.task import RecognizeTask

    seed_everything(train_config.seed)
    model = Recognizer(RecognizerConfig(parts.tokenizer.n_ids, name, model_config))
    model.tokenizer = parts.tokenizer
    n = len(parts.train)
    model.front_end.fit(parts.train.samples[i] for i in range(0, n, -(-n // _MOST_FITTED)))
    n_processes = loading_processes(train_config.num_workers, resolve_device(train_config.device))
    learned = Spliced(parts.train, parts.tokenizer, parts.pieces, augment_config.splice, model.frame_samples)
    loader = training_loader(parts.train, learned, train_config.batch_size, n_processes)
    validation = measuring_loader(parts.validation, parts.tokenizer, n_processes=n_processes)
    augmenter = Augmenter(augment_config, model.rate_hz, noises or [])
    task = RecognizeTask(model, train_config, loss_config, augmenter)
    result = fit(task, loader, validation, train_config, run)
    return model.cpu().eval(), result
