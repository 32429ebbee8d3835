"""The verbs enhance and separate, from training to files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.apps.speech_enhance import enhance, evaluate_enhance, train_enhance
from mambakit.apps.speech_probe import probe
from mambakit.apps.speech_separate import evaluate_separate, separate, train_separate
from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.audio import Audio, read_audio, write_audio
from mambakit.domains.speech.enhance.config import EnhanceConfig, MixConfig
from mambakit.domains.speech.separate.config import PairConfig, SeparateConfig

RATE = 8000
BLOCK = {"head_dim": 8, "d_state": 4}
ONE_EPOCH = TrainConfig(max_epochs=3, batch_size=2, lr=5e-3, precision="32-true")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 clips of two speakers, each a harmonic tone that comes and goes, with noisy copies."""
    home = tmp_path_factory.mktemp("speech")
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(RATE) / RATE
    rows = []
    for i in range(16):
        base = 120 + 100 * (i % 2) + 3 * i
        tone = sum(torch.sin(6.2832 * base * k * t) / k for k in range(1, 6))
        clean = 0.1 * tone * (torch.sin(6.2832 * (2 + i % 3) * t) > 0)
        write_audio(home / f"clean{i}.wav", Audio(clean, RATE))
        noisy = clean + 0.05 * torch.randn(RATE, generator=generator)
        write_audio(home / f"noisy{i}.wav", Audio(noisy, RATE))
        part = "train" if i < 10 else "validation" if i < 13 else "test"
        row = {"path": f"noisy{i}.wav", "clean_path": f"clean{i}.wav", "speaker": f"s{i % 2}", "part": part}
        rows.append(json.dumps(row))
    (home / "speech.jsonl").write_text("\n".join(rows))
    return home


