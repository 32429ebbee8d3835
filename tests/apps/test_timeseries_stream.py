"""The stream network from the command line: train, evaluate, forecast, stream, anomalies, impute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.apps.timeseries import main
from mambakit.core.adaptation import load_adapter
from mambakit.domains.timeseries.stream.network import StreamForecaster

SMALL = [
    "--stream.members", "1", "--stream.context", "4", "--stream.d_model", "16", "--stream.head_dim", "8",
    "--stream.d_state", "8", "--stream.n_layers", "1", "--stream.d_ahead", "8", "--train.max_steps", "12",
    "--stream_loss.window", "64", "--stream_loss.validation_stride", "8", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hourly series with a covariate known ahead, of which the table holds six rows more; gaps in y."""
    rng = np.random.default_rng(0)
    frames = []
    for name, n in (("north", 300), ("south", 200)):
        load = rng.normal(size=n + 6)
        stamps = pd.date_range("2024-01-01", periods=n + 6, freq="h")
        y = np.sin(np.arange(n + 6) * 2 * np.pi / 24) + 2 * load
        y[n:] = np.nan
        y[50:54] = np.nan
        frames.append(pd.DataFrame({"unique_id": name, "ds": stamps, "y": y, "load": load}))
    path = tmp_path_factory.mktemp("data") / "table.csv"
    pd.concat(frames).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stream"
    words = [
        "train",
        "--data",
        str(table),
        "--horizon",
        "6",
        "--lookback",
        "24",
        "--output",
        str(folder),
        *SMALL,
    ]
    more = ["--stream_loss.mask_share", "0.3", "--stream_loss.impute_weight", "0.5"]
    assert main([*words, *more, "--columns.future", "[load]"]) == 0
    return folder


