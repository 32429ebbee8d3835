"""Renders the README's tables from ``benchmarks/results/*.json``: ``make tables``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``; NAME is the first part of the
rows' ``what``, and with more parts (``NAME/more``) only rows below that, or with an asterisk in place of some
parts (``NAME/*/more``) rows that are so; several names share a table. Each row becomes a line: what was
measured, our value with its spread, and every peer of the same run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: (?P<name>[\w./* -]+?) -->\n)(?P<table>.*?)(<!-- /table -->)", re.DOTALL)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All result rows, in the files' own order."""
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text("utf-8"))]


def render(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown table of the rows whose ``what`` is under one of the names; empty without rows."""
    names = [one if "*" in one else one.rstrip("/") + "/*" for one in name.split()]
    chosen = [row for one in names for row in rows if fnmatch.fnmatchcase(row["what"], one)]
    head_of_all = names[0].partition("*" if len(names) == 1 else "/")[0].rstrip("/") + "/"
    if not chosen:
        return ""
    peers = list(dict.fromkeys(peer for row in chosen for peer in row["peers"]))
    head = ["what", "unit", "mambakit", *peers]
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join(["---", "---", *["--:"] * (len(peers) + 1)]) + "|",
    ]
    for row in chosen:
        what = row["what"].removeprefix(head_of_all)
        ours = _number(row["value"]) + (f" ± {_number(row['spread'])}" if row["spread"] else "")
        others = [_number(row["peers"].get(peer)) for peer in peers]
        lines.append("| " + " | ".join([what, row["unit"], f"**{ours}**", *others]) + " |")
    return "\n".join([*lines, "", _provenance(chosen)]) + "\n"


def render_readme(text: str, rows: Sequence[dict[str, Any]]) -> str:
    """The README with every marked table rendered anew."""
    return MARKED.sub(lambda found: found[1] + render(found["name"], rows) + found[4], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the tables; with ``--check`` only says whether they are as rendered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a table differs")
    arguments = parser.parse_args(argv)
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    rendered = render_readme(text, read_rows(ROOT / "benchmarks/results"))
    if rendered == text:
        return 0
    if arguments.check:
        print("README.md: its tables differ from benchmarks/results; run `make tables`", file=sys.stderr)
        return 1
    path.write_text(rendered, "utf-8")
    return 0


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _provenance(rows: Sequence[dict[str, Any]]) -> str:
    """One line: by which commands, on which machines, when."""
    commands = dict.fromkeys(row["command"] for row in rows)
    machines = dict.fromkeys(row["machine"] for row in rows)
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    ran = ", ".join(f"`{command}`" for command in commands)
    seeded = f"; seeds {', '.join(map(str, seeds))}" if seeds else ""
    return f"Measured by {ran} on {'; '.join(machines)}; {when}{seeded}. A dash: not measured."


if __name__ == "__main__":
    sys.exit(main())
