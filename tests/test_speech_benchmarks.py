"""The speech benchmarks: rows of made-up results, and what a trial may not touch."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("speech_digits")


def made(benchmark: Any, protocol: str, speaker: str | None, seed: int, ours: float) -> dict[str, Any]:
    of = dict.fromkeys(benchmark.conditions(), ours)
    figures = {"mambakit": of, "CNN": dict.fromkeys(of, ours / 2), "nearest mean": {"clean": 0.25}}
    return {"protocol": protocol, "speaker": speaker, "seed": seed, "figures": figures}


def test_rows_are_means_over_speakers_where_none_is_missing(digits: Any) -> None:
    found = [
        made(digits, "speaker", name, seed, 0.5 + 0.1 * seed + 0.01 * i)
        for seed in (0, 1)
        for i, name in enumerate(digits.SPEAKERS)
    ]
    found += [made(digits, "speaker", "theo", 2, 0.9), made(digits, "official", None, 0, 0.99)]
    del found[-3]["figures"]["CNN"]  # of seed 1, which then is not whole
    assert digits.rows_of(found, "command")[-1]["seeds"] == [0]
    found[-3]["figures"]["CNN"] = dict.fromkeys(digits.conditions(), 0.325)
    rows = {row["what"]: row for row in digits.rows_of(found, "command")}
    mean = rows["speech/fsdd/accuracy/leave-one-speaker-out"]
    assert (mean["value"], mean["spread"], mean["seeds"]) == (57.5, 7.07, [0, 1])
    assert mean["peers"] == {"CNN": 28.75, "nearest mean": 25.0}
    assert rows["speech/fsdd/accuracy/official-snr10"]["value"] == 99.0
    assert "nearest mean" not in rows["speech/fsdd/accuracy/official-snr10"]["peers"]


@pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")
@pytest.mark.parametrize("protocol", ["official", "speaker"])
def test_trials_touch_no_test_take(digits: Any, protocol: str) -> None:
    pytest.importorskip("soundfile")
    job = {"data": "fsdd", "protocol": protocol, "speaker": "theo", "test": False}
    found, split = digits.split_of(job)
    takes = found.table["path"].map(lambda path: int(Path(path).stem.rsplit("_", 1)[1]))
    assert takes.min() == 5
    assert len(split.test) == 0
    if protocol == "speaker":
        assert set(found.table["speaker"].iloc[split.validation]) == {"theo"}
        assert "theo" not in set(found.table["speaker"].iloc[split.train])
