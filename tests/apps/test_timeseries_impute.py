"""The verb that fills missing values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.apps.timeseries import main
from mambakit.domains.timeseries.config import StreamConfig, StreamModelConfig
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.tables.table import Series


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stamps = pd.date_range("2024-01-01", periods=80, freq="h")
    series = Series("a", stamps, 10 + np.sin(np.arange(80) / 4), "h")
    tokenizer = RowTokenizer("h", 24).fit([series])
    small = StreamModelConfig(members=1, context=6, d_model=16, n_layers=1, d_state=8, head_dim=8, d_ahead=8)
    sizes = {"lookback": 8, "horizon": 2, "n_series": 1, "n_calendar": 2 * len(tokenizer.cycles)}
    torch.manual_seed(0)
    made = StreamForecaster(StreamConfig(**sizes, imputes=True, model=small))
    made.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    stamps = pd.date_range("2024-01-01", periods=80, freq="h")
    frame = pd.DataFrame({"unique_id": "a", "ds": stamps, "y": 10 + np.sin(np.arange(80) / 4)})
    frame.loc[[5, 6, 40], "y"] = np.nan
    path = tmp_path / "gaps.csv"
    frame.drop(index=[20, 21]).to_csv(path, index=False)
    return path


def test_fills_a_file(model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "whole.csv", tmp_path / "whole.png"
    words = ["impute", "--model", str(model), "--input", str(table), "--device", "cpu"]
    assert main([*words, "--output", str(output), "--plot", str(plot)]) == 0
    assert "5 of 80 values filled" in capsys.readouterr().err
    frame = pd.read_csv(output)
    assert list(np.flatnonzero(frame["filled"])) == [5, 6, 20, 21, 40]  # rows that were not there too
    assert frame["y_hat"].notna().all()
    assert (frame["y_hat"] == frame["y"])[~frame["filled"]].all()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[5]["y"] is None
    assert rows[5]["y_hat"] == pytest.approx(frame["y_hat"][5])


def test_says_what_can_t_be_done(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["impute", "--model", str(model), "--input", str(table)]
    assert main([*words, "--output", str(tmp_path / "whole.xlsx")]) == 2
    assert "output: expected a name that ends in .csv or .parquet" in capsys.readouterr().err
    empty = tmp_path / "empty.csv"
    stamps = pd.date_range("2024-01-01", periods=20, freq="h")
    pd.DataFrame({"unique_id": "b", "ds": stamps, "y": np.nan}).to_csv(empty, index=False)
    assert main(["impute", "--model", str(model), "--input", str(empty)]) == 1
    assert "series 'b' has no value" in capsys.readouterr().err
