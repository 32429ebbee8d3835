"""Corpora are read from the folders that they are published in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.cards import load_utterances
from mambakit.domains.speech.enhance.data import load_pools
from mambakit.domains.speech.layouts import paired_folders, two_speaker_mixtures
from mambakit.domains.speech.recognize import recordings as reading
from mambakit.domains.speech.separate.config import PairConfig
from mambakit.domains.speech.separate.training import gains, with_unseen
from mambakit.domains.speech.separate.training import test_mixtures as measured_mixtures


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Two chapters to learn from, one to choose, one to measure."""
    folder = tmp_path / "LibriSpeech"
    for part, chapter in (
        ("train-clean-100", "19-198"),
        ("train-other-500", "20-205"),
        ("dev-clean", "84-121"),
        ("test-other", "367-130"),
    ):
        home = folder / part / chapter.replace("-", "/")
        for i in range(2):
            write_audio(home / f"{chapter}-{i:04d}.flac", Audio(noise(1600 + 160 * i, i), 16000))
        lines = [f"{chapter}-{i:04d} WHAT IS SAID {'ONCE' if i else 'MORE'}\n" for i in range(2)]
        (home / f"{chapter}.trans.txt").write_text("".join(lines))
    (folder / "README.TXT").write_text("as it is published")
    return folder


def test_librispeech_has_the_parts_of_its_sets(librispeech: Path) -> None:
    found = load_utterances(librispeech, "recognize")
    assert found.parts is not None
    assert found.parts.tolist() == ["validation"] * 2 + ["test"] * 2 + ["train"] * 4
    assert found.table["speaker"].tolist() == ["84", "84", "367", "367", "19", "19", "20", "20"]
    assert found.table["text"].iloc[0] == "WHAT IS SAID MORE"
    assert len(found.audio(1).samples) == 1760


def test_one_set_of_librispeech_has_no_parts_and_lists_what_is_missing(librispeech: Path) -> None:
    (librispeech / "test-other/367/130/367-130-0001.flac").unlink()
    found = load_utterances(librispeech / "test-other", "recognize")
    assert found.parts is None
    assert len(found) == 1
    assert found.left_out[0][1] == "there is no file 367-130-0001.flac"
    (librispeech / "test-other/367/130/367-130-0000.flac").unlink()
    with pytest.raises(DataError, match="none of the recordings that they name"):
        load_utterances(librispeech / "test-other", "recognize")


def test_many_hours_stay_on_disk_and_are_read_the_same(
    librispeech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (librispeech / "dev-clean/84/121/84-121-0000.flac").write_bytes(b"")
    found = load_utterances(librispeech, "recognize")
    places = np.arange(len(found))
    memory, bad = reading.read_recordings(found, places, 8000)
    monkeypatch.setattr(reading, "_MOST_HOURS", 0.0)
    disk, bad_too = reading.read_recordings(found, places, 8000)
    assert isinstance(disk.samples, reading.OnDisk)
    assert bad == bad_too
    assert "the file is empty" in bad[0][1]
    assert disk.lengths == memory.lengths == [len(one) for one in memory.samples]
    assert (disk.rows, disk.texts) == (memory.rows, memory.texts)
    some = disk.take([3, 1])
    for one, other in zip(some.samples, memory.take([3, 1]).samples, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def wsj0(tmp_path: Path) -> Path:
    """Three mixtures to learn from, of which two share an utterance; two to choose, two to measure."""
    folder = tmp_path / "2speakers/wav8k/min"
    mixed = {
        "tr": ["011a0101_0.5_012c0201_-0.5", "011a0102_1.2_012c0202_-1.2", "011a0101_2.1_013o0303_-2.1"],
        "cv": ["011a0105_0.5_012c0205_-0.5", "013o0305_0.1_012c0206_-0.1"],
        "tt": ["440c0401_0.9_441c0501_-0.9", "440c0402_2.4_441c0502_-2.4"],
    }
    for part, names in mixed.items():
        for i, name in enumerate(names):
            sources = [noise(2400 + 80 * i, 7 * i + j) for j in range(2)]
            for where, samples in zip(("s1", "s2", "mix"), (*sources, sum(sources)), strict=True):
                write_audio(folder / part / where / f"{name}.wav", Audio(torch.as_tensor(samples), 8000))
    return folder


def test_mixtures_of_wsj0_measure_and_their_sources_teach(wsj0: Path) -> None:
    pools = load_pools(str(wsj0), 8000, task="separate")
    assert len(pools.train) == 5  # an utterance that is in two mixtures once
    assert pools.train.speakers == ["011", "012", "013"]
    assert pools.test.speakers == ["440", "441"]
    mixtures = measured_mixtures(pools, PairConfig(), 3000)
    assert [len(mixed) for mixed, _ in mixtures] == [2400, 2480]
    for mixed, sources in mixtures:
        torch.testing.assert_close(mixed, sources.sum(0), rtol=0, atol=1e-4)
    nothing = torch.nn.Linear(1, 1)
    nothing.forward = lambda x: x[:, None].expand(-1, 2, -1)  # type: ignore[method-assign]
    assert gains(nothing, mixtures) == pytest.approx([0, 0], abs=1e-4)
    assert len(measured_mixtures(pools, PairConfig(), 1)) == 1
    with pytest.raises(UsageError, match="mixtures of its own"):
        with_unseen(pools, ["011", "012"])


def test_a_mixture_without_a_source_is_named(wsj0: Path) -> None:
    (wsj0 / "cv/s2/013o0305_0.1_012c0206_-0.1.wav").unlink()
    with pytest.raises(DataError, match=r"013o0305_0.1_012c0206_-0.1.wav: there is no source"):
        two_speaker_mixtures(wsj0)


def test_libri2mix_is_read_in_the_same_way(tmp_path: Path) -> None:
    for where in ("mix_clean", "s1", "s2"):
        name = f"Libri2Mix/wav8k/min/train-100/{where}/103-1240-0003_1235-135887-0017.wav"
        write_audio(tmp_path / name, Audio(noise(800), 8000))
    found = two_speaker_mixtures(tmp_path / "Libri2Mix/wav8k/min")
    assert found is not None
    assert found["train"][0].speakers == ("103", "1235")
    assert two_speaker_mixtures(tmp_path) is None


def test_noisy_recordings_without_a_clean_one_are_listed(tmp_path: Path) -> None:
    for name in ("clean_trainset_wav/p226_001.wav", "noisy_trainset_wav/p226_001.wav"):
        write_audio(tmp_path / name, Audio(noise(800), 8000))
    write_audio(tmp_path / "noisy_trainset_wav/p227_002.wav", Audio(noise(800), 8000))
    found = paired_folders(tmp_path)
    assert found is not None
    assert found.table["speaker"].tolist() == ["p226"]
    alone = tmp_path / "clean_trainset_wav/p227_002.wav"
    assert [why for _, why in found.left_out] == [f"there is no {alone}"]
