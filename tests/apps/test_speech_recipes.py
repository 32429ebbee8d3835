"""The recipes in examples/speech run on folders laid out like their corpora, with small networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("soundfile")
pytest.importorskip("torchaudio", exc_type=OSError)

from mambakit.apps.speech import main
from mambakit.domains.speech.audio import Audio, write_audio

RECIPES = Path(__file__).parents[2] / "examples/speech"
TINY_TRAIN = ["--train.max_epochs", "1", "--train.batch_size", "2", "--device", "cpu", "--json"]


def voice(n: int, seed: int) -> torch.Tensor:
    """Harmonics of a wandering tone, in bursts."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(n) / 16000
    tone = sum(torch.sin(2 * torch.pi * k * (100 + 10 * seed) * time) / k for k in range(1, 8))
    bursts = (torch.sin(2 * torch.pi * 3 * time) > -0.5).float()
    return 0.2 * torch.as_tensor(tone) * bursts + 0.001 * torch.randn(n, generator=generator)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_librispeech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "LibriSpeech"
    for seed, (part, chapter) in enumerate(
        (("train-clean-100", "19-198"), ("dev-clean", "84-121"), ("test-clean", "61-70"))
    ):
        home = data / part / chapter.replace("-", "/")
        for i in range(4):
            write_audio(home / f"{chapter}-{i:04d}.flac", Audio(voice(24000, 4 * seed + i), 16000))
        lines = [f"{chapter}-{i:04d} HE SAID IT AGAIN\n" for i in range(4)]
        (home / f"{chapter}.trans.txt").write_text("".join(lines))
    small = [
        "--model.encoder.d_model",
        "16",
        "--model.encoder.n_layers",
        "1",
        "--model.encoder.channels",
        "4",
    ]
    small += ["--model.encoder.d_state", "8", "--model.encoder.head_dim", "8", "--model.n_pieces", "16"]
    output = ["--data", str(data), "--output", str(tmp_path / "run")]
    recipe = ["train", "--config", str(RECIPES / "librispeech.yaml")]
    made = run([*recipe, *output, *small, *TINY_TRAIN], capsys)
    assert made["split"] == "official"
    assert made["results"][0]["n"] == 4
    evaluate = ["evaluate", "--model", str(tmp_path / "run"), "--data", str(data / "test-clean"), "--json"]
    assert run(evaluate, capsys)["results"][0]["n"] == 4


@pytest.mark.slow
def test_wsj0_2mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "2speakers/wav8k/min"
    for part, seed in (("tr", 0), ("cv", 10), ("tt", 20)):
        for i in range(2):
            sources = [voice(16000, seed + 2 * i + j) for j in range(2)]
            name = f"0{seed + 11}a010{i}_1.5_0{seed + 12}c020{i}_-1.5.wav"
            for where, samples in zip(("s1", "s2", "mix"), (*sources, sum(sources)), strict=True):
                write_audio(data / part / where / name, Audio(torch.as_tensor(samples), 8000))
    small = ["--model.n_filters", "16", "--model.d_model", "16", "--model.n_layers", "1"]
    small += ["--model.block_options", '{"head_dim": 8, "d_state": 4}']
    small += ["--pairs.steps_per_epoch", "2", "--pairs.segment_s", "0.5"]
    output = ["--data", str(data), "--output", str(tmp_path / "run")]
    made = run(["train", "--config", str(RECIPES / "wsj0-2mix.yaml"), *output, *small, *TINY_TRAIN], capsys)
    assert made["results"][0]["n"] == 2


@pytest.mark.slow
def test_voicebank_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, n, seed in (("trainset_28spk_wav", 4, 0), ("testset_wav", 2, 10)):
        for i in range(n):
            clean = voice(24000, seed + i)
            hiss = 0.05 * torch.randn(24000, generator=torch.Generator().manual_seed(seed + i))
            name = f"p{226 + seed + i // 2}_{i:03d}.wav"
            write_audio(tmp_path / f"clean_{part}/{name}", Audio(clean, 16000))
            write_audio(tmp_path / f"noisy_{part}/{name}", Audio(clean + hiss, 16000))
    small = ["--model.d_model", "16", "--model.n_layers", "1", "--model.patch", "32"]
    small += ["--model.block_options", '{"head_dim": 8, "d_state": 4}', "--mix.steps_per_epoch", "2"]
    small += ["--mix.segment_s", "0.5", "--mix.validation_mixtures", "2", "--mix.test_mixtures", "1"]
    output = ["--data", str(tmp_path), "--noise", str(tmp_path), "--output", str(tmp_path / "run")]
    recipe = ["train", "--config", str(RECIPES / "voicebank-demand.yaml")]
    run([*recipe, *output, *small, *TINY_TRAIN], capsys)
    measured = run(["evaluate", "--model", str(tmp_path / "run"), "--data", str(tmp_path), "--json"], capsys)
    assert {one["model"]: one["n"] for one in measured["results"]} == {
        "noisy": 2, "log-MMSE": 2, "this model": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["enhance", "librispeech", "separate", "voicebank-demand", "wsj0-2mix"])
def test_every_recipe_is_read_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = RECIPES / f"{name}.yaml"
    assert main(["train", "--config", str(config), "--print_config"]) == 0
    read, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text())
    assert read["task"] == written["task"]
    assert {key: read["train"][key] for key in written["train"]} == written["train"]
    shape = written["model"].get("encoder", written["model"])
    got = read["model"].get("encoder", read["model"])
    assert {key: got[key] for key in shape} == shape