@pytest.fixture(scope="module")
def enhancer(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "enhance"
    train_enhance(
        data=str(speech / "speech.jsonl"), noise="", output=output, train=ONE_EPOCH,
        model=EnhanceConfig(rate_hz=RATE, n_fft=128, hop=64, d_model=8, n_layers=1, block_options=BLOCK),
        mix=MixConfig(segment_s=0.5, steps_per_epoch=8, validation_mixtures=4, test_mixtures=2),
    )  # fmt: skip
    return output


def test_training_lowers_the_loss_and_leaves_a_report(enhancer: Path) -> None:
    lines = (enhancer / "metrics.csv").read_text().splitlines()
    names, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    losses = [float(row[names.index("val/loss")]) for row in rows]
    assert losses[-1] < losses[0]
    page = (enhancer / "report.html").read_text()
    assert "log-MMSE" in page
    assert "2 of the test&#x27;s 2 voices are heard in training too" in page.replace("&#39;", "&#x27;")
    assert (enhancer / "pictures/before_after.png").exists()


def test_a_folder_is_enhanced_and_bad_files_are_listed(
    enhancer: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    audio = read_audio(speech / "noisy0.wav")
    write_audio(source / "a.wav", audio)
    stereo = np.stack([audio.samples.numpy()] * 2, 1)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(source / "b.flac", stereo, 16_000)
    (source / "c.wav").write_bytes(b"no sound")
    enhance(model=enhancer, input=source, output=tmp_path / "out", plot=tmp_path / "p.png", json=True)
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [Path(row["output"]).name for row in told["done"]] == ["a.wav", "b.wav"]
    assert [Path(row["input"]).name for row in told["errors"]] == ["c.wav"]
    assert "2 channels averaged, resampled from 16,000 Hz to 8,000 Hz" in said.err
    assert len(read_audio(tmp_path / "out/a.wav").samples) == len(audio.samples)
    assert (tmp_path / "p.png").exists()
    with pytest.raises(DataError, match=r"c.wav"):
        enhance(model=enhancer, input=source / "c.wav", output=tmp_path / "out2")


def test_pairs_are_measured_beside_log_mmse(
    enhancer: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_enhance(model=enhancer, data=str(speech / "speech.jsonl"), json=True)
    told = json.loads(capsys.readouterr().out)
    by_model = {row["model"]: row for row in told["results"]}
    assert set(by_model) == {"noisy", "log-MMSE", "this model"}
    assert by_model["noisy"]["n"] == 3  # the test part alone
    assert len(told["signals"]) == 9
    noisy, clean = (read_audio(speech / f"{name}13.wav").samples for name in ("noisy", "clean"))
    expected = 10 * torch.log10(clean.square().sum() / (noisy - clean).square().sum())
    signal = next(row for row in told["signals"] if row["name"] == "noisy13" and row["model"] == "noisy")
    assert signal["si_sdr"] == pytest.approx(float(expected), abs=0.3)


@pytest.mark.slow
def test_an_enhancer_is_probed_beside_its_clean_figure(
    enhancer: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    probe(model=enhancer, only=["noise", "dt"], json=True)
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row["si_sdr"] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "noise", "dt"}
    assert rows["noise", -10.0] < rows["noise", 20.0]


@pytest.mark.slow
def test_two_speakers_are_separated_into_files(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_separate(
        data=str(speech / "speech.jsonl"), output=tmp_path / "run", train=ONE_EPOCH, json=True,
        model=SeparateConfig(n_filters=16, kernel=8, d_model=8, n_layers=1, block_options=BLOCK),
        pairs=PairConfig(segment_s=0.25, steps_per_epoch=8, validation_mixtures=4, test_mixtures=2),
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in told["results"]] == ["this model"]
    one, two = (read_audio(speech / f"clean{i}.wav").samples for i in (0, 1))
    write_audio(tmp_path / "mix.wav", Audio(one + two, RATE))
    separate(model=tmp_path / "run", input=tmp_path / "mix.wav", output=tmp_path / "apart")
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == ["mix-1.wav", "mix-2.wav"]
    capsys.readouterr()
    probe(model=tmp_path / "run", only=["noise"], json=True)
    probed = json.loads(capsys.readouterr().out)["results"]
    assert probed[-1]["si_snr_db"] < probed[0]["si_snr_db"]  # ten decibels more noise than speech
    apart = [read_audio(tmp_path / f"apart/mix-{i}.wav").samples for i in (1, 2)]
    assert len(apart[0]) == len(one)
    mixture = read_audio(tmp_path / "mix.wav").samples
    assert (sum(apart) - mixture).norm() < mixture.norm()  # at levels that add up, whatever was learned
    with pytest.raises(UsageError, match="holds a model of the task separate; this takes one of enhance"):
        enhance(model=tmp_path / "run", input=tmp_path / "mix.wav", output=tmp_path / "no.wav")


def test_a_separator_is_measured_on_the_speakers_that_training_left_out(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (speech / "speech.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "speaker": f"s{i % 4}"} for i, line in enumerate(lines)]
    (speech / "four.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(speech)
    train_separate(
        data="four.jsonl", output=tmp_path / "run", train=ONE_EPOCH, json=True,
        model=SeparateConfig(n_filters=16, kernel=8, d_model=8, n_layers=1, block_options=BLOCK),
        pairs=PairConfig(
            segment_s=0.25, steps_per_epoch=2, validation_mixtures=4, test_mixtures=40, unseen=["s1", "s2"]
        ),
    )  # fmt: skip
    trained = json.loads(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)  # where no four.jsonl is
    evaluate_separate(model=tmp_path / "run", json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["speakers"] == ["s1", "s2"]
    assert told["notes"] == []
    gain = trained["results"][0]["si_snr_gain_db"]
    assert told["results"][0]["si_snr_gain_db"] == pytest.approx(gain, abs=1e-3)
    evaluate_separate(model=tmp_path / "run", unseen=["s0", "s1"], json=True)
    assert json.loads(capsys.readouterr().out)["speakers"] == ["s0", "s1"]


def test_what_is_clipped_is_said(
    enhancer: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile")
    loud = 40 * read_audio(speech / "noisy0.wav").samples.numpy()
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="FLOAT")
    enhance(model=enhancer, input=tmp_path / "loud.wav", output=tmp_path / "out.wav")
    assert "samples are beyond full scale and were clipped" in capsys.readouterr().err
    written = read_audio(tmp_path / "out.wav").samples
    assert written.abs().max() <= 1


def test_what_is_said_can_be_stretched_or_not(
    enhancer: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard, found = {}, {}
    for contrast in (None, 0.0, 0.4):
        target = tmp_path / f"{contrast}.wav"
        enhance(model=enhancer, input=next(speech.glob("*.wav")), output=target, contrast=contrast)
        heard[contrast] = read_audio(target).samples
        capsys.readouterr()
        evaluate_enhance(model=enhancer, data=str(speech / "speech.jsonl"), contrast=contrast, json=True)
        found[contrast] = json.loads(capsys.readouterr().out)["results"][-1]["si_sdr"]
    assert torch.equal(heard[None], heard[0.0])
    assert (heard[None] - heard[0.4]).abs().max() > 0.001
    assert found[None] == found[0.0] != found[0.4]
    with pytest.raises(UsageError, match="contrast: expected at least 0, got -1"):
        enhance(model=enhancer, input=tmp_path / "0.0.wav", output=tmp_path / "no.wav", contrast=-1.0)


@pytest.mark.parametrize("train", [train_enhance, train_separate])
def test_parts_are_those_of_the_seed_that_the_run_keeps(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ``evaluate``, which splits by the seed that was kept, would measure on what was learned."""
    seeds = []

    def seen(*names: object, seed: int, **options: object) -> None:
        seeds.append(seed)
        raise DataError("enough")

    monkeypatch.setattr("mambakit.domains.speech.enhance.data.load_pools", seen)
    for options in ({"train": dataclasses.replace(ONE_EPOCH, seed=5)}, {"seed": 7}):
        with pytest.raises(DataError, match="enough"):
            train(output=tmp_path / "run", **options)
    assert seeds == [5, 7]
