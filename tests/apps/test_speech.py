"""`mambakit speech`: train, classify a folder with bad files in it, evaluate; and calls that are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

if not all(find_spec(name) for name in ("torchaudio", "soundfile", "espeakng_loader")):
    pytest.skip("needs the speech extra", allow_module_level=True)

import soundfile
import torch

from mambakit.apps.cli import main
from mambakit.apps.speech import main as speech
from mambakit.domains.speech import made
from mambakit.domains.speech.espeak import speak

_TINY = ["--model.encoder.d_model", "16", "--model.encoder.n_layers", "1", "--model.encoder.head_dim", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMBAKIT_DATA", str(folder / "cache"))
        patch.setattr(made, "VOICES", ("en-us+m1",))
        assert (
            speech(
                [
                    *("train", "--data", "spoken-digits", "--task", "classify"),
                    *("--output", str(folder / "run"), "--train.batch_size", "16"),
                    *("--baselines", "cnn", "nearest-mean", "--train.max_epochs", "3", "--device", "cpu"),
                    *_TINY,
                ]
            )
            == 0
        )
    return folder / "run"


def test_train_leaves_a_run_and_its_loss_falls(trained: Path) -> None:
    for name in ("config.json", "model.safetensors", "data.json", "report.html", "pictures/confusion.png"):
        assert (trained / name).is_file()
    losses = pd.read_csv(trained / "metrics.csv")["val/loss"].dropna().tolist()
    assert losses[-1] < losses[0]
    assert (trained / "cnn/model.safetensors").is_file()


def test_the_card_says_what_was_measured(trained: Path, check_card: Callable[[Path], str]) -> None:
    assert "spoken-digits" in check_card(trained)


def test_digits_in_noise_are_taken_for_others(
    trained: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAMBAKIT_DATA", str(folder / "cache"))
    monkeypatch.setattr(made, "VOICES", ("en-us+m1",))
    words = ["probe", "--model", str(trained), *("--device", "cpu"), "--output", str(tmp_path / "p.csv")]
    assert speech([*words, "--plot", str(tmp_path / "p.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row[found["metric"]] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "noise", "drop", "shuffle", "dt"}
    table = pd.read_csv(tmp_path / "p.csv")
    assert table[found["metric"]].tolist() == pytest.approx(
        [row[found["metric"]] for row in found["results"]]
    )
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert speech(["evaluate", "--model", str(trained), "--device", "cpu", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["results"][0]
    assert rows["clean", None] == pytest.approx(evaluated["accuracy"])
    assert rows["noise", -10.0] <= rows["clean", None]


def test_a_private_classifier_says_what_it_spent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opacus")
    monkeypatch.setenv("MAMBAKIT_DATA", str(folder / "cache"))
    monkeypatch.setattr(made, "VOICES", ("en-us+m1",))
    words = ["train", "--data", "spoken-digits", "--output", str(tmp_path / "run"), "--device", "cpu", *_TINY]
    words += ["--train.max_steps", "2", "--train.private.noise_multiplier", "2", "--train.batch_size", "8"]
    assert speech(words) == 0
    spent = json.loads((tmp_path / "run/result.json").read_text())["privacy"]
    assert (spent["steps"], spent["unit"]) == (2, "a recording")
    card = (tmp_path / "run/README.md").read_text()
    assert f"epsilon {spent['epsilon']:.4g}" in card
    assert "the scales of the front end" in card


def test_a_folder_with_bad_files(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = folder / "in"
    (inputs / "deep").mkdir(parents=True)
    voice = speak("seven")
    soundfile.write(inputs / "a.wav", voice.samples.numpy(), voice.rate_hz)
    soundfile.write(inputs / "deep/b.flac", torch.stack([voice.samples] * 2, 1).numpy(), voice.rate_hz)
    (inputs / "c.wav").write_bytes(b"")
    soundfile.write(inputs / "d.wav", torch.zeros(8000).numpy(), 8000)
    soundfile.write(inputs / "e.wav", torch.ones(80).numpy(), 8000)
    output = folder / "labels.csv"
    assert speech(["classify", "--model", str(trained), "--input", str(inputs), "--output", str(output)]) == 0
    table = pd.read_csv(output, dtype={"label": str})
    assert [Path(path).name for path in table["path"]] == ["a.wav", "c.wav", "d.wav", "b.flac", "e.wav"] or [
        Path(path).name for path in table["path"]
    ] == ["a.wav", "c.wav", "d.wav", "e.wav", "b.flac"]
    found = table.set_index(table["path"].map(lambda path: Path(path).name))
    assert found.loc["a.wav", "label"] == found.loc["b.flac", "label"]
    p = found.loc["a.wav", [f"p_{i}" for i in range(10)]].astype(float)
    assert p.sum() == pytest.approx(1, abs=1e-4)
    assert found.loc["c.wav", "error"] == "the file is empty"
    assert found.loc["d.wav", "error"] == "silent: every sample is zero"
    assert found.loc["e.wav", "error"].startswith("too short: 0.010 s")
    assert found["label"].isna().sum() == 3
    assert "2 of 5 files classified, 3 have an error" in capsys.readouterr().err


def test_nothing_readable_fails(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "only.wav").write_bytes(b"")
    assert speech(["classify", "--model", str(trained), "--input", str(folder / "only.wav")]) == 1
    assert "0 of 1 files classified" in capsys.readouterr().err


def test_evaluate_on_labelled_folders_with_a_keyword(
    trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for digit, word in enumerate(made.WORDS):
        voice = speak(word)
        path = folder / f"labelled/{digit}/a.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, voice.samples.numpy(), voice.rate_hz)
    recording = speak("the quick brown fox jumps over the lazy dog")
    soundfile.write(folder / "long.wav", recording.samples.numpy(), recording.rate_hz)
    assert (
        speech(
            [
                *("evaluate", "--model", str(trained), "--data", str(folder / "labelled"), "--json"),
                *("--plot", str(folder / "roc.png"), "--keyword", "7"),
                *("--recording", str(folder / "long.wav")),
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert sum(map(sum, said["confusion"])) == 10
    assert said["results"][0]["n"] == 10
    assert 0 <= said["equal_error"] <= 1
    assert [row["misses"] for row in said["long"]] == [0.01, 0.05, 0.1, 0.2]
    assert said["roc"]["misses"][-1] == 0
    assert said["roc"]["false_alarms"][-1] == 1
    assert len(said["hourly"]["false_alarms_per_hour"]) == len(said["roc"]["misses"]) == 10
    assert (folder / "roc.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["train", "--task", "clasify"], 2, "task: there is no 'clasify'; did you mean classify?"),
        (["train", "--data", "nowhere"], 2, "no data card called 'nowhere'"),
        (["train", "--data", "librispeech-10"], 2, "librispeech-10 has no label, which classify learns from"),
        (["classify", "--model", "nowhere", "--input", "x.wav"], 1, "nowhere"),
        (["evaluate", "--model", "nowhere"], 1, "nowhere"),
        (["evaluate", "--model", "m", "--recording", "x.wav"], 2, "name it with --keyword"),
        (["train", "--model.network", "rnn"], 2, "network"),
    ],
)
def test_wrong_calls_are_one_sentence(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "librispeech-10" in words and not os.environ.get("MAMBAKIT_DATA_MIRROR"):
        pytest.skip("needs MAMBAKIT_DATA_MIRROR")
    assert speech(words) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_help_needs_no_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mambakit.apps.speech.find_spec", lambda name: None)
    assert main(["speech", "--help"]) == 0
    assert "mambakit speech train --data fsdd" in capsys.readouterr().out
    assert main(["speech", "train"]) == 1
    assert "pip install 'mambakit[speech]'" in capsys.readouterr().err
