"""From molecules to a trained language model."""

from __future__ import annotations

import numpy as np

from mambakit.core.language_model import LanguageModelConfig
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, resolve_device, seed_everything
from mambakit.core.training.devices import loading_processes
from mambakit.domains.molecules.language.batches import PackedMolecules
from mambakit.domains.molecules.language.config import CorpusConfig, ModelConfig
from mambakit.domains.molecules.language.corpus import Corpus
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.language.ngram import NGram
from mambakit.domains.molecules.language.reference import Reference, hashes

_BASELINE_ORDER = 6


def train_language_model(
    corpus: Corpus,
    run: RunFolder,
    *,
    model_config: ModelConfig,
    corpus_config: CorpusConfig,
    train_config: TrainConfig,
    start: MoleculeModel | None = None,
    n_validation_samples: int = 100,
) -> tuple[MoleculeModel, FitResult]:
    """Trains on the corpus; the weights of the lowest validation loss are kept.

    Args:
        corpus: The molecules; its tokenizer goes into the model.
        run: Where the run is kept; one that was killed goes on.
        model_config, corpus_config, train_config: What to train and how.
        start: A model to continue from; its network is grown to the corpus' tokenizer, which must be its
            own, extended.
        n_validation_samples: Molecules drawn at each validation, to say how many are valid.

    Returns:
        The model in evaluation mode on the CPU, and how training went.

    Raises:
        UserError: If training fails, or the run folder holds another run.
    """
    from mambakit.domains.molecules.language.task import MoleculeTask

    seed_everything(train_config.seed)
    if start is None:
        model = MoleculeModel(LanguageModelConfig(corpus.tokenizer.n_ids, model_config.backbone()))
        model.tokenizer = corpus.tokenizer
    else:
        model = start.grown(corpus.tokenizer)
    row_length = corpus_config.row_length
    train = PackedMolecules(
        corpus.train, corpus.tokenizer, randomize=corpus_config.randomize, row_length=row_length
    )
    # written as they stand, to choose by; and anew, as the model meets them in training and in design
    validation = [
        PackedMolecules(corpus.validation, corpus.tokenizer, randomize=anew, row_length=row_length)
        for anew in (0.0, 1.0)[: 1 + (corpus_config.randomize > 0)]
    ]
    workers = loading_processes(train_config.num_workers, resolve_device(train_config.device))
    result = fit(
        MoleculeTask(
            model, train_config, n_samples=n_validation_samples, max_length=corpus_config.max_length
        ),
        train.loader(train_config.batch_size, shuffle=True, num_workers=workers),
        [one.loader(train_config.batch_size, shuffle=False) for one in validation],
        train_config,
        run,
    )
    model.reference = make_reference(corpus, corpus_config, seed=train_config.seed)
    return model.cpu().eval(), result


def make_reference(corpus: Corpus, config: CorpusConfig, *, seed: int = 0) -> Reference:
    """What the model will be compared with, of at most ``n_reference`` molecules a kind.

    The baseline's samples are of an n-gram model of all training molecules, as they stand.
    """
    kept = config.n_reference
    ids = (corpus.tokenizer.encode(smiles).values.tolist() for smiles in corpus.train)
    drawn = (
        NGram(_BASELINE_ORDER).fit(ids).sample(kept, seed=seed, max_length=config.max_length) if kept else []
    )
    # the parts' order is that of the source: every so many-th is a fair sample, and the same each time
    return Reference(
        name=corpus.name,
        hashes=np.sort(hashes(corpus.train)),
        train=_some(corpus.train, kept),
        held_out=_some(corpus.held_out, kept),
        baseline=[corpus.tokenizer.text(one) for one in drawn],
    )


def _some(smiles: list[str], most: int) -> list[str]:
    return smiles[:: -(-len(smiles) // most)] if most and smiles else []
