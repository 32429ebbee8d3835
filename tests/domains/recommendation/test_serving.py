"""The exported files: a process without mambakit that steps them says what the model says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.serving import export_recommender, step_program
from mambakit.domains.recommendation.tokenizer import EventTokenizer, Words

EXAMPLE = Path(__file__).parents[3] / "examples" / "recommendation_serving.py"
N_ITEMS = 12
# in the order of the exported items; a gap of every kind, a repeat, and a user without times
HISTORIES = {
    "timed": ([0, 3, 3, 7, 11, 1], [1e9, 1e9, 1e9 + 0.25, 1e9 + 1, 1e9 + 40_000, 3e9]),
    "untimed": ([5, 2, 9], [np.nan] * 3),
    "nothing": ([], []),
}
# what a consumer does, with the test's own readings of its own folder
CONSUMER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("serving", sys.argv[1])
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)
from pathlib import Path
server = serving.Server(Path(sys.argv[2]))
found = {
    name: server.scores(items, [float(time) for time in times]).tolist()
    for name, (items, times) in json.loads(sys.argv[3]).items()
}
assert not [name for name in sys.modules if name.startswith("mambakit")]
print(json.dumps(found))
"""


def made(blocks: list[str], time: str, *, features: bool = True) -> Recommender:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, n_layers=2, d_state=8, head_dim=8, dropout=0.0, embedding_dropout=0.0,
        blocks=blocks, time=time,  # type: ignore[arg-type]
    )  # fmt: skip
    words = Words().fit(pd.DataFrame({"kind": [f"k{i % 3}" for i in range(N_ITEMS)]}))
    model = Recommender(RecommenderConfig(N_ITEMS, len(words) if features else 0, 0, 3000.0, config)).eval()
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(N_ITEMS)], 3000.0, words)
    if features:
        model.item_words = torch.arange(N_ITEMS)[:, None] % 3 + 1
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.bias)
    model.repeat_shift.fill_(-1.5)
    model.popularity += torch.arange(N_ITEMS)
    return model


def scores_of(model: Recommender) -> dict[str, np.ndarray]:
    """By ``Recommender.scores``; the event to be foretold is one more, of which nothing is read."""
    found = {}
    for name, (items, times) in HISTORIES.items():
        n = len(items)
        interactions = Interactions(
            np.array(["u"]),
            np.array(model.tokenizer.items),
            np.zeros(n + 1, dtype=np.int64),
            np.array([*items, 0]),
            np.array([*times, times[-1] if n else np.nan]),
        )
        found[name] = model.scores(interactions, np.array([n]))[0].numpy()
    return found


def given_to_a_server(name: str) -> tuple[list[str], list[str]]:
    """An event with an item that nobody knows is behind each history: it must change nothing."""
    items, times = HISTORIES[name]
    return [*(f"i{i}" for i in items), "unheard of"], [str(time) for time in [*times, 4e9]]


@pytest.mark.parametrize(("blocks", "time"), [(["mamba2", "mlp"], "both"), (["mamba1", "conv"], "gaps")])
def test_the_example_scores_as_the_model(
    blocks: list[str],
    time: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = made(blocks, time)
    model.item_words[10], model.cold[10] = 0, True  # of which nothing is known
    said = export_recommender(model, tmp_path / "served")
    assert said == json.loads((tmp_path / "served" / "serving.json").read_text("utf-8"))
    spec = importlib.util.spec_from_file_location("recommendation_serving", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    server = example.Server(tmp_path / "served")
    for name, expected in scores_of(model).items():
        items, times = given_to_a_server(name)
        found = server.scores(items, [float(time) for time in times])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, err_msg=name)
    assert "the bias of an item of which nothing is known is minus infinity" in said["score"]
    monkeypatch.setattr(example, "Server", lambda folder: server)  # it is slow to load
    monkeypatch.setattr(sys, "argv", ["serving", "", *(f"i{i}" for i in range(9))])
    example.main()
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"i9", "i11"}


@pytest.mark.slow  # ten seconds are torch's, to import what reads a program
def test_a_process_without_mambakit_scores_as_the_model(tmp_path: Path) -> None:
    model = made(["mamba2", "mlp"], "both")
    export_recommender(model, tmp_path / "served")
    given = json.dumps({name: given_to_a_server(name) for name in HISTORIES})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, str(EXAMPLE), str(tmp_path / "served"), given],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, expected in scores_of(model).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-4, err_msg=name)


def test_rows_of_a_batch_step_as_alone_and_no_operator_is_ours() -> None:
    model = made(["mamba2", "mamba1"], "both")
    program = step_program(model)
    assert not [node for node in program.graph.nodes if "mambakit" in str(node.target)]
    step, state = program.module(), dict(model.init_state(3).tensors())
    own = [model.init_state(1)] * 3
    for item, gap in ([[0, 5, N_ITEMS], [0, 2, 0]], [[3, 3, 1], [35, 7, 1]]):
        hidden, state = step(torch.tensor(item), torch.tensor(gap), state)
        for row in range(3):
            event = torch.tensor([[item[row], gap[row]]])
            alone, own[row] = model.step(event, model.catalogue(), own[row])
            torch.testing.assert_close(hidden[row], alone[0], rtol=1e-5, atol=1e-5)


def test_the_items_and_their_index(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    model = made(["mamba2"], "gaps")
    said = export_recommender(model, tmp_path)  # an empty folder will do
    table = pq.read_table(tmp_path / "items.parquet").to_pandas()
    catalogue = model.catalogue()
    assert list(table["item"]) == model.tokenizer.items
    assert list(table["training_events"]) == list(range(N_ITEMS))
    assert table["popularity"].sum() == pytest.approx(1.0)
    vectors = np.stack(table["vector"].to_list())
    np.testing.assert_array_equal(vectors, catalogue.vectors.detach().numpy())
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    assert index.nprobe == said["index"]["nprobe"]
    index.nprobe = said["index"]["cells"]
    hidden = torch.randn(4, 16)
    score, item = index.search(np.c_[hidden.numpy(), np.ones(4), np.zeros(4)].astype(np.float32), N_ITEMS)
    expected = (hidden @ catalogue.vectors.T + catalogue.bias).detach().sort(dim=1, descending=True)
    np.testing.assert_array_equal(item, expected.indices.numpy())
    np.testing.assert_allclose(score, expected.values.numpy(), rtol=1e-5, atol=1e-5)


def test_refuses_folders_in_use_and_states_that_grow(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match=r"is not empty \(it holds notes.txt\); name a new folder"):
        export_recommender(made(["mamba2"], "gaps"), tmp_path)
    attention = made(["attention", "mlp"], "none")
    with pytest.raises(UsageError, match="hold Attention, whose state grows with the history"):
        export_recommender(attention, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]
