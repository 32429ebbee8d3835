"""`mambakit molecules optimize` as a user calls it: its files, taking up a run, errors, SIGKILL."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mambakit.apps.molecules import main
from mambakit.core.adapters import pad_batch
from mambakit.core.backbone import BackboneConfig
from mambakit.core.language_model import LanguageModelConfig
from mambakit.domains.molecules.language.model import MoleculeModel
from mambakit.domains.molecules.tokenizer import PAD, SmilesTokenizer

SMILES = [
    "CCO",
    "CCN",
    "CCCO",
    "CC(C)O",
    "c1ccccc1",
    "Cc1ccccc1",
    "Oc1ccccc1",
    "Nc1ccccc1",
    "CC(=O)O",
    "CC(N)=O",
]
QUICK = ["--device", "cpu", "--design.rounds", "1", "--design.max_tokens", "24"]
FUNCTION = """
import os, time

def score(smiles):
    with open(os.environ["ASKED"], "a") as stream:
        stream.writelines(one + "\\n" for one in smiles)
    time.sleep(0.05)
    return [one.count("O") / 10 if one.count("O") < 10 else 1.0 for one in smiles]
"""
OBJECTIVE = "components: [{oracle: function, function: mine.py:score, batch: 4}]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = SmilesTokenizer().fit(SMILES)
    torch.manual_seed(0)
    network = MoleculeModel(LanguageModelConfig(tokenizer.n_ids, BackboneConfig(d_model=32, layers=["gru"])))
    network.tokenizer = tokenizer
    ids = pad_batch([tokenizer.encode(one) for one in SMILES]).values
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        logits, _ = network(ids[:, :-1])
        loss = network.loss(logits, ids[:, 1:], ids[:, 1:] != PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("language") / "lm"
    network.eval().save_pretrained(folder)
    return folder


def run(*words: object) -> int:
    return main(["optimize", *(str(word) for word in words), *QUICK])


def test_a_run_its_files_and_a_larger_budget(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "design"
    call = ["--model", model, "--objective", "saturn-part1", "--output", output, "--json"]
    assert run(*call, "--budget", 12) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["calls"], first["stopped"]) == (12, "budget")
    rows = list(csv.DictReader((output / "molecules.csv").open()))
    assert len(rows) == 12
    assert first["best"] == pytest.approx(max(float(row["reward"]) for row in rows))
    row = rows[0]
    # the geometric mean of the three components, as they stand beside it
    parts = [float(row[f"{name}:shaped"]) for name in ("tpsa", "mw", "rings")]
    assert float(row["reward"]) == pytest.approx((parts[0] * parts[1] * parts[2]) ** (1 / 3))
    for name in ("pictures/progress.png", "pictures/best.png", "report.html", "metrics.csv", "result.json"):
        assert (output / name).stat().st_size > 100
    assert "The best molecules" in (output / "report.html").read_text("utf-8")
    assert MoleculeModel.from_pretrained(output / "model").tokenizer.n_ids > 10

    assert run(*call, "--budget", 16) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["calls"] == 16
    assert "goes on after 12 oracle calls" in captured.err
    again = list(csv.DictReader((output / "molecules.csv").open()))
    assert again[:12] == rows

    assert run(*call, "--budget", 16, "--seed", 1) == 1
    assert "another config (seed: 0, now 1)" in capsys.readouterr().err
    assert run(*call, "--budget", 5, "--seed", 1, "--overwrite") == 0
    assert json.loads(capsys.readouterr().out)["calls"] == 5


def test_an_oracle_that_always_fails_is_said_with_its_reason(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def score(smiles):\n    raise ValueError('no licence')\n")
    (tmp_path / "objective.yaml").write_text(OBJECTIVE)
    words = ["--model", model, "--objective", tmp_path / "objective.yaml", "--output", tmp_path / "design"]
    assert run(*words, "--budget", 6) == 0
    said = capsys.readouterr().out
    assert "6 have no value and count 0, 6 of them as 'score: score failed: ValueError: no licence'" in said
    assert "no molecule has a value" in said
    assert "best 0" not in said


def test_a_preset_is_chosen_and_changed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--objective", "qed", "--budget", 5, "--preset", "many-calls"]
    assert run(*words, "--output", tmp_path / "design") == 0
    text = (tmp_path / "design" / "config.yaml").read_text()
    for words in ("batch_size: 64", "sigma: 500", "lr: 0.0005", "rounds: 1"):  # rounds as given
        assert words in text
    capsys.readouterr()


def test_wrong_calls(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", tmp_path / "design"]
    assert run("--model", model, "--objective", "qud", *output) == 2
    assert "did you mean qed?" in capsys.readouterr().err
    assert run("--model", model, "--objective", "qed", "--budget", 0, *output) == 2
    assert "budget: expected at least 1 oracle call, got 0" in capsys.readouterr().err
    assert run("--model", tmp_path / "none", "--objective", "qed", *output) == 1
    assert "no saved model" in capsys.readouterr().err
    assert run("--model", model, "--objective", "qed", "--design.lr", -1, *output) == 2
    assert "lr: expected a positive number" in capsys.readouterr().err
    assert run("--model", model, "--objective", "qed", "--design.invalid", "keep", *output) == 2
    assert "invalid" in capsys.readouterr().err
    assert not (tmp_path / "design").exists()


@pytest.mark.slow
def test_killed_with_sigkill_nothing_is_lost_and_nothing_asked_twice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "objective.yaml").write_text(OBJECTIVE)

    words = ["--model", model, "--objective", tmp_path / "objective.yaml", "--budget", 40, *QUICK, "--output"]

    def begin(name: str) -> subprocess.Popen[bytes]:
        script = "import sys; from mambakit.apps.molecules import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-P", "-c", script, "optimize", *map(str, words), str(tmp_path / name)],
            env={**os.environ, "ASKED": str(tmp_path / f"{name}.asked")},
        )

    history = tmp_path / "cut" / "molecules.csv"
    for least in (9, 25):
        process = begin("cut")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if history.exists() and history.read_bytes().count(b"\n") > least:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for name in ("cut", "whole"):
        monkeypatch.setenv("ASKED", str(tmp_path / f"{name}.asked"))
        assert run(*words, tmp_path / name) == 0
    assert history.read_bytes() == (tmp_path / "whole" / "molecules.csv").read_bytes()
    asked = (tmp_path / "cut.asked").read_text().split()
    # only calls that were under way when the process was killed are made again
    assert len(asked) - 40 <= 2 * 4
    assert len(set(asked)) == 40
