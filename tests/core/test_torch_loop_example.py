"""The example of a bare torch loop: it learns, and streams what it gives on whole recordings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_loop.py"


def test_it_filters_and_streams() -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 100
    spec = importlib.util.spec_from_file_location("torch_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.main(steps=80)
    assert result["filtered"] < 0.6 * result["sensors"]
    assert result["live against whole"] < 1e-5
