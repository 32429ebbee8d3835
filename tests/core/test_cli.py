"""run_app: flags from signatures, help from docstrings, one sentence per error, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from mambakit.core.cli import format_table, print_json, run_app
from mambakit.core.errors import DataError, UsageError


@dataclass(frozen=True)
class Options:
    """How to train."""

    lr: float = 0.1
    """The learning rate."""
    clip: bool = True
    """Whether to clip."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr: expected at least 0, got {self.lr}")


CALLS: list[dict[str, Any]] = []


def train(
    *,
    data: str,
    horizon: int = 96,
    max_time: str | None = None,
    device: Literal["auto", "cpu"] = "auto",
    lags: list[int] | None = None,
    output: Path | None = None,
    json: bool = False,
    train: Options = Options(),  # a frozen default
) -> None:
    """Trains a model.

    Args:
        data: A card's name or a file.
        horizon: Steps to forecast.
        max_time: Stop after so long.

    Examples:
        mambakit toy train --data x
        mambakit toy train --data x --json
    """
    CALLS.append(dict(locals()))


def show(name: str, *, json: bool = False) -> None:
    """Shows a thing.

    Args:
        name: Which one.
    """
    CALLS.append(dict(locals()))


def fail(*, how: str) -> None:
    """Fails."""
    errors: dict[str, BaseException] = {
        "data": DataError("column 'y' is missing\nfrom my.csv"),
        "usage": UsageError("horizon must be positive"),
        "file": FileNotFoundError(2, "No such file or directory", "x.csv"),
        "stop": KeyboardInterrupt(),
        "bug": RuntimeError("our own"),
    }
    raise errors[how]


VERBS: dict[str, Callable[..., object]] = {"train": train, "show": show, "fail": fail}


def run(*words: str) -> int:
    CALLS.clear()
    return run_app("mambakit toy", VERBS, words, description="A toy.", examples="mambakit toy show a")


class TestFlags:
    def test_defaults_and_types(self) -> None:
        assert run("train", "--data", "x") == 0
        assert [
            {"data": "x", "horizon": 96, "max_time": None, "device": "auto", "lags": None, "output": None,
             "json": False, "train": Options()}
        ] == CALLS  # fmt: skip

    def test_every_kind_of_value(self) -> None:
        words = "--data=a-b --horizon 24 --max-time 10m --device cpu --lags [1,2] --output o/p --json"
        assert run("train", *words.split(), "--train.lr", "1e-3", "--train.clip", "false") == 0
        (call,) = CALLS
        assert call["data"] == "a-b"
        assert (call["horizon"], call["max_time"], call["device"], call["lags"]) == (24, "10m", "cpu", [1, 2])
        assert call["output"] == Path("o/p")
        assert call["json"] is True
        assert call["train"] == Options(lr=1e-3, clip=False)

    @pytest.mark.parametrize("flag", ["--max-time", "--max_time"])
    def test_hyphen_and_underscore(self, flag: str) -> None:
        assert run("train", "--data", "x", flag, "5s") == 0
        assert CALLS[0]["max_time"] == "5s"

    def test_positional_and_switch(self) -> None:
        assert run("show", "--json", "thing") == 0
        assert CALLS == [{"name": "thing", "json": True}]
        assert run("show", "thing", "--json", "false") == 0
        assert CALLS[0]["json"] is False

    @pytest.mark.parametrize(
        ("words", "lags"),
        [
            (["--lags", "1", "7"], [1, 7]),
            (["--lags", "3"], [3]),
            (["--lags=[3]"], [3]),
            (["--lags", "[1, 2]"], [1, 2]),
            (["--lags", "-1", "2"], [-1, 2]),
            (["--lags", "null"], None),
        ],
    )
    def test_a_list_takes_the_words_up_to_the_next_flag(
        self, words: list[str], lags: list[int] | None
    ) -> None:
        assert run("train", *words, "--data", "x") == 0
        assert CALLS[-1]["lags"] == lags

    def test_config_file_below_flags(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("data: from-file\nhorizon: 12\ntrain:\n  lr: 0.5\n")
        assert run("train", "--config", str(path), "--horizon", "24") == 0
        assert (CALLS[0]["data"], CALLS[0]["horizon"], CALLS[0]["train"].lr) == ("from-file", 24, 0.5)

    def test_printed_config_is_a_config(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("train", "--data", "x", "--train.lr", "0.25", "--print_config") == 0
        assert CALLS == []
        printed = capsys.readouterr().out
        assert yaml.safe_load(printed)["train"] == {"lr": 0.25, "clip": True}
        (tmp_path / "run.yaml").write_text(printed)
        assert run("train", "--config", str(tmp_path / "run.yaml")) == 0
        assert CALLS[0]["train"] == Options(lr=0.25)


class TestHelp:
    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_overview(self, capsys: pytest.CaptureFixture[str], flag: str) -> None:
        assert run(flag) == 0
        out = capsys.readouterr().out
        for text in ("A toy.", "train  Trains a model.", "show   Shows a thing.", "mambakit toy show a"):
            assert text in out

    def test_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("train", "--help") == 0
        out = capsys.readouterr().out
        for text in (
            "usage: mambakit toy train",
            "Trains a model.", "--data DATA", "A card's name or a file. (required",
            "--max-time MAX_TIME", "Stop after so long.", "--json ", "--train.lr LR", "The learning rate.",
            "  mambakit toy train --data x\n  mambakit toy train --data x --json",
        ):  # fmt: skip
            assert text in out
        assert "{true,false}" not in out
        assert "Args:" not in out

    def test_nothing_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "verbs:" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no verb 'trian'; did you mean train?; verbs: train, show, fail"),
        (["train"], "--data is required"),
        (["show"], "NAME is required"),
        (["train", "--data"], "--data: expected one argument"),
        (["train", "--data", "x", "--horzon", "3"], "unknown flag --horzon; did you mean --horizon?"),
        (["train", "--data", "x", "--max-tme", "3"], "unknown flag --max-tme; did you mean --max-time?"),
        (["train", "--data", "x", "--hor", "3"], "unknown flag --hor"),
        (["train", "--data", "x", "y"], "unexpected word 'y'"),
        (["train", "--data", "x", "--horizon", "1.5"], "--horizon: expected int, got '1.5'"),
        (["train", "--data", "x", "--horizon", "ten"], "--horizon: expected int, got 'ten'"),
        (["train", "--data", "x", "--device", "gpu"], "--device: expected one of 'auto', 'cpu', got 'gpu'"),
        (["train", "--data", "x", "--train.lr", "fast"], "--train.lr: expected float, got 'fast'"),
        (["train", "--data", "x", "--train.lr=-1"], "lr: expected at least 0, got -1.0"),
        (["train", "--data", "x", "--config", "no.yaml"], "File does not exist"),
        (["fail", "--how", "usage"], "horizon must be positive"),
    ],
)
def test_wrong_call_is_one_sentence_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert CALLS == []


