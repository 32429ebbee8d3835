"""Single updates as a person sends them, and items that came after training in every verb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mambakit.apps.recommendation import main
from mambakit.apps.shared import in_plain_torch
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.tokenizer import EventTokenizer, Words
from mambakit.kernels import backend
from mambakit.kernels.backend import use_backend

N_ITEMS = 12
NOTHING_KNOWN = "i11"
Call = Callable[..., tuple[Any, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads features of items, of which one is known by nothing; and tables for it."""
    made = tmp_path_factory.mktemp("update")
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_layers=1, d_state=8, head_dim=8)
    words = Words().fit(pd.DataFrame({"kind": [f"k{i % 3}" for i in range(N_ITEMS)]}))
    model = Recommender(RecommenderConfig(N_ITEMS, len(words), 0, 3000.0, config, most_item_words=1)).eval()
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(N_ITEMS)], 3000.0, words)
    model.item_words += torch.arange(N_ITEMS)[:, None] % 3 + 1
    model.popularity += torch.arange(N_ITEMS).flip(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.item_words[-1], model.cold[-1] = 0, True
    model.save_pretrained(made / "run")
    (made / "new.csv").write_text("code,item,kind\nfresh,wrong,k1\nodd,what,of none\ni3,i4,k2\n", "utf-8")
    (made / "titles.csv").write_text("item,title\ni0,Film 0\nother,Other\n", "utf-8")
    (made / "events.csv").write_text("user,item,timestamp\nada,i3,100\nada,i4,200\nbob,i1,100\n", "utf-8")
    return made


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a verb to its JSON and its notes; or, where it fails with a status, to what it says."""

    def run(verb: str, *words: str, status: int = 0) -> tuple[Any, str]:
        given = ["--model", str(folder / "run"), "--json"]
        if verb == "update":
            given += ["--store", str(tmp_path / "s.db")]
        capsys.readouterr()
        assert main([verb, *given, *words]) == status
        said = capsys.readouterr()
        return None if status else json.loads(said.out), said.err

    return run


def one(item: str, *words: str) -> list[str]:
    return ["--user", "ada", "--item", item, *words]


def fresh(folder: Path) -> list[str]:
    return ["--item-features", str(folder / "new.csv"), "--columns.item", "code"]


def test_times_in_milliseconds_are_those_in_seconds(call: Call) -> None:
    said, _ = call("update", *one("i1", "--time", "1763800000000"))
    assert (said["applied"], said["events"]) == (True, 1)
    for time in ("1763800000", "2025-11-22T08:26:40Z", "1763800000000000"):
        assert call("update", *one("i1", "--time", time))[0]["applied"] is False  # the same moment
    assert call("update", *one("i2", "--time", "1763800001"))[0]["events"] == 2
    _, said = call("update", *one("i2", "--time", "1e300"), status=2)
    assert "got '1e300', which is too large even for nanoseconds" in said


def test_the_event_of_an_unknown_item_can_come_again(call: Call, folder: Path) -> None:
    before, said = call("update", *one("fresh", "--time", "100"))
    assert (before["events"], before["applied"], before["left_out"]) == (0, False, "unknown item")
    assert len(before["items"]) == 10
    assert "item 'fresh' is not in the catalogue: the event is left out" in said
    after, said = call("update", *one("fresh", "--time", "100"), *fresh(folder))
    assert (after["events"], after["applied"], after["left_out"]) == (1, True, None)
    assert "1 items are new to the model" in said
    assert "1 items have no feature that the model was trained with, and are left out: odd" in said
    assert "1 items are in the model's catalogue and keep what it learned" in said
    assert call("update", *one("fresh", "--time", "100"), *fresh(folder))[0]["applied"] is False
    again, _ = call("update", *one("fresh", "--time", "300"))  # of a user who is in the store
    assert (again["events"], again["applied"]) == (1, False)


def test_as_many_items_as_there_are_with_the_new_ones_can_be_asked_for(call: Call, folder: Path) -> None:
    assert "k: expected 1 to 11" in call("update", *one("i1", "--time", "5", "--k", "12"), status=2)[1]
    said, _ = call("update", *one("i1", "--time", "5", "--k", "12"), *fresh(folder), "--filter-seen", "false")
    assert {row["item"] for row in said["items"]} == {*(f"i{i}" for i in range(11)), "fresh"}
    assert (
        "--columns.*: these are for tables"
        in call("update", *one("i1", *fresh(folder)[2:], "--time", "6"), status=2)[1]
    )


def test_new_items_are_explained(call: Call, folder: Path) -> None:
    given = folder / "given.csv"
    given.write_text("user,code,timestamp\nada,i3,100\nada,fresh,200\n", "utf-8")
    words = ["--input", str(given), "--user", "ada"]
    said, _ = call("explain", *words, "--item", "fresh", *fresh(folder))
    assert [event["item"] for event in said["events"]] == ["i3", "fresh"]
    assert len(said["items"][0]["contributions"]) == 2
    assert (
        "'fresh' is not in the model's catalogue"
        in call("explain", *words, "--columns.item", "code", "--item", "fresh", status=2)[1]
    )


def test_titles_alone_name_items_and_what_nothing_is_known_of_is_not_explained(
    call: Call, folder: Path
) -> None:
    words = ["--input", str(folder / "events.csv"), "--user", "ada"]
    said, _ = call("explain", *words, "--item", "i0", "--item-features", str(folder / "titles.csv"))
    assert said["items"][0]["title"] == "Film 0"
    _, said = call("explain", *words, "--item", NOTHING_KNOWN, status=2)
    assert "item: 'i11' has no training event and no feature" in said


def test_another_models_store_names_the_flag_that_begins_it_anew(call: Call, tmp_path: Path) -> None:
    from mambakit.domains.recommendation.store.opening import open_store

    open_store(tmp_path / "s.db", "0" * 64).close()
    assert "--new-store at the command line" in call("update", *one("i1", "--time", "5"), status=1)[1]
    assert call("update", *one("i1", "--time", "5"), "--new-store")[0]["applied"]


def test_users_are_named_once_and_at_least_one(call: Call, folder: Path) -> None:
    words = ["--input", str(folder / "events.csv"), "--k", "2", "--users"]
    assert "users: expected at least one name" in call("recommend", *words, ",", status=2)[1]
    said, _ = call("recommend", *words, "bob,ada,bob")
    assert [row["user"] for row in said["recommendations"]] == ["bob", "bob", "ada", "ada"]


def test_help_and_few_events_load_little(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys\nfrom mambakit.apps.recommendation import main\nassert main(['--help']) == 0\n"
        "assert not {'numpy', 'pandas', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    monkeypatch.delenv("MAMBAKIT_BACKEND", raising=False)
    asked: list[str] = []

    def spy(name: str) -> AbstractContextManager[None]:
        asked.append(name)
        return use_backend(name)

    monkeypatch.setattr(backend, "use_backend", spy)
    words = ["--input", str(folder / "events.csv"), "--device", "cpu"]
    call("recommend", *words, "--k", "2", "--users", "ada")
    call("explain", *words, "--user", "ada", "--method", "leave-one-out")
    assert asked == ["reference", "reference"]  # plain torch: neither compiled loops nor torch's compiler
    for n_events, expected in ((200, "reference"), (201, "portable")):
        with in_plain_torch("cpu", n_events):
            assert backend.choose_backend("ssd", None, torch.device("cpu")) == expected
