"""Fetching: mirror, network with broken connections, hashes, and what is left behind when it fails."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mambakit.core.data import Card, CardFile, Source, fetch, load_card
from mambakit.core.data import download as download_module
from mambakit.core.errors import DataError

PLAIN = random.Random(0).randbytes(300_000)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(data: bytes, member: str = "inside/data.bin") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, data)
    return buffer.getvalue()


def tarred(data: bytes, member: str = "inside/data.bin") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(member)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


PACKERS = {"gzip": gzip.compress, "zip": zipped, "tar": tarred}


def card_for(url: str, served: bytes = PLAIN, **source: Any) -> Card:
    entry = Source(url=url, sha256=sha(served), size=len(served), mirror="timeseries/set/data.bin", **source)
    return Card(
        name="tiny", title="Tiny", domain="timeseries", license="mit", homepage="", version="1", tags=(),
        files=(CardFile("data.bin", sha(PLAIN), len(PLAIN), (entry,)),), columns=("y",), units={}, splits={},
    )  # fmt: skip


class Server(http.server.ThreadingHTTPServer):
    """Serves ``body`` at any path; drops the first ``drops`` connections after ``drop_after`` bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = PLAIN
        self.ranges = True
        self.drops = 0
        self.drop_after = 100_000
        self.status = 200
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Dropped connections are what these tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start and start >= len(server.body):
            self.send_error(416)
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            total = len(server.body)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if server.drops > 0:
            server.drops -= 1
            self.wfile.write(rest[: server.drop_after])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAKIT_DATA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    return tmp_path / "cache/timeseries/tiny"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAKIT_DATA_MIRROR", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror/timeseries/set"
    folder.mkdir(parents=True)
    return folder


def visible(folder: Path) -> list[str]:
    """What lies in the cache, without lock files."""
    return (
        sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))
        if folder.exists()
        else []
    )


