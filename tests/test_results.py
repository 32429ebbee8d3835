"""Published figures: result rows are complete, and the README's tables are rendered from them."""

from __future__ import annotations

import datetime
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
FIELDS = {"what", "value", "unit", "spread", "peers", "command", "seeds", "commit", "machine", "date"}


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(what: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "what": what, "value": value, "unit": "MSE", "spread": None, "peers": {}, "command": "c", "seeds": [],
        "commit": "0", "machine": "m", "date": "2024-05-01", **more,
    }  # fmt: skip


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_rows_are_complete(path: Path) -> None:
    rows = json.loads(path.read_text("utf-8"))
    assert len({entry["what"] for entry in rows}) == len(rows), "the same figure twice"
    for entry in rows:
        assert set(entry) == FIELDS, entry["what"]
        assert entry["what"].count("/") >= 2
        assert isinstance(entry["value"], (int, float, type(None)))
        assert all(isinstance(peer, (int, float, type(None))) for peer in entry["peers"].values())
        assert all(isinstance(seed, int) for seed in entry["seeds"])
        for name in ("unit", "command", "commit", "machine"):
            assert entry[name], (entry["what"], name)
        datetime.date.fromisoformat(entry["date"])


def test_readme_tables_are_those_of_the_results(tables: ModuleType) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    rendered = tables.render_readme(text, tables.read_rows(ROOT / "benchmarks/results"))
    assert rendered == text, "run `make tables`"


def test_table_has_every_row_and_peer(tables: ModuleType) -> None:
    rows = [
        row("cpu/a/s", 0.12345, spread=0.01, peers={"x": 1234.5}, seeds=[0, 1]),
        row("cpu/b/s", None, peers={"y": 2}, date="2024-05-03"),
        row("cpuz/c/s", 5.0),
    ]
    assert tables.render("cpu", rows).splitlines() == [
        "| what | unit | mambakit | x | y |",
        "|---|---|--:|--:|--:|",
        "| a/s | MSE | **0.123 ± 0.01** | 1234 | – |",
        "| b/s | MSE | **–** | – | 2 |",
        "",
        "Measured by `c` on m; 2024-05-01 to 2024-05-03; seeds 0, 1. A dash: not measured.",
    ]


def test_only_what_is_marked_changes(tables: ModuleType) -> None:
    text = "before\n<!-- table: cpu -->\nold\n<!-- /table -->\nafter\n<!-- table: none -->\n<!-- /table -->\n"
    once = tables.render_readme(text, [row("cpu/a/s", 1.0)])
    assert "old" not in once
    assert "| a/s | MSE | **1** |" in once
    assert once.startswith("before\n<!-- table: cpu -->\n|")
    assert once.endswith("<!-- /table -->\nafter\n<!-- table: none -->\n<!-- /table -->\n")
    assert tables.render_readme(once, [row("cpu/a/s", 1.0)]) == once
