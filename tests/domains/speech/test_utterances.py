"""Manifests, folders and splits: bad rows are listed, and what is held out is held out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.cards import load_utterances
from mambakit.domains.speech.utterances import (
    Utterances,
    joined,
    read_folder,
    read_manifest,
    split_utterances,
    utterance_table,
)

real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(["yes/a.wav", "yes/b.wav", "no/c.wav", "d.wav"]):
        write_audio(tmp_path / name, Audio(0.1 * (i + 1) * torch.ones(800), 8000))
    return tmp_path


def test_folders_are_labels(folder: Path) -> None:
    found = read_folder(folder)
    assert dict(zip(found.table["path"].map(lambda p: Path(p).name), found.table["label"], strict=True)) == {
        "a.wav": "yes", "b.wav": "yes", "c.wav": "no", "d.wav": None,
    }  # fmt: skip
    served = load_utterances(folder, "classify")
    assert len(served) == 3
    assert served.left_out == [(str(folder / "d.wav"), "has no label")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifest_rows(folder: Path, kind: str) -> None:
    rows = [
        {"path": "yes/a.wav", "label": "007", "text": "yes", "start": 0.02, "end": 0.05, "part": "train"},
        {"path": "no/c.wav", "label": "8", "part": "test"},
        {"path": "gone.wav", "label": "8", "part": "test"},
        {"path": "d.wav", "start": 0.5, "end": 0.2, "part": "test"},
    ]
    path = folder / f"m.{kind}"
    if kind == "csv":
        import pandas as pd

        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read_manifest(path)
    assert found.table["label"].tolist() == ["007", "8"]
    assert found.parts is not None
    assert found.parts.tolist() == ["train", "test"]
    assert len(found.audio(0).samples) == 240
    assert len(found.audio(1).samples) == 800
    assert [why for _, why in found.left_out] == [
        "path: there is no file gone.wav",
        "start, end: from 0.5 s to 0.2 s is no stretch",
    ]
    with pytest.raises(DataError, match="row 1 has no clean_path"):
        found.clean_audio(0)


def test_bad_manifests_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file_name,label\nx.wav,1\n")
    with pytest.raises(DataError, match="has no column path; it has file_name, label"):
        read_manifest(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"path": "x.wav"\n')
    with pytest.raises(DataError, match="line 1: is no JSON"):
        read_manifest(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"path": "x.wav"}\n')
    with pytest.raises(DataError, match="no row can be used; the first, line 1: path: there is no file"):
        read_manifest(tmp_path / "b.jsonl")


def people() -> Utterances:
    rows = [{"path": f"{i}.wav", "label": str(i % 5), "speaker": "abc"[i % 3]} for i in range(90)]
    parts = np.array(["train"] * 60 + ["validation"] * 15 + ["test"] * 15)
    return Utterances("people", utterance_table(rows), parts)


@pytest.mark.parametrize("validation", [None, "c"])
def test_a_speaker_who_is_held_out_is_heard_nowhere_else(validation: str | None) -> None:
    all_ = people()
    split = split_utterances(all_, "speaker", test_speaker="b", validation_speaker=validation)
    speakers = all_.table["speaker"].to_numpy()
    assert set(speakers[split.test]) == {"b"}
    assert "b" not in set(speakers[split.train]) | set(speakers[split.validation])
    if validation:
        assert set(speakers[split.validation]) == {"c"}
        assert set(speakers[split.train]) == {"a"}
    everything = np.concatenate([split.train, split.validation, split.test])
    assert sorted(everything.tolist()) == list(range(90))


def test_random_and_official_splits() -> None:
    first, again = (split_utterances(people(), "random", seed=3) for _ in range(2))
    assert np.array_equal(first.train, again.train)
    assert len(first.test) == len(first.validation) == 9
    official = split_utterances(people(), "official")
    assert official.validation.tolist() == list(range(60, 75))
    with pytest.raises(UsageError, match="test_speaker: 'z' is none of a, b, c"):
        split_utterances(people(), "speaker", test_speaker="z")
    with pytest.raises(UsageError, match="these go with split speaker"):
        split_utterances(people(), "random", test_speaker="a")


@real
def test_fsdd_is_split_by_take() -> None:
    found = load_utterances("fsdd", "classify")
    assert found.parts is not None
    takes = found.table["path"].map(lambda p: int(Path(p).stem.rsplit("_", 1)[1])).to_numpy()
    assert set(takes[found.parts == "test"]) == set(range(5))
    assert set(takes[found.parts == "validation"]) == set(range(5, 10))
    assert (found.parts == "train").sum() == 2400
    names = found.table["path"].map(lambda p: Path(p).stem.split("_")[:2])
    pairs = zip(found.table["label"], found.table["speaker"], strict=True)
    assert [list(pair) for pair in pairs] == list(names)


@real
def test_cards_of_files_and_pairs() -> None:
    said = load_utterances("librispeech-10", "recognize")
    assert said.table["text"].iloc[6] == "NO ONE WHO IS HIMSELF HONEST WILL DOUBT MY BEING SO"
    assert sum(said.audio(i).seconds for i in range(10)) == pytest.approx(57.80, abs=0.01)
    pairs = load_utterances("voicebank-demand-20", "enhance")
    noisy, clean = pairs.audio(3), pairs.clean_audio(3)
    assert len(noisy.samples) == len(clean.samples)
    assert float((noisy.samples * clean.samples).sum()) > 0.5 * float(clean.samples.square().sum())
    assert sorted(load_utterances("noise").table["label"]) == ["air_conditioner", "wind"]
    with pytest.raises(UsageError, match="noise has no text, which recognize learns from"):
        load_utterances("noise", "recognize")


def test_unknown_sources_are_named() -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_utterances("nowhere/x.csv")
    with pytest.raises(UsageError, match="no data card called 'fsd'"):
        load_utterances("fsd")
    with pytest.raises(UsageError, match="esol is a data set of molecules"):
        load_utterances("esol")


def test_words_that_look_like_nothing_are_words(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", Audio(torch.ones(800), 8000))
    (tmp_path / "m.csv").write_text("path,label,text,end\na.wav,null,None,\na.wav,,NA,0\n")
    found = read_manifest(tmp_path / "m.csv")
    assert found.table["label"].tolist() == ["null"]
    assert found.table["text"].tolist() == ["None"]
    assert found.left_out == [("line 3", "start, end: from 0 s to 0 s is no stretch")]


def test_json_lines_may_begin_with_a_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", Audio(torch.ones(800), 8000))
    line = '{"path": "a.wav", "text": "one\u2028two"}\n'
    (tmp_path / "m.jsonl").write_text(line, encoding="utf-8-sig")
    assert read_manifest(tmp_path / "m.jsonl").table["text"].tolist() == ["one\u2028two"]
    (tmp_path / "m.jsonl").write_bytes('{"path": "é.wav"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def _of_speakers(name: str, speakers: str, parts: list[str] | None) -> Utterances:
    table = utterance_table(
        [{"path": f"{name}{i}.wav", "label": "1", "speaker": one} for i, one in enumerate(speakers)]
    )
    return Utterances(name, table, None if parts is None else np.array(parts), [(name, "bad")])


@pytest.mark.parametrize("protocol", ["official", "random", "speaker"])
def test_further_sources_teach_and_measure_nothing(protocol: str) -> None:
    measured = _of_speakers("a", "xxyyzz", ["train", "test", "train", "validation", "train", "test"])
    voices = _of_speakers("b", "pqrs", ["train", "validation", "train", "test"])
    whole = _of_speakers("c", "xt", None)
    found = joined(measured, voices, whole)
    assert found.left_out == [("a", "bad"), ("b", "bad"), ("c", "bad")]
    split = split_utterances(found, protocol, test_speaker="z" if protocol == "speaker" else None)  # type: ignore[arg-type]
    alone = split_utterances(measured, protocol, test_speaker="z" if protocol == "speaker" else None)  # type: ignore[arg-type]
    paths = found.table["path"].to_numpy()
    for part in ("validation", "test"):
        assert set(paths[getattr(split, part)]) == set(measured.table["path"].iloc[getattr(alone, part)])
    taught = set(paths[split.train]) - set(measured.table["path"].iloc[alone.train])
    assert taught == {"b0.wav", "b2.wav", "c0.wav", "c1.wav"}


@real
def test_cards_between_commas_are_one() -> None:
    found = load_utterances("fsdd,spoken-digits", "classify")
    assert (found.name, len(found)) == ("fsdd,spoken-digits", 3000 + 640)
    split = split_utterances(found, "speaker", test_speaker="theo")
    speakers = found.table["speaker"].to_numpy()
    assert set(speakers[split.test]) == {"theo"}
    assert not any("+" in one for one in speakers[split.validation])
    assert sum("+" in one for one in speakers[split.train]) == 640
