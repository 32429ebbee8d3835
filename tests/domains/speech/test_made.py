"""Data that are made: the voices speak, and strings are where their times say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.core.errors import UserError
from mambakit.domains.speech import made
from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.cards import load_utterances
from mambakit.domains.speech.espeak import speak
from mambakit.domains.speech.utterances import Utterances, utterance_table


def test_a_voice_speaks_and_faster_when_asked() -> None:
    one = speak("seven")
    assert float(one.samples.abs().max()) > 0.1
    assert speak("seven", words_per_minute=300).seconds < 0.8 * one.seconds
    with pytest.raises(UserError, match="no voice 'klingon"):
        speak("seven", voice="klingon-xx")


def test_the_same_call_sounds_a_little_different_again() -> None:
    one, two = speak("seven"), speak("seven")
    n = min(len(one.samples), len(two.samples))
    assert not torch.equal(one.samples[:n], two.samples[:n])
    assert two.seconds == pytest.approx(one.seconds, rel=0.02)


@pytest.mark.slow
def test_the_same_calls_in_a_new_process_sound_the_same() -> None:
    program = (
        "import hashlib\nfrom mambakit.domains.speech.espeak import speak\n"
        "for word in ('seven', 'seven', 'two'):\n"
        "    print(hashlib.sha256(speak(word).samples.numpy().tobytes()).hexdigest())"
    )
    call = [sys.executable, "-c", program]
    first, again = (
        subprocess.run(call, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(made, "VOICES", ("en-us+m1",))
    monkeypatch.setattr(made, "_STRINGS", {"train": 2, "validation": 1, "test": 1})
    return tmp_path


def test_spoken_digits_are_made_once(small: Path) -> None:
    first = made.spoken_digits()
    assert first.parts is not None
    assert len(first) == 120
    assert (first.parts == "test").sum() == 20
    assert set(first.table["speaker"]) == {"en-us+m1"}
    stamp = Path(first.table["path"].iloc[0]).stat().st_mtime_ns
    assert Path(made.spoken_digits().table["path"].iloc[0]).stat().st_mtime_ns == stamp
    heard, clean = first.audio(5), first.clean_audio(5)
    assert len(heard.samples) == len(clean.samples)
    assert not torch.equal(heard.samples, clean.samples)


def test_strings_hold_the_takes_at_their_times(small: Path) -> None:
    """Every digit's takes are a level of their own, so that the levels say which take lies where."""
    rows, parts = [], []
    for part in ("train", "validation", "test"):
        for digit in range(10):
            path = small / f"{part}{digit}.wav"
            write_audio(path, Audio(torch.full((1600 + 80 * digit,), 0.05 * (digit + 1)), 8000))
            rows.append({"path": path, "label": str(digit), "speaker": "ann"})
            parts.append(part)
    hiss = small / "hiss.wav"
    write_audio(hiss, Audio(0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0)), 8000))
    digits = Utterances("digits", utterance_table(rows), np.array(parts))
    found = made.connected_digits(digits, Utterances("noise", utterance_table([{"path": hiss}])))
    assert len(found) == 4
    for i in range(4):
        clean, noise = found.clean_audio(i).samples, found.audio(i).samples - found.clean_audio(i).samples
        label, times = found.table["label"].iloc[i], found.table["word_times"].iloc[i]
        assert found.table["text"].iloc[i].split() == [made.WORDS[int(d)] for d in label]
        biggest = max(int(d) for d in label) + 1
        quiet = clean.clone()
        for digit, (word, start, end) in zip(label, times, strict=True):
            piece = clean[round(start * 8000) : round(end * 8000)]
            assert word == made.WORDS[int(digit)]
            assert len(piece) == 1600 + 80 * int(digit)
            assert torch.allclose(piece, torch.tensor(0.5 * (int(digit) + 1) / biggest), atol=1e-3)
            quiet[round(start * 8000) : round(end * 8000)] = 0
        assert not quiet.any()
        snr = 10 * float(torch.log10(clean.square().mean() / noise.square().mean()))
        assert 14.5 < snr < 30.5


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")
def test_connected_digits_card() -> None:
    found = load_utterances("connected-digits", "recognize")
    assert found.parts is not None
    assert len(found) == 1440
    assert json.dumps(found.table["word_times"].iloc[0])
    assert (found.parts == "test").sum() == 180
