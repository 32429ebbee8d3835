"""``mambakit robotics collect`` and ``record`` as typed, from the call to the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from mambakit.apps.cli import main

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("gymnasium", "mujoco", "minari", "imageio_ffmpeg")),
    reason="needs the robotics extra",
)


def run(*words: str | Path) -> int:
    return main(["robotics", *map(str, words)])


def test_collect_tells_what_it_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "both", tmp_path / "returns.png"
    call = ("collect", "--env", "Reacher-v5", "--level", "medium-expert", "--episodes", 6, "--output", out)
    assert run(*map(str, call), "--json", "--plot", plot) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["behaviour"]: row for row in found["behaviours"]}
    assert (rows["medium"]["episodes"], rows["expert"]["episodes"]) == (3, 3)
    assert rows["expert"]["score"] > rows["medium"]["score"] > 0
    assert found["steps"] == 300
    assert found["environment"]["id"] == "Reacher-v5"
    assert plot.stat().st_size > 1000
    assert run(*map(str, call)) == 2
    assert "is already there" in capsys.readouterr().err


def test_a_folder_may_be_called_as_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambakit.domains.robotics.cards import load_episodes

    monkeypatch.chdir(tmp_path)
    call = ("collect", "--env", "InvertedPendulum-v5", "--level", "random", "--episodes", "2")
    assert run(*call, "--output", "reacher-noisy", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == 2
    assert found["environment"]["id"] == "InvertedPendulum-v5"
    card = load_episodes("reacher-noisy")
    assert card.notes == ["this is the card reacher-noisy; for the folder of that name pass ./reacher-noisy"]
    assert len(load_episodes("./reacher-noisy")) == 2


def test_an_id_without_a_version_has_its_scripted_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("collect", "--env", "Reacher", "--episodes", "1", "--output", tmp_path / "d", "--json")
    assert run(*call) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["expert"] == {"expert": "scripted"}
    assert found["behaviours"][0]["score"] > 80


def test_collect_searches_where_nothing_is_scripted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    words = ["collect", "--env", "CartPole-v1", "--expert-steps", "4000", "--episodes", "3"]
    assert run(*words, "--level", "expert", "--output", tmp_path / "a") == 0
    first = capsys.readouterr()
    assert "search for an expert" in first.err
    assert "expert: augmented random search" in first.out
    assert run(*words, "--level", "medium-replay", "--output", tmp_path / "b") == 0
    assert "search for an expert" not in capsys.readouterr().err, "kept from the first call"


@pytest.mark.slow
def test_a_killed_collect_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the midst; the same call then finishes with the episodes that were there."""
    words = ["robotics", "collect", "--env", "Reacher-v5", "--level", "random"]
    words += ["--episodes", "90", "--output", "out"]
    code = f"import sys; from mambakit.apps.cli import main; sys.exit(main({words!r}))"
    call = [sys.executable, "-P", "-c", code]
    waiting = tmp_path / "out/.collecting"
    first = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(waiting.glob("episode-*.npz"))) < 5 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in waiting.glob("episode-*.npz")}
    assert 5 <= len(kept) < 90
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(90 episodes, 4,500 steps)" in done.stdout
    assert not waiting.exists()


def test_record_films_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import imageio.v3 as iio

    from mambakit.domains.robotics.cards import load_episodes

    film, kept = tmp_path / "a.mp4", tmp_path / "kept"
    words = ["record", "--env", "Reacher-v5", "--episodes", "2", "--size", "64", "--json"]
    if run(*words, "--output", film, "--trajectories", kept) == 1:
        pytest.skip(capsys.readouterr().err)
    found = json.loads(capsys.readouterr().out)
    frames = iio.imread(film, plugin="FFMPEG")
    assert frames.shape[1:] == (64, 64, 3)
    assert len(frames) == found["frames"] == 2 * 51
    assert frames[25].std() > 10, "something is drawn"
    episodes = load_episodes(kept)
    assert [episode.total for episode in episodes.episodes] == pytest.approx(
        [row["return"] for row in found["episodes"]], rel=1e-5
    )


def test_record_of_data_acts_again_and_says_where_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    words = ["collect", "--env", "Reacher-v5", "--level", "random", "--episodes", "2", "--mass", "3"]
    assert run(*words, "--output", tmp_path / "heavy") == 0
    capsys.readouterr()
    record = [
        "record",
        "--data",
        tmp_path / "heavy",
        "--episodes",
        "2",
        "--output",
        tmp_path / "x.mp4",
        "--size",
        "32",
    ]
    if run(*record) == 1:
        pytest.skip(capsys.readouterr().err)
    assert "earned" not in capsys.readouterr().err
    with h5py.File(tmp_path / "heavy/data/main_data.hdf5", "a") as file:
        file["episode_1/rewards"][3] += 5.0
    assert run(*record) == 0
    said = capsys.readouterr().err
    assert "note: episode 1 earned" in said
    assert "episode 0" not in said


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["collect", "--env", "Hoper-v5", "--output", "x"], 2, "did you mean Hopper-v5"),
        (["collect", "--env", "Hopper-v5", "--level", "best", "--output", "x"], 2, "level"),
        (["collect", "--env", "Hopper-v5", "--episodes", "0", "--output", "x"], 2, "episodes: expected 1"),
        (["collect", "--env", "Hopper-v5", "--seed", "-1", "--output", "x"], 2, "seed: expected 0"),
        (["record", "--env", "Reacher-v5"], 2, "pass --output FILE.mp4"),
        (["record", "--env", "Reacher-v5", "--size", "0", "--output", "x.mp4"], 2, "size: expected 1 pixel"),
        (["record", "--env", "Reacher-v5", "--trajectories", __file__], 2, "is a file; expected a folder"),
        (["record", "--output", "x.mp4"], 2, "env, data: pass one"),
        (["record", "--env", "Reacher-v5", "--output", "x.gif"], 2, r".mp4"),
        (["record", "--data", "nothing", "--output", "x.mp4"], 2, "no card of that name"),
    ],
)
def test_wrong_calls_are_one_sentence(
    words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == status
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_without_the_extra_help_works_and_a_call_says_what_is_missing() -> None:
    code = """
import sys, importlib.util
hidden = {"gymnasium", "mujoco", "minari", "h5py", "imageio"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else real(name, package)
from mambakit.apps.cli import main
assert main(["robotics", "--help"]) == 0
assert main(["robotics", "collect", "--help"]) == 0
assert main(["robotics", "record", "--help"]) == 0
sys.exit(main(["robotics", "collect", "--env", "Hopper-v5", "--output", "x"]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "medium-replay" in done.stdout
    assert done.stderr.strip().endswith("pip install 'mambakit[robotics]'")
