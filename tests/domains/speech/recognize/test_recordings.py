"""Which recordings are trained on, and in which batches."""

from __future__ import annotations

import torch

from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.recognize.config import RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.evaluation import transcripts
from mambakit.domains.speech.recognize.metrics import error_rates
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.recordings import LengthBatches, Recordings, fitting
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.utterances import Utterances, utterance_table


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


def test_texts_are_the_same_in_any_company():
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer().fit(["one three"])
    encoder = EncoderConfig(d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, dropout=0.0)
    model = Recognizer(RecognizerConfig(tokenizer.n_ids, "", RecognizeModelConfig(encoder=encoder))).eval()
    model.tokenizer = tokenizer
    sounds = [0.1 * torch.randn(n) for n in (4000, 100, 9000, 161, 0, 6000)]
    together = transcripts(model, sounds)
    assert [one.text for one in together] == [transcripts(model, [sound])[0].text for sound in sounds]
    assert [one.duration_s for one in together] == [len(sound) / 8000 for sound in sounds]
    assert together[0].text
    assert not together[1].text
