"""Tokenizers of text, words with times, and the formats of transcripts."""

from __future__ import annotations

import json
import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.adapters import get_adapter
from mambakit.core.adapters.testing import check_adapter
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.recognize import formats
from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.ngram import NgramModel
from mambakit.domains.speech.recognize.phones import PhoneTokenizer
from mambakit.domains.speech.recognize.tokenizer import (
    BpeTokenizer,
    CharacterTokenizer,
    TextAdapter,
    unknown_characters,
    unknown_sentence,
)
from mambakit.domains.speech.recognize.units import load_tokenizer
from mambakit.domains.speech.recognize.words import Spoken, Word, spoken, words_of

TEXTS = ["Three one  four", "one five nine", "two six five", "three five", "nine nine four"]


@pytest.mark.parametrize("make", [CharacterTokenizer, lambda: BpeTokenizer(40)], ids=["characters", "bpe"])
def test_tokenizers_keep_the_contract(make):
    tokenizer = make().fit(TEXTS)
    check_adapter(
        tokenizer,
        lambda: TextAdapter(tokenizer.n_ids, d_model=8),
        TEXTS,
        bad_samples=["zoo", None, 3],
        empty_sample="",
    )


def test_the_adapter_is_registered():
    assert get_adapter("speech-text").tokenizer is CharacterTokenizer


def test_bpe_makes_words_of_few_pieces(tmp_path):
    tokenizer = BpeTokenizer(60).fit(TEXTS * 5)
    assert len(tokenizer.encode("three five")) < len("three five") / 2
    assert 0 not in tokenizer.encode("two nine").values.tolist()  # the blank is no symbol
    tokenizer.save(tmp_path)
    for again in (load_tokenizer(tmp_path, "bpe"), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode("two nine").equals(tokenizer.encode("two nine"))
        assert again.text(again.encode("two nine").values.tolist()) == "two nine"


def test_unknown_characters_are_listed_with_their_rows():
    tokenizer = CharacterTokenizer().fit(TEXTS)
    found = unknown_characters(tokenizer, {1: "one", 4: "zoom", 7: "jazz"})
    assert found["z"] == [4, 7]
    assert found["m"] == [4]
    assert set(found) == {"z", "m", "j", "a"}
    assert unknown_sentence(found).startswith(
        "characters that no training transcript has: 'z' (rows 4, 7), 'm' (row 4)"
    )
    assert unknown_sentence({}) == ""


def test_words_from_a_path():
    pieces = ["", " ", "a", "b"]
    path = [0, 2, 2, 0, 2, 1, 1, 3, 0, 0]
    values = [math.log(p) for p in (1, 0.5, 0.5, 1, 0.25, 1, 1, 0.9, 1, 1)]
    first, second = words_of(spoken(path, values, first_frame=10), pieces, 0.04)
    assert (first.text, second.text) == ("aa", "b")
    assert first.start_s == pytest.approx(11 * 0.04)
    assert first.end_s == pytest.approx(15 * 0.04)
    assert first.confidence == pytest.approx((0.5 * 0.5 * 0.25) ** (1 / 3))
    assert second.start_s == pytest.approx(0.68)
    assert second.confidence == pytest.approx(0.9)


def test_words_from_pieces_that_begin_words():
    pieces = ["", " th", "ree", " one"]
    found = words_of(spoken([1, 2, 0, 3], [0.0] * 4), pieces, 1.0)
    assert [(word.text, word.start_s, word.end_s) for word in found] == [("three", 0, 2), ("one", 3, 4)]


def transcript():
    words = [Word("one", 0.5, 0.8, 0.9), Word("two", 0.9, 1.2, 0.8), Word('<"six">', 3661.5, 3662.0, 0.7)]
    return formats.Transcript(formats.lines_of(words), 3700.0)


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3)), max_size=30),
    st.floats(0.01, 3.0),
)
def test_words_of_a_transducer_share_frames_and_end_with_the_recording(symbols, seconds):
    """Symbols are a letter or a space, each so many frames after the one before, often none."""
    frame, found = 0, []
    for symbol, later in symbols:
        frame += later
        found.append(Spoken(symbol, frame, frame + 1, -0.1))
    words = words_of(found, ["", " ", "a"], 0.04, seconds=seconds)
    assert " ".join(word.text for word in words) == " ".join("".join(" a"[s - 1] for s, _ in symbols).split())
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(word.start_s < word.end_s <= seconds for word in words)
    grid = formats.as_textgrid(formats.Transcript(formats.lines_of(words), seconds))
    assert all(f'text = "{word.text}"' in grid for word in words)


