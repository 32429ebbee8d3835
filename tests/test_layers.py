"""The layers: imports go downwards, domains are alike and apart, and importing does nothing."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOMAINS = sorted(path.name for path in (ROOT / "domains").iterdir() if (path / "__init__.py").exists())
DOMAIN_FILES = {"config", "data", "tokenizer", "model", "task", "metrics", "baselines"}
# Packages that only some domains may import, by name.
OWNERS: dict[str, set[str | None]] = {
    "statsmodels": {"timeseries"},
    "rdkit": {"molecules"},
    "torchaudio": {"speech"},
    "soundfile": {"speech"},
    "gymnasium": {"robotics"},
    "mujoco": {"robotics"},
    "minari": {"robotics"},
    "imageio": {"robotics"},
    "redis": {"recommendation"},
    "transformers": set(),
    "mambapy": set(),
}


def modules(package: str) -> list[str]:
    """Every module below ``mambakit.<package>``, from the tree."""
    found = []
    for _, name, _ in pkgutil.walk_packages([str(ROOT / package)], f"mambakit.{package}."):
        found.append(name)
    return sorted(found)


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_domain_is_in_the_independence_contract() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for domain in DOMAINS:
        assert text.count(f'"mambakit.domains.{domain}"') >= 2, "a package, and a module of the contract"


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_has_the_same_files(domain: str) -> None:
    present = {path.stem for path in (ROOT / "domains" / domain).rglob("*.py")}
    assert present >= DOMAIN_FILES, f"missing: {', '.join(sorted(DOMAIN_FILES - present))}"
    assert (ROOT / "apps" / f"{domain}.py").exists()
    assert (ROOT / "tests/domains" / domain).is_dir()


@pytest.mark.slow
def test_importing_does_nothing_and_only_what_trains_needs_lightning(tmp_path: Path) -> None:
    """Every module imports without network, files written, threads started, or words on a terminal.

    Lightning takes seconds to import: predictions, evaluations and reports come without it.
    """
    trains = {"task", "callbacks", "averaging", "carried", "continuing", "testing"}
    names = [name for package in ("kernels", "core", "domains", "apps") for name in modules(package)]
    without = [name for name in names if name.rpartition(".")[2] not in trains]
    assert len(without) > 30
    assert len(names) > len(without)
    code = f"""
import importlib, socket, sys, threading, os
import torch, pandas, numba, matplotlib, requests, rdkit.Chem  # what these do is not ours to judge
import gymnasium.envs.mujoco  # MuJoCo names its way to draw in the environment
class Refused:
    def __init__(self):
        self.kept = socket.socket.connect, socket.create_connection, socket.getaddrinfo
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = self.refuse
        self.threads, self.environment = threading.active_count(), dict(os.environ)
        self.rng = torch.get_rng_state()
    def refuse(self, *args, **kwargs):
        raise AssertionError("network access at import")
    def check(self):
        assert threading.active_count() == self.threads, "a thread was started"
        assert dict(os.environ) == self.environment, "the environment was changed"
        assert torch.equal(torch.get_rng_state(), self.rng), "random numbers were drawn"
        assert not torch.cuda.is_initialized(), "the GPU was woken"
        socket.socket.connect, socket.create_connection, socket.getaddrinfo = self.kept
refused = Refused()
for name in {without!r}:
    importlib.import_module(name)
    assert "lightning" not in sys.modules, name
refused.check()
import lightning
refused = Refused()
for name in {names!r}:
    importlib.import_module(name)
refused.check()
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "MPLCONFIGDIR": str(tmp_path / "mpl"),
        "MAMBAKIT_DATA": str(tmp_path / "data"), "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
        "MAMBAKIT_BACKEND": "nonsense",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()
    assert not list((tmp_path / "numba").rglob("*.nb?")), "a kernel was compiled at import"


def test_extras_stay_where_they_belong() -> None:
    """Only the domain that an extra is for imports it, anywhere in a file."""
    seen = 0
    for folder in ("kernels", "core", "domains", "apps"):
        for path in (ROOT / folder).rglob("*.py"):
            owner = path.relative_to(ROOT).parts[1] if folder == "domains" else None
            for name in imported(path):
                seen += 1
                assert owner in OWNERS.get(name, {owner}), f"{path.relative_to(ROOT)} imports {name}"
    assert seen > 100


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}
