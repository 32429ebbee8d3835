"""Where speech, noise and pairs come from, and jobs over files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, write_audio
from mambakit.domains.speech.enhance.data import (
    load_noises,
    load_pairs,
    load_pools,
    spoken_sentences,
)
from mambakit.domains.speech.files import Bulk, Job, jobs
from mambakit.domains.speech.layouts import paired_folders


def tone(seconds: float, seed: int, rate_hz: int = 8000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * rate_hz), generator=generator)


@pytest.fixture
def voicebank(tmp_path: Path) -> Path:
    """Folders as VoiceBank-DEMAND has them: 5 training pairs of two speakers, 2 test pairs."""
    for part, names in (
        ("trainset_28spk", ("p226_001", "p226_002", "p226_003", "p227_001", "p227_002")),
        ("testset", ("p232_001", "p257_001")),
    ):
        for i, name in enumerate(names):
            clean = tone(0.5, i)
            write_audio(tmp_path / f"clean_{part}_wav/{name}.wav", Audio(clean, 8000))
            write_audio(tmp_path / f"noisy_{part}_wav/{name}.wav", Audio(clean + 0.25, 8000))
    return tmp_path


def test_voicebank_as_it_is_published_is_read(voicebank: Path) -> None:
    found = paired_folders(voicebank)
    assert found is not None
    assert found.parts is not None
    assert found.parts.tolist() == ["test"] * 2 + ["train"] * 5
    assert set(found.table["speaker"]) == {"p226", "p227", "p232", "p257"}
    pools = load_pools(str(voicebank), 8000)
    assert len(pools.train) + len(pools.validation) == 5
    assert {one.speaker for one in pools.test.spoken} == {"p232", "p257"}
    noises = load_noises(str(voicebank), 8000)
    assert len(noises) == 5
    assert np.allclose(noises[0], 0.25, atol=1e-3)  # what noisy has more than clean
    pairs = list(load_pairs(str(voicebank), 8000))
    assert [name for name, _, _ in pairs] == ["p232_001", "p257_001"]


def test_pairs_of_unequal_length_are_refused(voicebank: Path) -> None:
    write_audio(voicebank / "noisy_testset_wav/p232_001.wav", Audio(tone(0.4, 0), 8000))
    with pytest.raises(DataError, match=r"p232_001.wav: has 3,200 samples, its clean recording 4,000"):
        list(load_pairs(str(voicebank), 8000))


def test_data_without_clean_recordings_measure_nothing(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", Audio(tone(0.5, 0), 8000))
    with pytest.raises(UsageError, match="no clean_path"):
        list(load_pairs(str(tmp_path), 8000))


def test_sentences_are_always_the_same_and_no_voice_is_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path))
    one, two = spoken_sentences(8000, sentences=1), spoken_sentences(8000, sentences=1)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(one["test"], two["test"], strict=True))
    assert [len(one[part]) for part in ("train", "validation", "test")] == [40, 5, 5]
    assert min(len(spoken.samples) for spoken in one["train"]) > 4000


def test_files_go_to_files_and_folders_to_folders(tmp_path: Path) -> None:
    for name in ("in/a.wav", "in/sub/b.flac"):
        write_audio(tmp_path / name, Audio(tone(0.1, 0), 8000))
    folder = jobs(tmp_path / "in", tmp_path / "out")
    assert [job.target.relative_to(tmp_path) for job in folder] == [Path("out/a.wav"), Path("out/sub/b.wav")]
    assert jobs(tmp_path / "in/a.wav", tmp_path / "c.flac")[0].target.name == "c.flac"
    assert jobs(tmp_path / "in/a.wav", tmp_path / "out")[0].target == tmp_path / "out/a.wav"
    for source, target, message in (
        ("in", "out.wav", "a folder is expected"),
        ("in/a.wav", "in/a.wav", "is the input"),
        ("in/a.wav", "out.txt", "expected a folder or a name"),
    ):
        with pytest.raises(UsageError, match=message):
            jobs(tmp_path / source, tmp_path / target)
    write_audio(tmp_path / "in/a.flac", Audio(tone(0.1, 0), 8000))
    with pytest.raises(UsageError, match=r"a.flac and .*a.wav would both become .*out/a.wav"):
        jobs(tmp_path / "in", tmp_path / "out")


def test_what_is_done_to_a_recording_is_said(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "s.wav", np.stack([tone(0.5, 0, 22_050), tone(0.5, 1, 22_050)], 1), 22_050)
    write_audio(tmp_path / "m.wav", Audio(tone(0.5, 0), 16_000))
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    bulk = Bulk()
    todo = [Job(tmp_path / name, tmp_path / name) for name in ("s.wav", "bad.wav", "m.wav")]
    read = {job.source.name: audio for job, audio in bulk.readable(todo, 16_000)}
    assert [len(audio.samples) for audio in read.values()] == [8000, 4000]
    assert [path.name for path, _ in bulk.failed] == ["bad.wav"]
    (note,) = bulk.notes
    assert note.endswith("s.wav: 2 channels averaged, resampled from 22,050 Hz to 16,000 Hz")
    bulk.write(tmp_path / "loud.wav", Audio(torch.tensor([0.5, -1.5, 1.0, 2.0]), 16_000))
    assert bulk.notes[1].endswith("loud.wav: 2 samples are beyond full scale and were clipped")
