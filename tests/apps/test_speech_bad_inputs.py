"""Every verb that reads recordings does the good ones of a folder, of any kind, and lists the bad ones."""

from __future__ import annotations

import json
import resource
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if not all(find_spec(name) for name in ("torchaudio", "soundfile", "espeakng_loader")):
    pytest.skip("needs the speech extra", allow_module_level=True)

import soundfile
import torch

from mambakit.apps.speech import main
from mambakit.core.errors import UsageError
from mambakit.domains.speech.cards import load_utterances
from mambakit.domains.speech.classify.config import ClassifyConfig, ClassifyModelConfig
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.enhance.config import EnhanceConfig
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.recognize.config import RecognizeModelConfig, RecognizerConfig
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer
from mambakit.domains.speech.separate.config import SeparateConfig
from mambakit.domains.speech.separate.model import Separator

GOOD = {
    "8-bit.wav": {"subtype": "PCM_U8"},
    "24-bit.wav": {"subtype": "PCM_24"},
    "32-bit.wav": {"subtype": "PCM_32"},
    "floats.wav": {"subtype": "FLOAT"},
    "five-channels.wav": {"channels": 5},
    "8-kHz.wav": {"rate_hz": 8000},
    "22-kHz.wav": {"rate_hz": 22050},
    "44-kHz.flac": {"rate_hz": 44100},
    "48-kHz.wav": {"rate_hz": 48000},
    "clipped.wav": {"gain": 40.0},
    "beyond-full-scale.wav": {"gain": 40.0, "subtype": "FLOAT"},
    "a-flac.wav": {"format": "FLAC"},
    "a-wav.mp3": {"format": "WAV"},
    "UPPER.WAV": {},
}
BAD = {
    "empty.wav": "the file is empty",
    "cut.wav": "cut off",
    "text.wav": "cannot be read as audio",
    "no-samples.wav": "holds no samples",
    "nan.wav": "are NaN or infinite",
    "infinite.wav": "are NaN or infinite",
}
BLOCK = {"head_dim": 8, "d_state": 4}
VERBS = ("classify", "transcribe", "enhance", "separate")


