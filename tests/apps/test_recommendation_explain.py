"""Explaining recommendations on the command line: table, picture, JSON, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mambakit.apps.recommendation import main
from mambakit.core.training import RunFolder
from mambakit.domains.recommendation.cards import load_interactions
from mambakit.domains.recommendation.config import PRESET_TRAIN, LossConfig, ModelConfig
from mambakit.domains.recommendation.data import leave_one_out
from mambakit.domains.recommendation.training import train_recommender

N_ITEMS = 12
PATTERN = 3  # an item is followed by the one three further on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a circle, and histories of one user beside what items are called."""
    made = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    rows = []
    for u in range(60):
        x = int(rng.integers(N_ITEMS))
        for t in range(int(rng.integers(5, 14))):
            rows.append((f"u{u}", f"i{x}", 1_700_000_000 + 600 * t))
            x = (x + PATTERN) % N_ITEMS if rng.random() < 0.85 else int(rng.integers(N_ITEMS))
    events = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    events.to_csv(made / "events.csv", index=False)
    history = [("42", f"i{i}", 1_700_000_000 + 600 * t) for t, i in enumerate((1, 8, 11, 7, 2))]
    lost = [("43", "what", 1_700_000_000)]
    pd.DataFrame([*history, *lost], columns=["user", "item", "timestamp"]).to_csv(
        made / "histories.csv", index=False
    )
    names = {"item": [f"i{i}" for i in range(N_ITEMS)], "title": [f"Film {i}" for i in range(N_ITEMS)]}
    pd.DataFrame(names).to_csv(made / "titles.csv", index=False)
    interactions = load_interactions(made / "events.csv")
    model, _ = train_recommender(
        interactions,
        leave_one_out(interactions),
        RunFolder(made / "run"),
        model_config=ModelConfig(d_model=16, n_layers=1, d_state=8, head_dim=8, dropout=0.0),
        loss_config=LossConfig(max_length=16, row_length=64),
        train_config=dataclasses.replace(
            PRESET_TRAIN, max_epochs=6, batch_size=10, lr=2e-2, ema_decay=0.8, device="cpu"
        ),
    )
    model.save_pretrained(made / "run")
    return made


def words(folder: Path, *more: str) -> list[str]:
    given = ["explain", "--model", str(folder / "run"), "--input", str(folder / "histories.csv")]
    return [*given, *more]


@pytest.mark.parametrize("method", ["hidden-attention", "gradients", "leave-one-out"])
def test_finds_the_event_that_the_pattern_follows(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = ["--item-features", str(folder / "titles.csv")]
    assert main(words(folder, "--user", "42", "--k", "1", "--method", method, "--json", *titles)) == 0
    found = json.loads(capsys.readouterr().out)
    (best,) = found["items"]
    assert (found["user"], found["method"]) == ("42", method)
    assert (best["item"], best["title"], best["rank"]) == ("i5", "Film 5", 1)
    strongest = found["events"][int(np.argmax(best["contributions"]))]
    assert strongest == {"event": 5, "item": "i2", "title": "Film 2", "time": "2023-11-14T22:53:20Z"}
    assert best["score"] == pytest.approx(
        found["catalogue_mean"] + sum(best["contributions"]) + best["rest"], abs=1e-6
    )


def test_writes_table_and_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "new" / "why.csv", tmp_path / "new" / "why.png"
    more = ["--user", "42", "--item", "i5", "--output", str(table), "--plot", str(picture)]
    assert main(words(folder, *more)) == 0
    found = pd.read_csv(table)
    assert list(found) == (
        ["user", "item", "rank", "score", "lift", "rest", "event", "past_item", "time", "contribution"]
    )
    assert found["past_item"].tolist() == ["i1", "i8", "i11", "i7", "i2"]
    assert found["contribution"].sum() + found["rest"][0] == pytest.approx(found["lift"][0], abs=1e-6)
    assert picture.stat().st_size > 10_000
    out, err = capsys.readouterr()
    assert "1. i5: score" in out
    assert "event 5: i2  2023-11-14T22:53:20Z" in out
    assert "1 events with items outside the catalogue are left out" in err


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--user", "99"], 2, "user: '99' is not among the 2 users of the input"),
        (["--user", "43"], 1, "user '43' has no event with an item of the catalogue of 12 items"),
        (["--user", "42", "--item", "what"], 2, "item: 'what' is not in the model's catalogue of 12 items"),
        (["--user", "42", "--k", "8"], 2, "k: expected 1 to 7"),
        (["--user", "42", "--plot", "why.txt"], 2, "plot: expected a name that ends in .png"),
        (["--user", "42", "--method", "guess"], 2, "guess"),
    ],
)
def test_refuses(
    more: list[str], status: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, *more)) == status
    assert message in capsys.readouterr().err