def test_rows_that_are_noisy_or_missing_are_forecast_worse(
    run: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(run), "--data", str(table), "--columns.future", "[load]", "--json"]
    capsys.readouterr()
    assert main(["probe", *words, "--only", "noise", "missing", "dt"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    rows = {(row["perturbation"], row["level"]): row["mse"] for row in found}
    assert main(["evaluate", *words]) == 0
    assert rows["clean", None] == pytest.approx(json.loads(capsys.readouterr().out)["results"][0]["mse"])
    assert rows["noise", 1.0] != rows["clean", None]
    assert rows["missing", 0.5] != rows["clean", None]
    assert rows["dt", 8.0] != rows["clean", None]


def test_training_leaves_a_folder_with_a_report(
    run: Path, capsys: pytest.CaptureFixture[str], table: Path
) -> None:
    assert (run / "model.safetensors").exists()
    assert "Whether the quantiles hold" in (run / "report.html").read_text()
    words = ["evaluate", "--model", str(run), "--data", str(table), "--columns.future", "[load]", "--json"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["forecaster"] for row in rows] == ["mambakit", "linear", "seasonal naive", "naive"]
    assert all(np.isfinite(row["mase"]) for row in rows)


def test_a_forecast_takes_the_covariates_of_the_rows_ahead(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "forecast.csv", tmp_path / "forecast.png"
    words = ["forecast", "--model", str(run), "--input", str(table), "--output", str(output)]
    assert main([*words, "--levels", "80", "--plot", str(picture)]) == 0
    made = pd.read_csv(output)
    assert made.groupby("unique_id").size().to_dict() == {"north": 6, "south": 6}
    assert {"lo-80", "hi-80", "q10"} <= set(made.columns)
    assert picture.stat().st_size > 10_000
    assert main([*words, "--paths", "3"]) == 0
    assert pd.read_csv(output).groupby(["unique_id", "path"]).size().tolist() == [6] * 6
    capsys.readouterr()
    assert main([*words, "--horizon", "9"]) == 1
    assert "9" in capsys.readouterr().err


def test_a_stream_says_what_a_forecast_says(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(table)
    ahead = frame.groupby("unique_id").tail(6)
    rows = frame.drop(ahead.index)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("north,2024-01-01 05:00:00,1.0,0.0\n")  # late
    ahead.drop(columns="y").to_csv(tmp_path / "ahead.csv", index=False)
    words = ["stream", "--model", str(run), "--input", str(tmp_path / "rows.csv"), "--every", "0"]
    words += ["--state", str(tmp_path / "live"), "--future", str(tmp_path / "ahead.csv")]
    assert main(words) == 0
    said = capsys.readouterr()
    made = {one["unique_id"]: one for one in map(json.loads, said.out.splitlines())}
    assert "1 left out" in said.err
    assert "does not follow" in said.err
    assert main(["forecast", "--model", str(run), "--input", str(table), "--json"]) == 0
    wanted = pd.DataFrame(json.loads(capsys.readouterr().out))
    for name, part in wanted.groupby("unique_id"):
        np.testing.assert_allclose(made[str(name)]["y_hat"], part.y_hat, atol=1e-3)
    assert (tmp_path / "live/stream.safetensors").exists()


def test_gaps_are_filled_and_anomalies_scored(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "whole.csv"
    common = ["--model", str(run), "--input", str(table)]
    assert main(["impute", *common, "--output", str(output)]) == 0
    whole = pd.read_csv(output)
    assert whole.filled.sum() >= 8
    assert whole.y_hat[whole.filled].notna().all()
    assert main(["anomalies", *common, "--normal", "150", "--output", str(tmp_path / "scores.csv")]) == 0
    assert {"score", "anomaly"} <= set(pd.read_csv(tmp_path / "scores.csv").columns)


def wide_table(path: Path, n_rows: int = 160, seed: int = 0) -> Path:
    """Three hourly series, the second a row behind the first."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n_rows).cumsum()
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=n_rows, freq="h"), "a": a})
    frame["b"], frame["c"] = np.roll(a, 1), 20 + rng.normal(size=n_rows)
    frame.to_csv(path, index=False)
    return path


def test_series_that_are_read_together_need_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = wide_table(tmp_path / "wide.csv"), str(tmp_path / "run")
    words = ["train", "--data", str(data), "--network", "stream", "--mix", "true", "--horizon", "4"]
    assert main([*words, "--lookback", "12", "--output", folder, *SMALL, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert all(np.isfinite(row["mae"]) for row in results)
    late = pd.read_csv(data).melt("ds", var_name="unique_id", value_name="y")
    later = tmp_path / "later.csv"
    late.drop(index=0).to_csv(later, index=False)  # the first row of a
    assert main(["evaluate", "--model", folder, "--data", str(later), "--json"]) == 1
    assert "has other stamps than" in capsys.readouterr().err
    assert main([*words[:2], str(later), *words[3:], *SMALL, "--output", str(tmp_path / "other")]) == 1
    assert "has other stamps than" in capsys.readouterr().err

    def forecast_of(frame: pd.DataFrame) -> pd.DataFrame:
        frame.to_csv(tmp_path / "history.csv", index=False)
        words = ["forecast", "--model", folder, "--input", str(tmp_path / "history.csv"), "--json"]
        assert main(words) == 0
        return pd.DataFrame(json.loads(capsys.readouterr().out)).pivot(
            index="ds", columns="unique_id", values="y_hat"
        )

    history = pd.read_csv(data)
    before = forecast_of(history)
    after = forecast_of(history.assign(a=history.a + np.where(history.index > 140, 3.0, 0.0)))
    assert (before.b != after.b).all()  # a's last rows say something of b
    history.drop(columns="b").to_csv(tmp_path / "history.csv", index=False)
    assert main(["forecast", "--model", folder, "--input", str(tmp_path / "history.csv")]) == 1
    assert "'b' is missing" in capsys.readouterr().err


def test_a_backtest_trains_anew_at_every_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = wide_table(tmp_path / "wide.csv", n_rows=90)
    words = ["backtest", "--data", str(data), "--network", "stream", "--horizon", "4", "--windows", "2"]
    words += ["--lookback", "12", "--levels", "80", "--baselines", "naive", "--train.max_steps", "1"]
    tables = {}
    for refit in ("0", "1"):
        output = tmp_path / f"{refit}.csv"
        more = ["--refit", refit, "--output", str(output), "--device", "cpu", "--json"]
        assert main([*words, *more]) == 0
        assert json.loads(capsys.readouterr().out)["refit"] == int(refit)
        tables[refit] = pd.read_csv(output).set_index(["unique_id", "ds"])
    once, anew = tables["0"], tables["1"]
    assert len(once) == 3 * 2 * 4
    assert (anew["mambakit-lo-80"] <= anew["mambakit-hi-80"]).all()
    first = once.cutoff == once.cutoff.min()
    # trained on the same rows before the first origin, on more of them before the second
    np.testing.assert_allclose(once.mambakit[first], anew.mambakit[first], rtol=1e-4)
    assert not np.allclose(once.mambakit[~first], anew.mambakit[~first], rtol=1e-4)


def test_few_parameters_of_a_saved_forecaster_learn(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(table), "--horizon", "6", "--lookback", "24", *SMALL]
    more = ["--stream_loss.mask_share", "0.3", "--stream_loss.impute_weight", "0.5", "--columns.future"]
    adapting = ["--train.adapt.kind", "state", "--train.adapt.base", str(run), "--train.adapt.also", "head"]
    folder = tmp_path / "adapted"
    wrong = [one.replace("head", "heads") for one in adapting]
    assert main([*words, *more, "[load]", *wrong, "--output", str(tmp_path / "bad")]) == 2
    assert "no part 'heads'; it has" in capsys.readouterr().err
    assert main([*words, *more, "[load]", *adapting, "--output", str(folder)]) == 0
    assert "all of head" in capsys.readouterr().err
    base, whole = (StreamForecaster.from_pretrained(one) for one in (run, folder))
    load_adapter(base, folder / "adapter")
    for name, one in whole.state_dict().items():
        assert torch.equal(one, base.state_dict()[name]), name
    assert (
        main(["forecast", "--model", str(folder), "--input", str(table), "--columns.future", "[load]"]) == 0
    )
    assert main([*words, *more, "[load]", *adapting, "--output", str(folder)]) == 0, (
        "a finished run, taken up"
    )
