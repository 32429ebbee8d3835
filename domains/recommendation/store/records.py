"""What is kept of one user, and the bytes that it is kept as.

The bytes begin with a digest of all the others and of the user's name. It tells damage, and a record that
belongs to someone else; and it is the record's version: two writers that began from the same digest began
from the same content.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

DIGEST = 16
_HEAD = struct.Struct("<QdI")  # events, seconds, bytes of the recent ids


@dataclass(frozen=True)
class Record:
    """What is kept of one user.

    Attributes:
        state: The model's state after the user's events, in whatever bytes the caller makes of it.
        n_events: Events that the state has read.
        time: Seconds of the latest of them, as the caller counts them; NaN if none had a time.
        recent: The ids of the last few events, the newest at the end.
    """

    state: bytes
    n_events: int
    time: float
    recent: tuple[str, ...]


def pack(user: str, record: Record) -> bytes:
    """The bytes of a record."""
    recent = json.dumps(record.recent).encode()
    body = _HEAD.pack(record.n_events, record.time, len(recent)) + recent + record.state
    return _digest(user, body) + body


def unpack(user: str, packed: object) -> Record:
    """The inverse of ``pack``.

    Raises:
        ValueError: If these are not the bytes of a record of this user.
    """
    if not isinstance(packed, bytes) or len(packed) < DIGEST + _HEAD.size:
        raise ValueError("it is cut short")
    body = packed[DIGEST:]
    if _digest(user, body) != packed[:DIGEST]:
        raise ValueError("its checksum is wrong")
    n_events, time, size = _HEAD.unpack_from(body)
    end = _HEAD.size + size
    return Record(body[end:], n_events, time, tuple(json.loads(body[_HEAD.size : end])))


def event_key(event_id: str) -> bytes:
    """16 bytes that stand for an event id of any length; two ids share them with a chance below 1e-20."""
    return hashlib.blake2b(event_id.encode(), digest_size=16).digest()


def _digest(user: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(user.encode(), digest_size=DIGEST)
    digest.update(b"\0%d\0" % len(body))
    digest.update(body)
    return digest.digest()
