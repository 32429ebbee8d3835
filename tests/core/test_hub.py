import dataclasses
import enum
import json
import os
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mambakit.core import hub
from mambakit.core.adapters import VocabularyTokenizer
from mambakit.core.errors import DataError, UserError
from mambakit.core.from_json import from_json
from mambakit.core.hub import HubModel


class Scale(enum.Enum):
    NONE = "none"
    REVERSIBLE = "reversible"


@dataclass(frozen=True)
class Inner:
    width: int = 3
    dt_limit: tuple[float, float] = (0.0, float("inf"))


@dataclass(frozen=True)
class Config:
    n_out: int
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    layers: list[Inner] = field(default_factory=list)
    options: dict[str, dict[str, int]] = field(default_factory=dict)
    scale: Scale = Scale.NONE
    data: Path | None = None


class ByConfig(nn.Module, HubModel):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.inner.width, config.n_out)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class ByArguments(nn.Module, HubModel):
    def __init__(self, width: int, inner: Inner = Inner(), tied: bool = True) -> None:
        super().__init__()
        self.inner = inner
        self.embed = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


class WithTokenizer(ByArguments):
    def save_extra(self, folder):
        self.tokenizer.save(folder / "tokenizer")

    def load_extra(self, folder):
        self.tokenizer = VocabularyTokenizer.load(folder / "tokenizer")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local load went over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


CONFIG = Config(
    2, Inner(4), Inner(7, (0.1, 0.2)), [Inner(1)], {"mamba2": {"head_dim": 32}}, Scale.REVERSIBLE, Path("a/b")
)


def same_weights(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_round_trip_of_a_config_dataclass(tmp_path):
    model = ByConfig(CONFIG)
    model.steps += 5
    model.save_pretrained(tmp_path / "deep" / "model")
    loaded = ByConfig.from_pretrained(tmp_path / "deep" / "model")
    assert loaded.config == CONFIG
    assert same_weights(model, loaded)
    assert not loaded.training
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]
    again = ByConfig.from_pretrained(str(tmp_path / "deep" / "model"))
    again.save_pretrained(tmp_path / "copy")
    written = [
        (folder / "config.json").read_bytes() for folder in (tmp_path / "copy", tmp_path / "deep" / "model")
    ]
    assert written[0] == written[1]


def test_round_trip_of_plain_arguments_and_tied_weights(tmp_path):
    model = ByArguments(6, inner=Inner(9))
    model.save_pretrained(tmp_path)
    loaded = ByArguments.from_pretrained(tmp_path)
    assert loaded.inner == Inner(9)
    assert same_weights(model, loaded)
    assert loaded.head.weight is loaded.embed.weight
    assert len(load_file(tmp_path / "model.safetensors")) == 1


def test_a_domain_keeps_its_tokenizer_beside_the_weights(tmp_path):
    model = WithTokenizer(6)
    model.tokenizer = VocabularyTokenizer().fit(["ACGT"])
    model.save_pretrained(tmp_path / "model")
    loaded = WithTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("GAT")) == "GAT"


def test_saving_over_a_model_keeps_other_files_and_takes_the_new_weights(tmp_path):
    ByConfig(CONFIG).save_pretrained(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "README.md").write_text("mine too")
    second = ByConfig(dataclasses.replace(CONFIG, n_out=3))
    second.save_pretrained(tmp_path)
    assert same_weights(second, ByConfig.from_pretrained(tmp_path))
    assert (tmp_path / "report.html").read_text() == "mine"
    assert (tmp_path / "README.md").read_text() == "mine too"


class Tiny(nn.Module, HubModel):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)


def kill_self(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["writing", "moving"])
def test_a_killed_save_leaves_the_old_model_or_is_noticed(tmp_path, monkeypatch, where):
    first = Tiny(3)
    first.save_pretrained(tmp_path)
    second = Tiny(4)
    child = os.fork()
    if child == 0:
        try:
            if where == "writing":
                monkeypatch.setattr(hub, "save_model", kill_self)
            else:
                replace, moved = Path.replace, []

                def replace_once(path, target):
                    if moved:
                        kill_self()
                    moved.append(target)
                    return replace(path, target)

                monkeypatch.setattr(Path, "replace", replace_once)
            second.save_pretrained(tmp_path)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    if where == "writing":
        assert same_weights(Tiny.from_pretrained(tmp_path), first)
    else:
        with pytest.raises(
            DataError, match="come from two saves, the later one was interrupted; save the model"
        ):
            Tiny.from_pretrained(tmp_path)
    second.save_pretrained(tmp_path)
    assert same_weights(Tiny.from_pretrained(tmp_path), second)


