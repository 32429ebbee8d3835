"""Recorded data sets: TFRecord without TensorFlow, pickles that only hold arrays, and the cards' files."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError
from mambakit.domains.robotics.cards import load_episodes, robotics_cards
from mambakit.domains.robotics.recorded import read_adroit
from mambakit.domains.robotics.tfrecord import read_examples

real = pytest.mark.skipif(not os.environ.get("MAMBAKIT_DATA_MIRROR"), reason="needs MAMBAKIT_DATA_MIRROR")


def varint(number: int) -> bytes:
    number &= 0xFFFFFFFFFFFFFFFF
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(features: dict[str, Any], *, packed: bool = True) -> bytes:
    """A tf.train.Example in its frame."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            cells = [struct.pack("<f", value) for value in values]
            inner = (
                field(1, b"".join(cells)) if packed else b"".join(varint(1 << 3 | 5) + cell for cell in cells)
            )
            feature = field(2, inner)
        else:
            cells = [varint(value) for value in values]
            inner = field(1, b"".join(cells)) if packed else b"".join(varint(1 << 3) + cell for cell in cells)
            feature = field(3, inner)
        entries += field(1, field(1, name.encode()) + field(2, feature))
    example = field(1, entries)
    return struct.pack("<QI", len(example), 0) + example + b"\0\0\0\0"


VALUES = st.one_of(
    st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), max_size=3), st.booleans())
def test_examples_come_back_as_they_were(examples: list[dict[str, Any]], packed: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tfrecord"
        path.write_bytes(b"".join(record(features, packed=packed) for features in examples))
        found = list(read_examples(path))
    assert len(found) == len(examples)
    for a, b in zip(found, examples, strict=True):
        assert {name: list(values) for name, values in a.items()} == b


@pytest.mark.parametrize("cut", [5, 20, -2])
def test_records_that_end_early_are_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.tfrecord"
    path.write_bytes((record({"a": [1, 2]}) + record({"b": [0.5] * 9}))[:cut])
    with pytest.raises(DataError, match="ends within"):
        list(read_examples(path))
    path.write_bytes(struct.pack("<QI", 3, 0) + b"\xff\xff\xff" + b"\0" * 4)
    with pytest.raises(DataError, match=r"record 0 is no tf\.train\.Example"):
        list(read_examples(path))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_can_do_nothing_but_hold_arrays(tmp_path: Path) -> None:
    one = {"observations": np.zeros((4, 39)), "actions": np.zeros((4, 28)), "rewards": np.ones(4)}
    path = tmp_path / "demos.pickle"
    path.write_bytes(pickle.dumps([one], protocol=3))
    assert read_adroit(path).episodes[0].total == 4.0
    path.write_bytes(pickle.dumps([one, Bomb(tmp_path / "made")], protocol=3))
    with pytest.raises(DataError, match=r"posix\.mkdir, which is no array"):
        read_adroit(path)
    assert not (tmp_path / "made").exists()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="no pickle of arrays"):
        read_adroit(path)
    path.write_bytes(pickle.dumps([{"actions": np.zeros(3)}]))
    with pytest.raises(DataError, match="demonstration 0 lacks"):
        read_adroit(path)


def test_the_embedded_card_is_made_in_the_process() -> None:
    found = load_episodes("reacher-noisy")
    assert (len(found), found.n_steps) == (200, 10_000)
    assert found.totals[:20].mean() > -6
    assert found.totals[-20:].mean() < -20


@real
def test_widowx_is_as_its_card_says() -> None:
    found = load_episodes("widowx")
    assert (len(found), found.n_steps, found.left_out) == (25, 250, [])
    assert len({episode.instruction for episode in found.episodes}) == 4
    deviation = np.concatenate([episode.actions for episode in found.episodes]).std(0)
    assert deviation == pytest.approx([0.006, 0.006, 0.008, 0.036, 0.029, 0.036, 0.434], abs=6e-4)
    assert found.image_size == (64, 64)
    assert all(episode.image is not None and episode.image.std() > 20 for episode in found.episodes)


@real
def test_adroit_is_as_its_card_says() -> None:
    found = load_episodes("adroit-door-human")
    assert (len(found), found.n_steps) == (25, 6729)
    lengths = [len(episode) for episode in found.episodes]
    assert (min(lengths), max(lengths)) == (223, 300)
    assert found.environment is not None
    assert found.environment.reference_expert == pytest.approx(2880.5693)
    assert np.mean([np.abs(episode.actions).max() > 1 for episode in found.episodes]) > 0.5, (
        "as its traps say"
    )


def test_cards_are_those_that_can_be_loaded() -> None:
    assert robotics_cards() == ["adroit-door-human", "reacher-noisy", "widowx"]
