"""Rows of benchmarks/results/*.json: what was measured, by which command, on which machine.

A row is ``{what, value, unit, spread, peers, command, seeds, commit, machine, date}``; ``what`` is a
path from the general to the special, ``peers`` maps each baseline or peer of the same run to its value.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock
import torch

RESULTS = Path(__file__).parent / "results"


@functools.cache
def machine() -> str:
    """The machine in words: processor or accelerator, cores, torch."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            fields = dict(
                line.split(":", 1)
                for line in cpuinfo.read_text().split("\n\n")[0].splitlines()
                if ":" in line
            )
            names = {key.strip(): value.strip() for key, value in fields.items()}
            model = f"model {names.get('model', '?')}"
            units = [
                flag for flag in ("avx2", "avx512f", "amx_bf16") if flag in names.get("flags", "").split()
            ]
            device = f"{names.get('model name', device)} ({model}; {' '.join(units)})"
        device += (
            f", {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
        )
    return f"{device}; torch {torch.__version__}; Python {platform.python_version()}"


@functools.cache
def commit() -> str:
    """The checkout's commit, ``+`` behind it where files differ from it; 'unknown' outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def command_line() -> str:
    """What this process was begun with, as one types it."""
    return shlex.join(["python", *sys.argv])


def row(
    what: str,
    value: float | None,
    unit: str,
    *,
    peers: dict[str, float | None] | None = None,
    spread: float | None = None,
    seeds: list[int] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """One row, with this process's command, commit, machine and date filled in."""
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "spread": spread,
        "peers": peers or {},
        "command": command or command_line(),
        "seeds": seeds or [],
        "commit": commit(),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }


def write_rows(name: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Merge ``rows`` into ``results/<name>.json``: a row replaces the one with the same ``what``.

    Several benchmarks may write into one file at a time.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"mambakit-rows-{name}.lock"):
        kept = {old["what"]: old for old in json.loads(path.read_text())} if path.exists() else {}
        kept.update({new["what"]: new for new in rows})
        path.write_text(json.dumps(list(kept.values()), indent=1, ensure_ascii=False) + "\n")
    return path
