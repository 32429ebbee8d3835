"""The robotics commands as typed: train, evaluate, rollout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from mambakit.apps.robotics import main
from mambakit.core.adaptation import load_adapter, merge
from mambakit.domains.robotics.episodes import Episodes
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.testing import made_episodes

QUICK = [
    *("--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"),
    *("--train.max_steps", "8", "--train.validate_every", "4", "--train.max_epochs", "1"),
]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for InvertedPendulum-v5 from episodes of its scripted expert under noise."""
    folder = tmp_path_factory.mktemp("robotics")
    data = folder / "data"
    words = ["collect", "--env", "InvertedPendulum-v5", "--level", "noisy", "--episodes", "6"]
    assert main([*words, "--output", str(data)]) == 0
    assert main(["train", "--data", str(data), "--output", str(folder / "run"), *QUICK, "--json"]) == 0
    return folder


def test_from_collecting_to_a_rollout(
    pendulum: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = pendulum / "run"
    assert (model / "report.html").is_file()
    assert (model / "pictures" / "action_error.png").is_file()
    found = run(
        capsys, "evaluate", "--model", model, "--episodes", 3, "--validation-seeds", 1,
        "--plot", tmp_path / "returns.png",
    )  # fmt: skip
    assert found["environment"] == "InvertedPendulum-v5"
    assert [row["weights"] for row in found["results"]] == ["best", "last"]
    assert len(found["results"][0]["returns"]) == 3
    assert (tmp_path / "returns.png").stat().st_size > 1000
    kept = json.loads((model / "target_return.json").read_text())
    assert kept["target_return"] == found["results"][0]["target_return"]
    acted = run(capsys, "rollout", "--model", model, "--output", tmp_path / "e.npz", "--max-steps", 5)
    assert acted["target_return"] == kept["target_return"]
    assert acted["return"] == pytest.approx(np.load(tmp_path / "e.npz")["rewards"].sum())


def test_the_cards_say_what_was_measured(pendulum: Path, check_card: Callable[[Path], str]) -> None:
    assert "decision-mamba" in check_card(pendulum / "run")
    last = (pendulum / "run/last/README.md").read_text()
    assert "Nothing was measured" in last
    assert "val/" not in last


def test_a_policy_that_sees_noise_errs_more(
    pendulum: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "--model", str(pendulum / "run"), *("--seed", "1"), "--output", str(tmp_path / "p.csv")]
    assert main([*words, "--plot", str(tmp_path / "p.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["perturbation"], row["level"]): row[found["metric"]] for row in found["results"]}
    assert {name for name, _ in rows} == {"clean", "noise", "drop", "delay", "shuffle", "dt"}
    table = pd.read_csv(tmp_path / "p.csv")
    assert table[found["metric"]].tolist() == pytest.approx(
        [row[found["metric"]] for row in found["results"]]
    )
    assert (tmp_path / "p.png").stat().st_size > 5000
    evaluated = run(
        capsys, "evaluate", "--model", pendulum / "run", "--data", "held-out", "--weights", "best"
    )
    assert rows["clean", None] == pytest.approx(evaluated["results"][0]["scaled_mse"], rel=1e-5)
    assert rows["noise", 1.0] != rows["clean", None]


def test_wrong_calls_say_what_would_help(pendulum: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(pendulum / "run")
    assert main(["evaluate", "--model", model, "--env", "Reacher-v5", "--episodes", "1"]) == 2
    assert "Reacher-v5 takes actions of 2 numbers" in capsys.readouterr().err
    assert main(["rollout", "--model", model, "--export", str(pendulum / "step.onnx")]) in (0, 1)
    assert main(["rollout", "--model", model, "--video", "film.avi"]) == 2
    assert "a name that ends in .mp4" in capsys.readouterr().err
    assert main(["rollout", "--model", model, "--max-steps", "3", "--target-return", "9e9"]) == 0
    assert "far above the best episode it learned from" in capsys.readouterr().err
    assert main(["rollout", "--model", model, "--max-steps", "3", "--instruction", "stand"]) == 0
    assert "decision-mamba is told none, so that it makes no difference" in capsys.readouterr().err
    assert main(["train", "--data", "nowhere/at/all"]) == 2
    assert "no folder nowhere/at/all" in capsys.readouterr().err
    assert main(["train", "--data", str(pendulum / "data"), "--mask", "x"]) == 2
    assert "velocities, or places such as 5,6,7" in capsys.readouterr().err


def test_held_out_error_beside_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data without an environment: no returns, but errors of actions on episodes held out."""
    from mambakit.domains.robotics import cards

    def loaded(_: object) -> Episodes:
        return made_episodes(30)

    monkeypatch.setattr(cards, "load_episodes", loaded)
    words = ["train", "--data", "made", "--policy", "bc", "--baselines", "bc-mlp", "--head", "mixture"]
    found = run(capsys, *words, "--output", tmp_path / "run", *QUICK)
    assert [row["policy"] for row in found["results"]] == ["bc", "bc-mlp"]
    again = run(capsys, "evaluate", "--model", tmp_path / "run", "--weights", "best")
    assert again["results"][0]["mse"] == pytest.approx(found["results"][0]["mse"])
    assert again["episodes"] == 3
    other = tmp_path / "run" / "bc-mlp"
    both = run(capsys, "evaluate", "--model", tmp_path / "run", "--weights", "best", "--also", other)
    assert [row["mse"] for row in both["results"]] == pytest.approx([row["mse"] for row in found["results"]])
    monkeypatch.setattr(cards, "load_episodes", lambda _: made_episodes(3, discrete=True))
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--data", "made"]) == 2
    assert "made has numbered actions: 2; the policy was trained on made, with none" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ["lora", "state"])
def test_few_parameters_of_a_saved_policy_learn(
    kind: str, pendulum: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if kind == "lora":
        pytest.importorskip("peft")
    words = ["train", "--data", str(pendulum / "data"), "--output", str(tmp_path / "run"), *QUICK]
    assert main([*words, "--train.adapt.kind", kind, "--train.adapt.base", str(pendulum / "run")]) == 0
    assert "parameters learn (" in capsys.readouterr().err
    for folder in (tmp_path / "run", tmp_path / "run" / "last"):
        base, whole = (Policy.from_pretrained(one) for one in (pendulum / "run", folder))
        load_adapter(base, folder / "adapter")
        merge(base)
        for name, one in whole.state_dict().items():
            assert torch.equal(one, base.state_dict()[name]), name
    acted = ["rollout", "--model", tmp_path / "run", "--output", tmp_path / "e.npz", "--max-steps", 3]
    assert np.isfinite(run(capsys, *acted)["return"])
