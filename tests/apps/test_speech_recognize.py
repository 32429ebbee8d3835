"""Recognition from the command line, on a tiny model that has learned nothing."""

from __future__ import annotations

import io
import json
import shutil
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
from mambakit.domains.speech.saved import DataSpec, save_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("asr")
    encoder = EncoderConfig(
        d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, bidirectional=False, dropout=0.0
    )
    tokenizer = CharacterTokenizer().fit(["one two six"])
    model = Recognizer(
        RecognizerConfig(tokenizer.n_ids, "test", RecognizeModelConfig(encoder=encoder, units="characters"))
    )
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


def test_a_language_model_is_trained_measured_and_weighed(folder, capsys):
    (folder / "lines.txt").write_text("one two\nsix one\n" * 20)
    call = [
        "train",
        "--task",
        "language",
        "--data",
        str(folder / "lines.txt"),
        "--output",
        str(folder / "lm"),
    ]
    small = [
        "--model.d_model",
        "16",
        "--model.n_layers",
        "1",
        "--model.d_state",
        "8",
        "--model.head_dim",
        "8",
    ]
    assert main([*call, *small, "--train.max_epochs", "2", "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["model"] for row in rows] == ["mambakit", "6-gram"]
    assert (folder / "lm" / "report.html").exists()
    assert main(["evaluate", "--model", str(folder / "lm"), "--data", str(folder / "lines.txt")]) == 0
    assert "perplexity of a character" in capsys.readouterr().out
    assert main(["evaluate", "--model", str(folder / "lm"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0] == rows[0]
    call = ["transcribe", "--model", str(folder / "model"), "--input", str(folder / "in" / "a.wav"), "--json"]
    assert main([*call, "--decode.beam", "4", "--decode.lm", str(folder / "lm")]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 0
    assert main([*call, "--decode.lm", str(folder / "lm")]) == 2
    assert "have no effect with --decode.beam 1" in capsys.readouterr().err


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


def test_what_ends_a_stream_early_leaves_its_line_complete(folder, capsys, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    pcm = (3000 * torch.randn(4000, generator=generator)).to(torch.int16).numpy().tobytes()
    said = []
    for more, status in ((b"", 0), (b"\x01", 1)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm + more)))
        assert main(["stream", "--model", str(folder / "model")]) == status
        told = capsys.readouterr()
        said.append(
            [one for line in told.out.splitlines() if (one := json.loads(line))["event"] == "completed"]
        )
    assert said[0]
    assert said[0] == said[1]
    assert "the PCM stream ends inside a sample" in told.err
    wav = (folder / "in" / "a.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(wav)))
    assert main(["stream", "--model", str(folder / "model")]) == 1
    assert "the stream is a wav file, and raw PCM is expected" in capsys.readouterr().err


def test_no_transcript_is_written_over_another(folder, tmp_path, capsys):
    call = ["transcribe", "--model", str(folder / "model"), "--input"]
    for name in ("x.wav", "x.flac"):
        write_audio(tmp_path / "in" / name, Audio(0.1 * torch.randn(4000), 8000))
    assert main([*call, str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2
    assert "x.srt would be written twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    one = [*call, str(tmp_path / "in" / "x.wav")]
    assert main([*one, "--format", "vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT")
    assert main([*one, "--format", "vtt", "--output", str(tmp_path / "x.srt")]) == 2
    assert main([*call, str(folder / "in" / "b.wav")]) == 1
    assert capsys.readouterr().err.count("b.wav") == 1


def test_options_that_would_do_nothing_are_refused(folder, capsys):
    call = ["transcribe", "--model", str(folder / "model"), "--input", str(folder / "in" / "a.wav")]
    assert main([*call, "--decode.beam", "2", "--decode.hotword_boost", "9"]) == 2
    assert "hotword_boost: has no effect without --decode.hotwords" in capsys.readouterr().err
    assert main([*call, "--decode.beam", "2", "--decode.lm_weight", "0.9"]) == 2


def test_align_writes_words_and_picture(folder, capsys):
    call = ["align", "--model", str(folder / "model"), "--input", str(folder / "in" / "a.wav"), "--text"]
    assert main([*call, "one six", "--plot", str(folder / "x.png"), "--output", str(folder / "x.json")]) == 0
    words = json.loads((folder / "x.json").read_text())["lines"][0]["words"]
    assert [word["text"] for word in words] == ["one", "six"]
    assert (folder / "x.png").stat().st_size > 1000
    assert main([*call, "zero"]) == 1
    assert "text: the model knows no 'z', 'r'" in capsys.readouterr().err
    assert main([*call, "one", "--output", "x.doc"]) == 2


class _Device:
    """A microphone that hears 0.3 s in blocks, then Ctrl-C."""

    def __init__(self, samplerate, channels, dtype, blocksize, callback):
        assert (samplerate, channels, dtype, blocksize) == (8000, 1, "float32", 400)
        self.callback = callback

    def __enter__(self):
        noise = 0.1 * torch.randn(6, 400, 1, generator=torch.Generator().manual_seed(1))
        buffer = torch.zeros(400, 1).numpy()
        for block in noise:
            buffer[:] = block.numpy()
            self.callback(buffer, 400, None, None)

    def __exit__(self, *error):
        pass


def test_the_microphone_is_heard_until_it_is_interrupted(folder, capsys, monkeypatch):
    import queue

    call = ["stream", "--model", str(folder / "model"), "--mic", "--chunk-s", "0.05"]
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(call) == 1
    assert "mic: needs sounddevice; install it with pip install sounddevice" in capsys.readouterr().err

    class Waiting:
        def __init__(self):
            self.items = []

        def put(self, item):
            self.items.append(item)

        def get(self):
            if not self.items:
                raise KeyboardInterrupt
            return self.items.pop(0)

    monkeypatch.setattr(queue, "SimpleQueue", Waiting)
    device = SimpleNamespace(InputStream=_Device, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    assert main(call) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    noise = 0.1 * torch.randn(6, 400, 1, generator=torch.Generator().manual_seed(1))
    write_audio(folder / "mic.wav", Audio(noise.flatten(), 8000))
    assert main(["stream", "--model", str(folder / "model"), "--input", str(folder / "mic.wav")]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["text"] for one in events if one["event"] == "completed"] == [
        one["text"] for one in told if one["event"] == "completed"
    ]
    assert main([*call, "--input", "x.wav"]) == 2
    assert "mic, input: give one of them" in capsys.readouterr().err

    def none(**options):
        raise OSError("no default input device")

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(InputStream=none, PortAudioError=OSError))
    assert main(call) == 1
    assert "mic: no microphone can be opened at 8000 Hz (no default input device)" in capsys.readouterr().err


@pytest.mark.parametrize(("head", "units"), [("rnnt", "phones"), ("attention", "bpe")])
def test_other_heads_and_units_are_trained_measured_and_used(tmp_path, capsys, head, units):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(12):
        text = ["one two", "two six", "six"][i % 3]
        write_audio(tmp_path / f"{i}.wav", Audio(0.1 * torch.randn(9000, generator=generator), 8000))
        part = "train" if i < 6 else "validation" if i < 9 else "test"
        rows.append({"path": f"{i}.wav", "text": text, "part": part})
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "words.dict").write_text("one W AH N\ntwo T UW\nsix S IH K S\nsicks S IH K S\n")
    small = {
        "head": head, "units": units, "n_pieces": 20, "encoder.d_model": 16, "encoder.channels": 4,
        "encoder.n_layers": 1, "encoder.d_state": 8, "encoder.head_dim": 8, "decoder.d_model": 16,
        "decoder.d_state": 8, "decoder.head_dim": 8,
    }  # fmt: skip
    if units == "phones":
        small["lexicon"] = tmp_path / "words.dict"
    flags = [word for name, value in small.items() for word in (f"--model.{name}", str(value))]
    call = ["train", "--task", "recognize", "--data", str(tmp_path / "all.jsonl"), "--output"]
    options = ["--train.max_epochs", "2", "--train.average", "2", "--device", "cpu", "--json"]
    assert main([*call, str(tmp_path / "run"), *flags, *options]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["results"][0]["words"] == 5
    assert "average of 2 checkpoints: val/loss" in told.err
    model = str(tmp_path / "run")
    assert main(["evaluate", "--model", model, "--decode.beam", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["n"] == 3
    assert main(["evaluate", "--model", model, "--noise", "noise"]) == 2
    assert "noise: has no effect without conditions to measure in" in capsys.readouterr().err
    aligned = ["align", "--model", model, "--input", str(tmp_path / "1.wav"), "--text"]
    assert main([*aligned, "two six", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "two six"
    status = main(["stream", "--model", model, "--input", str(tmp_path / "1.wav")])
    assert status == (0 if head == "rnnt" else 2)
    if units == "phones":
        assert main([*aligned, "seven"]) == 1
        assert "text: the model knows no 'seven'" in capsys.readouterr().err


def test_a_recogniser_is_probed_by_its_word_error_rate(folder, tmp_path, capsys):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "said.csv").write_text(f"path,text\n{folder / 'in' / 'a.wav'},one two\n")
    save_spec(model, DataSpec("recognize", str(tmp_path / "said.csv")))
    words = ["--model", str(model), "--data", str(tmp_path / "said.csv"), "--json"]
    capsys.readouterr()
    assert main(["probe", *words, "--only", "noise", "dt"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "wer"
    assert {row["perturbation"] for row in found["results"]} == {"clean", "noise", "dt"}
    assert main(["evaluate", *words]) == 0
    measured = json.loads(capsys.readouterr().out)["results"][0]
    assert found["results"][0]["cer"] == pytest.approx(measured["cer"])
