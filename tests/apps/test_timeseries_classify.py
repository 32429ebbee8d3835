"""`mambakit timeseries classify`, and what trains and measures the model that it uses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.timeseries import main
from mambakit.apps.timeseries_classify import evaluate_classify, train_classify
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.classification.config import (
    PRESET_CLASSIFIER_TRAIN,
    ClassifierModelConfig,
    SelectionConfig,
)


def write_table(path: Path, *, seed: int, labels: bool = True) -> Path:
    """Twenty series of two classes, told apart by the first channel's level."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(20):
        n = int(rng.integers(3, 7))
        columns = {"unique_id": f"s{i}", "ds": range(n), "level": 4 * (i % 2) + rng.standard_normal(n)}
        parts.append(pd.DataFrame({**columns, "noise": rng.standard_normal(n), "label": "ab"[i % 2]}))
    frame = pd.concat(parts)
    (frame if labels else frame.drop(columns="label")).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    train_classify(
        data=str(write_table(folder / "train.csv", seed=0)),
        test=str(write_table(folder / "test.csv", seed=1)),
        output=folder / "model",
        model=ClassifierModelConfig(members=1, d_model=16, blocks=["mamba2"], d_state=4, head_dim=8),
        selection=SelectionConfig(least_steps=0),
        train=dataclasses.replace(PRESET_CLASSIFIER_TRAIN, max_epochs=15, lr=1e-2, ema_decay=0.5),
        device="cpu",
    )
    return folder


def test_run_folder_is_whole(folder: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "report.html", "pictures/confusion.png", "model.safetensors"):
        assert (folder / "model" / name).stat().st_size > 0
    assert "nearest neighbour" in (folder / "model/report.html").read_text()


def test_classifies_a_file_without_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = write_table(folder / "asked.csv", seed=2, labels=False)
    call = ["classify", "--model", str(folder / "model"), "--input", str(asked)]
    assert main([*call, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    right = [row["label"] == "ab"[int(row["unique_id"][1:]) % 2] for row in said]
    assert len(right) == 20
    assert sum(right) >= 18
    assert main([*call, "--output", str(folder / "classes.csv")]) == 0
    written = pd.read_csv(folder / "classes.csv")
    assert written["label"].tolist() == [row["label"] for row in said]
    assert written["p_a"].tolist() == pytest.approx([row["p_a"] for row in said])


def test_measures_a_saved_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_classify(
        model=folder / "model", data=str(folder / "test.csv"), train=str(folder / "train.csv"), json=True
    )
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["classifier"] for row in rows] == ["mambakit", "nearest neighbour", "commonest class"]
    assert rows[0]["accuracy"] >= 0.9 > rows[2]["accuracy"] == 0.5


def test_bad_calls_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["classify", "--model", str(folder / "model"), "--input", str(folder / "train.csv")]
    assert main([*call, "--output", "classes.xlsx"]) == 2
    assert "output: expected a name that ends in .csv or .parquet" in capsys.readouterr().err
    assert main([*call, "--alpha", "2"]) == 2
    assert "alpha: expected a share inside (0, 1), got 2" in capsys.readouterr().err
    assert main(["classify", "--model", "nowhere", "--input", str(folder / "train.csv")]) == 1
    assert "no saved model at nowhere" in capsys.readouterr().err


def test_unknown_test_classes_are_refused_before_training(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", seed=0)
    test = pd.read_csv(train).replace({"label": {"b": "c"}})
    test.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="series 's1' has the label 'c'; the classes are a, b"):
        train_classify(data=str(train), test=str(tmp_path / "test.csv"), output=tmp_path / "model")
    assert not (tmp_path / "model").exists()
