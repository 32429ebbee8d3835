"""Recognition from the command line, on a tiny model that has learned nothing."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from mambakit.apps.speech import main
from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.recognize.config import RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("asr")
    encoder = EncoderConfig(
        d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, bidirectional=False, dropout=0.0
    )
    tokenizer = CharacterTokenizer().fit(["one two six"])
    model = Recognizer(RecognizerConfig(tokenizer.n_ids, "test", RecognizeModelConfig(encoder=encoder)))
    model.tokenizer = tokenizer
    model.save_pretrained(path / "model")
    write_audio(path / "in" / "a.wav", Audio(0.1 * torch.randn(12000), 16000))
    (path / "in" / "b.wav").write_bytes(b"")
    return path


def test_a_folder_is_transcribed_and_the_bad_file_named(folder, capsys):
    call = ["transcribe", "--model", str(folder / "model"), "--input", str(folder / "in")]
    assert main([*call, "--output", str(folder / "out"), "--format", "TextGrid", "--json"]) == 0
    told = capsys.readouterr()
    assert "1 of 2 recordings transcribed, 1 have an error" in told.err
    assert "b.wav: the file is empty" in told.err
    made = json.loads(told.out)
    assert made["errors"] == 1
    assert made["transcripts"][0]["duration_s"] == 0.75
    assert (folder / "out" / "a.TextGrid").exists()
    assert not (folder / "out" / "b.TextGrid").exists()


def test_stream_and_transcribe_say_the_same(folder, capsys, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    pcm = (3000 * torch.randn(16000, generator=generator)).to(torch.int16).numpy()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm.tobytes())))
    assert main(["stream", "--model", str(folder / "model"), "--input", "-"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    streamed = "".join(one["text"] for one in events if one["event"] == "completed")
    write_audio(folder / "x.wav", Audio(torch.from_numpy(pcm / 32768.0).float(), 8000))
    assert main(["transcribe", "--model", str(folder / "model"), "--input", str(folder / "x.wav")]) == 0
    assert capsys.readouterr().out.replace(" ", "").strip() == streamed.replace(" ", "")


def test_align_writes_words_and_picture(folder, capsys):
    call = ["align", "--model", str(folder / "model"), "--input", str(folder / "in" / "a.wav"), "--text"]
    assert main([*call, "one six", "--plot", str(folder / "x.png"), "--output", str(folder / "x.json")]) == 0
    words = json.loads((folder / "x.json").read_text())["lines"][0]["words"]
    assert [word["text"] for word in words] == ["one", "six"]
    assert (folder / "x.png").stat().st_size > 1000
    assert main([*call, "zero"]) == 1
    assert "text: the model knows no 'z', 'r'" in capsys.readouterr().err
    assert main([*call, "one", "--output", "x.doc"]) == 2
