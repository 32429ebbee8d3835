"""mambakit and mambakit info."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mambakit.apps.cli import APPS, main


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAMBAKIT_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # tests of kernels set it; a user does not


def test_info_says_what_would_run_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["mambakit"]
    assert facts["devices"][0]["device"] == "cpu"
    on_cpu = {op["op"]: op for op in facts["ops"] if op["device"] == "cpu"}
    assert set(on_cpu) == {"selective_scan", "ssd", "causal_conv1d", "gated_rms_norm"}
    for op in on_cpu.values():
        assert op["backend"] == "portable"
        assert "portable" in op["unavailable"]["triton"]


def test_info_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for text in ("versions", "devices", "ops", f"torch         {torch.__version__}", "selective_scan"):
        assert text in out


def test_info_with_a_backend_that_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMBAKIT_BACKEND", "nonsense")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "MAMBAKIT_BACKEND=nonsense overrides" in out
    assert "expected one of reference, portable, triton, got 'nonsense'" in out


def test_overview_names_every_app(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in APPS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mambakit 0.")


def test_unknown_app(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeserie", "train"]) == 2
    assert "did you mean timeseries?" in capsys.readouterr().err
    assert main(["info", "--jsn"]) == 2
    assert "unknown flag --jsn" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from mambakit.apps.cli import main; main(['--help']); main(['data', 'list']);"
        "sys.exit(' '.join({'torch', 'lightning', 'pandas', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
