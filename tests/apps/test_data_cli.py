"""mambakit data: list, show, fetch."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mambakit.apps.cli import main
from mambakit.core.data import card_names, load_card


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["data", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_list_names_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:]] == card_names()
    status, out, _ = run(capsys, "list", "--json", "--domain", "timeseries")
    assert {row["name"]: row["rows"] for row in json.loads(out)}["ETTh1"] == 17420


def test_show_renders_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "show", "etth1")
    assert status == 0
    for text in ("# ETTh1", "cc-by-nd-4.0", load_card("ETTh1").files[0].sha256, "## Known traps"):
        assert text in out
    status, out, _ = run(capsys, "show", "co2", "--json")
    assert json.loads(out)["mambakit"]["embedded"] == "statsmodels.co2"


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "show", "etth3")
    assert (status, out) == (2, "")
    assert "did you mean ETTh1" in err


def test_fetch_from_a_damaged_mirror(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MAMBAKIT_DATA_MIRROR", str(tmp_path))
    stored = tmp_path / "timeseries/ett/ETTh1.csv.gz"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(gzip.compress(b"date,OT\n"))
    status, out, err = run(capsys, "fetch", "ETTh1")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {stored}: damaged")


def test_fetch_of_embedded_data(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "fetch", "co2")
    assert (status, out) == (0, "")
    assert "nothing to download" in err


def test_fetch_into_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    if not os.environ.get("MAMBAKIT_DATA_MIRROR"):
        pytest.skip("real files are read only where MAMBAKIT_DATA_MIRROR is set")
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    status, out, _ = run(capsys, "fetch", "Weather", "--output", str(tmp_path / "mine"), "--json")
    assert status == 0
    path = Path(json.loads(out)["weather.csv"])
    assert path == tmp_path / "mine/weather.csv"
    assert path.stat().st_size == load_card("Weather").files[0].size