class TestNetwork:
    def test_downloads_once(self, server: Server, cache: Path) -> None:
        card = card_for(server.url)
        for _ in range(2):
            paths = fetch(card)
            assert paths == {"data.bin": cache / "data.bin"}
            assert paths["data.bin"].read_bytes() == PLAIN
        assert server.requests == [None]
        assert visible(cache) == ["data.bin"]

    def test_continues_after_each_drop(self, server: Server, cache: Path) -> None:
        server.drops = 2
        assert fetch(card_for(server.url))["data.bin"].read_bytes() == PLAIN
        starts = [
            int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in server.requests if wanted
        ]
        assert len(starts) == 2
        assert 0 < starts[0] < starts[1] < len(PLAIN)

    def test_continues_in_a_later_call(self, server: Server, cache: Path) -> None:
        server.drops = 10**6
        server.drop_after = 0
        whole = server.body
        card = card_for(server.url)
        with pytest.raises(DataError, match=r"could not download data\.bin"):
            fetch(card)
        server.drops, server.drop_after = 1, 200_000
        server.requests.clear()

        class KilledError(Exception):
            pass

        def die(seconds: float) -> None:
            raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download_module.time, "sleep", die)
            with pytest.raises(KilledError):
                fetch(card)
        (part,) = cache.glob(".*.part")
        have = part.stat().st_size
        assert 0 < have <= 200_000
        assert part.read_bytes() == whole[:have]
        assert fetch(card)["data.bin"].read_bytes() == whole
        assert server.requests == [None, f"bytes={have}-"]
        assert visible(cache) == ["data.bin"]

    def test_starts_over_where_the_server_has_no_ranges(self, server: Server, cache: Path) -> None:
        server.drops, server.ranges = 2, False
        assert fetch(card_for(server.url))["data.bin"].read_bytes() == PLAIN

    def test_starts_over_when_the_part_is_not_of_this_file(self, server: Server, cache: Path) -> None:
        card = card_for(server.url)
        cache.mkdir(parents=True)
        part = cache / f".{sha(PLAIN)[:16]}.data.bin.part"
        part.write_bytes(bytes(1000))
        assert fetch(card)["data.bin"].read_bytes() == PLAIN
        assert server.requests == ["bytes=1000-", None]

    def test_wrong_hash_leaves_nothing(self, server: Server, cache: Path) -> None:
        server.body = bytes(len(PLAIN))
        with pytest.raises(DataError, match=r"does not match|hash") as caught:
            fetch(card_for(server.url))
        assert server.url in str(caught.value)
        assert visible(cache) == []

    @pytest.mark.parametrize("body", [PLAIN[:-5], PLAIN + b"more"], ids=["short", "long"])
    def test_wrong_size_leaves_nothing(self, server: Server, cache: Path, body: bytes) -> None:
        server.body = body
        with pytest.raises(DataError, match=f"{len(body):,} bytes instead of the 300,000 bytes"):
            fetch(card_for(server.url))
        assert visible(cache) == []

    @pytest.mark.parametrize("compression", PACKERS)
    def test_unpacks_and_checks_the_plain_bytes(self, server: Server, cache: Path, compression: str) -> None:
        member = {} if compression == "gzip" else {"member": "inside/data.bin"}
        server.body = PACKERS[compression](PLAIN)
        card = card_for(server.url, server.body, compression=compression, **member)
        assert fetch(card)["data.bin"].read_bytes() == PLAIN
        assert visible(cache) == ["data.bin"]

        other = bytes(10)
        server.body = PACKERS[compression](other)
        (cache / "data.bin").unlink()
        with pytest.raises(DataError, match="unpacks to other bytes"):
            fetch(card_for(server.url, server.body, compression=compression, **member))
        assert visible(cache) == []

    @pytest.mark.parametrize("compression", ["zip", "tar"])
    def test_an_archive_without_the_member_is_damaged(
        self, server: Server, cache: Path, compression: str
    ) -> None:
        server.body = PACKERS[compression](PLAIN)
        with pytest.raises(DataError, match="damaged, cannot be unpacked"):
            fetch(card_for(server.url, server.body, compression=compression, member="other.bin"))
        assert visible(cache) == []

    def test_next_source_is_tried(self, server: Server, cache: Path) -> None:
        (file,) = card_for(server.url).files
        dead = Source("http://127.0.0.1:9/data.bin", sha(PLAIN), len(PLAIN), mirror="timeseries/set/x")
        card = card_for(server.url)
        object.__setattr__(
            card, "files", (CardFile(file.name, file.sha256, file.size, (dead, *file.sources)),)
        )
        assert fetch(card)["data.bin"].read_bytes() == PLAIN

    def test_offline_says_what_to_do(self, cache: Path) -> None:
        with pytest.raises(DataError) as caught:
            fetch(card_for("http://127.0.0.1:9/data.bin"))
        message = str(caught.value)
        assert "set MAMBAKIT_DATA_MIRROR to a folder that holds timeseries/set/data.bin" in message
        assert f"fetch http://127.0.0.1:9/data.bin by hand and save it as {cache / 'data.bin'}" in message
        assert "\n" not in message

    def test_file_put_there_by_hand_is_used(self, cache: Path) -> None:
        cache.mkdir(parents=True)
        (cache / "data.bin").write_bytes(PLAIN)
        assert fetch(card_for("http://127.0.0.1:9/data.bin"))["data.bin"].read_bytes() == PLAIN

    def test_refusal_names_the_status(self, server: Server) -> None:
        server.status = 404
        with pytest.raises(DataError, match="404"):
            fetch(card_for(server.url))

    def test_damaged_cache_is_fetched_again(
        self, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        card = card_for(server.url)
        (path,) = fetch(card).values()
        path.write_bytes(bytes(len(PLAIN)))
        assert fetch(card)["data.bin"].read_bytes() == PLAIN
        assert "fetching it again" in capsys.readouterr().err

    def test_many_at_once_fetch_once(self, server: Server) -> None:
        card = card_for(server.url)
        with ThreadPoolExecutor(8) as pool:
            for paths in pool.map(lambda _: fetch(card), range(8)):
                assert paths["data.bin"].read_bytes() == PLAIN
        assert server.requests == [None]


class TestMirror:
    def test_comes_before_the_network(self, mirror: Path, server: Server) -> None:
        (mirror / "data.bin").write_bytes(PLAIN)
        assert fetch(card_for(server.url))["data.bin"].read_bytes() == PLAIN
        assert server.requests == []

    def test_gzipped_copy_will_do(self, mirror: Path, server: Server) -> None:
        (mirror / "data.bin.gz").write_bytes(gzip.compress(PLAIN))
        assert fetch(card_for(server.url))["data.bin"].read_bytes() == PLAIN
        assert server.requests == []

    def test_without_the_file_the_network_is_asked(self, mirror: Path, server: Server) -> None:
        assert fetch(card_for(server.url))["data.bin"].read_bytes() == PLAIN

    @pytest.mark.parametrize("name", ["data.bin", "data.bin.gz"])
    @pytest.mark.parametrize("damage", ["other bytes", "cut short"])
    def test_damaged_file_is_an_error_that_names_it(
        self, mirror: Path, server: Server, cache: Path, name: str, damage: str
    ) -> None:
        good = gzip.compress(PLAIN) if name.endswith(".gz") else PLAIN
        wrong = gzip.compress(bytes(9)) if name.endswith(".gz") else bytes(9)
        (mirror / name).write_bytes(wrong if damage == "other bytes" else good[:-1000])
        with pytest.raises(DataError, match=f"mirror/timeseries/set/{name}: damaged"):
            fetch(card_for(server.url))
        assert server.requests == []
        assert visible(cache) == []

    def test_missing_folder_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAMBAKIT_DATA_MIRROR", "/no/such/folder")
        with pytest.raises(DataError, match="MIRROR names /no/such/folder, which is not a folder"):
            fetch(card_for("http://127.0.0.1:9/data.bin"))


def test_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAMBAKIT_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write to the data cache .* set MAMBAKIT_DATA"):
        fetch(card_for("http://127.0.0.1:9/data.bin"))


def test_embedded_data_needs_nothing() -> None:
    assert fetch(load_card("co2")) == {}


REAL_MIRROR = os.environ.get("MAMBAKIT_DATA_MIRROR")


@pytest.mark.skipif(not REAL_MIRROR, reason="real files are read only where MAMBAKIT_DATA_MIRROR is set")
@pytest.mark.parametrize("name", ["ETTh1", "ETTm1", "Weather", "Exchange"])
def test_real_file_is_the_card_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    monkeypatch.setenv("MAMBAKIT_DATA_MIRROR", str(REAL_MIRROR))
    card = load_card(name)
    (path,) = fetch(card).values()
    frame = pd.read_csv(path, header=0 if card.time_column else None)
    assert len(frame) == card.rows
    names = list(frame.columns)
    if card.time_column:
        assert names == [card.time_column, *card.columns]
    else:
        assert len(names) == len(card.columns)
