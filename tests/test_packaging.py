"""The package: its list of packages is the tree's, and the wheel holds what it must, and nothing compiled."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "core", "domains", "apps", "data_cards")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def packages_in_tree() -> set[str]:
    return {
        "mambakit." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }


def test_packages_are_those_of_the_tree() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_in_tree()


def test_no_folder_of_modules_lacks_its_init() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_every_layer_is_typed() -> None:
    for folder in ("kernels", "core", "domains", "apps"):
        assert (ROOT / folder / "py.typed").exists()


def test_lock_serves_every_build_of_torch() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if line[:1] != "#"]
    names = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert "torch==2.13.0" in lines
    assert any(re.fullmatch(r"triton==3\.7\.1 ; platform_system == ['\"]Linux['\"]", line) for line in lines)
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]
    for line in lines:
        assert re.fullmatch(r"[\w.\-]+==[\w.]+( ; .+)?", line), line


def test_lock_holds_what_the_project_asks_for() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    locked = {
        requirement.name.lower().replace("_", "-"): next(iter(requirement.specifier)).version
        for requirement in (Requirement(line) for line in lines if line[:1] != "#")
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + extras["timeseries"] + extras["test"] + extras["dev"]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name != "mambakit":
            assert name in locked, f"{name}: run `make lock`"
            assert requirement.specifier.contains(locked[name]), f"{name}: run `make lock`"


def test_kernels_ask_for_triton_on_linux_only() -> None:
    (triton,) = (line for line in PROJECT["project"]["dependencies"] if line.startswith("triton"))
    assert "platform_system == 'Linux'" in triton


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    # From a copy: setuptools leaves build/ and egg-info behind, which would mix into the next wheel.
    source = tmp_path_factory.mktemp("source")
    tracked = ["pyproject.toml", "README.md", "LICENSE", *FOLDERS]
    subprocess.run(["cp", "-r", *tracked, str(source)], cwd=ROOT, check=True)
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    if done.returncode and "setuptools" in done.stderr and "find a version" in done.stderr:
        pytest.skip("building a wheel needs the package index, for setuptools")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_is_pure_python(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).name.endswith("-py3-none-any.whl")
    kinds = {Path(name).suffix for name in wheel.namelist() if ".dist-info/" not in name}
    assert kinds <= {".py", ".md", ".json", ".typed"}


@pytest.mark.slow
def test_wheel_holds_every_module_and_card(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".typed") or (
                folder == "data_cards" and path.suffix in (".md", ".json")
            ):
                assert f"mambakit/{path.relative_to(ROOT)}" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mambakit"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_names_its_scripts_and_licence(wheel: zipfile.ZipFile) -> None:
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "mambakit = mambakit.apps.cli:main" in wheel.read(scripts).decode()
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
