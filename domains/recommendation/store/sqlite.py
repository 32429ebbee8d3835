"""The store in one SQLite file: no server, and any number of processes of one machine.

The file is in WAL mode (https://sqlite.org/wal.html): reading waits for nobody, and a writer holds the
file only while it compares and writes. With ``durable`` each commit waits for the disk. Without, a power cut
may take the last commits away, whole ones, and a killed process still takes none.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mambakit.core.errors import DataError, UserError
from mambakit.domains.recommendation.store.base import ANEW, FORMAT, Change, Found, Store
from mambakit.domains.recommendation.store.records import DIGEST

_APPLICATION_ID = 0x6D6B7573  # "mkus"
_BUSY_S = 30.0
_PAGE = 1000  # users that iteration reads at once
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL UNIQUE, record BLOB NOT NULL);
CREATE TABLE events (user INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (user, event)) WITHOUT ROWID;
"""
# Errors by the beginnings of SQLite's names for them; all others tell of damage.
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_ELSEWHERE = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM")


class SqliteStore(Store):
    """States of users in a file.

    Args:
        path: The file; made if missing.
        fingerprint: Of the model.
        anew: Begin with no users, whatever model the file belonged to. A damaged file, or one that is no
            store, is moved aside to NAME.damaged; no other process should have it open then.
        durable: Whether an update that has returned outlives a power cut too.

    Raises:
        DataError: If the file is no store, is damaged, or belongs to another model.
        UserError: If it can't be made or opened.
    """

    def __init__(
        self, path: Path | str, fingerprint: str, *, anew: bool = False, durable: bool = True
    ) -> None:
        # absolute, as a process may change its folder
        self._path = Path(path).absolute()
        super().__init__(os.fspath(path), fingerprint)
        self._durable = durable
        self._idle: list[sqlite3.Connection] = []
        self._owner = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._closed = False
        if self._path.is_dir() or not self._path.parent.is_dir():
            why = "it is a folder" if self._path.is_dir() else f"there is no folder {self._path.parent}"
            raise UserError(f"can't keep states in {self.name}: {why}")
        try:
            if anew:
                self._empty()
            if not self._path.exists():
                self._create()
            self._check()
        except BaseException:
            self.close()
            raise

    def delete(self, user: str) -> bool:
        with self._writing() as connection:
            row = connection.execute("SELECT id FROM users WHERE user = ?", (user,)).fetchone()
            if row is not None:
                connection.execute("DELETE FROM events WHERE user = ?", row)
                connection.execute("DELETE FROM users WHERE id = ?", row)
        return row is not None

    def __len__(self) -> int:
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM users").fetchone()[0])

    def __iter__(self) -> Iterator[str]:
        last = 0
        while True:
            with self._connection() as connection:
                rows = connection.execute(
                    "SELECT id, user FROM users WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (user for _, user in rows)

    def close(self) -> None:
        self._closed = True
        while self._idle and self._owner == os.getpid():
            self._idle.pop().close()

    def _find(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[Found]:
        with self._connection() as connection:
            connection.execute("BEGIN")  # all that is read in it is of one moment
            model = _one(connection, "SELECT value FROM meta WHERE key = 'fingerprint'")
            found = []
            for user, keys in asked:
                row = connection.execute("SELECT id, record FROM users WHERE user = ?", (user,)).fetchone()
                number, packed = row or (None, None)
                found.append(Found(model, packed, {key for key in keys if _applied(connection, number, key)}))
            connection.execute("COMMIT")
        return found

    def _swap(self, changes: Sequence[Change]) -> list[bool]:
        written = []
        with self._writing() as connection:
            for user, keys, version, packed in changes:
                row = connection.execute(
                    f"SELECT id, substr(record, 1, {DIGEST}) FROM users WHERE user = ?", (user,)
                ).fetchone()
                number, found = row or (None, b"")
                same = found == version and not any(_applied(connection, number, key) for key in keys)
                if same:
                    self._write(connection, user, keys, packed)
                written.append(same)
        return written

    def _replace(self, user: str, keys: list[bytes], packed: bytes) -> None:
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM events WHERE user = (SELECT id FROM users WHERE user = ?)", (user,)
            )
            self._write(connection, user, keys, packed)

    def _write(self, connection: sqlite3.Connection, user: str, keys: list[bytes], packed: bytes) -> None:
        connection.execute(
            "INSERT INTO users (user, record) VALUES (?, ?) "
            "ON CONFLICT (user) DO UPDATE SET record = excluded.record",
            (user, packed),
        )
        number = connection.execute("SELECT id FROM users WHERE user = ?", (user,)).fetchone()[0]
        connection.executemany("INSERT INTO events VALUES (?, ?)", [(number, key) for key in keys])

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the file's write lock from its beginning, and is committed at its end."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._check_model(_one(connection, "SELECT value FROM meta WHERE key = 'fingerprint'"))
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of our own for a while; on an error, what is not committed is taken back."""
        if self._owner != os.getpid():
            # forked: what was opened before belongs to the parent, and may not even be closed here
            # (https://sqlite.org/howtocorrupt.html, 2.6)
            self._inherited, self._idle, self._owner = self._idle, [], os.getpid()
        if self._closed:
            raise ValueError(f"{self.name} is closed")
        with self._errors():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect(self._path)
            try:
                yield connection
            except BaseException:
                connection.close()  # which takes back what is not committed
                raise
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _connect(self, path: Path, mode: str = "rw") -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,  # one thread at a time has it, but not always the same
        )
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(_BUSY):
                raise UserError(
                    f"{self.name} is locked by another process, {_BUSY_S:.0f} s long; end what holds it"
                ) from error
            if code.startswith(_ELSEWHERE):
                raise UserError(f"can't keep states in {self.name}: {error}") from error
            raise DataError(
                f"{self.name} is damaged or no store of states ({error}); put a copy in its place, or "
                f"begin it anew ({ANEW}) and rebuild it from the users' histories"
            ) from error

    def _create(self) -> None:
        """Make the file beside its place, and move it there at once: nobody ever sees half of one."""
        beside = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            with self._errors():
                connection = self._connect(beside, "rwc")
                try:
                    connection.execute("PRAGMA journal_mode = WAL")  # the file remembers it
                    connection.executescript(
                        f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT}; "
                        f"{_SCHEMA} COMMIT;"
                    )
                    connection.execute("INSERT INTO meta VALUES ('fingerprint', ?)", (self.fingerprint,))
                finally:
                    connection.close()  # which moves all of the WAL into the file
            os.link(beside, self._path)
            if self._durable and os.name == "posix":
                folder = os.open(self._path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)  # its new name too
                finally:
                    os.close(folder)
        except FileExistsError:
            pass  # someone else was quicker
        except OSError as error:
            raise UserError(f"can't keep states in {self.name}: {error}") from error
        finally:
            beside.unlink(missing_ok=True)

    def _check(self) -> None:
        """Raises DataError unless the file is a store of our format and model."""
        if self._path.stat().st_size == 0:
            raise DataError(
                f"{self.name} is empty, so what it held is lost; put a copy in its place, or delete it"
            )
        with self._connection() as connection:
            self._check_kind(connection)
        [found] = self._find([("", [b""])])  # every table and column
        self._check_model(found.fingerprint)

    def _empty(self) -> None:
        """Empty a store that can be read, under its lock; move a file aside that can't."""
        if not self._path.exists():
            return
        try:
            with self._connection() as connection:
                self._check_kind(connection)
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DELETE FROM events")
                connection.execute("DELETE FROM users")
                connection.execute("REPLACE INTO meta VALUES ('fingerprint', ?)", (self.fingerprint,))
                connection.execute("COMMIT")
        except DataError:
            while self._idle:
                self._idle.pop().close()
            for suffix in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))

    def _check_kind(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise DataError(f"{self.name} is a database of something else, not of states; name another file")
        self._check_format(connection.execute("PRAGMA user_version").fetchone()[0])


def _one(connection: sqlite3.Connection, query: str, *values: object) -> Any:
    """The first column of the first row; None for no row."""
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


def _applied(connection: sqlite3.Connection, number: int | None, key: bytes) -> bool:
    return _one(connection, "SELECT 1 FROM events WHERE user = ? AND event = ?", number, key) is not None
