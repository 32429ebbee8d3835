"""The example trains on a text file, learns more than letters, saves a folder and samples from it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "character_language_model.py"


def test_it_trains_saves_and_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 100
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200, "utf-8")
    small = ["--width", "64", "--layers", "1", "--length", "32", "--batch", "4", "--steps", "40", "--n", "12"]
    out = run("--text", text, "--output", tmp_path / "model", "--prompt", "the ", *small)
    found = re.search(r"bits per character: (\S+), best n-gram (\S+)", out)
    assert found
    model, n_gram = map(float, found.groups())
    assert n_gram < 0.1
    assert 0 < model < 2.0, "the letters alone have 3.0 bits"
    again = run("--model", tmp_path / "model", "--n", "12", "--prompt", "the ")
    assert out.splitlines()[-1] == again.splitlines()[-1]
    assert len(again.strip("\n")) == len("the ") + 12