def write_weights(change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def write_config(change):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            r"config\.json is missing \(it holds README.md, model.safetensors\)",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "should hold a JSON object, got list"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle?"),
            "is damaged or no safetensors file",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 90), "is damaged or no safetensors file"),
        (write_weights(lambda w: w.pop("linear.bias")), "1 weights are missing: linear.bias"),
        (write_weights(lambda w: w.update(extra=torch.ones(1))), "1 weights are not in the model: extra"),
        (
            write_weights(lambda w: w.update({"linear.bias": torch.ones(7)})),
            r"of another shape: linear.bias \(7,\) instead of \(2,\)",
        ),
        (
            write_config(lambda c: c.update(colour="red")),
            "Config has no field colour; was it saved by another version",
        ),
        (write_config(lambda c: c.pop("n_out")), "Config needs the field n_out"),
        (write_config(lambda c: c["inner"].update(size=3)), "Inner has no field size"),
        (write_config(lambda c: c["maybe"].update(size=3)), "Inner has no field size"),
        (write_config(lambda c: c.update(scale="loud")), "'loud' is not a valid Scale"),
        (write_config(lambda c: c.update(inner=3)), "expected the fields of Inner, got 3"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, message):
    ByConfig(CONFIG).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        ByConfig.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_no_network_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"no saved model at runs/etth1: the folder does not exist; .* from_hub=True"
    ):
        ByConfig.from_pretrained("runs/etth1")
    with pytest.raises(DataError, match=r"the folder does not exist$"):
        ByConfig.from_pretrained(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; a saved model is a folder"):
        ByConfig.from_pretrained("file")
    with pytest.raises(UserError, match="a file is in the way"):
        ByConfig(CONFIG).save_pretrained("file")


def test_from_hub_downloads_and_never_a_pickle(tmp_path, monkeypatch):
    ByConfig(CONFIG).save_pretrained(tmp_path)
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("mambakit.core.hub.snapshot_download", snapshot_download)
    assert ByConfig.from_pretrained("owner/model", from_hub=True, revision="v1").config == CONFIG
    assert (asked["name"], asked["revision"]) == ("owner/model", "v1")
    assert {"*.bin", "*.pt", "*.pkl", "*.ckpt"} <= set(asked["ignore_patterns"])


def test_a_pickle_beside_is_never_read(tmp_path):
    ByConfig(CONFIG).save_pretrained(tmp_path)
    torch.save({"linear.weight": torch.ones(2, 4)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors is missing \(it holds .*pytorch_model.bin\)"):
        ByConfig.from_pretrained(tmp_path)


def test_arguments_may_be_overridden_and_must_be_known(tmp_path):
    ByArguments(6, tied=False).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"embed.weight \(5, 6\) instead of \(5, 7\)"):
        ByArguments.from_pretrained(tmp_path, width=7)
    write_config(lambda c: c.update(colour="red"))(tmp_path)
    with pytest.raises(DataError, match="unknown argument colour"):
        ByArguments.from_pretrained(tmp_path)


def test_a_config_that_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    model = ByConfig(dataclasses.replace(CONFIG, options={"x": torch.ones(1)}))
    with pytest.raises(TypeError, match="config: can't be written as JSON"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int | None, None, None),
        (str | int, 3, 3),
        (Inner | None, {"width": 5}, Inner(5)),
        (tuple[int, ...], [1, 2], (1, 2)),
        (list[tuple[int, str]], [[1, "a"]], [(1, "a")]),
        (dict[str, Inner], {"a": {"width": 1}}, {"a": Inner(1)}),
        (tuple, [1], (1,)),
        (list[int] | str, "x", "x"),
        (Scale | None, "none", Scale.NONE),
        (Path | None, "a/b", Path("a/b")),
    ],
)
def test_from_json_follows_the_annotation(hint, value, expected):
    assert from_json(hint, value) == expected
    assert type(from_json(hint, value)) is type(expected)


def test_from_json_refuses_a_tuple_of_another_length():
    with pytest.raises(ValueError, match="expected 2 values"):
        from_json(tuple[int, int], [1, 2, 3])
