"""The examples about scans: the picture is drawn, and digits are learned from their order of reading."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_are_learned_and_the_table_is_printed(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    digits = load("digits_2d")
    data = digits.load(seed=0)
    assert [len(data[name][0]) for name in ("train", "valid", "test")] == [1077, 360, 360]
    assert data["train"][0].min() == -1
    assert data["train"][0].max() == 1
    assert (data["test"][1].bincount() - data["valid"][1].bincount()).abs().max() <= 1  # alike in all parts
    run = digits.fit(data, digits.SCANS["hilbert, forth and back"], epochs=3, seed=0)
    assert run["valid"] > 0.5
    assert run["test"] > 0.5
    small = {name: (x[:64], y[:64]) for name, (x, y) in data.items()}
    monkeypatch.setattr(digits, "load", lambda seed: small)
    monkeypatch.setattr(sys, "argv", ["digits_2d.py", "--epochs", "1"])
    digits.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:26].strip() for line in lines] == ["scan", *digits.SCANS, "logistic regression"]


def test_the_picture_shows_every_scan(tmp_path, monkeypatch):
    from matplotlib.image import imread

    from mambakit.core.scans import SCANS

    scans = load("scan_orders")
    drawn = {name for _, name, *_ in scans.PANELS} | {"raster", "column"}  # two of the four ways of cross
    assert drawn == set(SCANS)
    monkeypatch.setattr(sys, "argv", ["scan_orders.py", "--output", str(tmp_path / "orders.png")])
    scans.main()
    image = imread(tmp_path / "orders.png")
    assert image.std() > 0.05
    kept = EXAMPLES / "scan_orders.png"
    assert kept.stat().st_size < 200_000
    assert imread(kept).shape == image.shape  # drawn by this script
