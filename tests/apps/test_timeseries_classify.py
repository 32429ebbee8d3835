"""`mambakit timeseries classify`, and what trains and measures the model that it uses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mambakit.apps.timeseries import main
from mambakit.apps.timeseries_classify import train_classify
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.classification.config import PRESET_CLASSIFIER_TRAIN


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
    words = ["--data", write_table(folder / "train.csv", seed=0)]
    words += ["--test", write_table(folder / "test.csv", seed=1), "--output", folder / "model"]
    words += ["--classify.members", 1, "--classify.d_model", 16, "--classify.blocks", "[mamba2]"]
    words += ["--classify.d_state", 4, "--classify.head_dim", 8, "--classify_augment.jitter", 0.1]
    words += ["--classify_selection.least_steps", 0, "--device", "cpu"]
    words += ["--train.max_epochs", 15, "--train.lr", 1e-2, "--train.ema_decay", 0.5]
    assert main(["train", "--task", "classify", *map(str, words)]) == 0
    return folder


def test_flags_reach_the_training(folder: Path) -> None:
    config = yaml.safe_load((folder / "model/config.yaml").read_text())
    assert config["model"] | {"blocks": ["mamba2"], "d_model": 16, "members": 1} == config["model"]
    assert config["augment"]["jitter"] == 0.1
    assert config["selection"]["least_steps"] == 0
    assert config["train"]["lr"] == 1e-2
    # what is not said is the classifier's own default, not a forecaster's
    assert config["train"]["batch_size"] == PRESET_CLASSIFIER_TRAIN.batch_size


def test_a_classifier_is_probed_and_attacked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", "--model", str(folder / "model"), "--data", str(folder / "test.csv"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    rows = {(row["perturbation"], row["level"]): row["accuracy"] for row in found}
    assert {name for name, _ in rows} == {"clean", "noise", "missing", "shuffle", "dt"}
    assert (
        main(["evaluate", "--model", str(folder / "model"), "--data", str(folder / "test.csv"), "--json"])
        == 0
    )
    assert rows["clean", None] == json.loads(capsys.readouterr().out)["results"][0]["accuracy"]
    assert main([*words, "--attack", "membership"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["auc"] == 0.5  # a file has no parts: the same series on both sides


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
    call = ["evaluate", "--model", str(folder / "model"), "--data", str(folder / "test.csv")]
    assert main([*call, "--train", str(folder / "train.csv"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_series"] == 20
    ours, neighbour, commonest = said["results"]
    assert [row["classifier"] for row in said["results"]] == [
        "mambakit",
        "nearest neighbour",
        "commonest class",
    ]
    assert ours["accuracy"] >= 0.9 > commonest["accuracy"] == 0.5
    assert ours["macro_f1"] >= 0.9
    assert ours["log_loss"] < commonest["log_loss"] == pytest.approx(np.log(2))
    assert commonest["calibration_error"] == pytest.approx(0, abs=1e-6)
    assert 0 <= ours["calibration_error"] < 0.5
    assert "log_loss" not in neighbour
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "calibration_error" in printed
    assert "commonest" not in printed  # without the training series there is no baseline


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "train --task classify --horizon 5 --stream.d_model 8",
            "--horizon, --stream.*: this is for forecasting",
        ),
        (
            "train --task classify --lookback 48",
            "--lookback: this is for forecasting, and --task is classify",
        ),
        ("train --classify.d_model 8 --test x.csv", "--test, --classify.*: this is for --task classify"),
        (
            "train --data co2 --network window --stream.d_model 8",
            "--stream.*: what is trained here is --network",
        ),
        ("train --data co2 --window.d_time 8", "--window.*: what is trained here is --network stream"),
        (
            "evaluate --model {model} --data x.csv --irregular",
            "holds a classifier, which reads labelled series",
        ),
        (
            "train --task classify --classify.pool none",
            "--classify.pool: expected one of 'mean', 'max', 'last', got 'none'",
        ),
    ],
)
def test_what_does_not_go_together_is_said(
    folder: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.format(model=folder / "model").split()) == 2
    assert message in capsys.readouterr().err


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