def test_formats():
    made = transcript()
    assert formats.as_text(made) == 'one two\n<"six">\n'
    assert formats.as_srt(made) == (
        '1\n00:00:00,500 --> 00:00:01,500\none two\n\n2\n01:01:01,500 --> 01:01:02,500\n<"six">\n'
    )
    assert formats.as_vtt(made).startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.500\none two\n\n01:01:01.500")
    assert "&lt;" in formats.as_vtt(made)
    content = json.loads(formats.as_json(made))
    assert content["text"] == 'one two <"six">'
    assert content["lines"][0]["words"][1] == {
        "text": "two", "start_s": 0.9, "end_s": 1.2, "confidence": 0.8,
    }  # fmt: skip
    short = [formats.Line((Word("a", at, at + 0.02, 1.0),)) for at in (1.0, 1.7, 3.0)]
    shown = re.findall(r"\d\d,\d{3}", formats.as_srt(formats.Transcript(tuple(short), 3.5)))
    assert shown == ["01,000", "01,700", "01,700", "02,700", "03,000", "03,500"]
    with pytest.raises(
        UsageError, match=r"ends in one of \.txt, \.srt, \.vtt, \.json, \.TextGrid, got a\.doc"
    ):
        formats.write_transcript(made, formats.Path("a.doc"))


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 1)), max_size=6))
def test_textgrid_tiles_time_without_gaps(spans):
    words, at = [], 0.0
    for gap, length in spans:
        words.append(Word("w", at + gap, at + gap + length, 1.0))
        at += gap + length
    text = formats.as_textgrid(formats.Transcript(formats.lines_of(words), at + 1.0))
    for tier in text.split("item [")[2:]:
        starts = [float(x) for x in re.findall(r"^            xmin = (\S+)", tier, re.MULTILINE)]
        ends = [float(x) for x in re.findall(r"^            xmax = (\S+)", tier, re.MULTILINE)]
        assert starts[0] == 0
        assert ends[-1] == pytest.approx(at + 1.0, abs=1e-5)
        assert starts[1:] == ends[:-1]
        assert all(a < b for a, b in zip(starts, ends, strict=True))
    assert text.count('text = "w"') >= len(words)


def test_phones_of_a_lexicon(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text(
        ";;; English\none  W AH N\none(2)  HH W AH N\nwon  W AH N\n"
        "two T UW\nnine N AY N\nnun N AH N\nzoo Z UW\n"
    )
    tokenizer = PhoneTokenizer(path).fit(["two two won", "One two nine", "two one one"])
    check_adapter(
        tokenizer,
        lambda: TextAdapter(tokenizer.n_ids, d_model=8),
        ["one two", "nun", "won nine"],
        bad_samples=["zoo", None, 3],
        empty_sample="",
    )
    assert tokenizer.pieces == ["", " ", "AH.", "AY.", "N.", "T.", "UW.", "W."]
    ids = tokenizer.encode("two nun won").values.tolist()
    assert ids == [5, 6, 1, 4, 2, 4, 1, 7, 2, 4]
    assert tokenizer.text(ids) == "two nun one"  # won sounds alike, and the transcripts have one more often
    assert tokenizer.text([5, 2, 1, 5, 6]) == "T.AH two"
    assert tokenizer.unknown("zoo two cow zoo") == ["zoo", "cow"]
    assert unknown_sentence({"zoo": [3]}, tokenizer.wanting).startswith(
        "words that can't be said in the phones"
    )
    (word,) = words_of(spoken([7, 2, 0, 4], [0.0] * 4), tokenizer.pieces, 1.0, tokenizer.spelled)
    assert (word.text, word.end_s) == ("one", 4)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path, "phones").encode("nun").equals(tokenizer.encode("nun"))
    path.write_text("one W AH N\ntwo\n")
    with pytest.raises(DataError, match=r"words\.dict, line 2: 'two' has no phones"):
        PhoneTokenizer(path).fit(["one"])


def test_phones_of_espeak():
    tokenizer = PhoneTokenizer().fit(["one two", "nine two seven"])
    assert tokenizer.letters("one two") == "w.ʌ.n. t.uː."
    assert tokenizer.text(tokenizer.encode("seven one").values.tolist()) == "seven one"
    assert tokenizer.unknown("ten too chair") == ["chair"]  # tʃ and ɛɹ are in no training transcript
    assert tokenizer.text(tokenizer.encode("ten too").values.tolist()) == "t.ɛ.n two"


def test_hotwords_and_words_of_a_language_model_are_found_in_phones(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("one W AH N\ntwo T UW\n")
    tokenizer = PhoneTokenizer(path).fit(["one two"])
    lm = NgramModel(2).fit(["one two"] * 3)
    fusion = Fusion(lm, lm_weight=1.0, hotwords=["one two"], hotword_boost=2.0, tokenizer=tokenizer)
    state = fusion.start()
    for i in tokenizer.encode("one two").values.tolist():
        state = fusion.extended(state, tokenizer.pieces[i])
    assert fusion.finished(state).score == pytest.approx(-math.log(lm.perplexity(["one two"])) * 3 + 2.0)
