"""The pretraining recipe: the text read, networks of equal size, and runs that go on as if never stopped."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
TINY = {
    "d_model": 16, "n_layers": 1, "head_dim": 8, "d_state": 4, "length": 16, "batch": 2, "tokens": 192,
    "lr": 1e-2,
}  # fmt: skip


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("pretraining_runs")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    (folder / "deep").mkdir(parents=True)
    for i in range(60):
        (folder / "deep" / f"{i}.md").write_bytes(f"page {i} says {i * i}\n".encode() * 5)
    (folder / "again.TXT").write_bytes((folder / "deep" / "7.md").read_bytes())
    (folder / "code.py").write_text("no text")
    (folder / "bad.rst").write_bytes(b"\xff\xfe not utf-8")
    return folder


def test_text_is_read_once_and_split_by_file(runs: ModuleType, text: Path) -> None:
    found = runs.read_text(text)
    assert found.files == 61
    parts = {}
    for name in ("train", "validation"):
        ids = getattr(found, name)
        pieces = np.split(ids, np.flatnonzero(ids == runs.END) + 1)
        parts[name] = {bytes(piece[:-1].astype(np.uint8)) for piece in pieces if len(piece)}
    wanted = {one.read_bytes() for one in text.rglob("*") if one.suffix in (".md", ".TXT", ".rst")}
    assert parts["train"] | parts["validation"] == wanted
    assert not parts["train"] & parts["validation"]
    fewer = runs.read_text(text, most=3000)
    assert 3000 <= len(fewer.train) + len(fewer.validation) < len(found.train)
    with pytest.raises(ValueError, match="holds 0 files of text, too few"):
        runs.read_text(text / "none")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_networks_have_as_many_parameters(runs: ModuleType, size: str) -> None:
    made = {one: runs.network_config(one, runs.SIZES[size]) for one in runs.NETWORKS}
    sizes = {one: runs.parameters_of(config) for one, config in made.items()}
    assert max(sizes.values()) < 1.03 * min(sizes.values()), sizes
    assert set(made["hybrid"].backbone.layers) == {"mamba2", "attention", "mlp"}
    assert "attention" not in made["mamba3"].backbone.layers


def job(text: Path, keep: Path, network: str = "mamba2") -> dict[str, Any]:
    return {
        "network": network, "seed": 0, "size": TINY, "text": str(text), "most": None, "points": 3,
        "keep": str(keep),
    }  # fmt: skip


def test_a_run_that_was_killed_reads_on_where_it_was(
    runs: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs.run_job(job(text, tmp_path / "whole"))
    assert [one["tokens"] for one in whole["curve"]] == [64, 128, 192]
    ends = iter([False, True, False])

    def stop(self: Any) -> None:
        if next(ends):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs.Pretraining, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            runs.run_job(job(text, tmp_path / "killed"))
    again = runs.run_job(job(text, tmp_path / "killed"))
    for one, other in zip(whole["curve"], again["curve"], strict=True):
        assert (one["tokens"], one["bits_per_byte"]) == (other["tokens"], other["bits_per_byte"])


def test_figures_compare_at_equal_bytes_and_at_equal_seconds(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = importlib.import_module("pretraining")
    fast = [{"tokens": 10 * i, "seconds": 1.0 * i, "bits_per_byte": 5.0 - i} for i in (1, 2, 3)]
    slow = [
        {**one, "seconds": 2 * one["seconds"], "bits_per_byte": one["bits_per_byte"] - 0.5} for one in fast
    ]
    corpus = {"files": 3, "train": 9, "validation": 1}
    common = {
        "seed": 0,
        "parameters": 5,
        "bytes_per_second": 10.0,
        "corpus": corpus,
        "machine": "m",
        "date": "d",
    }
    found = [
        {**common, "network": "mamba2", "curve": fast},
        {**common, "network": "attention", "curve": slow},
        {**common, "network": "mamba2", "seed": 1, "curve": slow},  # of a seed that is not whole
    ]
    rows = {one["what"]: one for one in recipe.rows_of(found, "tiny", "command")}
    assert rows["core/pretraining/tiny/bits-per-byte/mamba2"]["value"] == 2.0
    assert rows["core/pretraining/tiny/bits-per-byte/mamba2"]["peers"] == {"attention": 1.5}
    assert rows["core/pretraining/tiny/bits-per-byte-at-equal-seconds/attention"]["value"] == 3.5
    assert rows["core/pretraining/tiny/bits-per-byte/mamba2"]["seeds"] == [0]
    recipe.write_out(found, tmp_path)
    assert (tmp_path / "curves.csv").read_text().count("\n") == 10
    assert "| mamba2 | 5 | 2 | 2 | 10 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_sizes_are_json(runs: ModuleType) -> None:
    for size in runs.SIZES.values():
        assert runs.Size(**json.loads(json.dumps(dataclasses.asdict(size)))) == size


def test_one_command_trains_and_draws(
    runs: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = importlib.import_module("pretraining")

    def in_this_process(run_job: Any, jobs: Any, n: int, *, tell: Any, **more: Any) -> list[dict[str, Any]]:
        found = [run_job(one) for one in jobs]
        for one in found:
            tell(one, 0.0)
        return found

    monkeypatch.setattr(recipe, "run_all", in_this_process)
    words = ["--text", str(text), "--networks", "mamba2", "attention", "--points", "2"]
    words += [
        "--keep",
        str(tmp_path / "runs"),
        "--set",
        *(f"size.{name}={value}" for name, value in TINY.items()),
    ]
    monkeypatch.setattr("sys.argv", ["pretraining.py", *words])
    assert recipe.main() == 0
    found = json.loads((tmp_path / "runs" / "runs.json").read_text())
    assert [one["network"] for one in found] == ["mamba2", "attention"]
    assert all([at["tokens"] for at in one["curve"]] == [96, 192] for one in found)
    for name in (
        "curves.csv",
        "curves.png",
        "table.md",
        "mamba2-0/model.safetensors",
        "mamba2-0/config.yaml",
    ):
        assert (tmp_path / "runs" / name).stat().st_size > 0
