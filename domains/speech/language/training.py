"""From texts to a trained language model, and its perplexity beside that of n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mambakit.core.language_model import LanguageModelConfig
from mambakit.core.training import FitResult, Report, RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.training.curves import Panel, add_training
from mambakit.domains.speech.language.config import TextModelConfig
from mambakit.domains.speech.language.data import Texts, text_loader
from mambakit.domains.speech.language.model import CharacterScores, TextModel
from mambakit.domains.speech.recognize.ngram import NgramModel
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer

COLUMNS = ("model", "perplexity", "texts")
_ORDER = 6


def train_text_model(
    texts: Texts, run: RunFolder, *, model_config: TextModelConfig, train_config: TrainConfig
) -> tuple[TextModel, FitResult]:
    """Trains; the weights of the least validation loss are kept.

    Args:
        texts: What to learn.
        run: Where the run is kept; one that was killed goes on.
        model_config, train_config: What to train and how.

    Returns:
        The model in evaluation mode on the CPU, and how training went.
    """
    from mambakit.domains.speech.language.task import TextTask

    seed_everything(train_config.seed)
    tokenizer = CharacterTokenizer().fit(texts.train)
    model = TextModel(LanguageModelConfig(tokenizer.n_ids, model_config.backbone()))
    model.tokenizer = tokenizer
    result = fit(
        TextTask(model, train_config),
        text_loader(texts.train, tokenizer, train_config.batch_size, shuffle=True),
        text_loader(texts.validation, tokenizer, train_config.batch_size, shuffle=False),
        train_config,
        run,
    )
    return model.cpu().eval(), result


def perplexities(model: TextModel, train: Sequence[str], test: Sequence[str]) -> list[dict[str, Any]]:
    """A character's, of the model and of n-grams of the training texts with Witten-Bell smoothing."""
    ngrams = NgramModel(_ORDER, "characters").fit(train)
    return [
        {"model": "mambakit", "perplexity": CharacterScores(model).perplexity(test), "texts": len(test)},
        {"model": f"{_ORDER}-gram", "perplexity": ngrams.perplexity(test), "texts": len(test)},
    ]


def write_report(run: RunFolder, name: str, result: FitResult, rows: Sequence[dict[str, Any]]) -> None:
    """Writes ``report.html`` and the learning curve."""
    report = Report(f"Language model: {name}")
    if rows:
        report.add_heading("Perplexity of a character on the test part")
        report.add_table(list(rows))
    add_training(
        report,
        run,
        result,
        (Panel("nats a character", ("train/loss", "val/loss"), "min"),),
        f"the least validation loss, {result.best_score:.4f}.",
    )
    report.add_code(run.config_path.read_text(encoding="utf-8"))
    report.write(run.report_path)
