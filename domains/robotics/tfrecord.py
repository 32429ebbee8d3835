"""TFRecord files of tf.train.Example, as RLDS data sets are stored, read without TensorFlow.

A record is its length (u64), a checksum (u32), the bytes, and their checksum (u32). The bytes are a protocol
buffer: Example.features.feature maps names to lists of bytes (field 1), floats (2) or integers (3).
Checksums are not computed: a card's sha256 covers the whole file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_examples(path: Path) -> Iterator[dict[str, Feature]]:
    """The features of each record, by name.

    Raises:
        DataError: If the file ends within a record, or a record is no tf.train.Example.
    """
    content = memoryview(path.read_bytes())
    place = number = 0
    while place < len(content):
        if place + 12 > len(content):
            raise DataError(f"{path}: ends within the head of record {number}")
        (length,) = struct.unpack_from("<Q", content, place)
        start, place = place + 12, place + 12 + length + 4
        if place > len(content):
            raise DataError(f"{path}: ends within record {number} ({length} bytes were promised)")
        try:
            yield _example(content[start : start + length])
        except (ValueError, LookupError, struct.error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: record {number} is no tf.train.Example ({error})") from error
        number += 1


def _example(message: memoryview) -> dict[str, Feature]:
    found: dict[str, Feature] = {}
    for field, features in _fields(message):
        if field != 1:
            continue
        for _, entry in _fields(_nested(features)):
            parts = dict(_fields(_nested(entry)))
            found[bytes(_nested(parts[1])).decode()] = _feature(_nested(parts[2]))
    return found


def _feature(message: memoryview) -> Feature:
    for kind, values in _fields(message):
        items = [item for _, item in _fields(_nested(values))]
        if kind == 1:
            return [bytes(_nested(item)) for item in items]
        if kind == 2:
            return np.concatenate(
                [np.frombuffer(_nested(item), "<f4") for item in items] or [np.zeros(0, "<f4")]
            )
        if kind == 3:
            integers: list[int] = []
            for item in items:  # packed, or one by one
                integers += _varints(item) if isinstance(item, memoryview) else [item]
            return np.array(integers, dtype=np.uint64).astype(np.int64)
    return []


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field numbers and values: bytes as they lie there, varints as numbers."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(message):
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _varints(message: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(message):
        value, place = _varint(message, place)
        values.append(value & 0xFFFFFFFFFFFFFFFF)
    return values


def _nested(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value
