"""Every kind of task goes on from a run and replays what that one kept, whatever its batches are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mambakit.apps import molecules, timeseries
from mambakit.core.continual import Memory

pytestmark = pytest.mark.slow
Command = Callable[[Path, int], list[str]]
_STREAM = [
    "--stream.members",
    "1",
    "--stream.context",
    "4",
    "--stream.d_model",
    "16",
    "--stream.head_dim",
    "8",
]
_STREAM += ["--stream.d_state", "8", "--stream.n_layers", "1", "--stream.d_ahead", "8"]
_STREAM += ["--stream_loss.window", "64", "--stream_loss.validation_stride", "8"]
_WINDOW = ["--window.d_time=16", "--window.d_series=16", "--window.d_state=8", "--window.head_dim=8"]


def series(folder: Path, seed: int) -> Path:
    stamps, t = pd.date_range("2024-01-01", periods=360, freq="h"), np.arange(360)
    noise = np.random.default_rng(seed).standard_normal(360)
    y = (1 + 3 * seed) * np.sin(2 * np.pi * t / 24) + 0.3 * noise
    path = folder / f"series{seed}.csv"
    pd.DataFrame({"unique_id": "load", "ds": stamps, "y": y}).to_csv(path, index=False)
    return path


def forecasts(folder: Path, seed: int, network: str, options: list[str]) -> list[str]:
    sizes = ["--horizon", "6", "--lookback", "48", "--network", network, "--train.max_steps", "12"]
    return ["train", "--data", str(series(folder, seed)), *sizes, *options]


def classes(folder: Path, seed: int) -> list[str]:
    rng, parts = np.random.default_rng(seed), []
    for i in range(20):
        level = 4 * (i % 2) + rng.standard_normal(5)
        columns = {"unique_id": f"s{i}", "ds": range(5), "level": level, "label": "ab"[i % 2]}
        parts.append(pd.DataFrame(columns))
    path = folder / f"classes{seed}.csv"
    pd.concat(parts).to_csv(path, index=False)
    words = ["train", "--task", "classify", "--data", str(path), "--test", str(path)]
    words += ["--classify.members", "2", "--classify.d_model", "16", "--classify.blocks", "[mamba2]"]
    words += ["--classify.d_state", "4", "--classify.head_dim", "8", "--classify_selection.least_steps", "0"]
    return [*words, "--train.max_epochs", "2"]


def properties(folder: Path, seed: int) -> list[str]:
    rows = [("C" * n + end, 30.0 * n + seed) for n in range(1, 17) for end in ("O", "N", "")]
    path = folder / f"molecules{seed}.csv"
    pd.DataFrame(rows, columns=["smiles", "boils"]).to_csv(path, index=False)
    words = ["train", "--data", str(path), "--split", "random", "--tasks", "boils", "--model.members", "1"]
    words += ["--model.d_model", "16", "--model.n_layers", "1", "--model.features", "ecfp"]
    return [*words, "--model.d_hidden", "16", "--train.max_epochs", "2", "--train.batch_size", "16"]


COMMANDS: dict[str, tuple[Callable[[list[str]], int], Command]] = {
    "window": (timeseries.main, lambda folder, seed: forecasts(folder, seed, "window", _WINDOW)),
    "stream": (timeseries.main, lambda folder, seed: forecasts(folder, seed, "stream", _STREAM)),
    "classify": (timeseries.main, classes),
    "properties": (molecules.main, properties),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_it_goes_on_and_replays(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, command = COMMANDS[kind]
    common = ["--device", "cpu", "--train.continual.keep", "2"]
    runs = [tmp_path / "first", tmp_path / "second"]
    assert main([*command(tmp_path, 0), *common, "--output", str(runs[0])]) == 0
    base = ["--train.continual.kind", "both", "--train.continual.base", str(runs[0])]
    assert main([*command(tmp_path, 1), *common, *base, "--output", str(runs[1])]) == 0
    assert f"going on from {runs[0]}: both" in capsys.readouterr().err
    first, second = (Memory.load(one / "memory" / "batches.pt") for one in runs)
    assert len(second) == 2
    assert second.seen > first.seen
    fishers = [load_file(str(one / "memory" / "fisher.safetensors")) for one in runs]
    assert all(bool((fishers[1][name] >= one - 1e-12).all()) for name, one in fishers[0].items())
    assert any(bool(torch.any(one > 0)) for one in fishers[0].values())
