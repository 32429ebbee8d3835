"""Files of episodes: what is written comes back, others' files are understood, damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.cards import load_episodes
from mambakit.domains.robotics.episodes import ActionSpace, EnvironmentRecord, Episode, Episodes
from mambakit.domains.robotics.folder_files import read_episode, write_episode
from mambakit.domains.robotics.lerobot_files import read_lerobot, write_lerobot
from mambakit.domains.robotics.minari_files import read_minari, write_minari

RECORD = EnvironmentRecord(
    "Reacher-v5",
    {},
    {"mass": 2.0},
    "3.0.0",
    "1.4.0",
    3,
    ActionSpace((-1.0, -1.0), (1.0, 1.0)),
    50.0,
    -43.6,
    -3.75,
    "test",
)


@st.composite
def drawn(draw: st.DrawFn) -> list[Episode]:
    """Episodes of one kind: with or without pictures and goals, actions of numbers or choices."""
    pictures, goals, discrete = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    width = draw(st.integers(1, 2))
    episodes = []
    for steps in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        seen: dict[str, Any] = {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32)}
        if pictures:
            seen["image"] = rng.integers(0, 256, (steps + 1, 6, 5, 3)).astype(np.uint8)
        if goals:
            seen["goal"] = rng.normal(size=(steps + 1, 2)).astype(np.float32)
        numbers = rng.uniform(-1, 1, (steps, width)).astype(np.float32)
        actions = rng.integers(0, 4, steps) if discrete else numbers
        ended = draw(st.booleans())
        said = draw(st.sampled_from([None, "reach the red one", "größer ✓"]))
        episodes.append(
            Episode(
                seen,
                actions,
                rng.normal(size=steps).astype(np.float32),
                ended,
                not ended,
                said,
                7,
                "expert-1",
                draw(st.sampled_from([None, True, False])),
            )
        )
    return episodes


def record_for(episodes: list[Episode]) -> EnvironmentRecord:
    import dataclasses

    actions = episodes[0].actions
    width = 0 if actions.ndim == 1 else actions.shape[1]
    space = ActionSpace((-1.0,) * width, (1.0,) * width) if width else ActionSpace(n=4)
    return dataclasses.replace(RECORD, action_space=space)


def check(found: list[Episode], written: list[Episode], *, last: bool = True) -> None:
    assert len(found) == len(written)
    for a, b in zip(found, written, strict=True):
        assert set(a.observations) == set(b.observations)
        for name in b.observations:
            values = b.observations[name] if last else b.observations[name][: len(b)]
            assert np.array_equal(a.observations[name], values)
            assert a.observations[name].dtype == values.dtype
        assert np.array_equal(a.actions, b.actions)
        assert a.actions.dtype == b.actions.dtype
        assert np.array_equal(a.rewards, b.rewards)
        for name in ("terminated", "truncated", "instruction", "seed", "behaviour", "success"):
            assert getattr(a, name) == getattr(b, name)


@settings(max_examples=15, deadline=None)
@given(drawn(), st.sampled_from(["hdf5", "arrow"]))
def test_minari_gives_back_what_was_written(
    tmp_path_factory: Any, episodes: list[Episode], data_format: Any
) -> None:
    folder = tmp_path_factory.mktemp("minari") / "set"
    record = record_for(episodes)
    write_minari(folder, iter(episodes), record, data_format=data_format)
    found = read_minari(folder)
    check(found.episodes, episodes)
    assert found.environment == record


@settings(max_examples=15, deadline=None)
@given(drawn())
def test_lerobot_gives_back_all_but_the_last_observation(
    tmp_path_factory: Any, episodes: list[Episode]
) -> None:
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    record = record_for(episodes)
    write_lerobot(folder, Episodes("set", episodes, record))
    found = read_lerobot(folder)
    check(found.episodes, episodes, last=False)
    assert found.environment == record


@settings(max_examples=15, deadline=None)
@given(drawn())
def test_npz_gives_back_what_was_written(tmp_path_factory: Any, episodes: list[Episode]) -> None:
    folder = tmp_path_factory.mktemp("npz")
    for place, episode in enumerate(episodes):
        write_episode(folder / f"{place}.npz", episode)
    check(load_episodes(folder).episodes, episodes)


def written(tmp_path: Path, data_format: Any = "hdf5", count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            {"state": rng.normal(size=(31, 3)).astype(np.float32)},
            rng.uniform(-1, 1, (30, 2)).astype(np.float32),
            np.ones(30, np.float32),
            seed=seed,
        )
        for seed in range(count)
    ]
    write_minari(tmp_path / "set", episodes, RECORD, data_format=data_format)
    return tmp_path / "set"


def test_damaged_minari_files_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    file = folder / "data/main_data.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="the file is damaged"):
        load_episodes(folder)
    file.write_bytes(whole)
    with h5py.File(file, "a") as inside:
        del inside["episode_1/rewards"]
        inside["episode_2/observations"][3, 0] = np.nan
    found = load_episodes(folder)
    assert [episode.seed for episode in found.episodes] == [0, 3]
    assert [name for name, _ in found.left_out] == ["episode 1", "episode 2"]
    assert "damaged" in found.left_out[0][1]
    assert "state of step 3 is not finite" in found.left_out[1][1]
    (folder / "data/metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json is missing or damaged"):
        load_episodes(folder)


def test_another_mujoco_is_noted_and_ids_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "arrow")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    found = load_episodes("set")
    assert len(found) == 4
    assert any("recorded with mujoco 3.0.0" in note for note in found.notes)


def test_a_data_set_by_minari_itself_is_read(tmp_path: Path) -> None:
    """Made by its storage as its collectors do: float64 states, its own names of goals."""
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    space = spaces.Dict(
        {name: spaces.Box(-9, 9, (2,), np.float64) for name in ("observation", "desired_goal")}
    )
    storage = MinariStorage.new(tmp_path / "data", space, spaces.Box(-1, 1, (1,), np.float32))
    seen = {"observation": np.arange(8.0).reshape(4, 2), "desired_goal": np.ones((4, 2))}
    ends = np.array([False, False, True])
    one = EpisodeBuffer(
        observations=seen, actions=np.zeros((3, 1), np.float32), rewards=np.arange(3.0),
        terminations=ends, truncations=~ends & False,
    )  # fmt: skip
    storage.update_episodes([one])
    (episode,) = load_episodes(tmp_path).episodes
    assert np.array_equal(episode.state, np.arange(6.0).reshape(3, 2))
    assert episode.goal is not None
    assert episode.goal.tolist() == [[1, 1]] * 3
    assert episode.terminated
    assert episode.total == 3.0


def test_numbers_alone_are_written_as_lerobot_reads_them(tmp_path: Path) -> None:
    """Its reader takes a feature of shape (1,) for a number, and fails on a list of one."""
    steps = np.zeros((3, 1), np.float32)
    one = Episode({"state": steps, "goal": steps}, steps, steps.ravel())
    write_lerobot(tmp_path, Episodes("set", [one], RECORD))
    info = json.loads((tmp_path / "meta/info.json").read_text())
    rows = pd.read_parquet(tmp_path / "data/chunk-000/file-000.parquet")
    assert set(rows) == set(info["features"])
    for name, about in info["features"].items():
        assert about["shape"] == [1]
        assert rows[name].dtype == about["dtype"], name


def _rows(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def _info(folder: Path, **changes: Any) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (
            lambda f: _rows(f, lambda rows: rows.drop(index=[1])),
            ["episode 0: damaged: its 2 rows are not the"],
        ),
        (
            lambda f: _rows(f, lambda rows: pd.concat([rows, rows[rows.episode_index == 1]])),
            ["episode 1: damaged: its 8 rows are not the frames 0 to 7, each once"],
        ),
        (lambda f: _rows(f, lambda rows: rows[rows.episode_index == 0]), ["episode 1: has no rows"]),
        (lambda f: _info(f, total_episodes=4), ["episode 2: has no rows", "episode 3: has no rows"]),
    ],
)
def test_lerobot_episodes_that_are_not_whole_are_left_out(
    tmp_path: Path, damage: Callable[[Path], None], lost: list[str]
) -> None:
    write_lerobot(tmp_path, Episodes("set", [_grey(3, 1), _grey(4, 2)], RECORD))
    damage(tmp_path)
    found = load_episodes(tmp_path)
    assert len(found.left_out) == len(lost)
    for (name, reason), start in zip(found.left_out, lost, strict=True):
        assert f"{name}: {reason}".startswith(start)
    assert {f"episode {int(episode.state[0, 0]) - 1}" for episode in found.episodes} == {
        "episode 0",
        "episode 1",
    } - {name for name, _ in found.left_out}
    assert any("recorded with mujoco 3.0.0" in note for note in found.notes)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: _info(f, features={"action": None}), "features: expected an object of objects"),
        (
            lambda f: _rows(
                f, lambda rows: rows.assign(episode_index=rows.episode_index.where(rows.index != 2))
            ),
            "episode_index: expected integers in all rows, got float64",
        ),
        (lambda f: (f / "meta/mambakit.json").write_text("[]"), r"mambakit\.json: can't be read"),
    ],
)
def test_lerobot_folders_that_are_ill_formed_are_said(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    write_lerobot(tmp_path, Episodes("set", [_grey(3, 1), _grey(4, 2)], RECORD))
    damage(tmp_path)
    with pytest.raises(DataError, match=says):
        load_episodes(tmp_path)


def test_lerobot_of_others_is_read(tmp_path: Path) -> None:
    """A v3 folder with two files, done flags of one, a second camera missing, and tasks in an index."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "data/chunk-000").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "float32", "shape": [1]},
    }
    info = {"codebase_version": "v3.0", "fps": 10, "robot_type": "so100", "features": features}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    pd.DataFrame({"task_index": [0, 1]}, index=["pick", "place"]).to_parquet(tmp_path / "meta/tasks.parquet")
    for file, episode in enumerate((1, 0)):
        steps = 3 + episode
        pd.DataFrame(
            {
                "episode_index": [episode] * steps,
                "frame_index": list(range(steps))[::-1],  # out of order
                "task_index": [episode] * steps,
                "observation.state": [np.float32([k, episode]) for k in range(steps)][::-1],
                "action": [np.float32([k / 10]) for k in range(steps)][::-1],
            }
        ).to_parquet(tmp_path / f"data/chunk-000/file-{file:03d}.parquet")
    found = load_episodes(tmp_path)
    assert [len(episode) for episode in found.episodes] == [3, 4]
    assert [episode.instruction for episode in found.episodes] == ["pick", "place"]
    assert found.episodes[1].state.tolist() == [[0, 1], [1, 1], [2, 1], [3, 1]]
    assert found.environment is not None
    assert found.environment.id == "so100"
    info["codebase_version"] = "v9.0"
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"version v9\.0"):
        load_episodes(tmp_path)


