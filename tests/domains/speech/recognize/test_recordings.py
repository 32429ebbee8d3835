"""Which recordings are trained on, and in which batches."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.recognize.config import RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.evaluation import transcripts
from mambakit.domains.speech.recognize.metrics import error_rates
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.recordings import LengthBatches, Recordings, fitting, read_recordings
from mambakit.domains.speech.recognize.splicing import Spliced, pieces_of_speakers
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.recognize.training import read_parts
from mambakit.domains.speech.utterances import Split, Utterances, read_manifest, utterance_table


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


def spoken(tmp_path, rows: list[dict[str, object]]) -> Utterances:
    """Recordings of a second, in which every word is one value that no other word has."""
    for i, row in enumerate(rows):
        samples = torch.zeros(8000)
        for k, (_, start, end) in enumerate(row["word_times"] or []):
            samples[round(8000 * start) : round(8000 * end)] = (10 * i + k + 1) / 100
        write_audio(tmp_path / f"{i}.wav", Audio(samples, 8000))
        row["path"] = f"{i}.wav"
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return read_manifest(tmp_path / "mine.jsonl")


def test_spliced_recordings_say_whole_words_of_their_speaker(tmp_path):
    times = [["One", 0.1, 0.3], ["two", 0.5, 0.8]]
    utterances = spoken(
        tmp_path,
        [
            {"text": "one two", "speaker": "a", "word_times": times},
            {"text": "three", "speaker": "a", "word_times": [["three", 0.2, 0.9]]},
            {"text": "four", "speaker": "b", "word_times": [["four", 0.2, 0.9]]},
            {"text": "five", "speaker": "c", "word_times": None},
            {"text": "six", "speaker": "c", "word_times": [["seven", 0.2, 0.9]]},
        ],
    )
    recordings, _ = read_recordings(utterances, np.arange(5), 8000)
    tokenizer = CharacterTokenizer().fit(recordings.texts)
    pieces = pieces_of_speakers(recordings, utterances, 8000)
    assert [[one.word for one in of] for of in pieces] == [["one", "two", "three"]] * 2 + [["four"], [], []]
    assert pieces[0][0].end == pieces[0][1].begin == round(8000 * 0.4)
    values = {"one": 0.01, "two": 0.02, "three": 0.11, "four": 0.21}
    spliced = Spliced(recordings, tokenizer, pieces, 1.0, 160)
    assert len(spliced) == 5
    seen = set()
    for _ in range(40):
        samples, ids = spliced[0]
        heard = [round(float(value), 2) for value in samples.unique_consecutive() if value]
        assert [values[word] for word in tokenizer.text(ids.tolist()).split()] == heard
        seen.add(tuple(heard))
    assert len(seen) > 5
    for place in (2, 3, 4):  # the only word of its speaker, and recordings whose words have no known places
        samples, ids = spliced[place]
        assert torch.equal(samples, recordings.samples[place])
        assert tokenizer.text(ids.tolist()) == recordings.texts[place]
    as_they_are = Spliced(recordings, tokenizer, pieces, 0.0, 160)
    assert all(torch.equal(as_they_are[0][0], recordings.samples[0]) for _ in range(5))


def test_what_would_be_too_short_for_its_symbols_is_not_spliced(tmp_path):
    times = [["three", 0.0, 0.02], ["two", 0.5, 0.8]]
    utterances = spoken(tmp_path, [{"text": "three two", "speaker": "a", "word_times": times}])
    recordings, _ = read_recordings(utterances, np.arange(1), 8000)
    tokenizer = CharacterTokenizer().fit(recordings.texts)
    pieces = pieces_of_speakers(recordings, utterances, 8000)
    assert pieces[0][0].end == round(8000 * 0.26)
    spliced = Spliced(recordings, tokenizer, pieces, 1.0, 800)  # three needs six frames of .1 s, and gets two
    for _ in range(20):
        samples, ids = spliced[0]
        assert len(samples) // 800 >= len(ids)


@pytest.mark.parametrize("times", ["[[", [["one", 0.5]], [["one", 0.5, 0.4]], [["one", "x", 1]], 3.5])
def test_times_of_words_that_make_no_sense_leave_a_row_out(tmp_path, times):
    good = {"text": "one", "word_times": [["one", 0.1, 0.3]]}
    utterances = spoken(tmp_path, [good])
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"path": "0.wav", "text": "one", "word_times": times}))
    read = read_manifest(tmp_path / "mine.jsonl")
    assert read.word_times(0) == utterances.word_times(0) == [("one", 0.1, 0.3)]
    assert len(read) == 1
    assert "line 2" in read.left_out[0][0]
    assert "word_times: expected a list of [word, start, end]" in read.left_out[0][1]


def test_times_of_words_are_read_from_csv_as_json(tmp_path):
    write_audio(tmp_path / "0.wav", Audio(torch.zeros(8000), 8000))
    rows = [{"path": "0.wav", "text": "one", "word_times": json.dumps([["one", 0.1, 0.3]])}]
    pd.DataFrame([*rows, {"path": "0.wav", "text": "two"}]).to_csv(tmp_path / "mine.csv", index=False)
    read = read_manifest(tmp_path / "mine.csv")
    assert [read.word_times(i) for i in range(2)] == [[("one", 0.1, 0.3)], None]
