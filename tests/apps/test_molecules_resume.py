"""`mambakit molecules train` and `pretrain` killed in mid-run: what takes over ends with the same numbers."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from mambakit.apps.molecules import main

CHAINS = [f"{'C' * n}{end}" for n in range(1, 17) for end in ("O", "N", "")]
TRAIN = ["train", "--tasks", "size", "--split", "random", "--model.members", "2", "--model.d_model", "16"]
TRAIN += ["--model.n_layers", "1", "--model.features", "ecfp", "--model.d_hidden", "16", "--model.trees", "5"]
PRETRAIN = ["pretrain", "--samples", "0", "--model.d_model", "16", "--model.n_layers", "1"]
BUDGET = ["--train.max_epochs", "5", "--train.batch_size", "8", "--device", "cpu"]
TASKS = {
    "train": "mambakit.domains.molecules.task.PropertyTask",
    "pretrain": "mambakit.domains.molecules.language.task.MoleculeTask",
}
KILLED = """
import os, signal, sys
from mambakit.apps.molecules import main
from {module} import {name}

def on_train_batch_start(self, batch, index):
    if self.current_epoch == 2 and index == 2:
        os.kill(os.getpid(), signal.SIGKILL)

{name}.on_train_batch_start = on_train_batch_start
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [TRAIN, PRETRAIN], ids=lambda words: words[0])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, words: list[str]) -> None:
    pd.DataFrame({"smiles": CHAINS, "size": [float(len(one)) for one in CHAINS]}).to_csv(
        tmp_path / "data.csv", index=False
    )
    call = [*words, *BUDGET, "--data", str(tmp_path / "data.csv"), "--output"]
    module, _, name = TASKS[words[0]].rpartition(".")
    killed = subprocess.run(
        [sys.executable, "-P", "-c", KILLED.format(module=module, name=name), *call, str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run/model.safetensors").exists()
    torch.manual_seed(99)  # nothing may depend on the state of the process that takes over
    for folder in ("run", "whole"):
        assert main([*call, str(tmp_path / folder)]) == 0
    run, whole = (list(csv.DictReader((tmp_path / one / "metrics.csv").open())) for one in ("run", "whole"))
    assert len(run) == len(whole) == 5
    for mine, other in zip(run, whole, strict=True):
        for column in ("train/loss", "val/loss"):
            assert float(mine[column]) == pytest.approx(float(other[column]), rel=1e-5), column
    weights = [safetensors.torch.load_file(tmp_path / one / "model.safetensors") for one in ("run", "whole")]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
