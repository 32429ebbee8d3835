"""A language model of characters: what it learns, and what a beam makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from mambakit.core.errors import DataError
from mambakit.core.language_model import LanguageModelConfig
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.speech.language.config import TextModelConfig
from mambakit.domains.speech.language.data import read_texts, text_loader
from mambakit.domains.speech.language.model import CharacterScores, TextModel, character_losses
from mambakit.domains.speech.language.training import perplexities, train_text_model
from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.ngram import END
from mambakit.domains.speech.recognize.search import beam_search
from mambakit.domains.speech.recognize.text_models import load_text_model
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.saved import DataSpec

SMALL = TextModelConfig(d_model=16, n_layers=1, d_state=8, head_dim=8, dropout=0.0)


def untrained() -> TextModel:
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer().fit(["a cab", "bab"])
    model = TextModel(LanguageModelConfig(tokenizer.n_ids, SMALL.backbone())).double().eval()
    model.tokenizer = tokenizer
    return model


def test_scores_character_by_character_are_the_losses_of_whole_texts():
    model, texts = untrained(), ["a cab", "b", "bab a"]
    (batch,) = text_loader(texts, model.tokenizer, 8, shuffle=False)
    with torch.no_grad():
        mean, n = character_losses(model, *batch)
    assert int(n) == sum(len(text) + 1 for text in texts)
    scores = CharacterScores(model)
    assert math.log(scores.perplexity(texts)) == pytest.approx(float(mean), rel=1e-6)  # losses are float32
    place = scores.start
    assert sum(math.exp(scores.scored(item, place)[0]) for item in [*" abc", END]) == pytest.approx(1.0)
    value, after = scores.scored("z", place)
    assert value < -10
    assert scores.scored("a", after)[0] == scores.scored("a", place)[0]


def test_a_trained_model_decides_between_like_sounds(tmp_path):
    lines = ["a ac", "ac a", "a a ac", "ac ac"] * 12
    (tmp_path / "lines.txt").write_text("\n".join([*lines, "", "A  ab"]))
    texts = read_texts(DataSpec("language", str(tmp_path / "lines.txt")))
    assert len(texts.train) + len(texts.validation) + len(texts.test) == 49
    train = TrainConfig(max_epochs=15, batch_size=8, lr=1e-2, device="cpu")
    model, result = train_text_model(
        texts, RunFolder(tmp_path / "run"), model_config=SMALL, train_config=train
    )
    assert result.best_score < 0.6 * math.log(model.config.n_ids)
    assert {row["model"] for row in perplexities(model, texts.train, texts.test)} == {"mambakit", "6-gram"}
    model.save_pretrained(tmp_path / "run")
    lm = load_text_model(tmp_path / "run")
    pieces = ["", " ", "a", "b", "c"]
    sound = torch.full((5, 5), -20.0, dtype=torch.float64)
    sound[0, 2], sound[1, 1], sound[2, 2], sound[4, 0] = 0.0, 0.0, 0.0, 0.0
    sound[3, 3], sound[3, 4] = math.log(0.6), math.log(0.4)
    for fusion, expected in [(None, "a ab"), (Fusion(lm, lm_weight=1.0), "a ac")]:
        assert "".join(pieces[i] for i in beam_search(sound, pieces, fusion=fusion)[0].ids) == expected


def test_texts_that_are_none_are_refused(tmp_path):
    (tmp_path / "one.txt").write_text("only this\n")
    with pytest.raises(DataError, match="one: there is no text for train; give at least three sentences"):
        read_texts(DataSpec("language", str(tmp_path / "one.txt")))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="can't be read as text"):
        read_texts(DataSpec("language", str(tmp_path / "bad.txt")))
    ((_, lengths),) = text_loader(["a" * 1300], CharacterTokenizer().fit(["a"]), 8, shuffle=False)
    assert lengths.tolist() == [512, 512, 276]
