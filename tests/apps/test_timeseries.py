"""The time-series app as a user calls it: exit statuses, files, tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.apps.timeseries import main
from mambakit.domains.timeseries.model import load_forecaster

SMALL = [
    "--network=window",
    "--window.d_time=16",
    "--window.d_series=16",
    "--window.d_state=8",
    "--window.head_dim=8",
]
FORECAST = ["forecast", "--model", "MODEL", "--input"]
QUICK = ["--device", "cpu", "--train.max_steps=30", "--train.lr=3e-3", "--train.batch_size=32"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    t = np.arange(360)
    frame = pd.DataFrame(
        {
            "unique_id": "load",
            "ds": pd.date_range("2024-01-01", periods=360, freq="h"),
            "y": 20 + 4 * np.sin(2 * np.pi * t / 24) + 0.3 * rng.standard_normal(360),
        }
    )
    path = tmp_path_factory.mktemp("data") / "my.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "load"
    words = ["train", "--data", str(table), "--horizon", "12", "--lookback", "48", "--output", str(folder)]
    assert main([*words, *SMALL, *QUICK]) == 0
    return folder


def test_train_leaves_a_run_and_a_model(model: Path):
    for name in (
        "config.yaml",
        "metrics.csv",
        "report.html",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ):
        assert (model / name).stat().st_size > 0
    page = (model / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "seasonal naive" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {path.stem for path in (model / "pictures").iterdir()} == {
        "calibration",
        "error_by_step",
        "forecast",
        "learning_curve",
    }


def test_the_card_says_what_was_measured(model: Path, check_card: Callable[[Path], str]):
    text = check_card(model)
    assert "sha256 of my.csv" in text
    assert "horizon 12" in text


def test_spoilt_windows_are_forecast_worse(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["probe", "--model", str(model), *("--data", str(table)), "--output", str(tmp_path / "p.csv")]
    assert main([*words, "--plot", str(tmp_path / "p.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row[found["metric"]] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "noise", "missing", "shuffle", "dt"}
    written = pd.read_csv(tmp_path / "p.csv")
    assert written[found["metric"]].tolist() == pytest.approx(
        [row[found["metric"]] for row in found["results"]]
    )
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert main(["evaluate", "--model", str(model), "--data", str(table), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["results"][0]
    assert rows["clean", None] == pytest.approx(evaluated["mse"], rel=1e-5)
    assert rows["clean", None] < rows["noise", 0.3] < rows["noise", 1.0]


def test_a_membership_probe_of_windows(model: Path, table: Path, capsys: pytest.CaptureFixture[str]):
    words = ["probe", "--model", str(model), "--data", str(table), "--attack", "membership", "--json"]
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["members"] > row["others"] > 10
    assert row["auc-lo"] <= row["auc"] <= row["auc-hi"]


def test_evaluate_prints_the_baselines_beside(model: Path, table: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "--model", str(model), "--data", str(table), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["forecaster"]: row for row in found["results"]}
    assert set(rows) == {"mambakit", "linear", "seasonal naive", "naive"}
    assert found["n_windows"] == 72 - 12 + 1
    assert rows["mambakit"]["mse"] < rows["naive"]["mse"]


def test_forecast_writes_a_table_and_a_picture(model: Path, table: Path, tmp_path: Path):
    output, plot = tmp_path / "f.csv", tmp_path / "f.png"
    words = ["--input", str(table), "--horizon", "20", "--output", str(output), "--plot", str(plot)]
    assert main(["forecast", "--model", str(model), *words, "--device", "cpu"]) == 0
    frame = pd.read_csv(output)
    assert list(frame.columns[:3]) == ["unique_id", "ds", "y_hat"]
    assert len(frame) == 20
    assert frame.ds.iloc[0] == "2024-01-16 00:00:00"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_forecast_of_a_series_it_has_not_seen(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = pd.read_csv(table).assign(unique_id="other")
    other.to_csv(tmp_path / "other.csv", index=False)
    assert main(["forecast", "--model", str(model), "--input", str(tmp_path / "other.csv"), "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 12
    assert "other" in said.err


@pytest.mark.slow
def test_backtest_trains_and_compares(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        "backtest",
        "--data",
        str(table),
        "--horizon",
        "12",
        "--windows",
        "3",
        "--lookback",
        "48",
        "--network",
        "window",
    ]
    words += ["--step-size", "6", "--refit", "2", "--levels", "80,90", "--baselines", "linear,naive,naive2"]
    names = {"output": "b.parquet", "errors": "e.csv", "plot": "b.png", "report": "b.html"}
    for flag, name in names.items():
        words += [f"--{flag}", str(tmp_path / name)]
    assert main([*words, *QUICK, "--train.max_steps=8"]) == 0
    said = capsys.readouterr()
    for name in ("mambakit", "linear", "naive2", "mase", "msis", "coverage-80", "coverage-90", "owa"):
        assert name in said.out
    frame = pd.read_parquet(tmp_path / "b.parquet")
    assert len(frame) == 3 * 12
    assert (frame["mambakit-lo-90"] <= frame["mambakit-lo-80"]).all()  # both calibrated
    assert len(pd.read_csv(tmp_path / "e.csv")) == 4
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert "naive2" in (tmp_path / "b.html").read_text()


def test_backtest_of_a_saved_model_leaves_the_short_series_out(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = pd.read_csv(table)
    pd.concat([whole, whole[:50].assign(unique_id="short")]).to_csv(tmp_path / "two.csv", index=False)
    words = ["backtest", "--data", str(tmp_path / "two.csv"), "--horizon", "12", "--windows", "2", "--json"]
    assert main([*words, "--model", str(model)]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["series"] == 1
    assert "50 rows are too few" in found["left_out"]["short"]
    assert "1 series are left out: short" in said.err


def test_a_finished_run_is_not_overwritten_by_another(model: Path, table: Path, capsys):
    words = ["train", "--data", str(table), "--horizon", "6", "--lookback", "48", "--output", str(model)]
    assert main([*words, *SMALL, *QUICK]) == 1
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["train", "--horizon", "0"], 2, "horizon: expected at least 1, got 0"),
        (["train", "--horizon", "-3"], 2, "horizon: expected at least 1, got -3"),
        (["train", "--window.members", "0"], 2, "members: expected at least 1, got 0"),
        (["train", "--network", "window", "--lookback", "50"], 2, "lookback: expected a multiple of 16"),
        (["train", "--data", "ETTh7"], 2, "did you mean ETTh1"),
        (["train", "--data", "no.csv"], 1, "no such file: no.csv"),
        (["train", "--data", "BAD", "--missing", "guess"], 2, "--missing"),
        (["train", "--data", "BAD", "--missing", "error"], 1, "has a gap"),
        (["train", "--data", "SHORT", "--network", "window"], 1, "240 are needed"),
        (["train", "--horizn", "3"], 2, "did you mean --horizon"),
        (
            ["forecast", "--model", "MODEL", "--input", "GOOD", "--horizon", "0"],
            2,
            "horizon: expected at least 1",
        ),
        (["forecast", "--model", "nowhere", "--input", "GOOD"], 1, "no saved model at nowhere"),
        ([*FORECAST, "SHORT"], 1, "the model reads 48"),
        (
            ["forecast", "--model", "MODEL", "--input", "GOOD", "--output", "f.xls"],
            2,
            "ends in .csv or .parquet",
        ),
        (["forecast", "--input", "GOOD"], 2, "--model is required"),
        (["evaluate", "--model", "MODEL", "--data", "co2"], 1, "other series"),
        (["backtest", "--data", "SHORT", "--network", "window"], 1, "rows are too few"),
        (["backtest", "--data", "GOOD", "--windows", "0"], 2, "windows: expected at least 1"),
        (["backtest", "--data", "GOOD", "--levels", "80,x"], 2, "levels: expected numbers between commas"),
        (["backtest", "--data", "GOOD", "--levels", "80,100"], 2, "levels: expected per cents inside"),
        (["backtest", "--data", "GOOD", "--baselines", "nave"], 2, "baselines: expected some of linear"),
        (
            ["backtest", "--data", "GOOD", "--model", "MODEL", "--refit", "1"],
            2,
            "leave --model or --refit out",
        ),
        (
            ["backtest", "--data", "GOOD", "--report", "r.pdf"],
            2,
            "report: expected a name that ends in .html",
        ),
        (["predict"], 2, "there is no verb 'predict'"),
        ([], 2, "usage"),
    ],
)
def test_exit_status_and_sentence(words, status, said, model, table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = pd.read_csv(table)
    good.drop(index=[40, 41]).to_csv("gap.csv", index=False)
    good[:30].to_csv("short.csv", index=False)
    names = {"GOOD": str(table), "MODEL": str(model), "BAD": "gap.csv", "SHORT": "short.csv"}
    assert main([names.get(word, word) for word in words]) == status
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["train", "evaluate", "forecast", "backtest"])
def test_help_shows_examples(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, "--help"]) == 0
    assert f"mambakit timeseries {verb}" in capsys.readouterr().out


def test_neighbours_are_kept_beside_the_model_and_used(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("faiss")
    shutil.copytree(model, tmp_path / "run")
    words = ["--model", str(tmp_path / "run"), "--data", str(table), "--device", "cpu", "--json"]
    assert main(["neighbours", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["validation mse"] <= said["without"]
    path = tmp_path / "run" / "neighbours" / "neighbours.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "share": 0.25, "k": 2, "temperature": 1.0}))
    alone, helped = (load_forecaster(one) for one in (model, tmp_path / "run"))
    store = helped.neighbours  # type: ignore[union-attr]
    torch.manual_seed(0)
    history, phase, series = torch.randn(3, 48, 1), torch.tensor([0, 5, 9]), torch.tensor([0])
    with torch.no_grad():
        before, after = (one(history, phase, series) for one in (alone, helped))
        weights, place = store.weights(alone.embed(history, phase, series))  # type: ignore[union-attr]
    mean, deviation = history.mean(1)[:, 0], (history.var(1, correction=0)[:, 0] + 1e-5).sqrt()
    for row in range(3):
        followed = (weights[row, 0][:, None] * store.values[place[row, 0]]).sum(0)  # type: ignore[union-attr]
        said_here = followed * deviation[row] + mean[row]
        wanted = 0.75 * before[row, :, 0].mean(-1) + 0.25 * said_here
        torch.testing.assert_close(after[row, :, 0].mean(-1), wanted, atol=1e-4, rtol=1e-4)