def test_lerobot_films_are_cut_into_episodes(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    write_lerobot(tmp_path / "set", Episodes("set", [_grey(3, 40), _grey(4, 200)], RECORD))
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    key = "observation.image"
    info |= {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4", "fps": 10}
    info["features"][key] = {"dtype": "video", "shape": [32, 32, 3]}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    about = pd.read_parquet(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet")
    for name, values in (("chunk_index", [0, 0]), ("file_index", [0, 0]), ("from_timestamp", [0.0, 0.3])):
        about[f"videos/{key}/{name}"] = values
    about.to_parquet(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet")
    film = tmp_path / f"set/videos/{key}/chunk-000/file-000.mp4"
    film.parent.mkdir(parents=True)
    with imageio.get_writer(film, fps=10, codec="libx264", macro_block_size=1) as writer:
        for grey in [40] * 3 + [200] * 4:
            writer.append_data(np.full((32, 32, 3), grey, np.uint8))
    found = load_episodes(tmp_path / "set").episodes
    for episode, steps, grey in zip(found, (3, 4), (40, 200), strict=True):
        assert episode.image is not None
        assert len(episode.image) == steps
        assert np.abs(episode.image.astype(int) - grey).max() < 12, "lossy, but far from the other's"


def _grey(steps: int, grey: int) -> Episode:
    return Episode(
        {"state": np.full((steps, 3), grey, np.float32)}, np.zeros((steps, 2), np.float32), np.zeros(steps)
    )


def test_a_folder_of_others_files_is_understood(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=np.ones((5, 2)), action=np.zeros((4, 1)), terminals=[0, 0, 0, 1])
    pd.DataFrame({"observation": [[1.0, 2.0]] * 3, "action": [0, 1, 2], "reward": [0.5] * 3}).to_parquet(
        tmp_path / "b.parquet"
    )
    first, second = read_episode(tmp_path / "a.npz"), read_episode(tmp_path / "b.parquet")
    assert first.terminated
    assert first.total == 0.0
    assert second.actions.tolist() == [0, 1, 2]
    assert second.total == 1.5
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 cut")
    np.savez(tmp_path / "d.npz", state=np.ones((5, 2)))
    found = load_episodes(tmp_path)
    names = [name for name, _ in found.left_out]
    assert names == ["b.parquet", "c.npz", "d.npz"] or names == ["c.npz", "d.npz", "b.parquet"]
    assert any("has no actions" in why for _, why in found.left_out)


def test_files_of_several_episodes_are_refused(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"obs": np.ones((6, 2)), "action": np.zeros((6, 1))}
    np.savez(tmp_path / "good.npz", **arrays, terminals=[0, 0, 0, 0, 1, 1])  # went on once it was done
    np.savez(tmp_path / "many.npz", **arrays, terminals=[0, 0, 1, 0, 0, 0], timeouts=[0, 0, 0, 0, 0, 1])
    np.savez(tmp_path / "list.npz", **arrays, about=np.array("[1]"))
    np.savez(tmp_path / "lone.npz", obs=np.ones((6, 2)), action=np.float64(1))
    (tmp_path / ".episode.writing.npz").write_bytes(b"PK")  # as a kill leaves it
    found = load_episodes(tmp_path)
    assert [episode.terminated for episode in found.episodes] == [True]
    reasons = dict(found.left_out)
    assert set(reasons) == {"many.npz", "list.npz", "lone.npz"}
    assert "one ends at step 2 of 6; expected a file an episode" in reasons["many.npz"]
    assert "no JSON object" in reasons["list.npz"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no card of that name \(cards: adroit-door-human"):
        load_episodes("nothing-of-the-kind")
    with pytest.raises(UsageError, match="not of robotics"):
        load_episodes("co2")
    with pytest.raises(DataError, match="holds no episodes"):
        load_episodes(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        load_episodes(tmp_path / "file.txt")
