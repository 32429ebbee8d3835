"""`mambakit timeseries embed`: a forecaster's and a classifier's embeddings as a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.apps.timeseries import main
from mambakit.domains.timeseries.classification.config import ClassifierConfig, ClassifierModelConfig
from mambakit.domains.timeseries.classification.network import SeriesClassifier
from mambakit.domains.timeseries.config import StreamConfig, StreamModelConfig
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.tables.table import Series


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    torch.manual_seed(0)
    stamps = pd.date_range("2024-01-01", periods=50, freq="h")
    tokenizer = RowTokenizer("h", 24).fit([Series("a", stamps, np.arange(50.0), "h")])
    small = StreamModelConfig(members=1, context=4, d_model=8, n_layers=1, d_state=4, head_dim=4, d_ahead=4)
    sizes = {"lookback": 8, "horizon": 2, "n_series": 1, "n_calendar": 2 * len(tokenizer.cycles)}
    model = StreamForecaster(StreamConfig(**sizes, model=small))
    model.tokenizer = tokenizer
    model.save_pretrained(folder / "stream")
    own = ClassifierModelConfig(members=2, d_model=8, blocks=["mamba2"], d_state=4, head_dim=4)
    channels = {"channels": ["y"], "mean": [0.0], "deviation": [1.0]}
    SeriesClassifier(ClassifierConfig(**channels, classes=["0", "1"], model=own)).save_pretrained(
        folder / "classifier"
    )
    frames = [pd.DataFrame({"unique_id": name, "ds": stamps, "y": np.sin(np.arange(50.0))}) for name in "ab"]
    pd.concat(frames).to_csv(folder / "table.csv", index=False)
    return folder


def test_writes_a_row_a_series(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["embed", "--model", str(folder / "stream"), "--input", str(folder / "table.csv")]
    assert main([*call, "--output", str(folder / "made.parquet")]) == 0
    assert "2 embeddings of 8 numbers" in capsys.readouterr().err
    made = pd.read_parquet(folder / "made.parquet")
    assert made.columns.tolist() == ["unique_id", "ds", *(f"e{i}" for i in range(8))]
    assert made["ds"].tolist() == [pd.Timestamp("2024-01-03 01:00")] * 2
    assert main([*call, "--every", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["ds"] for row in rows[:3]] == [
        "2024-01-01 09:00:00", "2024-01-02 05:00:00", "2024-01-03 01:00:00",
    ]  # fmt: skip
    assert rows[2]["e0"] == pytest.approx(made["e0"][0], abs=1e-5)


def test_a_classifier_embeds_whole_series(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["embed", "--model", str(folder / "classifier"), "--input", str(folder / "table.csv")]
    assert main([*call, "--output", str(folder / "made.csv")]) == 0
    made = pd.read_csv(folder / "made.csv")
    assert made.shape == (2, 2 + 16)
    assert made["ds"].tolist() == ["2024-01-03 01:00:00"] * 2
    assert main([*call, "--every", "3"]) == 2
    assert "holds a classifier, which reads whole series as they are" in capsys.readouterr().err


def test_bad_calls_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["embed", "--model", str(folder / "stream"), "--input", str(folder / "table.csv")]
    assert main([*call, "--output", "made.txt"]) == 2
    assert "output: expected a name that ends in .csv or .parquet" in capsys.readouterr().err
    assert main(["embed", "--model", "nowhere", "--input", "x.csv"]) == 1
    assert "no saved model at nowhere" in capsys.readouterr().err
    assert (
        main(["forecast", "--model", str(folder / "classifier"), "--input", str(folder / "table.csv")]) == 1
    )
    assert "holds a classifier of series: classify, evaluate and embed use it" in capsys.readouterr().err
