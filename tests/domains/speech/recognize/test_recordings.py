"""Which recordings are trained on, and in which batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.recognize.config import RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.evaluation import transcripts
from mambakit.domains.speech.recognize.metrics import error_rates
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.recordings import LengthBatches, Recordings, fitting
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.recognize.training import read_parts
from mambakit.domains.speech.utterances import Split, Utterances, utterance_table


def test_transcripts_longer_than_ctc_allows_are_left_out_counted_and_named():
    tokenizer = CharacterTokenizer().fit(["one three"])
    texts = ["one", "three", "three", "zoo"]
    recordings = Recordings([torch.zeros(n * 160) for n in (3, 5, 6, 50)], texts, [0, 1, 2, 3])
    table = utterance_table([{"path": f"{i}.wav", "text": text} for i, text in enumerate(texts)])
    kept, left_out, notes = fitting(recordings, tokenizer, 160, Utterances("mine", table))
    assert kept.rows == [0, 2]  # three needs a frame for the blank between its two e
    assert left_out == [
        ("1.wav", "its transcript needs 6 frames, and it has 5"),
        ("3.wav", "characters that no training transcript has: z"),
    ]
    assert "left out for characters that no training transcript has: 'z' (row 4)" in notes[0]
    assert "1 recordings are left out" in notes[1]
    assert "1.wav" in notes[1]


def test_who_trains_on_single_words_is_told_what_serves_them(tmp_path):
    for i in range(2):
        write_audio(tmp_path / f"{i}.wav", Audio(0.1 * torch.randn(8000), 8000))
    split = Split("mine", np.array([0]), np.array([1]), np.array([], dtype=np.int64))

    def notes(*texts: str, **options) -> list[str]:
        rows = [{"path": tmp_path / f"{i}.wav", "text": text} for i, text in enumerate(texts)]
        model = RecognizeModelConfig(**{"units": "characters"} | options)
        return read_parts(Utterances("mine", utterance_table(rows)), split, model).notes

    assert "a causal CTC of letters guesses at its onset; --model.units bpe" in notes("one", "one")[0]
    assert notes("one one", "one") == []
    assert notes("one", "one", head="rnnt") == []
    assert notes("one", "one", units="bpe", n_pieces=10) == []


def test_batches_hold_every_recording_once_and_little_padding():
    lengths = torch.randint(1, 1000, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = list(LengthBatches(lengths, 8))
    assert sorted(place for batch in batches for place in batch) == list(range(203))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.25 * sum(lengths)  # about 1.8 times without


def test_error_rates_count_each_kind():
    found = error_rates(["One two three", "four"], ["one too three five", ""])
    assert (found.substitutions, found.insertions, found.deletions, found.words) == (1, 1, 1, 4)
    assert found.wer == 0.75


@pytest.mark.parametrize("both", [True, False])
def test_texts_are_the_same_in_any_company(both):
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer().fit(["one three"])
    encoder = EncoderConfig(
        d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, dropout=0.0, bidirectional=both
    )
    model = Recognizer(
        RecognizerConfig(tokenizer.n_ids, "", RecognizeModelConfig(encoder=encoder, tail_s=0.2))
    )
    model.eval().tokenizer = tokenizer
    sounds = [0.1 * torch.randn(n) for n in (4000, 100, 9000, 161, 0, 6000)]
    together = transcripts(model, sounds)
    assert [one.text for one in together] == [transcripts(model, [sound])[0].text for sound in sounds]
    assert [one.duration_s for one in together] == [len(sound) / 8000 for sound in sounds]
    assert together[0].text
    assert not together[1].text
