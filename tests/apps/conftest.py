"""A made-up shop, and a recommender of it, for the tests that call the recommendation app."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from mambakit.apps.recommendation import main
from mambakit.core import cli

Events = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session", autouse=True)
def parsers_are_kept() -> Iterator[None]:
    """A verb's parser is made once: a person calls one verb a process, tests the same one dozens of times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "_parser", functools.cache(cli._parser))
        yield


@pytest.fixture(scope="session")
def shop_events() -> Events:
    """Makes them: users mostly go on to the next item."""

    def made(n_users: int = 60, n_items: int = 15) -> pd.DataFrame:
        rng = np.random.default_rng(0)
        rows = []
        for u in range(n_users):
            x, now = int(rng.integers(n_items)), 1_700_000_000
            for _ in range(int(rng.integers(4, 15))):
                x = (x + 1) % n_items if rng.random() < 0.8 else int(rng.integers(n_items))
                now += int(rng.integers(0, 5000))
                rows.append((f"u{u}", f"i{x}", now))
        return pd.DataFrame(rows, columns=["user", "item", "timestamp"])

    return made


@pytest.fixture(scope="session")
def shop_table(shop_events: Events, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "events.csv"
    shop_events().to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def shop_flags() -> list[str]:
    """A small recommender, and a budget in which it learns the shop."""
    size = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "8", "--model.head_dim", "8"]
    return [*size, "--train.max_epochs", "5", "--train.lr", "1e-2", "--train.ema_decay", "0.8"]


@pytest.fixture(scope="session")
def shop_model(shop_table: Path, shop_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a recommender, which keeps two batches to replay; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("runs") / "shop"
    words = ["train", "--data", str(shop_table), "--output", str(folder), "--device", "cpu", *shop_flags]
    assert main([*words, "--train.continual.keep", "2"]) == 0
    return folder


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """The forests beside a model of molecules have a tenth of their trees: what is read is their rows."""
    from mambakit.domains.molecules.baselines import Forest

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(Forest.__init__.__kwdefaults__, "n_trees", 20)
        yield


@pytest.fixture(scope="session")
def check_card() -> Callable[[Path], str]:
    """Compares the card of a run's model with the run's other files, and returns its text."""

    def checked(folder: Path) -> str:
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "mambakit"
        found = {"validation": {}, "measured": {}}  # type: ignore[var-annotated]
        for one in card.data.eval_results or []:
            place = "validation" if one.dataset_split == "validation" else "measured"
            found[place][one.metric_name] = one.metric_value
        result = json.loads((folder / "result.json").read_text())
        assert found["validation"].get(result["monitor"]) in (result["best_score"], None)
        saved = json.loads((folder / "evaluation.json").read_text())
        ours, key = saved["ours"], set(saved["ours"])
        of_us = [row for row in saved["results"] if ours.items() <= row.items()]
        assert of_us
        for row in of_us:
            condition = ", ".join(
                f"{name} {v}" for name, v in row.items() if isinstance(v, str) and name not in key
            )
            for name, value in row.items():
                if isinstance(value, float) and not name.endswith(("-lo", "-hi")):
                    assert found["measured"][f"{name} ({condition})" if condition else name] == value
        for heading in ("Intended use", "Limits", "How to load it", "Size", "Data", "Training", "Measured"):
            assert f"## {heading}\n" in card.text
        assert "Not said by the author" not in card.text
        loading = card.text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
        names: dict[str, object] = {}
        exec(loading, names)  # what the card says works
        n = sum(one.numel() for one in names["model"].parameters())  # type: ignore[attr-defined]
        assert f"{n:,} parameters" in card.text
        return card.text

    return checked