def write(
    path: Path,
    *,
    rate_hz: int = 16000,
    channels: int = 1,
    gain: float = 1.0,
    subtype: str = "PCM_16",
    format: str | None = None,
) -> None:
    time = np.arange(rate_hz // 2) / rate_hz
    sound = gain * 0.2 * np.sin(2 * np.pi * 300 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    soundfile.write(path, np.stack([sound] * channels, 1), rate_hz, subtype=subtype, format=format)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all kinds of recordings, and a model of every verb that has learned nothing."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("all-kinds")
    (home / "in").mkdir()
    for name, how in GOOD.items():
        write(home / "in" / name, **how)  # type: ignore[arg-type]
    soundfile.write(home / "in/silent.wav", np.zeros(8000), 16000)
    soundfile.write(home / "in/one-sample.wav", np.full(1, 0.1), 16000)
    (home / "in/empty.wav").write_bytes(b"")
    (home / "in/text.wav").write_text("no audio at all, but long enough to have a header " * 5)
    (home / "in/cut.wav").write_bytes((home / "in/24-bit.wav").read_bytes()[:5000])
    soundfile.write(home / "in/no-samples.wav", np.zeros(0), 16000)
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        samples = np.where(np.arange(8000) == 99, value, 0.1)
        soundfile.write(home / "in" / f"{name}.wav", samples, 16000, subtype="FLOAT")
    (home / "in/notes.txt").write_text("no recording, and by its name not meant as one")
    encoder = EncoderConfig(d_model=16, channels=4, n_layers=1, d_state=8, head_dim=8, bidirectional=False)
    tokenizer = CharacterTokenizer().fit(["one two"])
    recognizer = Recognizer(
        RecognizerConfig(tokenizer.n_ids, "", RecognizeModelConfig(encoder=encoder, units="characters"))
    )
    recognizer.tokenizer = tokenizer
    recognizer.save_pretrained(home / "transcribe")
    classifier = Classifier(ClassifyConfig(["no", "yes"], "", ClassifyModelConfig(encoder=encoder)))
    classifier.save_pretrained(home / "classify")
    enhancer = EnhanceConfig(d_model=16, n_layers=1, patch=64, block_options=BLOCK)
    Enhancer(enhancer).save_pretrained(home / "enhance")
    separator = SeparateConfig(n_filters=16, d_model=16, n_layers=1, block_options=BLOCK)
    Separator(separator).save_pretrained(home / "separate")
    return home


def run(home: Path, verb: str, output: str, capsys: pytest.CaptureFixture[str]) -> tuple[set[str], str]:
    """Names of the files that were done, and all that was said of the others."""
    call = [verb, "--model", str(home / verb), "--input", str(home / "in"), "--device", "cpu", "--json"]
    assert main([*call, "--output", str(home / output)]) == 0
    told = capsys.readouterr()
    made = json.loads(told.out)
    if verb in ("enhance", "separate"):
        return {Path(one["input"]).name for one in made["done"]}, json.dumps(made["errors"]) + told.err
    rows = made["labels" if verb == "classify" else "transcripts"]
    name = "path" if "path" in rows[0] else "input"
    done = {Path(one[name]).name for one in rows if not one.get("error")}
    return done, json.dumps([one for one in rows if one.get("error")]) + told.err


@pytest.mark.parametrize("verb", VERBS)
def test_good_files_are_done_and_bad_ones_listed(
    home: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = {"classify": "labels.csv", "transcribe": "texts"}.get(verb, f"{verb}d")
    done, told = run(home, verb, output, capsys)
    assert set(GOOD) <= done
    for name, why in BAD.items():
        assert name not in done
        assert name in told
        assert why in told
    assert "notes.txt" not in told
    # silence can be enhanced, separated and transcribed to nothing; it is no word of a classifier's
    assert ("silent.wav" in done) == (verb != "classify")
    assert ("one-sample.wav" in done) == (verb in ("enhance", "separate"))


@pytest.mark.parametrize("verb", ["enhance", "separate"])
def test_what_is_written_is_as_long_and_finite(
    home: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, verb, f"{verb}d-again", capsys)
    for path in (home / f"{verb}d-again").rglob("*.wav"):
        samples, rate_hz = soundfile.read(path)
        assert np.isfinite(samples).all()
        assert np.abs(samples).max(initial=0) <= 1
        if not path.stem.startswith("one-sample"):
            assert len(samples) == pytest.approx(rate_hz / 2, abs=1)


def test_rows_without_a_transcript_are_left_out_and_listed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "in").symlink_to(home / "in")
    manifest = tmp_path / "mine.jsonl"
    rows = [{"path": "in/8-kHz.wav", "text": "one"}, {"path": "in/22-kHz.wav"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_utterances(manifest, "recognize")
    assert len(found) == 1
    assert found.left_out[0][1] == "has no text"
    manifest.write_text(json.dumps(rows[1]))
    with pytest.raises(UsageError, match="mine has no text, which recognize learns from"):
        load_utterances(manifest, "recognize")


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of noise."""
    path = tmp_path_factory.mktemp("long") / "hour.flac"
    minute = 0.05 * np.random.default_rng(0).standard_normal(60 * 8000)
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(60):
            file.write(minute)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["transcribe", "enhance", "separate"])
def test_an_hour_is_read_by_pieces(
    home: Path, hour: Path, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = [verb, "--model", str(home / verb), "--input", str(hour), "--device", "cpu"]
    assert main([*call, "--output", str(tmp_path / ("out.json" if verb == "transcribe" else "out"))]) == 0
    capsys.readouterr()
    # samples at 16 kHz are 0.23 GB a copy; spectra or frames of the whole would be many times that
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 1.5
