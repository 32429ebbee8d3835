"""The losses that a membership probe attacks by are those that an evaluation averages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.timeseries.config import LossConfig, ModelConfig
from mambakit.domains.timeseries.data import load_data
from mambakit.domains.timeseries.evaluation import evaluate
from mambakit.domains.timeseries.membership import attacked_windows
from mambakit.domains.timeseries.training import make_values, train_forecaster


def test_losses_of_others_average_to_the_test_error(tmp_path):
    rng = np.random.default_rng(0)
    t = np.arange(360)
    stamps = pd.date_range("2024-01-01", periods=360, freq="h")
    wave = 20 + 4 * np.sin(2 * np.pi * t / 24) + 0.3 * rng.standard_normal(360)
    pd.DataFrame({"unique_id": "a", "ds": stamps, "y": wave}).to_csv(tmp_path / "a.csv", index=False)
    data = load_data(str(tmp_path / "a.csv"))
    torch.manual_seed(0)
    model, _ = train_forecaster(
        data,
        RunFolder(tmp_path / "run"),
        lookback=48,
        horizon=12,
        model_config=ModelConfig(d_time=16, d_series=16, d_state=8, head_dim=8),
        loss_config=LossConfig(),
        train_config=TrainConfig(max_steps=5, device="cpu"),
    )
    found = attacked_windows(model, data)
    sizes = {"lookback": 48, "horizon": 12}
    measured = evaluate(model, data, "test", values=make_values(data, model.tokenizer), **sizes)
    assert len(found.others) == measured.n_windows
    assert found.others.mean() == pytest.approx(measured.rows[0]["mse"], rel=1e-5)
    some = attacked_windows(model, data, most=7)
    assert len(some.members) == len(some.others) == 7
    assert some.others[0] == pytest.approx(found.others[0])