def test_config_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("data: x\nhorzon: 3\n")
    assert run("train", "--config", str(tmp_path / "run.yaml")) == 2
    err = capsys.readouterr().err
    assert "horzon" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("data", 1, "error: column 'y' is missing from my.csv\n"),
        ("file", 1, "error: x.csv: No such file or directory\n"),
        ("stop", 130, "error: interrupted\n"),
    ],
)
def test_failures(how: str, status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", "--how", how) == status
    assert capsys.readouterr().err == message


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="our own"):
        run("fail", "--how", "bug")


def test_backend_that_cannot_run_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    from mambakit.kernels.backend import BackendUnavailableError

    def verb() -> None:
        """Needs a GPU."""
        raise BackendUnavailableError("backend='triton' cannot run ssd: no GPU")

    assert run_app("x", {"verb": verb}, ["verb"]) == 1
    assert capsys.readouterr().err == "error: backend='triton' cannot run ssd: no GPU\n"


class TestOutput:
    def test_json_is_for_machines(self, capsys: pytest.CaptureFixture[str]) -> None:
        value = {
            "options": Options(), "nan": float("nan"), "inf": [np.float32("inf")], "array": np.arange(3),
            "path": Path("a/b"), "n": np.int64(3), "none": None, 1: True,
        }  # fmt: skip
        print_json(value)
        assert json.loads(capsys.readouterr().out) == {
            "options": dataclasses.asdict(Options()), "nan": None, "inf": [None], "array": [0, 1, 2],
            "path": "a/b", "n": 3, "none": None, "1": True,
        }  # fmt: skip

    def test_table(self) -> None:
        rows = [{"model": "mamba", "mse": 0.43219, "n": 10}, {"model": "naive", "n": 2000, "late": "x"}]
        assert format_table(rows).splitlines() == [
            "model     mse     n  late",
            "-----  ------  ----  ----",
            "mamba  0.4322    10  -",
            "naive       -  2000  x",
        ]
        assert format_table([], ["a"]) == "a\n-"


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    script = tmp_path / "many.py"
    script.write_text(
        "import sys\n"
        "from mambakit.core.cli import run_app\n"
        "def many():\n"
        "    for i in range(100000): print(i)\n"
        "sys.exit(run_app('x', {'many': many}, ['many']))\n"
    )
    done = subprocess.run(
        f"{sys.executable} -P {script} | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""
